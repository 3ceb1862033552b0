"""The lines as text, for terminals that know ticks and for those that do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from frami_edge_runtime.doctor.check import Check, Status

_TICKS: Final[dict[Status, str]] = {"ok": "✔", "warn": "!", "fail": "✘", "absent": "·"}
_PLAIN: Final[dict[Status, str]] = {"ok": "ok", "warn": "!!", "fail": "XX", "absent": "--"}


def marks(encoding: str | None) -> dict[Status, str]:
    """A mark for each status that an encoding can show."""
    try:
        "".join(_TICKS.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return dict(_PLAIN)
    return dict(_TICKS)


def groups(checks: Sequence[Check]) -> Iterator[tuple[str, list[Check]]]:
    """The lines by group, in the order in which the groups first come."""
    names = list(dict.fromkeys(check.group for check in checks))
    for name in names:
        yield name, [check for check in checks if check.group == name]


def as_text(checks: Sequence[Check], encoding: str | None) -> str:
    """All of it; a fix has a line of its own, so that it can be copied."""
    mark = marks(encoding)
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for name, members in groups(checks):
        lines.append(name)
        for check in members:
            lines.append(f"  {mark[check.status]} {check.name:<{width}}  {check.found}")
            if check.fix:
                how = "how" if check.status in ("ok", "absent") else "fix"
                lines.append(f"    {how}: {check.fix}")
    return "\n".join(lines) + "\n"


def verdict(checks: Sequence[Check], what: str) -> str:
    """One sentence: what stands in the way of ``what``, and how many lines deserve a look."""
    blocking = [check.name for check in checks if check.blocks]
    if blocking:
        return f"Not ready for {what}: {', '.join(blocking)}."
    others = sum(check.status in ("warn", "fail") for check in checks)
    rest = f"; {others} line{'s' if others > 1 else ''} with a fix" if others else ""
    return f"Ready for {what}{rest}."
