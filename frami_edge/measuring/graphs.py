"""Latency of the graph alone, on lengths of audio in one run, and on a streaming chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from frami_edge.measuring.subject import Subject
from frami_edge_export.latency import Latency, interleaved

BUDGET_S: Final = 3.0
"""Seconds of measuring for each row of the table."""


def graph_latency(
    subjects: Mapping[str, Subject], seconds: Sequence[float], chunk_s: float, rounds: int
) -> dict[str, dict[str, Latency]]:
    """By what is run, then by model; models take turns, so that their ratio is fair.

    Args:
        subjects: By name.
        seconds: Lengths of audio to run at once.
        chunk_s: Seconds of new audio in a streaming chunk.
        rounds: At most so many.
    """
    jobs: dict[str, dict[str, Callable[[], object]]] = {}
    for name, subject in subjects.items():
        for length in seconds:
            x = subject.whole_input(length)
            if x is not None:
                jobs.setdefault(f"{length:g} s", {})[name] = _call(subject, x)
        x = subject.chunk_input(chunk_s)
        if x is not None:
            jobs.setdefault(f"chunk {chunk_s:g} s", {})[name] = _call(subject, x)
    return {
        what: interleaved(calls, budget_s=BUDGET_S, max_rounds=rounds)
        for what, calls in jobs.items()
    }


def _call(subject: Subject, x: object) -> Callable[[], object]:
    return lambda: subject.run(x)  # type: ignore[arg-type]
