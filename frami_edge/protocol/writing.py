"""The tables as Markdown, and their place in a longer document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frami_edge.io import atomic_write_text
from frami_edge.protocol.plan import Plan
from frami_edge.protocol.tables import COLUMNS, PAIR_COLUMNS, Comparison, MethodSummary, Row


def markdown(
    plan: Plan, methods: Sequence[MethodSummary], pairs: Sequence[Comparison], rows: Sequence[Row]
) -> str:
    """Title, conditions, the table of methods and the table of differences."""
    protocol = plan.protocol
    parts = [f"### {protocol.title}\n", caption(rows) + "\n"]
    if methods:
        parts.append(_table(COLUMNS, [m.cells() for m in methods]))
    if pairs:
        parts.append(
            "\nPaired differences, mean over folds ± standard error over folds (points for "
            "accuracy and agreement, nats for KL); the verdict names which of agreement and KL "
            "differ from 0 by Student's t over folds (95 %, not corrected for the number of pairs)"
            ".\n"
        )
        parts.append(_table(PAIR_COLUMNS, [p.cells() for p in pairs]))
    return "\n".join(parts) + "\n"


def caption(rows: Sequence[Row]) -> str:
    """The conditions under which all rows were made."""
    if not rows:
        return "No student is there yet."
    devices = ", ".join(sorted({_machine(row) for row in rows}))
    commits = sorted({(r["git"] or {}).get("commit", "")[:9] for r in rows} - {""})
    clips = max(r["clips_all"] for r in rows)
    steps = ", ".join(str(n) for n in sorted({r["steps"] for r in rows}))
    on_cpu = any(r["device"] == "cpu" for r in rows)
    times = "CPU seconds of one student and of its bank" if on_cpu else "seconds"
    made = f", commit {', '.join(commits)}" if commits else ""
    return (
        f"Last step of {steps}, never the best one. Accuracy on the held-out fold; agreement and "
        f"KL from the teacher on all {clips} clips of the set, which data-free students never "
        f"heard. Times are {times}; peak memory is the largest of bank and student; diversity is "
        f"1 - mean cosine of the teacher's embeddings within a source. Made on {devices}{made}."
    )


def _machine(row: Row) -> str:
    threads = f"{row['threads']} thread" + ("s" if row["threads"] > 1 else "")
    return f"{row['device']} ({', '.join([threads, row.get('precision', '')]).rstrip(', ')})"


def duration(seconds: float) -> str:
    """`2 h 05 min`, `4 min`, `30 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def write_between(path: Path, name: str, text: str) -> None:
    """Put the tables into a document, over what an earlier call put there, else at its end.

    Args:
        path: Markdown file; made where it is not there.
        name: Of the protocol; its markers are HTML comments, which no reader sees.
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


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join("" if c is None else str(c) for c in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
