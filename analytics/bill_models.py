"""Imported bills of providers: their lines, how a file's columns are read, and what comparing them found. See :mod:`analytics.bills`.

Lines, comparisons and findings are never changed and never deleted (triggers); comparing again makes a new comparison.
"""

from __future__ import annotations

import uuid

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from pricing.models import SLUG


class BillMapping(models.Model):
    """What the columns of a CSV mean that is no known export. Changing it changes no bill that was imported."""

    class Delimiter(models.TextChoices):
        COMMA = ",", "comma"
        SEMICOLON = ";", "semicolon"
        TAB = "\t", "tab"

    slug = models.CharField(max_length=64, unique=True, validators=[SLUG])
    delimiter = models.CharField(max_length=1, choices=Delimiter, default=Delimiter.COMMA)
    decimal_comma = models.BooleanField(default=False, help_text="Amounts are written 12,50.")
    day_column = models.CharField(max_length=100, help_text="The column of the day, in UTC.")
    day_format = models.CharField(max_length=40, default="%Y-%m-%d", help_text="%Y-%m-%d, %d.%m.%Y, %m/%d/%Y …")
    model_column = models.CharField(max_length=100)
    component_column = models.CharField(max_length=100, blank=True, help_text="What was used; empty: a line is of a model as a whole.")
    quantity_column = models.CharField(max_length=100, blank=True, help_text="Empty: volume and price cannot be told apart.")
    quantity_scale = models.PositiveIntegerField(
        default=1, help_text="How many units the file's 1 is, such as 1000 for thousands of tokens."
    )
    amount_column = models.CharField(max_length=100, help_text="In US dollars.")
    currency_column = models.CharField(max_length=100, blank=True)
    components = models.JSONField(default=dict, blank=True, help_text="The file's words for what was used, each with ours, or other.")

    class Meta:
        default_permissions = ("add", "change", "view")
        constraints = [models.CheckConstraint(name="bill_mapping_scale", condition=Q(quantity_scale__gte=1))]
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug


class BillUpload(models.Model):
    """Files between their preview and their import. Deleted by the import, or by the first upload a day later."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    provider = models.CharField(max_length=64)
    mapping = models.ForeignKey(BillMapping, on_delete=models.CASCADE, null=True, related_name="+")
    names = ArrayField(models.CharField(max_length=100))
    contents = ArrayField(models.BinaryField())
    uploaded_by = models.CharField(max_length=150)
    uploaded_at = models.DateTimeField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return ", ".join(self.names)


class BillLine(models.Model):
    """What a bill says for a day, a model by the bill's own name, a component and a service level, added up."""

    bill = models.ForeignKey("analytics.ProviderBill", on_delete=models.PROTECT, related_name="lines")
    day = models.DateField()
    model = models.CharField(max_length=128)
    component = models.CharField(max_length=32, blank=True, help_text="Empty: the model as a whole.")
    level = models.CharField(max_length=16, blank=True, help_text="Empty: not told.")
    quantity = models.BigIntegerField(null=True)
    amount_nanos = models.BigIntegerField(null=True, help_text="None: of an export of quantities alone.")
    precision_nanos = models.BigIntegerField(help_text="So much the amount may be off either way, by its rounding.")
    other = models.BooleanField(help_text="No usage: a credit, a discount, tax, a fee.")

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["bill", "day", "model", "component", "level", "other"], name="bill_line_once"),
            models.CheckConstraint(
                name="bill_line_amounts",
                condition=(Q(quantity=None) | Q(quantity__gte=0))
                & (Q(amount_nanos=None) | Q(other=True) | Q(amount_nanos__gte=0))
                & (Q(quantity__isnull=False) | Q(amount_nanos__isnull=False)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.model} {self.component}"


class BillComparison(models.Model):
    """A bill held against our record as it was then. Amounts are nano-USD."""

    bill = models.ForeignKey("analytics.ProviderBill", on_delete=models.PROTECT, related_name="comparisons")
    compared_at = models.DateTimeField()
    compared_by = models.CharField(max_length=150)
    recorded_nanos = models.BigIntegerField()
    volume_nanos = models.BigIntegerField()
    price_nanos = models.BigIntegerField()
    unsplit_nanos = models.BigIntegerField(help_text="Of lines whose quantity the bill does not state.")
    threshold_ppm = models.IntegerField(help_text="What may differ, of the bill, either way.")

    class Meta:
        default_permissions = ()
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.bill}, {self.compared_at:%Y-%m-%d %H:%M} UTC"


class BillVariance(models.Model):
    """One line of a comparison: ``volume + price + unsplit = billed - recorded``, to the nano."""

    comparison = models.ForeignKey(BillComparison, on_delete=models.PROTECT, related_name="variances")
    day = models.DateField()
    model = models.CharField(max_length=128)
    component = models.CharField(max_length=32, blank=True)
    level = models.CharField(max_length=16, blank=True)
    billed_quantity = models.BigIntegerField(null=True)
    billed_nanos = models.BigIntegerField()
    quantity = models.BigIntegerField()
    unpriced_quantity = models.BigIntegerField()
    recorded_nanos = models.BigIntegerField()
    volume_nanos = models.BigIntegerField()
    price_nanos = models.BigIntegerField()
    unsplit_nanos = models.BigIntegerField()

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["comparison", "day", "model", "component", "level"], name="bill_variance_once"),
            models.CheckConstraint(
                name="bill_variance_adds_up",
                condition=Q(
                    volume_nanos=models.F("billed_nanos") - models.F("recorded_nanos") - models.F("price_nanos") - models.F("unsplit_nanos")
                ),
            ),
        ]
        ordering = ["day", "model", "component", "level"]

    def __str__(self) -> str:
        return f"{self.day} {self.model} {self.component}"


class BillFinding(models.Model):
    """One cause of what differs, in a sentence; ``implied`` is the price of the bill, where a price row is guilty."""

    comparison = models.ForeignKey(BillComparison, on_delete=models.PROTECT, related_name="findings")
    kind = models.CharField(max_length=16)
    model = models.CharField(max_length=128)
    component = models.CharField(max_length=32, blank=True)
    level = models.CharField(max_length=16, blank=True)
    first_day = models.DateField()
    last_day = models.DateField()
    amount_nanos = models.BigIntegerField()
    text = models.TextField()
    price_rows = ArrayField(models.BigIntegerField(), default=list)
    implied_nanos = models.BigIntegerField(null=True, help_text="Nano-USD for implied_units.")
    implied_units = models.BigIntegerField(null=True)
    proposed = models.CharField(max_length=200, blank=True, help_text="What became of the price proposal.")

    class Meta:
        default_permissions = ()
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.text
