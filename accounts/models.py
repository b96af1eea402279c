"""Who pays: users, the accounts they belong to, and the API keys that act for them."""

from __future__ import annotations

import secrets
import uuid
import zoneinfo
from datetime import datetime
from typing import Any, ClassVar

from django.contrib.admin.models import LogEntry
from django.contrib.auth.base_user import BaseUserManager
from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower, Now
from django.utils import timezone

from pricing.models import CostTier, Product, RateCard


class UserManager(BaseUserManager["User"]):
    """Users are created by email address; there are no user names."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        if not email:
            raise ValueError("A user needs an email address.")
        user = self.model(email=self.normalize_email(email).lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)


class User(AbstractUser):
    """A person who signs in. Who pays is an :class:`Account`, which a user belongs to by membership.

    A user who belongs to an account is never deleted; ``registration.forget_user`` removes the personal data instead.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    username = None  # type: ignore[assignment]
    email = models.EmailField("email address", unique=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []
    objects: ClassVar[UserManager] = UserManager()  # type: ignore[assignment]

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="user_email_lower_case",
                condition=Q(email=Lower("email")),
                violation_error_message="Write the email address in lower case.",
            )
        ]

    def __str__(self) -> str:
        return self.email


def new_account_id() -> str:
    return "acct_" + secrets.token_hex(10)


def validate_time_zone(name: str) -> None:
    """:raises ValidationError: ``name`` is not in the IANA data base, spelt as there."""
    if name not in zoneinfo.available_timezones() - {"Factory", "localtime"}:
        raise ValidationError("“%(name)s” is no time zone; write one such as Europe/Paris or UTC.", code="time_zone", params={"name": name})


class Account(models.Model):
    """The party that pays: a person or a team, of one product. Deleted never (money hangs on it); closed instead.

    A guest pays nothing: it has the product's guest plan and no balance, until it signs up.
    """

    class Kind(models.TextChoices):
        PERSON = "person"
        TEAM = "team"
        GUEST = "guest"

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="accounts")
    public_id = models.CharField(max_length=32, unique=True, default=new_account_id, editable=False)
    external_id = models.CharField(max_length=128, help_text="The client app's own id for this account.")
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.PERSON)
    billing_email = models.EmailField(blank=True)
    time_zone = models.CharField(
        max_length=64, default="UTC", validators=[validate_time_zone], help_text="Where this account's day quotas roll over."
    )
    rate_card = models.CharField(max_length=64, blank=True, help_text="Slug of a rate card that replaces the plan's; empty = the plan's.")
    cost_tier = models.CharField(
        max_length=64, blank=True, help_text="Slug of a cost tier that replaces the plan's, assigned by staff; empty = the plan's."
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    closed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["product", "external_id"], name="account_external_id_once"),
            models.CheckConstraint(
                name="account_external_id_is_not_ours", condition=~Q(external_id="") & ~Q(external_id__startswith="acct_")
            ),
        ]
        ordering = ["id"]
        permissions = [("impersonate_account", "Can look at an account as one of its people")]

    def __str__(self) -> str:
        return f"{self.name} ({self.product_id and self.product.slug})"

    def clean(self) -> None:
        """:raises ValidationError: the product has no such rate card today, or no such tier: every use would be a fault of ours."""
        cards = RateCard.objects.filter(product_id=self.product_id, valid_from__lte=Now())
        if self.rate_card and not cards.filter(slug=self.rate_card).exists():
            known = ", ".join(cards.values_list("slug", flat=True).distinct().order_by("slug"))
            raise ValidationError({"rate_card": f"The product has no such rate card. It has: {known or 'none'}."})
        tiers = CostTier.objects.filter(product_id=self.product_id)
        if self.cost_tier and not tiers.filter(slug=self.cost_tier).exists():
            known = ", ".join(tiers.values_list("slug", flat=True).order_by("slug"))
            raise ValidationError({"cost_tier": f"The product has no such cost tier. It has: {known or 'none'}."})


class Membership(models.Model):
    """A user's place in an account."""

    class Role(models.TextChoices):
        OWNER = "owner"
        ADMIN = "admin"
        MEMBER = "member"

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.OWNER)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["account", "user"], name="membership_once")]

    def __str__(self) -> str:
        return f"{self.user} · {self.account}: {self.role}"


class Invitation(models.Model):
    """A place in a team, offered to an email address. It is open until it is accepted, revoked, or ``expires_at`` has come.

    ``sent`` counts its mails; only the link in the last of them works (:mod:`accounts.members`).
    """

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=10, choices=Membership.Role, default=Membership.Role.MEMBER)
    sent = models.PositiveSmallIntegerField(default=1)
    sent_at = models.DateTimeField()
    created_at = models.DateTimeField()
    created_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)
    accepted_by = models.ForeignKey(User, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_by = models.ForeignKey(User, on_delete=models.PROTECT, null=True, blank=True, related_name="+")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["account", "email"], condition=Q(accepted_at=None, revoked_at=None), name="invitation_open_once"
            ),
            models.CheckConstraint(name="invitation_email_lower_case", condition=Q(email=Lower("email"))),
            models.CheckConstraint(
                name="invitation_ends_once",
                condition=Q(accepted_at=None, accepted_by=None) & Q(revoked_at=None, revoked_by=None)
                | Q(accepted_at__isnull=False, accepted_by__isnull=False, revoked_at=None, revoked_by=None)
                | Q(accepted_at=None, accepted_by=None, revoked_at__isnull=False, revoked_by__isnull=False),
            ),
        ]
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.email} → {self.account}: {self.role}"


class Brand(models.Model):
    """What the pages of an account, or of all accounts of a product, look like. A product's colour is in its catalog.

    Whether an account's own is shown is its plan's to say: :mod:`billing.branding`.
    """

    account = models.OneToOneField(Account, on_delete=models.PROTECT, null=True, blank=True, related_name="brand")
    product = models.OneToOneField(Product, on_delete=models.PROTECT, null=True, blank=True, related_name="brand")
    colour = models.CharField(max_length=7, blank=True, validators=[RegexValidator(r"^#[0-9a-f]{6}\Z", "Write a colour such as #0f766e.")])
    logo = models.BinaryField(null=True, blank=True)
    logo_type = models.CharField(max_length=16, blank=True)
    logo_digest = models.CharField(max_length=32, blank=True, db_index=True, help_text="The first half of its SHA-256, in hexadecimal.")
    updated_at = models.DateTimeField()
    updated_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="brand_of_one",
                condition=Q(account__isnull=False, product=None) | Q(account=None, product__isnull=False, colour=""),
            ),
            models.CheckConstraint(name="brand_colour_is_hexadecimal", condition=Q(colour="") | Q(colour__regex=r"^#[0-9a-f]{6}$")),
            models.CheckConstraint(
                name="brand_logo_is_whole",
                condition=Q(logo=None, logo_type="", logo_digest="")
                | Q(logo__isnull=False, logo_type__in=["image/png", "image/jpeg", "image/webp"], logo_digest__regex=r"^[0-9a-f]{32}$"),
            ),
        ]

    def __str__(self) -> str:
        return f"Brand of {self.account or self.product}"


class ApiKey(models.Model):
    """A bearer key. Only its SHA-256 is stored; the key itself is shown once.

    A *product key* (``account`` empty) acts for any account of its product; an *account key* for its account alone.
    """

    class Scope(models.TextChoices):
        USAGE_WRITE = "usage:write"
        USAGE_READ = "usage:read"
        BILLING_READ = "billing:read"
        BILLING_WRITE = "billing:write"
        ADMIN_READ = "admin:read"

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="api_keys")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, null=True, blank=True, related_name="api_keys")
    name = models.CharField(max_length=120)
    prefix = models.CharField(max_length=16, editable=False, help_text="The first characters, to recognise a key by.")
    digest = models.BinaryField(max_length=32, unique=True, editable=False)
    scopes = ArrayField(models.CharField(max_length=20, choices=Scope))
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.CharField(max_length=150, blank=True, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_by = models.CharField(max_length=150, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="api_key_account_keys_read_no_admin", condition=Q(account=None) | ~Q(scopes__contains=["admin:read"])
            ),
            models.CheckConstraint(
                name="api_key_scopes_are_known",
                condition=Q(
                    scopes__len__gte=1,
                    scopes__contained_by=["usage:write", "usage:read", "billing:read", "billing:write", "admin:read"],
                ),
            ),
        ]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class Mail(models.Model):
    """The outbox: one mail to an account, written in the transaction of what it tells; what became of it. :mod:`accounts.mails` sends it.

    ``context`` holds the facts it tells, never names or addresses of people: those are read when it is sent. ``recipient`` and ``sent_to``
    are the personal data of a row; forgetting a person empties them.
    """

    class Kind(models.TextChoices):
        RECEIPT = "receipt"
        PAYMENT_FAILED = "payment_failed"
        TRIAL_ENDING = "trial_ending"
        LIMIT_WARNING = "limit_warning"
        LOW_BALANCE = "low_balance"
        ACCOUNT_CREDITS = "account_credits"
        GRACE_ENDING = "grace_ending"
        PLAN_ENDED = "plan_ended"
        TOP_UP_FAILED = "top_up_failed"
        PRICE_CHANGE = "price_change"
        INVITATION = "invitation"
        GUARD = "guard"

    class State(models.TextChoices):
        PENDING = "pending"
        SENT = "sent"
        SUPPRESSED = "suppressed"
        DEAD = "dead"

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="mails")
    kind = models.CharField(max_length=20, choices=Kind)
    key = models.CharField(max_length=200, help_text="What it is about: one mail of a kind for each.")
    recipient = models.EmailField(blank=True, help_text="Empty: the account's billing address, or else its owners'.")
    context = models.JSONField(default=dict)
    state = models.CharField(max_length=12, choices=State, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(help_text="Not sent before this time; while it is being sent, when its lease ends.")
    useless_at = models.DateTimeField(null=True, blank=True, help_text="Not sent from then on; empty = it is never too late.")
    reason = models.TextField(blank=True, help_text="Why it was not sent, or not yet.")
    sent_to = ArrayField(models.EmailField(), default=list)
    sendings = models.PositiveSmallIntegerField(default=0, help_text="How often it was sent; more than once where staff sent it again.")
    queued_at = models.DateTimeField()
    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["next_attempt_at", "id"], condition=Q(state="pending"), name="mail_due"),
            models.Index(fields=["-queued_at"], name="mail_newest"),
            models.Index(fields=["recipient"], condition=~Q(recipient=""), name="mail_recipient"),
            GinIndex(fields=["sent_to"], name="mail_sent_to"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["account", "kind", "key"], name="mail_once"),
            models.CheckConstraint(name="mail_has_a_key", condition=~Q(key="")),
            models.CheckConstraint(
                name="mail_done", condition=Q(state="pending", done_at=None) | (~Q(state="pending") & Q(done_at__isnull=False))
            ),
            models.CheckConstraint(name="mail_sent_was_sent", condition=~Q(state="sent") | Q(sendings__gte=1)),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.pk}"


def new_endpoint_id() -> str:
    return "we_" + secrets.token_hex(10)


def new_event_id() -> str:
    return "evt_" + secrets.token_hex(12)


class WebhookEndpoint(models.Model):
    """Where a product's client app is told what happens. Deleted never (what was sent stays readable): ``deleted_at`` says so instead.

    Both secrets are sealed (:mod:`accounts.sealing`). The one before signs too until ``previous_until``, so that receivers can change over.
    ``failures`` counts those in a row since ``failing_since``; nothing is sent to the endpoint before ``quiet_until``.
    """

    public_id = models.CharField(max_length=32, unique=True, default=new_endpoint_id, editable=False)
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="webhook_endpoints")
    url = models.CharField(max_length=2000)
    description = models.CharField(max_length=120, blank=True)
    kinds = ArrayField(models.CharField(max_length=30), help_text="What it is told of.")
    secret = models.TextField(editable=False)
    previous_secret = models.TextField(blank=True, editable=False)
    previous_until = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=150)
    disabled_at = models.DateTimeField(null=True, blank=True)
    disabled_reason = models.CharField(max_length=300, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True)
    failures = models.PositiveIntegerField(default=0)
    failing_since = models.DateTimeField(null=True, blank=True)
    quiet_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["product", "url"], condition=Q(deleted_at=None), name="webhook_endpoint_url_once"),
            models.CheckConstraint(name="webhook_endpoint_has_a_secret", condition=~Q(secret="")),
            models.CheckConstraint(name="webhook_endpoint_has_kinds", condition=Q(kinds__len__gte=1)),
            models.CheckConstraint(
                name="webhook_endpoint_old_secret_ends",
                condition=Q(previous_secret="", previous_until=None) | (~Q(previous_secret="") & Q(previous_until__isnull=False)),
            ),
            models.CheckConstraint(
                name="webhook_endpoint_disabled_why",
                condition=Q(disabled_at=None, disabled_reason="") | (Q(disabled_at__isnull=False) & ~Q(disabled_reason="")),
            ),
            models.CheckConstraint(
                name="webhook_endpoint_failing",
                condition=Q(failures=0, failing_since=None) | Q(failures__gte=1, failing_since__isnull=False),
            ),
        ]
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.public_id} · {self.url}"


class WebhookEvent(models.Model):
    """Something that client apps are told of, written in the transaction of what it tells. :mod:`accounts.webhooks` queues and sends it.

    ``data`` holds facts, never names or addresses of people. ``addressed_at``: when its deliveries were written; empty = not yet.
    """

    class Kind(models.TextChoices):
        BALANCE_LOW = "balance.low"
        LIMIT_WARNING = "limit.warning"
        LIMIT_REACHED = "limit.reached"
        ACCOUNT_THROTTLED = "account.throttled"
        ACCOUNT_UNTHROTTLED = "account.unthrottled"
        GUARD_CHANGED = "guard.changed"
        SUBSCRIPTION_CHANGED = "subscription.changed"
        TOP_UP_FAILED = "top_up.failed"
        KILL_SWITCH_CHANGED = "kill_switch.changed"
        ALERT_FIRED = "alert.fired"
        TEST = "webhook.test"

    public_id = models.CharField(max_length=32, unique=True, default=new_event_id, editable=False)
    kind = models.CharField(max_length=30, choices=Kind)
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="webhook_events")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, null=True, blank=True, related_name="webhook_events")
    key = models.CharField(max_length=200, help_text="What it is about: one event of a kind for each.")
    data = models.JSONField(default=dict)
    created_at = models.DateTimeField()
    addressed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["id"], condition=Q(addressed_at=None), name="webhook_event_unaddressed"),
            models.Index(fields=["-created_at"], name="webhook_event_newest"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["account", "kind", "key"], condition=Q(account__isnull=False), name="webhook_event_once"),
            models.UniqueConstraint(fields=["product", "kind", "key"], condition=Q(account=None), name="webhook_event_of_product_once"),
            models.CheckConstraint(name="webhook_event_has_a_key", condition=~Q(key="")),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.public_id}"


class WebhookDelivery(models.Model):
    """One event to one endpoint, and what became of it. What the endpoint answers is never kept, but for the status.

    ``lease`` grows with each attempt and never falls: by it a worker whose lease is over is told from the one that took it over.
    """

    class State(models.TextChoices):
        PENDING = "pending"
        DELIVERED = "delivered"
        SUPPRESSED = "suppressed"
        DEAD = "dead"

    event = models.ForeignKey(WebhookEvent, on_delete=models.PROTECT, related_name="deliveries")
    endpoint = models.ForeignKey(WebhookEndpoint, on_delete=models.PROTECT, related_name="deliveries")
    state = models.CharField(max_length=12, choices=State, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0, help_text="Since it was queued, or sent again by staff.")
    lease = models.PositiveIntegerField(default=0, editable=False)
    next_attempt_at = models.DateTimeField(help_text="Not sent before this time; while it is being sent, when its lease ends.")
    last_status = models.PositiveSmallIntegerField(null=True, blank=True, help_text="What the endpoint answered last.")
    reason = models.CharField(max_length=200, blank=True, help_text="Why it was not delivered, or not yet.")
    queued_at = models.DateTimeField()
    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["next_attempt_at", "id"], condition=Q(state="pending"), name="webhook_delivery_due"),
            models.Index(fields=["-queued_at"], name="webhook_delivery_newest"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["event", "endpoint"], name="webhook_delivery_once"),
            models.CheckConstraint(
                name="webhook_delivery_done",
                condition=Q(state="pending", done_at=None) | (~Q(state="pending") & Q(done_at__isnull=False)),
            ),
        ]
        verbose_name_plural = "webhook deliveries"

    def __str__(self) -> str:
        return f"{self.event} → {self.endpoint.public_id}"


class Approval(models.Model):
    """An act that needs two of staff: who asked for it and why, what it changes, and what another one said. :mod:`accounts.approvals`.

    Of two with the same ``mark`` only one waits at a time (``accounts/sql/acts.sql``).
    """

    class State(models.TextChoices):
        PENDING = "pending"
        APPROVED = "approved"
        REFUSED = "refused"

    kind = models.CharField(max_length=40)
    mark = models.CharField(max_length=64, blank=True, editable=False, help_text="By which the same asked for twice is known.")
    payload = models.JSONField()
    before = models.TextField(blank=True)
    after = models.TextField()
    reason = models.CharField(max_length=300)
    asked_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    asked_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    decided_by = models.ForeignKey(User, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    decided_at = models.DateTimeField(null=True, blank=True)
    note = models.CharField(max_length=300, blank=True)

    class Meta:
        indexes = [models.Index(fields=["expires_at"], condition=Q(state="pending"), name="approval_pending")]
        constraints = [
            models.CheckConstraint(
                name="approval_decided_by_somebody",
                condition=Q(state="pending", decided_at=None, decided_by=None)
                | (~Q(state="pending") & Q(decided_at__isnull=False, decided_by__isnull=False)),
            ),
            models.CheckConstraint(name="approval_by_another", condition=~Q(state="approved") | ~Q(decided_by=models.F("asked_by"))),
            models.CheckConstraint(name="approval_in_time", condition=Q(decided_at=None) | Q(decided_at__lt=models.F("expires_at"))),
            models.CheckConstraint(name="approval_has_a_reason", condition=~Q(reason="")),
        ]
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.after[:200]

    def is_pending(self, now: datetime) -> bool:
        """Neither decided nor run out."""
        return self.state == self.State.PENDING and now < self.expires_at


class AuditEvent(models.Model):
    """What a line of the audit log knows beside who, when and what, which are in its ``entry``. :mod:`accounts.acts` alone writes both;
    neither is ever changed or deleted (``accounts/sql/acts.sql``).

    ``before`` and ``after`` name what changed, secrets left out. ``impersonator`` is who of staff looked through ``entry.user``'s eyes.
    """

    class Kind(models.TextChoices):
        ADDED = "added"
        CHANGED = "changed"
        DELETED = "deleted"
        MONEY = "money", "money moved"
        ASKED = "asked", "asked a second person"
        APPROVED = "approved"
        REFUSED = "refused"
        EXPORTED = "exported"
        SIGNED_IN = "signed_in", "signed in"
        LOOKED = "looked", "looked as a customer"

    entry = models.OneToOneField(LogEntry, on_delete=models.PROTECT, primary_key=True, related_name="audit")
    kind = models.CharField(max_length=10, choices=Kind)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, null=True, related_name="+")
    impersonator = models.ForeignKey(User, on_delete=models.PROTECT, null=True, related_name="+")
    reason = models.TextField(blank=True)
    before = models.JSONField(default=dict)
    after = models.JSONField(default=dict)
    request_id = models.CharField(max_length=64, blank=True)

    class Meta:
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.entry}"


class Fault(models.Model):
    """So many faults of a kind in a minute, as one process saw them; the minute's number is the sum. :mod:`accounts.faults` writes it."""

    class Kind(models.TextChoices):
        DATABASE = "database", "the database did not answer"
        DEDUCTION = "deduction", "usage was reported and could not be deducted"
        SERVER = "server", "a request was answered with a fault of ours"

    kind = models.CharField(max_length=12, choices=Kind)
    minute = models.DateTimeField()
    count = models.PositiveIntegerField()
    about = models.CharField(max_length=200, help_text="The last of them.")

    class Meta:
        indexes = [models.Index(fields=["minute"], name="fault_minute")]
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.count} {self.kind} faults at {self.minute:%Y-%m-%d %H:%M} UTC"
