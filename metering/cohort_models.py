"""What staff keep of a feature's beta: who is in it, what has to be so before it opens to everybody, and what was measured."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import Account
from pricing.models import SLUG, Product


class Cohort(models.Model):
    """A feature of a product that is open to invited accounts alone until it is open to everybody whose plan has it."""

    class Phase(models.TextChoices):
        INTERNAL = "internal", "internal"
        INVITED = "invited", "invited"
        MONITOR = "monitor", "monitored"
        EVERYBODY = "everybody", "open to everybody"

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="+")
    feature = models.CharField(max_length=80, validators=[SLUG], help_text="The flag of the plans that it opens, as cloud_execution.")
    name = models.CharField(max_length=100)
    capacity = models.PositiveIntegerField(help_text="So many accounts may be invited.")
    phase = models.CharField(max_length=10, choices=Phase, default=Phase.INTERNAL)
    begun_at = models.DateTimeField()
    phase_at = models.DateTimeField(help_text="Since when the phase is this one.")

    class Meta:
        default_permissions = ("add", "change", "view")
        constraints = [
            models.UniqueConstraint(fields=["product", "feature"], name="cohort_once"),
            models.CheckConstraint(name="cohort_has_room", condition=Q(capacity__gte=1, capacity__lte=1_000)),
            models.CheckConstraint(name="cohort_phase", condition=Q(phase__in=("internal", "invited", "monitor", "everybody"))),
        ]

    def __str__(self) -> str:
        return self.name


class CohortMember(models.Model):
    """An account that was invited."""

    cohort = models.ForeignKey(Cohort, on_delete=models.PROTECT, related_name="members")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    invited_at = models.DateTimeField()
    invited_by = models.CharField(max_length=150)
    onboarded_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["cohort", "account"], name="cohort_member_once")]

    def __str__(self) -> str:
        return self.account.name


class CohortFeedback(models.Model):
    """What a member said of it."""

    member = models.ForeignKey(CohortMember, on_delete=models.PROTECT, related_name="feedback")
    rating = models.PositiveSmallIntegerField(help_text="From 1 (bad) to 5.")
    text = models.CharField(max_length=2_000)
    noted_at = models.DateTimeField()
    noted_by = models.CharField(max_length=150)

    class Meta:
        default_permissions = ()
        ordering = ["-pk"]
        constraints = [models.CheckConstraint(name="cohort_feedback_rating", condition=Q(rating__gte=1, rating__lte=5))]

    def __str__(self) -> str:
        return f"{self.rating} of 5"


class CohortCriterion(models.Model):
    """What has to be so before the cohort leaves the phase ``leaves``. ``value`` is in the metric's unit (:mod:`analytics.rollout`)."""

    class Comparator(models.TextChoices):
        AT_LEAST = "ge", "≥"
        BELOW = "lt", "<"
        EXACTLY = "eq", "="

    cohort = models.ForeignKey(Cohort, on_delete=models.PROTECT, related_name="criteria")
    leaves = models.CharField(max_length=10, choices=Cohort.Phase)
    metric = models.CharField(max_length=40)
    comparator = models.CharField(max_length=2, choices=Comparator)
    value = models.BigIntegerField()
    days = models.PositiveSmallIntegerField(help_text="Over so many days up to now.")
    text = models.CharField(max_length=200, blank=True)

    class Meta:
        default_permissions = ()
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["cohort", "leaves", "metric"], name="cohort_criterion_once"),
            models.CheckConstraint(name="cohort_criterion_terms", condition=Q(value__gte=0, days__gte=1, days__lte=90)),
        ]

    def __str__(self) -> str:
        return f"{self.metric} {self.get_comparator_display()} {self.value}"


class CohortSample(models.Model):
    """One measurement, of a member or of the cohort as a whole, in the metric's unit. Older ones than criteria look back to are dropped."""

    cohort = models.ForeignKey(Cohort, on_delete=models.PROTECT, related_name="samples")
    member = models.ForeignKey(CohortMember, on_delete=models.PROTECT, null=True, related_name="samples")
    metric = models.CharField(max_length=40)
    value = models.BigIntegerField()
    measured_at = models.DateTimeField()
    key = models.CharField(max_length=128)

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["cohort", "key"], name="cohort_sample_once"),
            models.CheckConstraint(name="cohort_sample_value", condition=Q(value__gte=0)),
        ]
        indexes = [models.Index(fields=["cohort", "measured_at"], name="cohort_sample_at")]

    def __str__(self) -> str:
        return f"{self.metric} {self.value}"
