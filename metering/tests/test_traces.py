"""Reading traces, and the generated one."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from metering import traces, workload
from metering.traces import Broken, Row

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
AT = "2023-11-16 18:15:46.6805900"


def _file(folder: Path, content: str | bytes, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _read(folder: Path, content: str | bytes, name: str = "trace.csv") -> list[Row | Broken]:
    return list(traces.read(_file(folder, content, name)))


def test_azure_rows_are_read_with_their_line_numbers(tmp_path: Path) -> None:
    assert _read(tmp_path, f"{AZURE}{AT},374,44\n{AT},396,109") == [Row(2, 374, 44), Row(3, 396, 109)]


@pytest.mark.parametrize(("name", "kind"), [("azure_llm_trace_2023_conv.csv", "conversation"), ("x_CODE.csv", "code"), ("other.csv", "")])
def test_an_azure_file_name_says_what_its_calls_were_for(tmp_path: Path, name: str, kind: str) -> None:
    assert _read(tmp_path, f"{AZURE}{AT},1,2\n", name) == [Row(2, 1, 2, kind)]


def test_burst_gpt_rows_are_read_and_a_failed_call_has_no_output(tmp_path: Path) -> None:
    content = f"{BURST}5,ChatGPT,472,18,490,Conversation log\n45.25,GPT-4,1087,0,1087,API log\n"
    assert _read(tmp_path, content) == [Row(2, 472, 18, "conversation"), Row(3, 1087, 0, "api")]


def test_columns_may_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    assert _read(tmp_path, f"region,GeneratedTokens,ContextTokens,TIMESTAMP\neu,44,374,{AT}\n") == [Row(2, 374, 44)]


@pytest.mark.parametrize(
    "content",
    [
        f"\ufeff{AZURE}{AT},374,44\n",
        f"{AZURE}{AT},374,44\n".replace("\n", "\r\n"),
        f"{AZURE}{AT},374,44\n".replace("\n", "\r"),
        f'"TIMESTAMP","ContextTokens","GeneratedTokens"\n"{AT}","374","44"\n',
    ],
    ids=["byte order mark", "CRLF", "CR", "quoted"],
)
def test_what_spreadsheets_do_to_a_file_is_understood(tmp_path: Path, content: str) -> None:
    assert _read(tmp_path, content) == [Row(2, 374, 44)]


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    assert _read(tmp_path, f"{AZURE}\n{AT},1,2\n  \n\n{AT},3,4\n\n") == [Row(3, 1, 2), Row(6, 3, 4)]


@pytest.mark.parametrize("tokens", ["５", "-1", "1.5", "1e9", "+1", " 1", "007", "1_000", "NaN", "", "10" * 12, "0x10", "\x00", "１２"])
def test_what_is_no_plain_integer_breaks_its_row_alone(tmp_path: Path, tokens: str) -> None:
    first, broken, last = _read(tmp_path, f"{AZURE}{AT},1,2\n{AT},{tokens},44\n{AT},3,4\n")
    assert (first, last) == (Row(2, 1, 2), Row(4, 3, 4))
    assert isinstance(broken, Broken)
    assert broken.line == 3
    assert "ContextTokens" in broken.reason
    assert "expected an integer" in broken.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{AT},374", "2 cells; expected 3"),
        (f"{AT},374,44,9", "4 cells; expected 3"),
        ("yesterday,374,44", "TIMESTAMP is 'yesterday'"),
        ("2023-02-30 10:00:00,374,44", "TIMESTAMP is '2023-02-30"),
        (f'"{AT},374,44', "no CSV"),
        ("x" * 5_000, "longer than 1000 characters"),
    ],
)
def test_a_broken_row_says_its_line_and_what_was_expected(tmp_path: Path, line: str, reason: str) -> None:
    broken, good = _read(tmp_path, f"{AZURE}{line}\n{AT},3,4\n")
    assert isinstance(broken, Broken)
    assert broken.line == 2
    assert reason in broken.reason
    assert good == Row(3, 3, 4)


@pytest.mark.parametrize("line", ["5,ChatGPT,472,18,491,Conversation log", "five,ChatGPT,1,1,2,API log", "5,ChatGPT,1,1,2"])
def test_a_burst_gpt_row_that_contradicts_itself_is_broken(tmp_path: Path, line: str) -> None:
    [broken] = _read(tmp_path, f"{BURST}{line}\n")
    assert isinstance(broken, Broken)


def test_bytes_that_are_no_text_break_their_row_alone(tmp_path: Path) -> None:
    broken, good = _read(tmp_path, f"{AZURE}{AT},".encode() + b"\xff\xfe,44\n" + f"{AT},3,4\n".encode())
    assert isinstance(broken, Broken)
    assert good == Row(3, 3, 4)


def test_a_header_without_rows_is_an_empty_trace(tmp_path: Path) -> None:
    assert _read(tmp_path, AZURE) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        "a,b,c\n1,2,3\n",
        f"{AT},374,44\n",
        "timestamp,contexttokens,generatedtokens\n",
        "TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n",
        '"TIMESTAMP,',
        "x" * 5_000,
        b"PK\x03\x04\x00\xff",
    ],
)
def test_a_file_without_a_known_header_is_refused(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(traces.TraceError, match="expected the header TIMESTAMP,ContextTokens,GeneratedTokens or Timestamp,Model"):
        _read(tmp_path, content)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(traces.TraceError, match=r"nowhere\.csv: No such file"):
        list(traces.read(tmp_path / "nowhere.csv"))
    with pytest.raises(traces.TraceError, match="Is a directory"):
        list(traces.read(tmp_path))


def test_a_trace_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    rows = traces.read(_file(tmp_path, f"{AZURE}{AT},1,2\n" + "broken\n" * 100_000))
    assert next(rows) == Row(2, 1, 2)


@pytest.mark.skipif("TOLLGATE_TRACES" not in os.environ, reason="TOLLGATE_TRACES names no folder with real traces")
@pytest.mark.parametrize(
    ("name", "rows", "input_tokens", "output_tokens", "medians"),
    [("conv", 19_366, 22_361_870, 4_088_665, (1020, 129)), ("code", 8_819, 18_059_974, 245_896, (1469, 13))],
)
def test_the_azure_traces_are_read_wholly(name: str, rows: int, input_tokens: int, output_tokens: int, medians: tuple[int, int]) -> None:
    path = Path(os.environ["TOLLGATE_TRACES"]) / f"azure_llm_trace_2023_{name}.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not among the traces")
    found = [row for row in traces.read(path) if isinstance(row, Row)]
    assert len(found) == rows
    assert sum(row.input_tokens for row in found) == input_tokens
    assert sum(row.output_tokens for row in found) == output_tokens
    assert (statistics.median(row.input_tokens for row in found), statistics.median(row.output_tokens for row in found)) == medians


class TestTheGeneratedWorkload:
    def test_it_is_the_same_every_time_and_a_shorter_one_is_its_beginning(self) -> None:
        whole = list(workload.generate())
        assert len(whole) == workload.ROWS
        assert list(workload.generate(rows=300)) == whole[:300]
        assert whole[:2] != list(workload.generate(rows=2, seed=1))

    def test_it_has_the_medians_and_shares_of_the_published_traces(self) -> None:
        rows = list(workload.generate(rows=20_000))
        for kind, prompt, answer in (("conversation", 1_020, 129), ("code", 1_469, 13)):
            found = [row for row in rows if row.kind == kind]
            assert statistics.median(row.input_tokens for row in found) == pytest.approx(prompt, rel=0.05)
            assert statistics.median(row.output_tokens for row in found) == pytest.approx(answer, rel=0.05)
        assert sum(row.kind == "conversation" for row in rows) / len(rows) == pytest.approx(19_366 / 28_185, abs=0.02)

    def test_its_calls_are_whole_tokens_within_the_traces_limits(self) -> None:
        for row in workload.generate(rows=20_000):
            assert type(row.input_tokens) is int
            assert type(row.output_tokens) is int
            assert 1 <= row.input_tokens <= 14_050
            assert 1 <= row.output_tokens <= 1_899
