"""Means, errors and verdicts, by hand; the plan's keys; the place in a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frami_edge.errors import RunError
from frami_edge.protocol.config import Protocol
from frami_edge.protocol.plan import Plan, load_protocol
from frami_edge.protocol.results import Results
from frami_edge.protocol.tables import comparisons, several_teachers, summary
from frami_edge.protocol.writing import caption, duration, markdown, write_between


def row(method: str, fold: str, seed: int, accuracy: float, kl: float) -> dict[str, Any]:
    return {
        "key": f"{method}-{fold}-{seed}", "method": method, "fold": fold, "seed": seed,
        "accuracy": accuracy, "teacher_accuracy": 0.9, "agreement_all": accuracy, "kl_all": kl,
        "clips_all": 400, "steps": 800, "device": "cpu", "threads": 1, "git": None,
        "distill_cpu_s": 10.0, "distill_s": 99.0, "resumed": False, "peak_mib": 100.0,
    }  # fmt: skip


def plan_of(tones: Path) -> Plan:
    return Plan(load_protocol(tones))


def test_errors_are_over_folds_and_spreads_over_runs(tones: Path) -> None:
    rows = [
        row("mixed", "1", 0, 0.80, 0.1), row("mixed", "1", 1, 0.90, 0.1),
        row("mixed", "2", 0, 0.70, 0.2), row("mixed", "2", 1, 0.80, 0.2),
    ]  # fmt: skip
    (method,) = summary(plan_of(tones), rows)
    assert (method.folds, method.runs, method.planned) == (2, 4, 4)
    assert method.accuracy == pytest.approx(0.8)
    assert method.accuracy_std == pytest.approx(0.0816, abs=1e-4)
    # Fold means of the gap: -0.05 and -0.15.
    assert method.gap == pytest.approx(-0.10)
    assert method.gap_error == pytest.approx(0.05)
    assert method.distill_s == 10.0


def test_a_run_that_was_resumed_does_not_set_the_time(tones: Path) -> None:
    rows = [row("mixed", "1", 0, 0.8, 0.1), row("mixed", "1", 1, 0.8, 0.1)]
    rows[0] |= {"resumed": True, "distill_cpu_s": 1.0}
    assert summary(plan_of(tones), rows)[0].distill_s == 10.0


def test_no_time_is_told_where_every_run_was_resumed(tones: Path) -> None:
    rows = [row("mixed", "1", 0, 0.8, 0.1) | {"resumed": True}]
    (method,) = summary(plan_of(tones), rows)
    assert method.distill_s is None
    assert method.cells()


def test_rows_of_different_teachers_are_no_pair(tones: Path) -> None:
    rows = [row(name, str(fold), 0, 0.8, 0.1) for name in ("mixed", "inversion") for fold in (1, 2)]
    for one in rows:
        one["teacher_sha256"] = "again" if one["key"] == "inversion-2-0" else "first"
    (pair,) = comparisons(plan_of(tones), rows)
    assert (pair.folds, pair.pairs) == (1, 1)
    assert several_teachers(rows) == ["2"]


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ([(0.70, 0.3), (0.71, 0.31), (0.70, 0.3)], "closer in agreement and KL"),
        ([(0.90, 0.05), (0.91, 0.05), (0.90, 0.05)], "farther in agreement and KL"),
        ([(0.70, 0.05), (0.71, 0.051), (0.70, 0.05)], "closer in agreement, farther in KL"),
        ([(0.70, 0.1), (0.92, 0.1), (0.8, 0.1)], "within the error"),
        # 2.3 standard errors, which three folds do not prove.
        ([(0.76, 0.1), (0.79, 0.1), (0.73, 0.1)], "within the error"),
        ([(0.70, 0.3), (0.71, 0.31)], "too few folds"),
    ],
)
def test_verdicts_go_by_students_t(
    tones: Path, other: list[tuple[float, float]], verdict: str
) -> None:
    rows = [row("mixed", str(fold), 0, 0.8, 0.1) for fold in (1, 2, 3)]
    rows += [row("inversion", str(i + 1), 0, a, kl) for i, (a, kl) in enumerate(other)]
    rows += [row("mixed", "1", 1, 0.0, 9.0)]  # has no partner
    (pair,) = comparisons(plan_of(tones), rows)
    assert (pair.folds, pair.pairs) == (len(other), len(other))
    assert pair.verdict == verdict
    assert pair.accuracy == pytest.approx(0.8 - sum(a for a, _ in other) / len(other))


def test_one_fold_knows_no_error(tones: Path) -> None:
    rows = [row("mixed", "1", 0, 0.8, 0.1), row("inversion", "1", 0, 0.7, 0.2)]
    assert comparisons(plan_of(tones), rows)[0].verdict == "too few folds"


def test_keys_change_with_what_decides_and_with_nothing_else(tones: Path) -> None:
    def keys(**changes: Any) -> list[str]:
        protocol = load_protocol(tones)
        return list(Plan(Protocol.model_validate(protocol.model_dump() | changes)).tasks)

    base = keys()
    assert keys(title="Another", curve_steps=0, compare=()) == base
    # A section of a source that no method uses.
    assert keys(set={"bank.baselines.cmi.iterations": 7}) == base
    steps = keys(set={"distill.steps": 5})
    assert [k for k in steps if k.startswith(("teacher", "bank"))] == [
        k for k in base if k.startswith(("teacher", "bank"))
    ]
    assert not {k for k in steps if k.startswith("mixed")} & set(base)
    teachers = keys(teacher_set={"train.epochs": 3})
    assert not set(teachers) & set(base)
    noise = [k for k in keys(set={"bank.control_clips": 30}) if k.startswith("noise")]
    assert not set(noise) & set(base)
    # A control has no bank, so nothing of the inversion is its own.
    others = keys(set={"bank.inversion.class_loss": 0.3})
    assert {k for k in base if k.startswith("noise")} <= set(others)
    assert not {k for k in base if k.startswith("mixed")} & set(others)


def test_a_bank_a_seed_where_asked(tones: Path) -> None:
    protocol = load_protocol(tones, ["bank_seeds=each"])
    banks = [task for task in Plan(protocol).tasks.values() if task.kind == "bank"]
    assert sorted((task.fold, task.seed) for task in banks) == [
        ("1", 0), ("1", 1), ("2", 0), ("2", 1),
    ]  # fmt: skip


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append({"key": "a"})
    results.append({"key": "a", "again": True})
    assert results.rows() == [{"key": "a"}]
    results.path.write_text('{"key": "a"}\n{"key\n' + json.dumps({"key": "b"}) + "\n")
    with pytest.raises(RunError, match="line 2"):
        results.rows()


def test_the_tables_replace_themselves_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "R.md"
    write_between(path, "p", "one\n")
    write_between(path, "q", "two")
    path.write_text(path.read_text() + "\nafter\n")
    write_between(path, "p", "three")
    text = path.read_text()
    assert "one" not in text
    assert text.index("three") < text.index("two") < text.index("after")


def test_markdown_has_a_line_a_method_and_says_what_it_is(tones: Path) -> None:
    plan, rows = plan_of(tones), [row("noise", "1", 0, 0.5, 1.0)]
    text = markdown(plan, summary(plan, rows), comparisons(plan, rows), rows)
    assert "| noise | 1 x 1 | 50.0 % | -40.0 | 50.0 % | 1.000 |" in text
    assert "never the best one" in caption(rows)
    assert caption([]) == "No student is there yet."
    assert (duration(30), duration(600), duration(7500)) == ("30 s", "10 min", "2 h 05 min")
