"""``manage.py prices propose|import|list|approve|reject``: upstream prices, from a source to the price book."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from accounts import approvals
from accounts.models import User
from metering import price_approvals
from pricing import change_cap, price_effects, price_files, price_import, price_inbox
from pricing.models import PriceProposal


def instant(text: str) -> datetime:
    """An ISO 8601 date or time; without an offset it is UTC."""
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"{text!r} is no ISO 8601 time, e.g. 2027-01-01T00:00:00+00:00") from None


class Command(BaseCommand):
    help = "Propose upstream prices that differ from the price book, and decide on them."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        propose = verbs.add_parser("propose", help="propose every difference; the price book does not change")
        propose.add_argument("--source", choices=price_import.SOURCES, default=price_import.SOURCES[0])
        propose.add_argument("--providers", default=",".join(price_import.PROVIDERS), help="Separated by commas.")
        propose.add_argument("--since", type=instant, help="Also propose what was valid since then, where the price book has nothing.")
        files = verbs.add_parser(
            "import", help="propose every difference of a file (LiteLLM's JSON, or CSV); the price book does not change"
        )
        files.add_argument("file", type=Path, metavar="FILE")
        verbs.add_parser("list", help="show what is pending")
        for verb in ("approve", "reject"):
            decide = verbs.add_parser(verb, help=f"{verb} proposals")
            decide.add_argument("ids", nargs="*", type=int, metavar="ID")
            decide.add_argument("--all", action="store_true", help="Every pending proposal.")
            decide.add_argument("--actor", required=True, help="Who decides; kept with the proposal.")
            decide.add_argument("--reason", required=True, help="Why; kept with the proposal.")
            if verb == "approve":
                decide.add_argument("--ask", action="store_true", help="Ask a second person for what is above the cap of one.")
                decide.add_argument("--effective", type=instant, help="When prices without a date begin (ISO 8601); now, if left out.")

    def handle(self, *, verb: str, **options: Any) -> None:
        if verb == "propose":
            self.propose(options["providers"], options["since"])
        elif verb == "import":
            self.take(options["file"])
        elif verb == "list":
            self.list()
        else:
            self.decide(verb, options)

    def propose(self, providers: str, since: datetime | None) -> None:
        names = list(dict.fromkeys(name.strip() for name in providers.split(",") if name.strip()))
        if not names:
            raise CommandError("--providers: expected at least one provider.")
        try:
            report = price_import.propose(providers=names, now=timezone.now(), since=since)
        except price_import.UnknownProvider as error:
            raise CommandError(str(error)) from error
        self.report(report)

    def take(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                report = price_inbox.take(file.read(price_files.MAX_BYTES + 1), name=path.name, now=timezone.now())
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from error
        except price_files.InvalidPriceFile as error:
            raise CommandError("\n".join(f"{path}: {problem}" for problem in error.problems)) from error
        self.report(report)

    def report(self, report: price_import.Report) -> None:
        for skipped in report.skipped:
            self.stdout.write(f"left out: {skipped}")
        self.stdout.write(f"{report.proposed} proposed, {report.unchanged} as in the price book or rejected before.")

    def list(self) -> None:
        pending = PriceProposal.objects.filter(state=PriceProposal.State.PENDING).select_related("previous")
        for proposal in pending:
            above = f" above {proposal.context_above}" if proposal.context_above else ""
            before = change_cap.figure(proposal.previous) if proposal.previous else "new"
            begins = f" from {proposal.valid_from:%Y-%m-%d}" if proposal.valid_from else ""
            self.stdout.write(
                f"{proposal.id}: {proposal.provider}:{proposal.model} {proposal.component}{above} ({proposal.service_level}) "
                f"{before} → {change_cap.figure(proposal)}{begins}"
            )
        self.stdout.write(f"{len(pending)} pending.")

    def decide(self, verb: str, options: dict[str, Any]) -> None:
        actor, reason = options["actor"].strip(), options["reason"].strip()
        if bool(options["ids"]) == options["all"]:
            raise CommandError("Expected the ids of proposals, or --all.")
        if not actor or len(actor) > 150 or not reason or len(reason) > 300:
            raise CommandError("Expected who decides (at most 150 characters) and why (at most 300).")
        ids = None if options["all"] else options["ids"]
        try:
            if verb == "approve":
                self.warn(ids)
                count = price_import.approve(ids=ids, actor=actor, reason=reason, effective=options["effective"])
            else:
                count = price_import.reject(ids=ids, actor=actor, reason=reason)
        except price_import.AboveCap as error:
            if not options["ask"]:
                raise CommandError(f"{error}\nNothing was approved. --ask asks a second person for it.") from error
            raise CommandError(f"{error}\n{self.ask(ids, actor, reason, options['effective'])}") from error
        except price_import.NotApprovable as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{count} {verb}{'d' if verb.endswith('e') else 'ed'}.")

    def ask(self, ids: Iterable[int] | None, actor: str, reason: str, effective: datetime | None) -> str:
        person = User.objects.filter(email__iexact=actor).first()
        if person is None:
            raise CommandError("--ask: expected as --actor the email of a member of staff.")
        try:
            approval = price_approvals.ask(ids=ids, effective=effective, actor=person, reason=reason, now=timezone.now())
        except (approvals.ApprovalError, price_import.NotApprovable) as error:
            raise CommandError(str(error)) from error
        return f"Nothing was approved yet; it waits under Approvals for somebody else, until {approval.expires_at:%Y-%m-%d %H:%M} UTC."

    def warn(self, ids: Iterable[int] | None) -> None:
        """What these prices bring under its floor, a line each, marked with ``!``."""
        proposals = PriceProposal.objects.filter(state=PriceProposal.State.PENDING)
        chosen = proposals if ids is None else proposals.filter(pk__in=ids)
        for product, finding in price_effects.fallen(proposals=chosen, at=timezone.now()):
            self.stdout.write(f"! {product}: {finding.headline}")
