"""The messages that travel upward: an account was opened, a guest signed up. Billing answers with a plan and the welcome credit."""

from django.dispatch import Signal

#: Sent inside the transaction that opens the account. Arguments: ``account``, ``now``.
account_opened = Signal()
#: Sent inside the transaction that makes a guest's account another kind. Arguments: ``account``, ``now``.
guest_signed_up = Signal()
