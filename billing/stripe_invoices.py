"""Invoices as Stripe says them, and what customers and staff see of them without asking Stripe.

    apply       takes an invoice over as it was read
    documents   an account's invoices, and the receipts of what was paid without one, the newest first

They say what was asked for and paid, and grant nothing: :mod:`billing.stripe_payments` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from django.db.models import Q, QuerySet
from django.db.models.functions import Collate

from accounts.models import Account
from billing import stripe_api
from billing.models import StripeCustomer, StripeInvoice, StripePayment


@dataclass(frozen=True, slots=True)
class Document:
    """``total`` includes ``tax``; both in the smallest unit of ``currency``. ``refunded`` is of a receipt. An empty address: no page."""

    kind: Literal["invoice", "receipt"]
    id: str
    number: str
    status: str
    description: str
    currency: str
    total: int
    tax: int
    refunded: int
    created_at: datetime
    period: tuple[datetime, datetime] | None
    url: str
    pdf_url: str


def apply(*, truth: stripe_api.Invoice, customer: StripeCustomer, read_number: int) -> None:
    """Takes an invoice over, unless what is known was read later. A draft may still change or vanish, and nobody has to see it. The caller
    holds the customer's lock, in a transaction."""
    known = StripeInvoice.objects.filter(pk=truth.id).first()
    if truth.status == "draft" or (known is not None and (known.account_id != customer.account_id or known.read_number >= read_number)):
        return
    StripeInvoice.objects.update_or_create(
        pk=truth.id,
        defaults={
            "account": customer.account,
            "number": truth.number,
            "status": truth.status,
            "description": truth.description[:500],
            "currency": truth.currency,
            "total": truth.total,
            "tax": truth.tax,
            "paid": truth.paid,
            "created_at": truth.created_at,
            "period_start": truth.period[0],
            "period_end": truth.period[1],
            "hosted_invoice_url": truth.hosted_url[:500],
            "invoice_pdf": truth.pdf_url[:500],
            "read_number": read_number,
        },
    )


def documents(*, account: Account, limit: int, before: tuple[datetime, str] | None = None) -> list[Document]:
    """At most ``limit`` of them, after the one made at ``before`` with that id. Reads; the caller has taken the tenant's role."""
    invoices = _newest(StripeInvoice.objects.filter(account_id=account.pk), before)
    receipts = _newest(StripePayment.objects.filter(account_id=account.pk, paid__gt=0).exclude(receipt_url=""), before)
    found = [_invoice(each) for each in invoices.defer("read_number")[:limit]]
    found += [_receipt(each) for each in receipts.defer("read_number", "note")[:limit]]
    return sorted(found, key=lambda each: (each.created_at, each.id), reverse=True)[:limit]


def _newest(rows: QuerySet[Any], before: tuple[datetime, str] | None) -> QuerySet[Any]:
    rows = rows.annotate(place=Collate("id", "C"))  # ids in the same order here as in Python
    if before is not None:
        created_at, id_ = before
        rows = rows.filter(Q(created_at__lt=created_at) | Q(created_at=created_at, place__lt=id_))
    return rows.order_by("-created_at", "-place")


def _invoice(row: StripeInvoice) -> Document:
    return Document(
        kind="invoice",
        id=row.pk,
        number=row.number,
        status=row.status,
        description=row.description,
        currency=row.currency,
        total=row.total,
        tax=row.tax,
        refunded=0,
        created_at=row.created_at,
        period=(row.period_start, row.period_end),
        url=row.hosted_invoice_url,
        pdf_url=row.invoice_pdf,
    )


def _receipt(row: StripePayment) -> Document:
    """Of a payment without an invoice Stripe does not keep the tax here: the receipt's page says it."""
    return Document(
        kind="receipt",
        id=row.pk,
        number="",
        status="refunded" if row.refunded == row.paid else "paid",
        description=row.description,
        currency=row.currency,
        total=row.paid,
        tax=0,
        refunded=row.refunded,
        created_at=row.created_at,
        period=None,
        url=row.receipt_url,
        pdf_url="",
    )
