"""``manage.py catalog validate|diff|apply|export``: the catalog files of products."""

from __future__ import annotations

from argparse import ArgumentTypeError
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from pricing import catalog, catalog_file
from pricing.models import CatalogChange

MAX_ACTOR = CatalogChange._meta.get_field("actor").max_length or 0


def instant(text: str) -> datetime:
    """An ISO 8601 date or time; without an offset it is UTC."""
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"{text!r} is no ISO 8601 time, e.g. 2027-01-01T00:00:00+00:00") from None


class Command(BaseCommand):
    help = "Check a product's catalog file, show what it would change, apply it, or write it from the database."

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
        command = verbs.add_parser("export", help="write the file from the database")
        command.add_argument("files", nargs=1, type=Path, metavar="FILE", help="Named <product>.toml.")

    def handle(self, *, verb: str, files: list[Path], **options: Any) -> None:
        if verb == "export":
            self.export(files[0])
            return
        if verb == "apply" and not 1 <= len(options["actor"].strip()) <= MAX_ACTOR:
            raise CommandError(f"--actor: expected who applies it, at most {MAX_ACTOR} characters.")
        # Every file is checked before the first is applied.
        for path, document in [(path, self.read(path)) for path in files]:
            if verb == "validate":
                counts = ", ".join(
                    f"{len(document.get(section, ()))} {section.replace('_', ' ')}" for section in ("plans", "packs", "rate_cards")
                )
                self.stdout.write(f"{path}: valid ({counts})")
                continue
            try:
                lines = (
                    catalog_file.diff(document)
                    if verb == "diff"
                    else catalog_file.apply(document, actor=options["actor"].strip(), effective=options["effective"])
                )
            except catalog_file.InvalidCatalog as error:
                raise CommandError(_listed(path, error)) from error
            for line in lines or ["nothing to change"]:
                self.stdout.write(f"{path}: {line}")

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


def _listed(path: Path, error: catalog_file.InvalidCatalog) -> str:
    return "\n".join(f"{path}: {problem}" for problem in error.problems)
