from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from rich.console import Console

from frami_edge.cli._output import LINE_SECONDS, Bar, Lines, Output, show


class Score(BaseModel):
    accuracy: float
    path: Path


Capture = pytest.CaptureFixture[str]


def test_json_is_exactly_one_object_on_stdout(capsys: Capture) -> None:
    out = Output(json=True)
    out.table("Scores", ["name"], [["x"]])
    out.note("a note")
    out.result(Score(accuracy=float("nan"), path=Path("a/é.onnx")))
    out.hint("frami-edge distill")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"accuracy": None, "path": "a/é.onnx"}
    assert captured.out.isascii()
    assert captured.out.endswith("}\n")
    assert captured.err.splitlines() == ["a note", "next: frami-edge distill"]
    with pytest.raises(RuntimeError, match="one result"):
        out.result({})


def test_json_keeps_the_order_of_keys(capsys: Capture) -> None:
    Output(json=True).result({"b": 1, "a": float("inf")})
    assert capsys.readouterr().out == '{\n  "b": 1,\n  "a": null\n}\n'


def test_people_get_tables_on_stdout_and_no_json(capsys: Capture) -> None:
    out = Output()
    out.result({"a": 1})
    out.table("Scores [x]", ["class", "accuracy"], [["[dog]", 0.98765], ["cat", None]], "of [30]")
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "{" not in captured.out
    for text in ["Scores [x]", "[dog]", "0.9877", "of [30]"]:
        assert text in captured.out
    assert "\x1b" not in captured.out


def test_a_piped_table_is_not_cut_at_80_columns(capsys: Capture) -> None:
    long = "a/" * 45
    Output().table("Files", ["path", "bytes"], [[long, 1]])
    assert long in capsys.readouterr().out


def test_columns_of_numbers_are_flush_right(capsys: Capture) -> None:
    rows = [["a", 1, "97.3 %", "1.2 ± 0.1"], ["b", 1000, "8 %", None]]
    Output().table("T", ["name", "n", "share", "spread"], rows)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "97.3" in line)
    cells = re.split(r"[│|]", row)[1:-1]
    assert cells == [" a    ", "    1 ", " 97.3 % ", " 1.2 ± 0.1 "]
    other = next(line for line in lines if "1000" in line)
    assert "    8 % " in other


def test_quiet_silences_everything_but_warnings_and_results(capsys: Capture) -> None:
    out = Output(quiet=True)
    out.note("n")
    out.hint("h")
    with out.progress("inverting", 10) as progress:
        for _ in progress.track(range(10)):
            pass
    out.warn("mind the [gap]")
    out.table("T", ["a"], [["kept"]])
    captured = capsys.readouterr()
    assert captured.err == "warning: mind the [gap]\n"
    assert "kept" in captured.out


def test_hints_and_notes_are_never_wrapped(capsys: Capture) -> None:
    command = "frami-edge distill " + "x" * 200
    Output().hint(command)
    Output().note(command)
    assert capsys.readouterr().err == f"next: {command}\n{command}\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (True, "yes"), (False, "no"), (3, "3"), (1 / 3, "0.3333"), ("x", "x")],
)
def test_cells(value: object, shown: str) -> None:
    assert show(value) == shown


def test_a_pipe_gets_ten_plain_lines(capsys: Capture) -> None:
    with Output().progress("inverting", 200, fields=("loss", "kd")) as progress:
        for step in range(200):
            progress.update(kd=2, loss=step / 7, extra="x")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert "\x1b" not in captured.err
    assert len(lines) == 10
    assert lines[0].startswith("inverting 20/200 (10%), 0:00 elapsed, 0:00 left, loss 2.714, kd 2")
    assert lines[-1].startswith("inverting 200/200 (100%), 0:00 elapsed, loss 28.43, kd 2, extra x")


def test_json_on_a_pipe_has_no_progress(capsys: Capture) -> None:
    with Output(json=True).progress("inverting", 2) as progress:
        assert list(progress.track("ab")) == ["a", "b"]
    assert progress.completed == 2
    assert capsys.readouterr().err == ""


def test_lines_estimate_the_time_left_from_this_run_only() -> None:
    now = [0.0]
    said: list[str] = []
    lines = Lines("distilling", 100, (), 50, say=said.append, clock=lambda: now[0])
    now[0] = 3661.0
    lines.update(10)
    assert said == ["distilling 60/100 (60%), 1:01:01 elapsed, 4:04:04 left"]


def test_lines_come_at_least_once_a_minute_also_without_a_total() -> None:
    now = [0.0]
    said: list[str] = []
    lines = Lines("reading", None, (), 0, say=said.append, clock=lambda: now[0])
    lines.update()
    now[0] = LINE_SECONDS
    lines.update()
    lines.update()
    assert said == ["reading 2, 1:00 elapsed"]


def bar(total: int | None, completed: int = 0) -> tuple[Bar, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    return Bar("inverting [a]", total, ("loss",), completed, console=console), file


def test_a_terminal_gets_a_bar_with_counts_and_values() -> None:
    progress, file = bar(40, completed=30)
    with progress:
        progress.update(10, loss=0.5)
    last = file.getvalue()
    for text in ["inverting [a]", "40/40", "loss 0.5", "\x1b[?25l", "\x1b[?25h"]:
        assert text in last


def test_a_bar_gives_the_cursor_back_when_interrupted() -> None:
    progress, file = bar(None)

    def interrupted() -> None:
        with progress:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.getvalue().rstrip().endswith("\x1b[?25h")


def test_numbers_stay_whole_on_a_narrow_terminal(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    headings = ["model", *"abcdefghij"]
    for columns, whole in (("80", True), ("40", False)):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        Output().table("Times", headings, [["fp32", *[12.34] * 10]])
        shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
        assert "…" not in shown
        assert (shown.count("12.34") == 10) is whole
        assert max(map(len, shown.splitlines())) <= int(columns)
