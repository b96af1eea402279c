"""Who pays, for staff: users, API keys, and the mails to customers. The account's own page is in :mod:`analytics.account_page`."""

from __future__ import annotations

import json
from typing import Any, cast
from uuid import uuid4

import structlog
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.admin import UserAdmin as BaseUserAdmin
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.core.mail import EmailMultiAlternatives, make_msgid
from django.db import transaction
from django.db.models import QuerySet
from django.forms.models import BaseInlineFormSet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action, display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminFileFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from accounts import acts, api_keys, approvals, branding, letters, mail_delivery, mail_samples, mails, staff_door
from accounts.forms import read_logo
from accounts.logos import MAX_BYTES, Logo
from accounts.models import Account, ApiKey, Approval, Brand, Mail, Membership, User
from pricing.admin import CappedPaginator, ReadOnlyAdmin
from pricing.models import Product

log = structlog.get_logger(__name__)

admin.site.unregister(Group)
admin.site.unregister(EmailAddress)
admin.site.unregister(Authenticator)  # its rows hold the secrets of second factors


class MembershipFormSet(BaseInlineFormSet):  # type: ignore[type-arg]
    """Says beside the rows what the database would refuse."""

    def clean(self) -> None:
        super().clean()
        ends = {
            form.instance.pk
            for form in self.initial_forms
            if form.cleaned_data.get("DELETE") or "account" in form.changed_data or form.cleaned_data.get("role") != Membership.Role.OWNER
        }
        owners = Membership.objects.filter(role=Membership.Role.OWNER)
        for membership in owners.filter(pk__in=ends).select_related("account__product"):
            if not owners.filter(account=membership.account).exclude(pk__in=ends).exists():
                raise forms.ValidationError(f"{membership.account} would have no owner. Make somebody else an owner first, and save that.")


class MembershipInline(TabularInline):  # type: ignore[misc]
    model = Membership
    formset = MembershipFormSet
    extra = 0
    autocomplete_fields = ("account", "user")


class EmailForm(UserCreationForm):  # type: ignore[misc]
    class Meta:
        model = User
        fields = ("email",)


@admin.register(User)
class UserAdmin(acts.Audited, BaseUserAdmin, ModelAdmin):  # type: ignore[misc, type-arg]
    """Only superusers say who is staff, and only they touch another superuser."""

    form = UserChangeForm
    add_form = EmailForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("email", "full_name", "is_active", "is_staff", "date_joined", "last_login")
    list_filter = ("is_staff", "is_superuser", "is_active")
    search_fields = ("email", "first_name", "last_name")
    ordering = ("-date_joined",)
    fieldsets = (
        (None, {"fields": ("email", "password", "first_name", "last_name", "is_active")}),
        ("Staff", {"fields": ("is_staff", "is_superuser", "groups", "user_permissions")}),
        ("Dates", {"fields": ("date_joined", "last_login")}),
    )
    add_fieldsets = ((None, {"fields": ("email", "usable_password", "password1", "password2")}),)
    readonly_fields = ("date_joined", "last_login")
    inlines = (MembershipInline,)

    @display(description="Name", empty_value="–")
    def full_name(self, user: User) -> str | None:
        return user.get_full_name() or None

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:
        return (
            self.readonly_fields
            if request.user.is_superuser
            else (*self.readonly_fields, "is_staff", "is_superuser", "groups", "user_permissions")
        )

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        if obj is not None and obj.is_superuser and not request.user.is_superuser:
            return False
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return False


class KeyForm(forms.Form):
    """What a new API key may do. ``token`` makes one key of one form, however often it is sent."""

    token = forms.CharField(widget=forms.HiddenInput)
    product = forms.ModelChoiceField(Product.objects.order_by("name"), widget=UnfoldAdminSelectWidget)
    name = forms.CharField(max_length=120, widget=UnfoldAdminTextInputWidget, help_text="Where the key is used, e.g. “production backend”.")
    scopes = forms.MultipleChoiceField(
        choices=[(scope, scope) for scope in ApiKey.Scope.values], widget=UnfoldAdminCheckboxSelectMultipleWidget
    )

    def __init__(self, *args: Any, account: Account | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if account:
            del self.fields["product"]
            self.fields["scopes"].choices = [(scope, scope) for scope in ApiKey.Scope.values if scope != ApiKey.Scope.ADMIN_READ]  # type: ignore[attr-defined]


class ReasonForm(forms.Form):
    reason = forms.CharField(
        max_length=300, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Kept in the audit log, with your name."
    )


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """Keys are issued and revoked here, never edited."""

    list_display = ("name", "shown", "product", "account", "scopes_", "created_at", "last_used_at", "state")
    list_filter = ("product",)
    search_fields = ("name", "prefix", "=account__public_id", "=account__external_id")
    list_select_related = ("product", "account__product")
    fields = (
        "name",
        "shown",
        "product",
        "account",
        "scopes_",
        "created_at",
        "created_by",
        "expires_at",
        "last_used_at",
        "revoked_at",
        "revoked_by",
    )
    change_form_before_template = "admin/accounts/revoke_link.html"

    @display(description="Key")
    def shown(self, key: ApiKey) -> str:
        return f"{key.prefix}…"

    @display(description="Scopes")
    def scopes_(self, key: ApiKey) -> str:
        return ", ".join(key.scopes)

    @display(description="State", label={"active": "success", "revoked": "danger", "expired": "warning"})
    def state(self, key: ApiKey) -> str:
        if key.revoked_at:
            return "revoked"
        return "expired" if key.expires_at and key.expires_at <= timezone.now() else "active"

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("accounts.add_apikey")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.revoke_view)
        return [path("<int:key_id>/revoke/", view, name="accounts_apikey_revoke"), *super().get_urls()]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        account = self._account(request.GET.get("account"))
        form = KeyForm(request.POST or None, account=account, initial={"token": uuid4().hex})
        if request.method == "GET":
            request.session["key_form"] = form.initial["token"]
        elif form.is_valid():
            if request.session.pop("key_form", None) != form.cleaned_data["token"]:
                form.add_error(None, "This form has issued its key already. Open it again for another one.")
            else:
                product = account.product if account else form.cleaned_data["product"]
                try:
                    issued = api_keys.issue(
                        product=product, account=account, name=form.cleaned_data["name"], scopes=form.cleaned_data["scopes"],
                        created_by=actor(request), now=timezone.now(),
                    )  # fmt: skip
                except api_keys.InvalidGrant as error:
                    form.add_error(None, str(error))
                else:
                    self.log_addition(request, issued.key, f"Issued, with {', '.join(issued.key.scopes)}.")
                    response = self._page(request, "Key issued", "admin/accounts/key_issued.html", issued=issued, account=account)
                    response.headers["Cache-Control"] = "no-store"
                    return response
        title = f"Issue an API key for {account}" if account else "Issue a product key"
        return self._page(request, title, "admin/accounts/issue_key.html", form=form, account=account)

    def revoke_view(self, request: HttpRequest, key_id: int) -> HttpResponse:
        if not request.user.has_perm("accounts.change_apikey"):
            raise PermissionDenied
        key = ApiKey.objects.select_related("product", "account__product").filter(pk=key_id).first()
        if key is None:
            raise Http404
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            api_keys.revoke(key=key, now=timezone.now(), revoked_by=actor(request))
            self.log_change(request, key, f"Revoked: {form.cleaned_data['reason']}")
            self.message_user(request, f"{key} is revoked.", messages.SUCCESS)
            target = (
                reverse("admin:accounts_account_change", args=[key.account_id])
                if key.account_id
                else reverse("admin:accounts_apikey_changelist")
            )
            return HttpResponseRedirect(target)
        return self._page(request, f"Revoke {key}", "admin/accounts/revoke_key.html", form=form, key=key)

    def _account(self, value: str | None) -> Account | None:
        """The account that the address names. :raises Http404: there is none."""
        if value is None:
            return None
        account = Account.objects.select_related("product").filter(public_id=value).first() if value.isprintable() else None
        if account is None:
            raise Http404
        return account

    def _page(self, request: HttpRequest, title: str, template: str, **context: Any) -> TemplateResponse:
        return TemplateResponse(request, template, self.admin_site.each_context(request) | {"title": title, "opts": self.opts} | context)


STATES = {"pending": "info", "sent": "success", "suppressed": "warning", "dead": "danger"}


@admin.register(Mail)
class MailAdmin(ReadOnlyAdmin):
    """The outbox, and what every kind of mail looks like."""

    list_display = ("queued_at", "kind", "account", "state_", "to", "attempts", "why")
    list_filter = ("state", "kind", "account__product")
    list_select_related = ("account__product__unit",)
    show_full_result_count = False
    paginator = CappedPaginator
    search_fields = ("=account__public_id", "=account__external_id", "=recipient")
    search_help_text = "An account's id, the client's own id of it, or an invited address."
    ordering = ("-queued_at", "-pk")
    actions = ("send_again", "set_aside")
    list_before_template = "admin/accounts/previews_link.html"
    fields = (
        "kind", "account", "state_", "reason", "to", "says", "key", "attempts", "next_attempt_at", "useless_at", "queued_at", "done_at",
        "sendings", "facts",
    )  # fmt: skip

    @display(description="State", label=STATES)
    def state_(self, mail: Mail) -> str:
        return mail.state

    @display(description="To", empty_value="–")
    def to(self, mail: Mail) -> str | None:
        return ", ".join(mail.sent_to) or mail.recipient or None

    @display(description="Why", empty_value="–")
    def why(self, mail: Mail) -> str | None:
        return mail.reason[:100] or None

    @display(description="Facts")
    def facts(self, mail: Mail) -> SafeString:
        return format_html('<pre class="tg-pre">{}</pre>', json.dumps(mail.context, indent=2, ensure_ascii=False))

    @display(description="What it says now", empty_value="–")
    def says(self, mail: Mail) -> SafeString | None:
        try:
            message = mail_delivery.compose(mail=mail, recipients=[])
        except letters.InvalidContext as error:
            return format_html('<span class="bad">{}</span>', error)
        return format_html('<pre class="tg-pre"><b>{}</b>\n\n{}</pre>', message.subject, message.body)

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("accounts.change_mail")

    @action(description="Send again…", permissions=["decide"])
    def send_again(self, request: HttpRequest, chosen: QuerySet[Mail]) -> HttpResponse | None:
        return self._decide(request, chosen, "send_again", "Send again")

    @action(description="Set aside…", permissions=["decide"])
    def set_aside(self, request: HttpRequest, chosen: QuerySet[Mail]) -> HttpResponse | None:
        return self._decide(request, chosen, "set_aside", "Set aside")

    def _decide(self, request: HttpRequest, chosen: QuerySet[Mail], verb: str, title: str) -> HttpResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            reason, now, ids = form.cleaned_data["reason"], timezone.now(), list(chosen.values_list("pk", flat=True))
            with transaction.atomic():
                if verb == "send_again":
                    decided = mails.send_again(mail_ids=ids, now=now)
                else:
                    decided = mails.set_aside(mail_ids=ids, reason=reason, now=now)
                for mail in decided:
                    self.log_change(request, mail, f"{title}: {reason}")
            self.message_user(request, f"{title}: {len(decided)} of {len(ids)} mail{'' if len(ids) == 1 else 's'}.", messages.SUCCESS)
            return None
        context = {"mails": chosen, "form": form, "verb": verb, "button": title, "checkbox": ACTION_CHECKBOX_NAME}
        title = f"{title}: {chosen.count()} mail{'' if chosen.count() == 1 else 's'}"
        return TemplateResponse(
            request,
            "admin/accounts/decide_mails.html",
            self.admin_site.each_context(request) | {"title": title, "opts": self.opts} | context,
        )

    # What each kind looks like ------------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.previews_view)
        return [path("previews/", view, name="accounts_mail_previews"), *super().get_urls()]

    def previews_view(self, request: HttpRequest) -> HttpResponse:
        """One kind of mail from one product, with invented facts, as text and as HTML. A POST sends it to who asks and nobody else."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        products = list(Product.objects.select_related("unit").order_by("name"))
        product = next((each for each in products if each.slug == request.GET.get("product", each.slug)), None)
        kind = request.GET.get("kind", Mail.Kind.RECEIPT)
        if kind not in Mail.Kind.values or (products and product is None):
            raise Http404
        shown: dict[str, Any] = {"products": products, "product": product, "kinds": Mail.Kind.choices, "kind": kind}
        if product is not None and isinstance(request.user, User):
            sample = mail_samples.mail(kind=kind, product=product, person=request.user, now=timezone.now())
            message = mail_delivery.compose(mail=sample, recipients=[request.user.email])
            if request.method == "POST":
                message.subject = f"[Preview] {message.subject}"
                message.extra_headers["Message-ID"] = make_msgid(domain="preview.invalid")
                self._send(request, message)
                return HttpResponseRedirect(request.get_full_path())
            shown |= {"message": message, "html": message.alternatives[0][0]}
        context = self.admin_site.each_context(request) | {"title": "Mail previews", "opts": self.opts} | shown
        return TemplateResponse(request, "admin/accounts/mail_previews.html", context)

    def _send(self, request: HttpRequest, message: EmailMultiAlternatives) -> None:
        try:
            message.send()
        except Exception as error:
            log.warning("preview not sent", exc_info=error)
            self.message_user(request, f"It could not be sent. {type(error).__name__}: {letters.line(str(error))}", messages.ERROR)
        else:
            self.message_user(request, f"Sent to {message.to[0]}.", messages.SUCCESS)


class ProductLogoForm(forms.ModelForm):  # type: ignore[type-arg]
    logo_file = forms.FileField(
        label="Logo", widget=UnfoldAdminFileFieldWidget, help_text=f"PNG, JPEG or WebP, at most {MAX_BYTES // 1024} KB, shown 24 px high."
    )

    class Meta:
        model = Brand
        fields = ("product",)

    def clean_logo_file(self) -> Logo:
        return read_logo(self.cleaned_data["logo_file"])


@admin.register(Brand)
class BrandAdmin(acts.Audited, ModelAdmin):  # type: ignore[misc]
    """Products' logos are given here; their colours are in their catalogs. A team's brand is its own: staff only take it away."""

    form = ProductLogoForm
    list_display = ("whose", "has_logo", "colour", "updated_at", "updated_by")
    list_select_related = ("account__product", "product", "updated_by")
    search_fields = ("account__name", "=account__public_id", "product__name")
    ordering = ("-updated_at",)

    @display(description="Of")
    def whose(self, brand: Brand) -> str:
        return str(brand.account or brand.product)

    @display(description="Logo")
    def has_logo(self, brand: Brand) -> SafeString | str:
        if not brand.logo_digest:
            return "–"
        return format_html('<img src="{}" alt="" height="24">', reverse("logo", args=[brand.logo_digest]))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Brand]:
        queryset: QuerySet[Brand] = super().get_queryset(request).defer("logo")
        return queryset

    def get_readonly_fields(self, request: HttpRequest, obj: Brand | None = None) -> tuple[str, ...]:
        return ("product",) if obj else ()

    def get_fields(self, request: HttpRequest, obj: Brand | None = None) -> tuple[str, ...]:
        if obj is not None and obj.account_id:
            return ("account", "colour", "updated_at", "updated_by")
        return ("product", "logo_file")

    def has_change_permission(self, request: HttpRequest, obj: Brand | None = None) -> bool:
        return super().has_change_permission(request, obj) and (obj is None or obj.account_id is None)

    def save_model(self, request: HttpRequest, obj: Brand, form: Any, change: bool) -> None:
        stored = branding.dress_product(
            product=obj.product or form.cleaned_data["product"],
            logo=form.cleaned_data["logo_file"],
            actor=cast(User, request.user),
            now=timezone.now(),
        )
        obj.pk = stored.pk


class DecideForm(forms.Form):
    """A second person's word. ``decision`` is the button."""

    decision = forms.ChoiceField(choices=[("approve", "Approve"), ("refuse", "Refuse")], widget=forms.HiddenInput)
    note = forms.CharField(
        max_length=300, required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Needed to refuse. Kept in the audit log, with your name.",
    )  # fmt: skip

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if cleaned.get("decision") == "refuse" and not cleaned.get("note") and "note" not in self.errors:
            self.add_error("note", "Say why it is not done.")
        return cleaned


@admin.register(Approval)
class ApprovalAdmin(ReadOnlyAdmin):
    """What waits for a second person, and what became of the rest."""

    list_display = ("after", "reason", "asked_by", "asked_at", "expires_at", "state_", "decided_by")
    list_filter = ("state", "kind")
    list_select_related = ("asked_by", "decided_by")
    search_fields = ("after", "reason", "asked_by__email", "decided_by__email")
    fields = ("after", "before", "reason", "asked_by", "asked_at", "expires_at", "state_", "decided_by", "decided_at", "note")
    change_form_before_template = "admin/accounts/decide_link.html"

    @display(description="State", label={"waiting": "warning", "approved": "success", "refused": "danger", "ran out": "info"})
    def state_(self, approval: Approval) -> str:
        if approval.state == Approval.State.PENDING:
            return "waiting" if approval.is_pending(timezone.now()) else "ran out"
        return approval.state

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.decide_view)
        return [path("<int:approval_id>/decide/", view, name="accounts_approval_decide"), *super().get_urls()]

    def decide_view(self, request: HttpRequest, approval_id: int) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        approval = Approval.objects.select_related("asked_by").filter(pk=approval_id).first()
        if approval is None:
            raise Http404
        person, now = cast(User, request.user), timezone.now()
        staff_door.fresh(request, now=now)
        form = DecideForm(request.POST or None)
        if form.is_valid():
            try:
                if form.cleaned_data["decision"] == "approve":
                    done = approvals.approve(approval=approval, actor=person, now=now, note=form.cleaned_data["note"])
                else:
                    approvals.refuse(approval=approval, actor=person, now=now, note=form.cleaned_data["note"])
                    done = "Nothing was done."
            except approvals.NotAllowed as error:
                raise PermissionDenied(str(error)) from error
            except approvals.ApprovalError as error:
                form.add_error(None, str(error))
            else:
                self.message_user(request, done, messages.SUCCESS)
                return HttpResponseRedirect(reverse("admin:accounts_approval_changelist"))
        waiting = approval.is_pending(now)
        context = {
            "title": approvals.act(kind=approval.kind).name,
            "opts": self.opts,
            "approval": approval,
            "change": approvals.change(approval=approval, now=now) if waiting else None,
            "form": form,
            "may": approvals.may_decide(approval=approval, actor=person, now=now),
            "own": approval.asked_by_id == person.pk,
        }
        return TemplateResponse(request, "admin/accounts/decide_approval.html", self.admin_site.each_context(request) | context)


def actor(request: HttpRequest) -> str:
    """Who acts, as the ledger and the audit trail keep it: at most 150 characters."""
    return request.user.get_username()[:150]


from accounts import audit_admin as audit_admin  # noqa: E402 (they register their pages, which use what is above)
from accounts import webhook_admin as webhook_admin  # noqa: E402
