"""``manage.py catalog validate|diff|apply|lint|export``: the catalog files of products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from accounts import approvals
from accounts.models import User
from config.management.commands.prices import instant
from metering import margin_approvals
from pricing import catalog, catalog_file, margin_terms
from pricing.margin_lint import Finding
from pricing.models import CatalogChange, Product

MAX_ACTOR = CatalogChange._meta.get_field("actor").max_length or 0
MAX_REASON = 300


class Command(BaseCommand):
    help = "Check a product's catalog file, show what it would change and earn, apply it, or write it from the database."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        for verb, what in (
            ("validate", "check the files; the database is not read"),
            ("diff", "show what applying would change"),
            ("apply", "make the database have it; each file in one transaction"),
        ):
            command = verbs.add_parser(verb, help=what)
            command.add_argument("files", nargs="+", type=Path, metavar="FILE")
            if verb == "apply":
                command.add_argument("--actor", required=True, help="Who applies it; kept with the change.")
                command.add_argument("--effective", type=instant, help="When new terms begin (ISO 8601); now, if left out.")
                command.add_argument(
                    "--ask", metavar="REASON",
                    help="Where it sells below a floor, ask a second person, who approves it in admin. The actor is an email of staff.",
                )  # fmt: skip
        command = verbs.add_parser("lint", help="what everything on sale earns at best, as expected and at worst, with the arithmetic")
        command.add_argument("files", nargs="*", type=Path, metavar="FILE", help="As these files would have it; as it is, if left out.")
        command = verbs.add_parser("export", help="write the file from the database")
        command.add_argument("files", nargs=1, type=Path, metavar="FILE", help="Named <product>.toml.")

    def handle(self, *, verb: str, files: list[Path], **options: Any) -> None:
        if verb == "export":
            self.export(files[0])
            return
        if verb == "apply" and not 1 <= len(options["actor"].strip()) <= MAX_ACTOR:
            raise CommandError(f"--actor: expected who applies it, at most {MAX_ACTOR} characters.")
        if verb == "lint":
            self.lint(files)
            return
        # Every file is checked before the first is applied.
        for path, document in [(path, self.read(path)) for path in files]:
            if verb == "validate":
                counts = ", ".join(
                    f"{len(document.get(section, ()))} {section.replace('_', ' ')}" for section in ("plans", "packs", "rate_cards")
                )
                self.stdout.write(f"{path}: valid ({counts})")
                self.warn(path, margin_terms.find(document, books={}, mix=margin_terms.expected_mix(document)))
                continue
            try:
                lines = catalog_file.diff(document) if verb == "diff" else self.apply(path, document, options)
            except catalog_file.InvalidCatalog as error:
                raise CommandError(_listed(path, error)) from error
            for line in lines or ["nothing to change"]:
                self.stdout.write(f"{path}: {line}")
            if lines:
                self.warn(path, margin_terms.look(document, at=options.get("effective") or timezone.now()))

    def apply(self, path: Path, document: catalog_file.Document, options: dict[str, Any]) -> list[str]:
        actor: str = options["actor"].strip()
        try:
            return catalog_file.apply(document, actor=actor, effective=options["effective"])
        except catalog_file.BelowFloor as error:
            if not options["ask"]:
                raise CommandError(f"{_listed(path, error)}\n{path}: refused. --ask REASON asks a second person for it.") from error
            raise CommandError(f"{_listed(path, error)}\n{path}: {self.ask(document, actor, options)}") from error

    def ask(self, document: catalog_file.Document, actor: str, options: dict[str, Any]) -> str:
        person, reason, effective = User.objects.filter(email__iexact=actor).first(), options["ask"].strip(), options["effective"]
        if person is None or not 1 <= len(reason) <= MAX_REASON:
            raise CommandError(f"--ask: expected why, at most {MAX_REASON} characters, and as --actor the email of a member of staff.")
        try:
            approval = margin_approvals.ask_file(document=document, effective=effective, actor=person, reason=reason, now=timezone.now())
        except approvals.ApprovalError as error:
            raise CommandError(str(error)) from error
        return f"not applied; it waits under Approvals for somebody else, until {approval.expires_at:%Y-%m-%d %H:%M} UTC."

    def lint(self, paths: list[Path]) -> None:
        now = timezone.now()
        if paths:
            documents = [(str(path), self.read(path)) for path in paths]
        else:
            documents = [(slug, _current(slug)) for slug in Product.objects.order_by("slug").values_list("slug", flat=True)]
        for name, document in documents:
            self.stdout.write(f"{name}: {document['product']['name']}")
            for line in margin_terms.report(margin_terms.worst_first(margin_terms.look(document, at=now))):
                self.stdout.write(f"  {line}")

    def warn(self, path: Path, findings: list[Finding]) -> None:
        """What is below its floor, a line each, marked with ``!``."""
        for line in margin_terms.report([finding for finding in findings if finding.is_below_floor], arithmetic=False):
            self.stdout.write(f"{path}: ! {line}")

    def read(self, path: Path) -> catalog_file.Document:
        try:
            return catalog_file.parse(path.read_bytes())
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from error
        except catalog_file.InvalidCatalog as error:
            raise CommandError(_listed(path, error)) from error

    def export(self, path: Path) -> None:
        try:
            path.write_bytes(catalog_file.export(slug=path.stem))
        except catalog.NotInCatalog as error:
            raise CommandError(f"{path}: {error} The file is named after the product.") from error
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from error
        self.stdout.write(f"{path}: written")


def _current(slug: str) -> catalog_file.Document:
    document = catalog_file.current(slug=slug)
    if document is None:
        raise CommandError(f"There is no product {slug!r}.")
    return document


def _listed(path: Path, error: catalog_file.InvalidCatalog) -> str:
    return "\n".join(f"{path}: {problem}" for problem in error.problems)
