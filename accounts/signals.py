"""The one message that travels upward: an account was opened (billing answers with a wallet, the default plan, the welcome credit)."""

from django.dispatch import Signal

#: Sent inside the transaction that opens the account. Arguments: ``account``, ``now``.
account_opened = Signal()
