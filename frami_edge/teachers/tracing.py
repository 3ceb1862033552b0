"""Where time disappears in a teacher, and what follows from it.

Frame features are the last hidden state that still has time; the pooled state is the first one
without it. A squeeze-excite block also loses time, but time comes back after it, so only what lies
behind the last tensor with time counts. Whether two states belong together is checked on values:
mean, maximum and attention pooling all stay between a feature's least and largest value over time.

Shape legend: B batch, C channels, F frequency, T' frames, D pooled size, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frami_edge.errors import TeacherError

# --- One forward pass, watched: what every module took and gave, and whether time is still in it
# Shape legend: B batch, M mel bands, T mel frames, K classes.

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


# --- Where time disappears in a teacher, and what follows from it

_TOLERANCE = 1e-4
_LISTED = 6
_VAGUE = "weighted or mixed"
_MOST_STATISTICS = 4
"""Of one feature: mean, deviation, least, greatest. Fewer channels than that are attention scores,
between whose extremes the few values compared may lie by chance."""


@dataclass(frozen=True)
class HiddenStates:
    """The two states around the pooling.

    Attributes:
        frames: Name of the state with time.
        pooled: Name of the state without.
        channels: C of the frame features.
        pooled_size: D.
        pooling: What kind it looks like, for people.
    """

    frames: str
    pooled: str
    channels: int
    pooled_size: int
    pooling: str


def find_states(
    events: Sequence[Event], frames: str | None = None, pooled: str | None = None
) -> HiddenStates:
    """The hidden states around the pooling, by name where given, else found.

    Raises:
        TeacherError: A name is unknown or of the wrong kind, or nothing is unambiguous; the message
            lists the candidates.
    """
    before = _named(events, frames, with_time=True) if frames else None
    after = _named(events, pooled, with_time=False) if pooled else _first_without_time(events)
    if before is None:
        before = _last_that_fits(events, after)
    frames_BCT, pooled_BD = frames_of(before.tensor, before.time_axis), flat(after.tensor)
    return HiddenStates(
        before.name, after.name, frames_BCT.shape[1], pooled_BD.shape[1],
        _kind_of_pooling(frames_BCT, pooled_BD),
    )  # fmt: skip


def frames_of(x: Tensor, time_axis: int | None) -> Tensor:
    """Frame features (B, C, T'): time last, frequency averaged out.

    Args:
        x: (B, C, T'), (B, T', C), or with a frequency axis before or after time.
        time_axis: Of x.
    """
    assert time_axis is not None
    if x.ndim == 3:
        return x if time_axis == 2 else x.transpose(1, 2)
    rest = [axis for axis in range(1, x.ndim) if axis != time_axis]
    return x.movedim((rest[0], time_axis), (1, x.ndim - 1)).flatten(2, -2).mean(2)


def flat(x: Tensor) -> Tensor:
    """(B, D) of a state without time."""
    return x.flatten(1)


def find_head(model: nn.Module, events: Sequence[Event], pooled: str, logits_BK: Tensor) -> str:
    """Name of the affine layer that maps the pooled state to the logits; "" where there is none.

    It is recognised by its values, so anything that is the identity in evaluation (dropout) may lie
    between, and a (log-)softmax may follow.
    """
    by_name = {event.name: event for event in events}
    pooled_BD = flat(by_name[pooled].tensor)
    log_p = log_probabilities(logits_BK).log_softmax(1)
    name: str
    for name, module in model.named_modules():
        head = as_linear(module)
        seen, out = by_name.get(f"{name}@in"), by_name.get(name)
        if head is None or seen is None or out is None or out.time_axis is not None:
            continue
        if seen.tensor.numel() != pooled_BD.numel() or flat(out.tensor).shape != logits_BK.shape:
            continue
        same_in = torch.allclose(flat(seen.tensor), pooled_BD, atol=1e-5)
        same_out = torch.allclose(flat(out.tensor).log_softmax(1), log_p, atol=1e-4)
        if same_in and same_out:
            return name
    return ""


def as_linear(module: nn.Module) -> nn.Linear | None:
    """An affine layer as `nn.Linear`: itself, or a convolution of kernel 1; None for others."""
    weight: Tensor
    bias: Tensor | None
    if isinstance(module, nn.Linear):
        weight, bias = module.weight, module.bias
    elif isinstance(module, (nn.Conv1d, nn.Conv2d)) and set(module.kernel_size) == {1}:
        if module.groups != 1:
            return None
        weight, bias = module.weight.flatten(1), module.bias
    else:
        return None
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return linear


def log_probabilities(out_BK: Tensor) -> Tensor:
    """Logits as they are; probabilities of a softmax as their logarithm.

    Raises:
        TeacherError: They look like independent probabilities of several labels at once.
    """
    if bool((out_BK < 0).any()) or bool((out_BK > 1).any()):
        return out_BK
    total_B = out_BK.sum(1)
    if bool(((total_B - 1).abs() < 1e-3).all()):
        return out_BK.clamp_min(1e-12).log()
    if bool((out_BK != out_BK[:1]).any()):
        raise TeacherError(
            "The teacher's answers lie in 0..1 and do not sum to 1: it seems to end in a sigmoid, "
            "for several labels at once.",
            fix="Give a teacher that chooses one of K classes, or wrap it to return logits.",
        )
    return out_BK


def _named(events: Sequence[Event], name: str, *, with_time: bool) -> Event:
    found = next((event for event in events if event.name == name), None)
    option, kind = ("--frames", "with") if with_time else ("--pooled", "without")
    if found is None:
        raise TeacherError(
            f"The teacher has no module {name} that runs on its way to the logits.",
            fix=f"{option} takes one of: {_candidates(events, with_time)}.",
        )
    if (found.time_axis is not None) != with_time or found.tensor.shape[0] != BATCH:
        raise TeacherError(
            f"{name} gives {tuple(found.tensor.shape)} for {BATCH} clips of one length and "
            f"{found.longer} for longer ones: that is no state {kind} time.",
            fix=f"{option} takes one of: {_candidates(events, with_time)}.",
        )
    return found


def _first_without_time(events: Sequence[Event]) -> Event:
    last = max((i for i, e in enumerate(events) if e.time_axis is not None), default=-1)
    for event in events[last + 1 :]:
        if event.tensor.shape[0] == BATCH and event.tensor.ndim >= 2:
            return event
    raise TeacherError(
        "No module of the teacher sees a hidden state without time: it pools over time and returns "
        "the result at once.",
        fix="Wrap the pooling into a module of its own, such as nn.Identity behind it.",
    )


def _last_that_fits(events: Sequence[Event], after: Event) -> Event:
    pooled_BD = flat(after.tensor)
    # An activation inside `forward` has no name: the state before it is what can be watched.
    for activated in (False, True):
        for event in reversed(list(events[: events.index(after)])):
            if event.time_axis is None or event.tensor.shape[0] != BATCH or event.tensor.ndim < 3:
                continue
            frames_BCT = frames_of(event.tensor, event.time_axis)
            statistics, rest = divmod(pooled_BD.shape[1], frames_BCT.shape[1])
            if rest or statistics > _MOST_STATISTICS:
                continue
            exact = not _kind_of_pooling(frames_BCT, pooled_BD).startswith(_VAGUE)
            if exact or _lies_within(event.tensor, event.time_axis, pooled_BD, activated=activated):
                return _first_of_its_kind(events, event)
    raise TeacherError(
        f"The state before the pooling is not unambiguous: none fits {after.name} "
        f"{tuple(after.tensor.shape)}.",
        fix=f"Name it: --frames takes one of {_candidates(events, True)}.",
    )


def _first_of_its_kind(events: Sequence[Event], event: Event) -> Event:
    """The same tensor passes many modules' doors: the first is the name that people know."""
    return next(
        e
        for e in events
        if e.tensor.shape == event.tensor.shape and torch.equal(e.tensor, event.tensor)
    )


def _lies_within(x: Tensor, time_axis: int, pooled_BD: Tensor, *, activated: bool) -> bool:
    channel = next(axis for axis in range(1, x.ndim) if axis != time_axis)
    x_BCn = x.movedim(channel, 1).flatten(2)
    some_BC = pooled_BD[:, : x_BCn.shape[1]]
    low, high = x_BCn.amin(2) - _TOLERANCE, x_BCn.amax(2) + _TOLERANCE
    if activated:  # ReLU, SiLU, GELU and their like pull a value towards 0, and not beyond
        low, high = low.clamp_max(0), high.clamp_min(0)
    return bool(((some_BC >= low) & (some_BC <= high)).all())


def _kind_of_pooling(frames_BCT: Tensor, pooled_BD: Tensor) -> str:
    c, d = frames_BCT.shape[1], pooled_BD.shape[1]
    first = pooled_BD[:, :c]
    if d % c:
        return "further layers lie between"
    further = "" if d == c else " and further statistics"
    for h_BCT, how in ((frames_BCT, ""), (frames_BCT.relu(), " after a ReLU")):
        for kind, value in (("mean", h_BCT.mean(2)), ("maximum", h_BCT.amax(2))):
            if torch.allclose(first, value, atol=1e-4, rtol=1e-3):
                return f"{kind}{further}{how}"
    return f"{_VAGUE}{further}"


def _candidates(events: Sequence[Event], with_time: bool) -> str:
    names = [e.name for e in events if (e.time_axis is not None) == with_time and e.leaf]
    shown = names[-_LISTED:] if with_time else names[:_LISTED]
    return ", ".join(shown) or "none"
