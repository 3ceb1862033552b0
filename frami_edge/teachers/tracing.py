"""One forward pass, watched: what every module took and gave, and whether time is still in it.

Shape legend: B batch, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frami_edge.errors import TeacherError

LAYOUTS = ("B1MT", "BMT", "B1TM", "BTM", "B3MT", "B3TM")
"""Tried in this order where the description says ``auto``."""
_USUAL_LENGTHS = (32, 48, 49, 50, 61, 63, 64, 80, 96, 98, 99, 100, 101, 125, 126, 128, 200, 201,
                  250, 251, 300, 301, 400, 401, 500, 501, 512, 998, 1000, 1001, 1024)  # fmt: skip
"""Mel frames of the clips that networks of one length are commonly built for."""
BATCH = 4
LENGTHS = (256, 512)
"""Mel frames of the two passes that are compared: an axis that grows between them is time."""


@dataclass(frozen=True)
class Event:
    """A tensor that went into, or came out of, a module.

    Attributes:
        name: Of the module, as in `named_modules`; `NAME@in` for what went in.
        kind: Class of the module.
        tensor: Of the shorter pass.
        longer: Shape in the longer pass.
        leaf: The module has no children.
    """

    name: str
    kind: str
    tensor: Tensor
    longer: tuple[int, ...]
    leaf: bool

    @property
    def time_axis(self) -> int | None:
        """The axis that grows with the clip; None where time is gone."""
        pairs = zip(self.tensor.shape, self.longer, strict=True)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), None)


def arrange(x_B1MT: Tensor, layout: str) -> Tensor:
    """Our (B, 1, M, T) in the teacher's order of axes."""
    x = x_B1MT.transpose(2, 3) if layout.endswith("TM") else x_B1MT
    if "3" in layout:  # networks for pictures see the same mel in each colour
        return x.expand(-1, 3, -1, -1)
    return x if "1" in layout else x.squeeze(1)


def probe_mels(n_mels: int, frames: int, *, batch: int = BATCH) -> Tensor:
    """(B, 1, M, T) normalised, smooth enough to excite most units."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 1, max(2, n_mels // 8), max(2, frames // 8), generator=draw)
    fine = torch.randn(batch, 1, n_mels, frames, generator=draw)
    size = (n_mels, frames)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return smooth + 0.5 * fine


def find_layout(model: nn.Module, n_mels: int, classes: int, asked: str = "auto") -> str:
    """The order of axes in which the teacher gives (B, K) for clips of two lengths.

    Raises:
        TeacherError: None of them does, with what each attempt met.
    """
    tried = []
    for layout in LAYOUTS if asked == "auto" else (asked,):
        shapes = _shapes(model, n_mels, classes, layout, LENGTHS)
        if shapes == [(BATCH, classes)] * 2:
            if layout == "BMT" and asked == "auto":
                _check_only_one(model, n_mels, classes)
            return layout
        said = " and ".join(map(str, shapes))
        tried.append(
            f"{layout}: {said}" if isinstance(shapes[-1], str) else f"{layout}: gives {said}"
        )
    for layout in LAYOUTS if asked == "auto" else (asked,):
        for frames in _USUAL_LENGTHS:
            if _shapes(model, n_mels, classes, layout, (frames,)) == [(BATCH, classes)]:
                raise TeacherError(
                    f"The teacher takes clips of {frames} frames ({layout}) and not of "
                    f"{LENGTHS[0]} and {LENGTHS[1]}: its clip length is fixed.",
                    fix="Wrap it in a module that takes any length: docs/MY_TEACHER.md shows one.",
                )
    raise TeacherError(
        f"The teacher does not turn log-mels of {n_mels} bands and {LENGTHS[0]} or {LENGTHS[1]} "
        f"frames into (batch, {classes}) logits. Tried: {'; '.join(tried)}.",
        fix="Check mel and labels. A network that takes waveforms, needs more than one argument, "
        "or has a fixed clip length has to be wrapped in a module that takes log-mels of any "
        "length: docs/MY_TEACHER.md shows how.",
    )


def _check_only_one(model: nn.Module, n_mels: int, classes: int) -> None:
    """Both orders of three axes are common, so none may be assumed."""
    if _shapes(model, n_mels, classes, "BTM", LENGTHS) == [(BATCH, classes)] * 2:
        raise TeacherError(
            "The teacher takes (batch, bands, frames) and (batch, frames, bands) alike, and only "
            "one of them is what it was trained on.",
            fix="Say which: --layout BMT or --layout BTM, or `layout:` in its description.",
        )


def other_layouts(model: nn.Module, n_mels: int, classes: int, layout: str) -> tuple[str, ...]:
    """Orders of axes that it takes as well, so that only its owner knows which is right."""
    expected = [(BATCH, classes)] * 2
    return tuple(
        other
        for other in LAYOUTS
        if other != layout and _shapes(model, n_mels, classes, other, LENGTHS) == expected
    )


def shortest_clip(model: nn.Module, n_mels: int, layout: str) -> int:
    """Fewest mel frames that it takes, by halving the range in which that lies."""
    too_few, enough = 0, LENGTHS[0]
    while enough - too_few > 1:
        middle = 1 if too_few == 0 and enough == LENGTHS[0] else (too_few + enough) // 2
        try:
            with torch.no_grad():
                model(arrange(probe_mels(n_mels, middle), layout))
            enough = middle
        except Exception:  # the teacher is somebody else's code
            too_few = middle
    return enough


def _shapes(
    model: nn.Module, n_mels: int, classes: int, layout: str, lengths: tuple[int, ...]
) -> list[tuple[int, ...] | str]:
    """Of the answers to clips of these lengths; an error in words, where it came to one."""
    shapes: list[tuple[int, ...] | str] = []
    for frames in lengths:
        try:
            out = call(model, arrange(probe_mels(n_mels, frames), layout), classes)
        except Exception as error:  # the teacher is somebody else's code
            return [in_words(error)]
        shapes.append(tuple(out.shape))
    return shapes


def in_words(error: BaseException) -> str:
    """Type and first line of what somebody else's code raised."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@torch.no_grad()
def call(model: nn.Module, x: Tensor, classes: int) -> Tensor:
    """The logits, out of the tuple or mapping that some teachers return."""
    return answer(model(x), classes)


def answer(out: Any, classes: int) -> Tensor:
    """The logits in what a teacher gave: the first tensor of K columns, else the first of all.

    Some return (embedding, logits), others (logits, embedding), a mapping or a data class.

    Raises:
        TeacherError: There is no tensor in it.
    """
    tensors = list(_tensors(out))
    fitting = [t for t in tensors if t.ndim == 2 and t.shape[1] == classes]
    if not tensors:
        raise TeacherError(
            f"The teacher returns {type(out).__name__} without a tensor in it.",
            fix="Wrap it in a module whose forward returns the logits.",
        )
    return (fitting or tensors)[0]


def _tensors(out: Any) -> Iterator[Tensor]:
    if is_dataclass(out) and not isinstance(out, type):
        out = {field.name: getattr(out, field.name) for field in fields(out)}
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        known = [k for k in ("logits", "clipwise_output", "output") if k in out]
        for key in [*known, *(k for k in out if k not in known)]:
            yield from _tensors(out[key])
    elif isinstance(out, (tuple, list)):
        for part in out:
            yield from _tensors(part)


def maybe_tensor(out: Any) -> Tensor | None:
    """The first tensor in a tensor, tuple, list, mapping or data class."""
    return next(_tensors(out), None)


@torch.no_grad()
def trace(model: nn.Module, n_mels: int, layout: str) -> list[Event]:
    """Every tensor around every module, in the order of the pass; each module counts once.

    Raises:
        TeacherError: The two passes ran through different modules.
    """
    short, long = (_record(model, n_mels, frames, layout) for frames in LENGTHS)
    if [row[0] for row in short] != [row[0] for row in long]:
        raise TeacherError(
            "The teacher runs through other modules for clips of another length.",
            fix="Name the hidden states: --frames MODULE --pooled MODULE.",
        )
    return [
        Event(name, kind, tensor, tuple(other[3].shape), leaf)
        for (name, kind, leaf, tensor), other in zip(short, long, strict=True)
        if tensor.ndim == other[3].ndim
    ]


def _record(
    model: nn.Module, n_mels: int, frames: int, layout: str
) -> list[tuple[str, str, bool, Tensor]]:
    rows: list[tuple[str, str, bool, Tensor]] = []
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        leaf = next(module.children(), None) is None
        kind = type(module).__name__

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            tensor = maybe_tensor(inputs)
            if tensor is not None and tensor.is_floating_point():
                # Copies, for an in-place activation would change what was seen before it.
                rows.append((f"{name}@in", kind, leaf, tensor.clone()))

        def after(_: nn.Module, __: tuple[Any, ...], out: Any) -> None:
            tensor = maybe_tensor(out)
            if tensor is not None and tensor.is_floating_point():
                rows.append((name, kind, leaf, tensor.clone()))

        handles.extend(
            [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        )

    for name, module in model.named_modules():
        if name:
            watch(name, module)
    try:
        model(arrange(probe_mels(n_mels, frames), layout))
    finally:
        for handle in handles:
            handle.remove()
    return rows
