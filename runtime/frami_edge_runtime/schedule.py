"""When a stream gives results: seconds as asked for, rounded to whole trunk frames."""

from __future__ import annotations

import math
from typing import Any, Final

from frami_edge_runtime.errors import StreamError

LONGEST_S: Final = 7 * 86_400.0
MOST_BLOCKS: Final = 1 << 16
LONGEST_DEFAULT_HOP_S: Final = 0.5


def plan_results(
    frame_s: float, window_s: float | None, forget_s: float | None, hop_s: float | None
) -> tuple[int | None, int | None]:
    """Trunk frames between results, and how many such hops make a window.

    The hop is rounded to the nearest whole number of trunk frames, at least one; the window to the
    nearest whole number of hops, at least one. Without ``hop_s`` it is a quarter of ``window_s`` or
    ``forget_s``, at most 0.5 s; without all three there are no results before the end.

    Args:
        frame_s: Seconds between trunk frames.
        window_s: Seconds that a result looks back, or None for no limit.
        forget_s: Half-life in seconds, or None.
        hop_s: Seconds between results, or None.

    Returns:
        (hop in trunk frames or None, blocks of one hop in a window or None).

    Raises:
        StreamError: A duration is not positive and finite, or two contradict each other.
    """
    for name, value in (("window_s", window_s), ("forget_s", forget_s), ("hop_s", hop_s)):
        _check_duration(name, value)
    if window_s is not None and forget_s is not None:
        raise StreamError(
            "window_s and forget_s exclude each other.",
            fix="A window forgets all at once, forget_s gradually: choose one.",
        )
    span = window_s if window_s is not None else forget_s
    if hop_s is None and span is not None:
        hop_s = min(LONGEST_DEFAULT_HOP_S, span / 4)
    if hop_s is None:
        return None, None
    hop = max(1, math.floor(hop_s / frame_s + 0.5))
    if window_s is None:
        return hop, None
    if hop_s > window_s:
        raise StreamError(
            f"hop_s {hop_s} is longer than window_s {window_s}: audio would go unheard.",
            fix="Use a hop of at most one window.",
        )
    blocks = max(1, math.floor(window_s / (hop * frame_s) + 0.5))
    if blocks > MOST_BLOCKS:
        raise StreamError(
            f"window_s {window_s} holds {blocks} hops of {hop * frame_s:.3g} s; at most "
            f"{MOST_BLOCKS} are kept.",
            fix="Raise hop_s, or use forget_s, whose memory does not grow.",
        )
    return hop, blocks


def _check_duration(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value <= LONGEST_S):
        raise StreamError(
            f"{name} must be a number of seconds in 0..{LONGEST_S:g}, above 0, not "
            f"{str(value)[:40]!r}.",
            fix="Use None to leave it out.",
        )
