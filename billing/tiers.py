"""Which face of a plan an account gets: a plan may name another that takes its place for teams and for persons who belong to one.

    offered   what an account is sold when it asks for a plan
    face      the slug of the face that is due to it
    belongs   whether a person's account is of somebody in a team
    version   the face of a plan that it pays for already

================================================  ====================
a person with an active subscription …             has
================================================  ====================
who is a member of a team account of the product  the plan's member face
who is in none                                    the plan itself
================================================  ====================

A team always has the member face, paid per member. Without an active subscription there is the default plan. A cost tier that staff
assigned to the account (``Account.cost_tier``) counts in place of whatever the plan has.
"""

from __future__ import annotations

from datetime import datetime

from accounts.models import Account, Membership
from pricing import catalog
from pricing.models import Plan, PlanVersion


def offered(*, account: Account, plan: str, now: datetime) -> catalog.PlanTerms:
    """The terms that ``account`` is sold now when it asks for ``plan``. :raises catalog.NotInCatalog: there is no such plan."""
    return catalog.plan_version(product_id=account.product_id, slug=face(account=account, plan=plan), at=now)


def face(*, account: Account, plan: str) -> str:
    """The slug of the plan that takes ``plan``'s place for this account; mostly itself."""
    faces = Plan.objects.filter(product_id=account.product_id).exclude(member_plan="")
    pairs = dict(faces.values_list("slug", "member_plan"))
    ordinary = next((slug for slug, member in pairs.items() if member == plan), plan)
    if ordinary not in pairs:
        return plan
    return pairs[ordinary] if belongs(account) else ordinary


def belongs(account: Account) -> bool:
    """A team does; a person's account does where one of its owners is in an open team account of the same product."""
    if account.kind != Account.Kind.PERSON:
        return account.kind == Account.Kind.TEAM
    owners = Membership.objects.filter(account=account, role=Membership.Role.OWNER).values("user_id")
    teams = Membership.objects.filter(account__product_id=account.product_id, account__kind=Account.Kind.TEAM, account__closed_at=None)
    return teams.filter(user_id__in=owners, user__is_active=True).exists()


def version(*, account: Account, paid: PlanVersion, kept: PlanVersion | None, now: datetime) -> PlanVersion:
    """The version that counts for an account which pays for ``paid``. Another face than the one it pays for is the version that it has
    (``kept``), else the one on sale."""
    slug = face(account=account, plan=paid.plan.slug)
    if slug == paid.plan.slug:
        return paid
    if kept is not None and kept.plan.slug == slug:
        return kept
    return catalog.plan_version(product_id=account.product_id, slug=slug, at=now).version
