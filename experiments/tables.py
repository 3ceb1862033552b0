"""From rows to Markdown: methods side by side, and paired differences with their errors.

Seeds of a fold share its clips, so they do not shrink the error of a mean over folds: errors are
standard errors over folds of the means over seeds. ± behind a mean alone is the standard deviation
over all runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from filelock import FileLock
from protocol import Protocol

from frami_edge.evaluation import EVERY
from frami_edge.io import atomic_write_text

Row = dict[str, Any]
AGAIN = "Delete that line and run the command again: it alone is made anew."
"""The fix for a damaged row."""
Estimate = tuple[float, float | None]
"""A mean, and its standard deviation or error; None with fewer than two values."""

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


def append_row(path: Path, row: Row) -> None:
    """Add one row after whole lines; several processes may do so."""
    (locks := path.parent / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{path.stem}.lock"):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def method_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """One method over its folds and seeds: shares in [0, 1], KL in nats, times in seconds."""
    on_cpu = rows[0]["device"] == "cpu"
    clock = "cpu_s" if on_cpu else "s"
    memory = (
        ("peak_mib", "bank_peak_mib") if on_cpu else ("peak_device_mib", "bank_peak_device_mib")
    )
    peaks = [row[key] for row in rows for key in memory if row.get(key) is not None]
    whole = [row for row in rows if not row.get("resumed")]  # the others know half of their time
    gaps = _by_fold(rows, lambda row: row["accuracy"] - row["teacher_accuracy"])
    return {
        "folds": len(gaps),
        "runs": len(rows),
        "accuracy": _spread([row["accuracy"] for row in rows]),
        "teacher": mean(row["teacher_accuracy"] for row in rows),
        "gap": _error(gaps),
        "map": _mean(rows, "map"),
        "teacher_map": _mean(rows, "teacher_map"),
        "agreement": _spread([row["agreement_all"] for row in rows]),
        "kl": _spread([row["kl_all"] for row in rows]),
        "mels": _mean(rows, "mels"),
        "synthesis_s": _mean(rows, f"bank_{clock}"),
        "distill_s": _mean(whole, f"distill_{clock}"),
        "peak_mib": max(peaks, default=None),
        "cosine": _mean(rows, "cosine"),
    }


def pair_figures(rows: Sequence[Row], name: str, other: str) -> dict[str, Any] | None:
    """One method less another over the folds and seeds that both have, with the same teacher."""
    theirs = {(r["fold"], r["seed"], r["teacher_sha256"]): r for r in rows if r["method"] == other}
    pairs = [
        (row, theirs[key])
        for row in rows
        if row["method"] == name
        and (key := (row["fold"], row["seed"], row["teacher_sha256"])) in theirs
    ]
    if not pairs:
        return None

    def difference(key: str) -> Estimate:
        rows = [{"fold": a["fold"], "difference": a[key] - b[key]} for a, b in pairs]
        return _error(_by_fold(rows, lambda row: row["difference"]))

    found: dict[str, Any] = {
        "folds": len({row["fold"] for row, _ in pairs}),
        "pairs": len(pairs),
        "accuracy": difference("accuracy"),
        "agreement": difference("agreement_all"),
        "kl": difference("kl_all"),
        "closer": sum(a["kl_all"] < b["kl_all"] for a, b in pairs),
    }
    return found | {"verdict": _verdict(found)}


def _verdict(found: dict[str, Any]) -> str:
    """Which of agreement and KL differ from 0, by Student's t over the folds."""
    if found["folds"] < FEWEST_FOLDS:
        return "too few folds"
    t = T_95[min(found["folds"] - 1, max(T_95))]
    words: dict[str, list[str]] = {"closer": [], "farther": []}
    for name, key, sign in (("agreement", "agreement", 1), ("KL", "kl", -1)):
        value, error = found[key]
        if abs(value) > t * error:
            words["closer" if sign * value > 0 else "farther"].append(name)
    parts = [f"{word} in {' and '.join(names)}" for word, names in words.items() if names]
    return ", ".join(parts) or "within the error"


def markdown(protocol: Protocol, rows: Sequence[Row]) -> str:
    """Title, conditions, the table of methods and the table of paired differences."""
    parts = [f"### {protocol.title}\n", caption(rows) + "\n"]
    lines, ranked = [], any(row.get("map") is not None for row in rows)
    for name, method in protocol.methods.items():
        mine = [row for row in rows if row["method"] == name]
        if mine:
            planned = len(method.seeds or protocol.seeds) * len(method.folds or protocol.folds)
            found = method_figures(mine)
            cells = _method_cells(method.what or name, planned, found)
            if ranked:
                cells.append(f"{found['map']:.3f}, {found['teacher_map']:.3f}")
            lines.append(cells)
    if lines:
        parts.append(_table(COLUMNS + ("mAP, teacher's",) * ranked, lines))
    pairs = [(a, b, pair_figures(rows, a, b)) for a, b in protocol.compare]
    if any(found for *_, found in pairs):
        parts.append(
            "\nPaired differences, mean over folds ± standard error over folds (points for "
            "accuracy and agreement, nats for KL); the verdict names which of agreement and KL "
            "differ from 0 by Student's t over folds (95 %, not corrected for the number of pairs)"
            ".\n"
        )
        parts.append(_table(PAIR_COLUMNS, [_pair_cells(a, b, f) for a, b, f in pairs if f]))
    return "\n".join(parts) + "\n"


def caption(rows: Sequence[Row]) -> str:
    """The conditions under which all rows were made."""
    if not rows:
        return "No student is there yet."
    machines = ", ".join(sorted({_machine(row) for row in rows}))
    commits = sorted({(row["git"] or {}).get("commit", "")[:9] for row in rows} - {""})
    steps = ", ".join(str(n) for n in sorted({row["steps"] for row in rows}))
    on_cpu = any(row["device"] == "cpu" for row in rows)
    times = "CPU seconds of one student and of its bank" if on_cpu else "seconds"
    made = f", commit {', '.join(commits)}" if commits else ""
    test = "all clips" if {row["fold"] for row in rows} == {EVERY} else "the held-out fold"
    return (
        f"Last step of {steps}, never the best one. Accuracy on {test}; agreement and "
        f"KL from the teacher on all {max(row['clips_all'] for row in rows)} clips of the set, on "
        f"which no data-free student was trained. Times are {times}; peak memory is the largest "
        "of bank and student; diversity is 1 - mean cosine of the teacher's embeddings within a "
        f"source. Made on {machines}{made}."
    )


def write_between(path: Path, name: str, text: str) -> None:
    """Put the tables into a document, replacing what an earlier call wrote, or else at its end.

    Args:
        path: Markdown file; created if it does not exist.
        name: Title of the protocol, for the invisible markers.
        text: The tables.
    """
    begin, end = f"<!-- protocol: {name} -->", f"<!-- end of protocol: {name} -->"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    block = f"{begin}\n{text.rstrip()}\n{end}"
    before, found, rest = old.partition(begin)
    if found and end in rest:
        new = before + block + rest.partition(end)[2]
    else:
        new = (old.rstrip() + "\n\n" if old.strip() else "") + block + "\n"
    atomic_write_text(path, new)


def _method_cells(what: str, planned: int, found: dict[str, Any]) -> list[object]:
    def cell(key: str, form: str) -> str | None:
        return None if found[key] is None else form.format(found[key])

    short = "" if found["runs"] == planned else f" ({found['runs']} of {planned})"
    return [
        what,
        f"{found['folds']} x {found['runs'] / found['folds']:.3g}{short}",
        _percent(found["accuracy"]),
        _points(found["gap"]),
        _percent(found["agreement"]),
        _nats(found["kl"]),
        cell("mels", "{:.0f}"),
        cell("synthesis_s", "{:.0f} s"),
        cell("distill_s", "{:.0f} s"),
        cell("peak_mib", "{:.0f} MiB"),
        None if found["cosine"] is None else f"{1 - found['cosine']:.2f}",
    ]


def _pair_cells(name: str, other: str, found: dict[str, Any]) -> list[object]:
    return [
        f"{name} - {other}",
        f"{found['folds']} x {found['pairs'] / found['folds']:.3g}",
        _points(found["accuracy"]),
        _points(found["agreement"]),
        _nats(found["kl"], "+"),
        f"{found['closer']} of {found['pairs']}",
        found["verdict"],
    ]


def _machine(row: Row) -> str:
    threads = f"{row['threads']} thread" + ("s" if row["threads"] > 1 else "")
    return f"{row['device']} ({', '.join(filter(None, (threads, row.get('precision'))))})"


def _by_fold(rows: Sequence[Row], value: Callable[[Row], float]) -> list[float]:
    """Means over the seeds of each fold."""
    folds = sorted({row["fold"] for row in rows})
    return [mean(value(row) for row in rows if row["fold"] == fold) for fold in folds]


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return mean(values) if values else None


def _spread(values: Sequence[float]) -> Estimate:
    return mean(values), stdev(values) if len(values) > 1 else None


def _error(values: Sequence[float]) -> Estimate:
    return mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _percent(found: Estimate) -> str:
    value, spread = found
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}") + " %"


def _points(found: Estimate) -> str:
    value, error = found
    return f"{100 * value:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _nats(found: Estimate, sign: str = "") -> str:
    value, spread = found
    return f"{value:{sign}.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
