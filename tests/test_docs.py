"""The documents say what the tree says: requirements, links, jobs, decisions, and nothing of anybody's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from config.celery import app as celery
from config.jobs import JOBS
from config.unfold import UNFOLD

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *DOCS.rglob("*.md")})
DECISIONS = sorted((DOCS / "decisions").glob("*"))
NOT_YET = "not yet"


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def rows(page: str, first_cell: str) -> list[list[str]]:
    """The cells of every row of a page in ``docs/`` whose first cell begins as the pattern says."""
    lines = (DOCS / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if re.match(rf"\|\s*{first_cell}", line)]


def requirement_rows() -> list[list[str]]:
    return rows("requirements.md", "R-")


def failure_rows() -> list[list[str]]:
    return rows("failures.md", "[0-9]")


class TestRequirements:
    def test_every_requirement_has_exactly_one_row_and_they_stand_in_order(self) -> None:
        assert [row[0] for row in requirement_rows()] == [f"R-{number:03}" for number in range(1, 357)]

    def test_every_row_says_what_is_asked_where_it_lives_and_what_proves_it(self) -> None:
        assert [row for row in requirement_rows() if len(row) != 4 or not all(row)] == []

    def test_every_requirement_is_told_in_fifteen_words_at_most(self) -> None:
        assert [row[0] for row in requirement_rows() if len(row[1].split()) > 15] == []

    def test_every_place_is_not_yet_or_names_files_that_exist(self) -> None:
        wrong = [
            (number, where)
            for number, _, where, _ in requirement_rows()
            if where != NOT_YET and not ((paths := re.findall(r"`([^`]+)`", where)) and all((ROOT / path).exists() for path in paths))
        ]
        assert wrong == []

    def test_every_named_test_exists(self) -> None:
        wrong = []
        for number, _, _, proof in requirement_rows():
            if proof == NOT_YET:
                continue
            named = re.findall(r"`([^`]+)`", proof)
            rest = re.sub(r"`[^`]+`", "", proof).replace("<br>", "").strip()
            wrong += [(number, name) for name in named if name not in named_in(name.partition("::")[0])]
            if rest or not named:
                wrong.append((number, proof))
        assert wrong == []

    def test_a_proven_requirement_says_where_it_lives(self) -> None:
        assert [number for number, _, where, proof in requirement_rows() if where == NOT_YET and proof != NOT_YET] == []


class TestFailures:
    def test_every_failure_has_exactly_one_row_and_they_stand_in_order(self) -> None:
        numbers = [int(row[0]) for row in failure_rows()]
        assert numbers == sorted(set(numbers))
        assert {*range(1, 93)} - {*numbers} <= {50, 51, 52, 54}

    def test_every_row_says_what_goes_wrong_what_happens_instead_and_what_proves_it(self) -> None:
        assert [row for row in failure_rows() if len(row) != 4 or not all(row)] == []

    def test_every_row_names_the_tests_that_are_marked_with_its_number_and_no_other(self) -> None:
        named = {(int(number), name) for number, _, _, proof in failure_rows() for name in proof.split("<br>") if proof != NOT_YET}
        assert named == {(number, f"`{name}`") for name, numbers in marked() for number in numbers}


def marked() -> list[tuple[str, list[int]]]:
    """Every ``path::test`` and ``path::Class::test`` that has a ``pytest.mark.failure``, with its numbers."""
    found = []
    for path in sorted({*ROOT.glob("*/tests/test_*.py"), *ROOT.glob("tests/test_*.py")}):
        for name, test in named_in(page_id(path)).items():
            for mark in test.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.failure":
                    found.append((name, [ast.literal_eval(number) for number in mark.args]))
    return found


@cache
def named_in(path: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every test in a file by ``path::test`` or ``path::Class::test``, read without importing it; none if there is no such file."""
    if not (ROOT / path).is_file():
        return {}
    found = {}
    for node in ast.parse((ROOT / path).read_text(), path).body:
        members = [(f"{node.name}::", member) for member in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
        for prefix, member in members:
            if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and member.name.startswith("test_"):
                found[f"{path}::{prefix}{member.name}"] = member
    return found


class TestLinks:
    @pytest.mark.parametrize("page", PAGES, ids=page_id)
    def test_every_relative_link_leads_to_a_file_and_a_heading_that_exist(self, page: Path) -> None:
        assert [link for link in links(page) if not resolves(page, link)] == []

    def test_the_pages_that_people_start_from_are_among_those_checked(self) -> None:
        wanted = {"README.md", "docs/failures.md", "docs/glossary.md", "docs/operations.md", "docs/requirements.md", "docs/tour.md"}
        assert wanted - {page_id(page) for page in PAGES} == set()


def links(page: Path) -> list[str]:
    """The relative targets of a page's links and images, code left out."""
    text = re.sub(r"^(```|~~~).*?^\1|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
    targets += re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
    return [target for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:|//", target)]


def resolves(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or target.suffix != ".md" or anchor in anchors(target)


@cache
def anchors(page: Path) -> frozenset[str]:
    """What a heading is called in a link: lower case, punctuation gone, spaces as hyphens."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+\s+(.+?)\s*$", text, re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


class TestOperations:
    def test_the_page_names_the_jobs_of_the_table_and_what_beat_rings_and_no_others(self) -> None:
        section = (DOCS / "operations.md").read_text().split("\n## Jobs\n")[1].split("\n## ")[0]
        assert set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)) == {job.name for job in JOBS} | set(celery.conf.beat_schedule)


class TestDecisions:
    def test_there_are_decisions_and_no_two_share_a_number(self) -> None:
        assert len({path.name[:4] for path in DECISIONS}) == len(DECISIONS) > 0

    @pytest.mark.parametrize("path", DECISIONS, ids=page_id)
    def test_a_decision_has_a_readable_name_and_the_four_headings(self, path: Path) -> None:
        assert re.fullmatch(r"\d{4}-[a-z0-9]+(-[a-z0-9]+)*\.md", path.name)
        assert re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE) == ["Context", "Decision", "Consequences", "Alternatives"]


class TestNoMachine:
    def test_no_tracked_file_names_a_path_of_somebodys_machine(self) -> None:
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
        assert "tests/test_docs.py" in tracked
        machine = re.compile(rb"/(?:home/[\w.-]+|root|Users)/")
        wrong = [
            f"{name}: {match[0].decode()}"
            for name in tracked
            if (ROOT / name).is_file() and (match := machine.search((ROOT / name).read_bytes()))
        ]
        assert wrong == []


def test_every_place_of_admin_that_the_documents_name_is_in_its_sidebar() -> None:
    groups = {group["title"]: {str(item["title"]) for item in group["items"]} for group in UNFOLD["SIDEBAR"]["navigation"]}
    documents = [ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    named = [
        (path.name, *place)
        for path in documents
        for place in re.findall(rf"\b({'|'.join(groups)}|Catalog)\s+→\s+(\w[\w-]*(?: [a-z][\w-]*| keys| of Stripe)*)", path.read_text())
    ]
    assert len(named) > 15
    assert [one for one in named if not any(one[2].startswith(title) for title in groups.get(one[1], ()))] == []
