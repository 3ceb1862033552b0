"""From rows to tables: methods side by side, and differences between pairs of them.

Seeds of a fold share its clips, so they do not shrink the error of a mean over folds: errors are
standard errors over folds, of the means over seeds. ± behind a mean alone is the standard
deviation over all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from frami_edge.protocol.plan import Plan, Task

Row = dict[str, Any]

PLAN_COLUMNS = ("what", "method", "runs", "left", "seconds left")
COLUMNS = (
    "method",
    "folds x seeds",
    "accuracy",
    "less the teacher's",
    "agreement",
    "KL",
    "clips",
    "synthesis",
    "distillation",
    "peak memory",
    "diversity",
)
PAIR_COLUMNS = ("pair", "folds x seeds", "accuracy", "agreement", "KL", "closer in KL", "verdict")
FEWEST_FOLDS = 3
"""With fewer no verdict is given."""
T_95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom (folds - 1)."""


@dataclass(frozen=True)
class MethodSummary:
    """One method over its folds and seeds. Shares are in [0, 1], KL in nats, times in seconds."""

    name: str
    what: str
    folds: int
    runs: int
    planned: int
    accuracy: float
    accuracy_std: float | None
    teacher: float
    gap: float
    gap_error: float | None
    agreement: float
    agreement_std: float | None
    kl: float
    kl_std: float | None
    mels: float | None
    synthesis_s: float | None
    distill_s: float | None
    """Of runs that were not interrupted."""
    peak_mib: float | None
    cosine: float | None

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def cells(self) -> list[object]:
        """Under `COLUMNS`."""
        short = "" if self.runs == self.planned else f" ({self.runs} of {self.planned})"
        return [
            self.what or self.name,
            f"{self.folds} x {self.runs / self.folds:.3g}{short}",
            _percent(self.accuracy, self.accuracy_std),
            _points(self.gap, self.gap_error),
            _percent(self.agreement, self.agreement_std),
            _number(self.kl, self.kl_std),
            None if self.mels is None else f"{self.mels:.0f}",
            None if self.synthesis_s is None else f"{self.synthesis_s:.0f} s",
            None if self.distill_s is None else f"{self.distill_s:.0f} s",
            None if self.peak_mib is None else f"{self.peak_mib:.0f} MiB",
            None if self.cosine is None else f"{1 - self.cosine:.2f}",
        ]


@dataclass(frozen=True)
class Comparison:
    """One method less another, over the folds and seeds that both have."""

    name: str
    other: str
    folds: int
    pairs: int
    accuracy: float
    accuracy_error: float | None
    agreement: float
    agreement_error: float | None
    kl: float
    kl_error: float | None
    closer: int

    @property
    def verdict(self) -> str:
        """In words: which of agreement and KL differ from 0, by Student's t over the folds."""
        if self.agreement_error is None or self.kl_error is None or self.folds < FEWEST_FOLDS:
            return "too few folds"
        freedom = min(self.folds - 1, max(T_95))
        signs = {
            "agreement": _sign(self.agreement, self.agreement_error * T_95[freedom]),
            "KL": -_sign(self.kl, self.kl_error * T_95[freedom]),
        }
        closer = " and ".join(name for name, sign in signs.items() if sign > 0)
        farther = " and ".join(name for name, sign in signs.items() if sign < 0)
        words = [f"closer in {closer}"] * bool(closer) + [f"farther in {farther}"] * bool(farther)
        return ", ".join(words) or "within the error"

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"verdict": self.verdict}

    def cells(self) -> list[object]:
        """Under `PAIR_COLUMNS`."""
        return [
            f"{self.name} - {self.other}",
            f"{self.folds} x {self.pairs / self.folds:.3g}",
            _points(self.accuracy, self.accuracy_error),
            _points(self.agreement, self.agreement_error),
            f"{self.kl:+.3f}" + ("" if self.kl_error is None else f" ± {self.kl_error:.3f}"),
            f"{self.closer} of {self.pairs}",
            self.verdict,
        ]


def summary(plan: Plan, rows: Sequence[Row]) -> list[MethodSummary]:
    """Every method that has a row, in the protocol's order."""
    planned = [task.method for task in plan.students]
    found = []
    for name, method in plan.protocol.methods.items():
        mine = [row for row in rows if row["method"] == name]
        if mine:
            found.append(_summary(name, method.what, mine, planned.count(name)))
    return found


def comparisons(plan: Plan, rows: Sequence[Row]) -> list[Comparison]:
    """The protocol's pairs, as far as their rows are there, of one teacher each."""
    found = []
    for name, other in plan.protocol.compare:
        theirs = {(r["fold"], r["seed"]): r for r in rows if r["method"] == other}
        pairs = [
            (r, theirs[r["fold"], r["seed"]])
            for r in rows
            if r["method"] == name
            and (r["fold"], r["seed"]) in theirs
            and _same_teacher(r, theirs[r["fold"], r["seed"]])
        ]
        if pairs:
            found.append(_comparison(name, other, pairs))
    return found


def several_teachers(rows: Sequence[Row]) -> list[str]:
    """Folds whose rows come from more than one training of the teacher."""
    folds = sorted({row["fold"] for row in rows})
    mine = {f: {r.get("teacher_sha256") for r in rows if r["fold"] == f} for f in folds}
    return [fold for fold in folds if len(mine[fold]) > 1]


def plan_rows(plan: Plan, left: Sequence[Task], seconds: dict[str, float]) -> list[list[object]]:
    """Teachers, banks and students by method: how many, how many are left, and for how long."""
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in plan.tasks.values():
        groups.setdefault((task.kind, task.method), []).append(task)
    order = {"teacher": 0, "bank": 1, "student": 2}
    keys = {task.key for task in left}
    rows: list[list[object]] = []
    for (kind, method), tasks in sorted(groups.items(), key=lambda item: order[item[0][0]]):
        open_ones = [task for task in tasks if task.key in keys]
        cost = sum(seconds[task.key] for task in open_ones)
        rows.append([kind, method or None, len(tasks), len(open_ones), f"{cost:.0f}"])
    return rows


def _summary(name: str, what: str, rows: list[Row], planned: int) -> MethodSummary:
    folds = sorted({row["fold"] for row in rows})
    gaps = _by_fold(rows, lambda r: r["accuracy"] - r["teacher_accuracy"])
    time = "cpu_s" if rows[0]["device"] == "cpu" else "s"
    peaks = [
        value
        for row in rows
        for key in ("peak_mib", "bank_peak_mib", "peak_device_mib", "bank_peak_device_mib")
        if (value := row.get(key)) is not None and ("device" in key or rows[0]["device"] == "cpu")
    ]
    return MethodSummary(
        name=name,
        what=what,
        folds=len(folds),
        runs=len(rows),
        planned=planned,
        accuracy=mean(r["accuracy"] for r in rows),
        accuracy_std=_spread([r["accuracy"] for r in rows]),
        teacher=mean(r["teacher_accuracy"] for r in rows),
        gap=mean(gaps),
        gap_error=_error(gaps),
        agreement=mean(r["agreement_all"] for r in rows),
        agreement_std=_spread([r["agreement_all"] for r in rows]),
        kl=mean(r["kl_all"] for r in rows),
        kl_std=_spread([r["kl_all"] for r in rows]),
        mels=_mean(rows, "mels"),
        synthesis_s=_mean(rows, f"bank_{time}"),
        distill_s=_mean([row for row in rows if not row["resumed"]], f"distill_{time}"),
        peak_mib=max(peaks, default=None),
        cosine=_mean(rows, "cosine"),
    )


def _comparison(name: str, other: str, pairs: list[tuple[Row, Row]]) -> Comparison:
    def differences(key: str) -> list[float]:
        merged = [{"fold": a["fold"], "d": a[key] - b[key]} for a, b in pairs]
        return _by_fold(merged, lambda r: r["d"])

    accuracy, agreement = differences("accuracy"), differences("agreement_all")
    kl = differences("kl_all")
    return Comparison(
        name=name,
        other=other,
        folds=len(kl),
        pairs=len(pairs),
        accuracy=mean(accuracy),
        accuracy_error=_error(accuracy),
        agreement=mean(agreement),
        agreement_error=_error(agreement),
        kl=mean(kl),
        kl_error=_error(kl),
        closer=sum(a["kl_all"] < b["kl_all"] for a, b in pairs),
    )


def _same_teacher(row: Row, other: Row) -> bool:
    return bool(row.get("teacher_sha256") == other.get("teacher_sha256"))


def _by_fold(rows: Sequence[Row], value: Callable[[Row], float]) -> list[float]:
    """Means over the seeds of each fold."""
    folds = sorted({row["fold"] for row in rows})
    return [mean(value(row) for row in rows if row["fold"] == fold) for fold in folds]


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return mean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _error(values: Sequence[float]) -> float | None:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _sign(value: float, margin: float) -> int:
    return 0 if abs(value) <= margin else (1 if value > 0 else -1)


def _percent(value: float, spread: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}") + " %"


def _points(value: float, error: float | None) -> str:
    return f"{100 * value:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _number(value: float, spread: float | None) -> str:
    return f"{value:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
