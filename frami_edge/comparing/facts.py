"""What two models must share before a number of one can be held against a number of the other."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from frami_edge.comparing.sides import Side
from frami_edge.errors import CheckpointError


@dataclass(frozen=True)
class Finding:
    """One fact of both, side by side."""

    fact: str
    first: Any
    second: Any
    same: bool | None
    """None where one of them does not say."""


def compare_facts(a: Side, b: Side) -> tuple[Finding, ...]:
    """Names and shapes first: classes, front end, geometry, origin.

    Raises:
        CheckpointError: They answer with different classes, so that no logit can be compared.
    """
    _same_labels(a, b)
    found = [
        Finding("kind", a.kind, b.kind, None),
        _finding("classes", len(a.labels), len(b.labels)),
        _finding("front end", a.spec.digest[:16], b.spec.digest[:16]),
    ]
    for name in ("receptive_field", "stride", "context", "pool_eps"):
        found.append(_finding(name.replace("_", " "), getattr(a, name), getattr(b, name)))
    for name in ("student_sha256", "teacher_sha256"):
        first, second = getattr(a, name), getattr(b, name)
        found.append(_finding(name.removesuffix("_sha256"), _short(first), _short(second)))
    found.append(Finding("precision", a.precision, b.precision, None))
    return tuple(found)


def sentences(a: Side, b: Side, findings: tuple[Finding, ...]) -> list[str]:
    """What a reader must know before the numbers: every fact that differs, in words."""
    said = []
    for finding in findings:
        if finding.same is not False:
            continue
        if finding.fact == "front end":
            said.append(
                f"The front ends differ in {_changed(a, b)}: each model hears the audio through "
                "its own."
            )
        elif finding.fact in ("student", "teacher"):
            said.append(
                f"They were made from different {finding.fact}s: {finding.first} and "
                f"{finding.second}."
            )
        else:
            said.append(f"{finding.fact} differs: {finding.first} and {finding.second}.")
    return said


def _same_labels(a: Side, b: Side) -> None:
    if a.labels == b.labels:
        return
    if sorted(a.labels) == sorted(b.labels):
        what = "hold the same classes in another order"
    else:
        missing = sorted(set(a.labels) ^ set(b.labels))
        missing = sorted(set(a.labels) ^ set(b.labels))
        what = f"know different classes ({', '.join(missing[:5])} only one of them)"
    raise CheckpointError(
        f"{a.path.name} and {b.path.name} {what}: their answers cannot be compared.",
        fix="Compare two models of the same teacher.",
    )


def _finding(fact: str, first: Any, second: Any) -> Finding:
    same = None if first is None or second is None else bool(first == second)
    return Finding(fact, first, second, same)


def _short(digest: str | None) -> str | None:
    return None if digest is None else digest[:16]


def _changed(a: Side, b: Side) -> str:
    fields = [f.name for f in dataclasses.fields(a.spec)]
    return ", ".join(n for n in fields if getattr(a.spec, n) != getattr(b.spec, n))
