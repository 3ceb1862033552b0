"""`frami-edge protocol` from end to end, interrupted, narrowed, and failing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from frami_edge.cli import app
from frami_edge.errors import RunError
from frami_edge.protocol.making import Maker
from frami_edge.protocol.plan import Task


def call(*arguments: object) -> Result:
    options = ["--device", "cpu", "--precision", "fp32"]
    return CliRunner().invoke(app, ["protocol", *map(str, arguments), *options])


def found(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_whole_table_then_nothing_twice(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, document = tmp_path / "out", tmp_path / "DOC.md"
    document.write_text("# Results\n\nBefore.\n")
    plan = found(call(tones, "--out", out, "--dry-run", "--json"))
    assert plan["tasks"] == 2 + 2 + 4 + 2 + 2 + 1 + 1
    assert plan["done"] == 0
    assert plan["seconds_left"] > 0
    assert not out.exists()

    first = found(call(tones, "--out", out, "--write", document, "--json"))
    assert first["students"] == first["of"] == 10
    by_name = {m["name"]: m for m in first["methods"]}
    assert by_name["mixed"]["runs"] == 4
    assert by_name["few"]["mels"] == 6
    assert by_name["inversion"]["mels"] == 24 < by_name["mixed"]["mels"]
    assert by_name["noise"]["synthesis_s"] is None
    assert 0 < by_name["inversion"]["synthesis_s"] < by_name["mixed"]["synthesis_s"]
    assert first["comparisons"][0]["pairs"] == 2
    assert {Path(p).name for p in first["plots"]} == {
        "accuracy-over-time.png",
        "accuracy-over-mels.png",
    }
    assert all(Path(p).stat().st_size > 5000 for p in first["plots"])
    kept = rows(out)
    assert [p["step"] for p in kept[0]["curve"]] == [2, 4]
    assert kept[0]["curve"][-1]["accuracy"] == kept[0]["accuracy"]

    made: list[str] = []
    genuine = Maker.make

    def counted(self: Maker, task: Task) -> None:
        made.append(task.key)
        genuine(self, task)

    monkeypatch.setattr(Maker, "make", counted)
    again = found(call(tones, "--out", out, "--write", document, "--json"))
    assert made == []
    assert again["methods"] == first["methods"]
    text = document.read_text()
    assert text.startswith("# Results\n\nBefore.\n")
    assert text.count("| everything |") == 1

    # A line that was lost, and one that was cut: those two students alone are made again.
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[1:-1]) + lines[-1][:40])
    redone = found(call(tones, "--out", out, "--json"))
    assert sorted(made) == sorted(json.loads(line)["key"] for line in (lines[0], lines[-1]))
    for name in ("accuracy", "agreement", "kl", "runs"):
        assert [m[name] for m in redone["methods"]] == [m[name] for m in first["methods"]]


def test_a_part_gives_the_rows_of_the_whole(tones: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    part = found(call(tones, "--out", out, "--methods", "inversion", "--folds", "2", "--json"))
    assert part["students"] == part["of"] == 1
    keys = {row["key"] for row in rows(out)}
    whole = found(call(tones, "--out", out, "--dry-run", "--json"))
    assert whole["done"] == 3  # the teacher, the bank it borrows, the student
    page = tmp_path / "page.md"
    narrow = ("--methods", "inversion", "--write", page)
    found(call(tones, "--out", out, *narrow, "--json"))
    assert keys < {row["key"] for row in rows(out)}
    # A document keeps the rows that this call did not ask for.
    found(
        call(tones, "--out", out, "--methods", "noise", "--folds", "1", "--write", page, "--json")
    )
    for text in (page.read_text(), (out / "RESULTS.md").read_text()):
        assert "| inversion |" in text
        assert "| noise |" in text
    # Another protocol in the same folder leaves the page of the first one as it was.
    other = tmp_path / "other.yaml"
    other.write_text(tones.read_text().replace("Two tones", "Other tones"))
    found(call(other, "--out", out, "--methods", "noise", "--folds", "1", "--json"))
    both = (out / "RESULTS.md").read_text()
    assert both.count("### Two tones\n") == both.count("### Other tones\n") == 1
    assert {p.name for p in (out / "protocols").iterdir()} == {"p.yaml", "other.yaml"}
    # The rows travel alone: tables need no data set, teacher or bank.
    (tmp_path / "tones").rename(tmp_path / "gone")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(out / "results.jsonl", elsewhere)
    tables = found(call(tones, "--out", elsewhere, "--tables", "--json"))
    assert tables["students"] == len(rows(out))
    assert (elsewhere / "RESULTS.md").read_text().strip() in both
    result = call(tones, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert not (tmp_path / "new").exists()


def test_two_workers_share_the_work(tones: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "frami_edge", "protocol", str(tones), "--out", str(out)]
    command += ["--workers", "2", "--methods", "noise,scratch", "--json", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["students"] == 2
    assert len({row["key"] for row in rows(out)}) == len(rows(out)) == 2


def test_what_fails_is_told_and_the_rest_is_made(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    genuine = Maker.make

    def broken(self: Maker, task: Task) -> None:
        if task.kind == "bank":
            raise RunError("The bank burst.", fix="Mend it.")
        genuine(self, task)

    monkeypatch.setattr(Maker, "make", broken)
    arguments = (tones, "--out", out, "--methods", "mixed,noise", "--folds", "1")
    result = call(*arguments)
    assert result.exit_code == 1
    assert "The bank burst." in result.stderr
    assert "again" in result.stderr
    assert [row["method"] for row in rows(out)] == ["noise"]
    monkeypatch.setattr(Maker, "make", genuine)
    assert found(call(*arguments, "--json"))["students"] == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("methods: {a: {control: unrelated}}", "go together"),
        ("methods: {a: {bank_of: b}}", "no method with a bank"),
        ("methods: {a: {control: real, mels: 3}}", "no bank"),
        ("methods: {a: {folds: [7]}}", "not among the folds"),
        ("methods: {a: {sed: 3}}", "no such key"),
        ("methods: {a: {set: {distill.stepz: 3}}}", "did you mean 'steps'"),
        ("methods: {a: {set: {seed: 3}}}", "`seeds`"),
        (
            "methods: {a: {}, b: {bank_of: a, set: {bank.inversion.contrastive: 0}}}",
            "changes nothing",
        ),
        (
            "methods: {a: {set: {bank.sources: {inversion: 1}}}, b: {bank_of: a}}",
            "has no procedural, translator",
        ),
        ("methods: {a: {control: unrelated, unrelated: 'folder:HERE/tones'}}", "not unrelated"),
        ("methods: {a: {control: unrelated, unrelated: 'folder:HERE/gone'}}", "gone"),
        ("methods: {a: {control: scratch}}\nfolds: [1, 3]", "fold"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tones: Path, tmp_path: Path, change: str, told: str
) -> None:
    text = tones.read_text()
    text = text[: text.index("methods:")] + change.replace("HERE", str(tmp_path)) + "\n"
    tones.write_text(text if "\nfolds" not in change else text.replace("folds: [1, 2]\n", ""))
    result = call(tones, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert told in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_is_named(tones: Path, tmp_path: Path) -> None:
    result = call(tones, "--methods", "mixd")
    assert result.exit_code == 1
    assert "did you mean 'mixed'" in result.stderr
