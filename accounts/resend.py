"""Mail through Resend, each sending once: the Message-ID of a mail is its idempotency key, by which Resend sends it once within a day.

So a worker that is killed between sending and saying so does not lead to a second mail. Only mails of the outbox bring a Message-ID.
"""

from __future__ import annotations

from typing import Any

from anymail.backends import resend
from django.core.mail import EmailMessage


class EmailBackend(resend.EmailBackend):  # type: ignore[misc]  # anymail has no type hints
    def build_message_payload(self, message: EmailMessage, defaults: dict[str, Any]) -> resend.ResendPayload:
        key = message.extra_headers.get("Message-ID")
        return resend.ResendPayload(message, defaults, self, headers={"Idempotency-Key": key} if key else {})
