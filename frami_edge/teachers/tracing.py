"""One forward pass, watched: what every module took and gave, and whether time is still in it.

Shape legend: B batch, M mel bands, T mel frames, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frami_edge.errors import TeacherError

LAYOUTS = ("B1MT", "BMT", "B1TM", "BTM")
"""Tried in this order where the description says ``auto``."""
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
        shapes = []
        try:
            for frames in LENGTHS:
                out = call(model, arrange(probe_mels(n_mels, frames), layout))
                shapes.append(tuple(out.shape))
        except Exception as error:  # the teacher is somebody else's code
            tried.append(f"{layout}: {in_words(error)}")
            continue
        if shapes == [(BATCH, classes)] * 2:
            return layout
        tried.append(f"{layout}: gives {' and '.join(map(str, shapes))}")
    raise TeacherError(
        f"The teacher does not turn log-mels of {n_mels} bands and {LENGTHS[0]} or {LENGTHS[1]} "
        f"frames into (batch, {classes}) logits. Tried: {'; '.join(tried)}.",
        fix="Check mel and labels; a teacher with a fixed clip length has to be wrapped in a "
        "module that takes any length.",
    )


def in_words(error: Exception) -> str:
    """Type and first line of what somebody else's code raised."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@torch.no_grad()
def call(model: nn.Module, x: Tensor) -> Tensor:
    """The logits, out of the tuple or mapping that some teachers return."""
    return first_tensor(model(x))


def first_tensor(out: Any) -> Tensor:
    """The first tensor in what a module gave.

    Raises:
        TeacherError: There is none.
    """
    tensor = maybe_tensor(out)
    if tensor is None:
        raise TeacherError(
            f"The teacher returns {type(out).__name__} without a tensor in it.",
            fix="Wrap it in a module whose forward returns the logits.",
        )
    return tensor


def maybe_tensor(out: Any) -> Tensor | None:
    """The first tensor in a tensor, tuple, list or mapping."""
    if isinstance(out, Tensor):
        return out
    if isinstance(out, dict):
        keys = [k for k in ("logits", "clipwise_output", "output") if k in out]
        out = [out[k] for k in keys] or list(out.values())
    if isinstance(out, (tuple, list)):
        return next((t for t in map(maybe_tensor, out) if t is not None), None)
    return None


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
