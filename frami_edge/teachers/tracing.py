"""Watch one forward pass of a network, and find in it where time disappears.

Frame features are the last hidden state that still has time; the pooled state is the first one
without it. A squeeze-excite block also loses time, but time comes back after it, so only states
after the last tensor with time count. Whether two states belong together is checked on values:
mean, maximum and attention pooling all stay between a feature's least and largest value over time.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' frames, D pooled size, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frami_edge.errors import TeacherError

LAYOUTS = ("B1MT", "BMT", "B1TM", "BTM", "B3MT", "B3TM")
"""Orders of the input's axes, tried in this order where none is given."""
BATCH = 4
LENGTHS = (256, 512)
"""Mel frames of the two passes that are compared: an axis that grows between them is time."""
_USUAL_LENGTHS = (32, 48, 49, 50, 61, 63, 64, 80, 96, 98, 99, 100, 101, 125, 126, 128, 200, 201,
                  250, 251, 300, 301, 400, 401, 500, 501, 512, 998, 1000, 1001, 1024)  # fmt: skip
"""Mel frames of the clips that networks of one length are commonly built for."""
_TOLERANCE = 1e-4
_LISTED = 6
_VAGUE = "weighted or mixed"
_MOST_STATISTICS = 4
"""Statistics per feature: mean, deviation, least, greatest. Fewer channels than that are attention
scores, between whose extremes the few values compared may be by chance."""


@dataclass(frozen=True, eq=False)
class TracedTensor:
    """A tensor that went into, or came out of, a module."""

    name: str  # of the module, as in `named_modules`; `NAME@in` for its input
    tensor: Tensor  # of the shorter pass
    longer: tuple[int, ...]  # shape in the longer pass
    leaf: bool  # the module has no children
    call: int  # how often the module had run before in this pass

    @property
    def time_axis(self) -> int | None:
        """The axis that grows with the clip; None where time is gone."""
        pairs = zip(self.tensor.shape, self.longer, strict=True)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), None)


@dataclass(frozen=True)
class HiddenStates:
    """The two states around the pooling."""

    frames: str  # name of the state with time
    pooled: str  # name of the state without
    channels: int  # C of the frame features
    pooled_size: int  # D
    pooling: str  # kind of pooling that the values suggest
    calls: tuple[int, int]  # which runs of the two modules, where one runs several times in a pass


def arrange(x_B1MT: Tensor, layout: str) -> Tensor:
    """Our (B, 1, M, T) in the teacher's order of axes."""
    x = x_B1MT.transpose(2, 3) if layout.endswith("TM") else x_B1MT
    if "3" in layout:  # networks for pictures take the same mel in each colour
        return x.expand(-1, 3, -1, -1)
    return x if "1" in layout else x.squeeze(1)


def probe_mels(n_mels: int, frames: int, *, batch: int = BATCH) -> Tensor:
    """(B, 1, M, T) normalised log-mels, smooth enough to excite most units."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 1, max(2, n_mels // 8), max(2, frames // 8), generator=draw)
    fine = torch.randn(batch, 1, n_mels, frames, generator=draw)
    size = (n_mels, frames)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return smooth + 0.5 * fine


def answer(out: Any, classes: int) -> Tensor:
    """The logits in a teacher's output: the first tensor of K columns, else the first of all.

    Some return (embedding, logits), others (logits, embedding), a mapping or a data class.

    Raises:
        TeacherError: There is no tensor in it.
    """
    tensors = list(_tensors(out))
    if not tensors:
        raise TeacherError(
            f"The teacher returns {type(out).__name__} without a tensor in it.",
            fix="Wrap it in a module whose forward returns the logits.",
        )
    return next((t for t in tensors if t.ndim == 2 and t.shape[1] == classes), tensors[0])


def _tensors(out: Any) -> Iterator[Tensor]:
    if is_dataclass(out) and not isinstance(out, type):
        out = {field.name: getattr(out, field.name) for field in fields(out)}
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        known = [k for k in ("logits", "clipwise_output", "output") if k in out]
        for key in [*known, *(k for k in out if k not in known)]:
            yield from _tensors(out[key])
    elif isinstance(out, tuple | list):
        for part in out:
            yield from _tensors(part)


def first_tensor(out: Any) -> Tensor | None:
    """The first tensor in a tensor, tuple, list, mapping or data class."""
    return next(_tensors(out), None)


def in_words(error: BaseException) -> str:
    """Type and first line of an error from code that is not ours."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def find_layout(model: nn.Module, n_mels: int, classes: int, asked: str = "auto") -> str:
    """The order of axes in which the teacher gives (B, K) for clips of two lengths.

    Raises:
        TeacherError: None of them does, with the outcome of each attempt; or two do, which differ.
    """
    layouts = LAYOUTS if asked == "auto" else (asked,)
    tried = []
    for layout in layouts:
        shapes = _shapes(model, n_mels, classes, layout, LENGTHS)
        if shapes == [(BATCH, classes)] * 2:
            # Both orders of three axes are common, so neither may be assumed.
            if asked == "auto" and layout == "BMT" and takes(model, n_mels, classes, "BTM"):
                raise TeacherError(
                    "The teacher takes (batch, bands, frames) and (batch, frames, bands) alike, "
                    "and only one of them is what it was trained on.",
                    fix="Name it: --layout BMT or --layout BTM, or `layout:` in its description.",
                )
            return layout
        gives = "" if isinstance(shapes[-1], str) else "gives "
        tried.append(f"{layout}: {gives}{' and '.join(map(str, shapes))}")
    for layout in layouts:
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


def shortest_clip(model: nn.Module, n_mels: int, layout: str) -> int:
    """Fewest mel frames that it takes, by bisection."""
    too_few, enough, frames = 0, LENGTHS[0], 1
    while enough - too_few > 1:
        try:
            with torch.no_grad():
                model(arrange(probe_mels(n_mels, frames), layout))
            enough = frames
        except Exception:  # the teacher is somebody else's code
            too_few = frames
        frames = (too_few + enough) // 2
    return enough


def takes(model: nn.Module, n_mels: int, classes: int, layout: str) -> bool:
    """Whether clips of two lengths in this order of axes give (B, K)."""
    return _shapes(model, n_mels, classes, layout, LENGTHS) == [(BATCH, classes)] * 2


def _shapes(
    model: nn.Module, n_mels: int, classes: int, layout: str, lengths: tuple[int, ...]
) -> list[tuple[int, ...] | str]:
    """Shapes of the outputs for clips of these lengths; an error in words, where there was one."""
    mels = [arrange(probe_mels(n_mels, frames), layout) for frames in lengths]
    try:
        with torch.no_grad():
            return [tuple(answer(model(x), classes).shape) for x in mels]
    except Exception as error:  # the teacher is somebody else's code
        return [in_words(error)]


@torch.no_grad()
def trace(model: nn.Module, n_mels: int, layout: str) -> list[TracedTensor]:
    """Every float tensor that went into or came out of a module, in the order of the pass.

    Raises:
        TeacherError: Passes of two lengths ran through different modules.
    """
    short, long = (_record(model, n_mels, frames, layout) for frames in LENGTHS)
    if [row[:2] for row in short] != [row[:2] for row in long]:
        raise TeacherError(
            "The teacher runs through other modules for clips of another length.",
            fix="Name the hidden states: --frames MODULE --pooled MODULE.",
        )
    modules = dict(model.named_modules())
    events = []
    for (name, number, tensor), (_, _, other) in zip(short, long, strict=True):
        if tensor.ndim == other.ndim:
            module = modules[name.removesuffix("@in")]
            leaf = next(module.children(), None) is None
            events.append(TracedTensor(name, tensor, tuple(other.shape), leaf, number))
    return events


def _record(
    model: nn.Module, n_mels: int, frames: int, layout: str
) -> list[tuple[str, int, Tensor]]:
    """(name, call, tensor) of every event."""
    rows: list[tuple[str, int, Tensor]] = []
    calls: dict[str, int] = {}

    def keep(name: str, value: Any) -> None:
        number = calls[name] = calls.get(name, -1) + 1
        tensor = first_tensor(value)
        if tensor is not None and tensor.is_floating_point():
            # A copy, because an in-place activation may follow.
            rows.append((name, number, tensor.clone()))

    handles = []
    for name, module in model.named_modules():
        if name:
            handles += [
                module.register_forward_pre_hook(lambda _, x, n=name: keep(f"{n}@in", x)),
                module.register_forward_hook(lambda _, __, out, n=name: keep(n, out)),
            ]
    try:
        model(arrange(probe_mels(n_mels, frames), layout))
    finally:
        for handle in handles:
            handle.remove()
    return rows


def find_states(
    events: Sequence[TracedTensor], frames: str | None = None, pooled: str | None = None
) -> HiddenStates:
    """The hidden states around the pooling, by name where given, else found.

    Raises:
        TeacherError: A name is unknown or of the wrong kind, or nothing is unambiguous; the message
            lists the candidates.
    """
    after = _named(events, pooled, with_time=False) if pooled else _first_without_time(events)
    before = _named(events, frames, with_time=True) if frames else _last_that_fits(events, after)
    frames_BCT, pooled_BD = frames_of(before.tensor, before.time_axis), after.tensor.flatten(1)
    return HiddenStates(
        frames=before.name,
        pooled=after.name,
        channels=frames_BCT.shape[1],
        pooled_size=pooled_BD.shape[1],
        pooling=_kind_of_pooling(frames_BCT, pooled_BD),
        calls=(before.call, after.call),
    )


def frames_of(x: Tensor, time_axis: int | None) -> Tensor:
    """Frame features (B, C, T'): time last, frequency averaged out.

    Args:
        x: (B, C, T'), (B, T', C), or with a frequency axis before or after time.
        time_axis: Axis of x.
    """
    assert time_axis is not None
    if x.ndim == 3:
        return x if time_axis == 2 else x.transpose(1, 2)
    rest = [axis for axis in range(1, x.ndim) if axis != time_axis]
    return x.movedim((rest[0], time_axis), (1, x.ndim - 1)).flatten(2, -2).mean(2)


def _named(events: Sequence[TracedTensor], name: str, *, with_time: bool) -> TracedTensor:
    option, kind = ("--frames", "with") if with_time else ("--pooled", "without")
    fix = f"{option} takes one of: {_candidates(events, with_time)}."
    found = [event for event in events if event.name == name]
    fitting = [
        e for e in found if (e.time_axis is not None) == with_time and e.tensor.shape[0] == BATCH
    ]
    if fitting:
        return fitting[-1] if with_time else fitting[0]
    problem = f"The teacher has no module {name} that runs on its way to the logits."
    if found:
        problem = (
            f"{name} gives {tuple(found[0].tensor.shape)} for {BATCH} clips of one length and "
            f"{found[0].longer} for longer ones: that is no state {kind} time."
        )
    raise TeacherError(problem, fix=fix)


def _first_without_time(events: Sequence[TracedTensor]) -> TracedTensor:
    last = max((i for i, e in enumerate(events) if e.time_axis is not None), default=-1)
    for event in events[last + 1 :]:
        if event.tensor.shape[0] == BATCH and event.tensor.ndim >= 2:
            return event
    raise TeacherError(
        "No module of the teacher receives a hidden state without time: it pools over time and "
        "returns the result at once.",
        fix="Wrap the pooling into a module of its own, such as nn.Identity behind it.",
    )


def _last_that_fits(events: Sequence[TracedTensor], after: TracedTensor) -> TracedTensor:
    pooled_BD = after.tensor.flatten(1)
    earlier = [
        event
        for event in events[: events.index(after)]
        if event.time_axis is not None and event.tensor.shape[0] == BATCH and event.tensor.ndim >= 3
    ]
    # An activation inside `forward` has no name: the state before it is what can be watched.
    for activated in (False, True):
        for event in reversed(earlier):
            frames_BCT = frames_of(event.tensor, event.time_axis)
            statistics, rest = divmod(pooled_BD.shape[1], frames_BCT.shape[1])
            if rest or statistics > _MOST_STATISTICS:
                continue
            vague = _kind_of_pooling(frames_BCT, pooled_BD).startswith(_VAGUE)
            if not vague or _is_within(event, pooled_BD, activated=activated):
                # The same tensor passes several modules: the first has the name that people know.
                return next(
                    e
                    for e in events
                    if e.tensor.shape == event.tensor.shape and torch.equal(e.tensor, event.tensor)
                )
    raise TeacherError(
        f"The state before the pooling is not unambiguous: none fits {after.name} "
        f"{tuple(after.tensor.shape)}.",
        fix=f"Name it: --frames takes one of {_candidates(events, True)}.",
    )


def _is_within(event: TracedTensor, pooled_BD: Tensor, *, activated: bool) -> bool:
    """Whether every pooled value is between the least and the largest value of its feature."""
    x = event.tensor
    channel = next(axis for axis in range(1, x.ndim) if axis != event.time_axis)
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
        return "further layers between"
    further = "" if d == c else " and further statistics"
    for h_BCT, how in ((frames_BCT, ""), (frames_BCT.relu(), " after a ReLU")):
        for kind, value in (("mean", h_BCT.mean(2)), ("maximum", h_BCT.amax(2))):
            if torch.allclose(first, value, atol=1e-4, rtol=1e-3):
                return f"{kind}{further}{how}"
    return f"{_VAGUE}{further}"


def _candidates(events: Sequence[TracedTensor], with_time: bool) -> str:
    names = [e.name for e in events if (e.time_axis is not None) == with_time and e.leaf]
    shown = names[-_LISTED:] if with_time else names[:_LISTED]
    return ", ".join(dict.fromkeys(shown)) or "none"


def find_head(
    model: nn.Module, events: Sequence[TracedTensor], states: HiddenStates, logits_BK: Tensor
) -> str:
    """Name of the affine layer that maps the pooled state to the logits; "" where there is none.

    It is recognised by its values, so anything that is the identity in evaluation (dropout) may be
    between, and a (log-)softmax may follow.
    """
    at = {(event.name, event.call): event.tensor for event in events}
    pooled_BD = at[states.pooled, states.calls[1]].flatten(1)
    log_p = logits_BK.log_softmax(1)
    for (name, number), out in at.items():
        x = at.get((f"{name}@in", number))
        if x is None or x.numel() != pooled_BD.numel() or out.flatten(1).shape != logits_BK.shape:
            continue
        same_in = torch.allclose(x.flatten(1), pooled_BD, atol=1e-5)
        same_out = torch.allclose(out.flatten(1).log_softmax(1), log_p, atol=1e-4)
        if same_in and same_out and as_linear(model.get_submodule(name)) is not None:
            return name
    return ""


def as_linear(module: nn.Module) -> nn.Linear | None:
    """An affine layer as `nn.Linear`: itself, or a convolution of kernel 1; None for others."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        affine = set(module.kernel_size) == {1} and module.groups == 1
    else:
        affine = isinstance(module, nn.Linear)
    if not affine:
        return None
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    weight = module.weight.flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(torch.zeros(len(weight)) if module.bias is None else module.bias)
    return linear


Answers = Literal["logits", "log-probabilities", "probabilities", "sigmoid probabilities"]


def kind_of_answers(out_BK: Tensor) -> Answers:
    """What the teacher's outputs are, by their range and sum."""
    if bool((out_BK >= 0).all()) and bool((out_BK <= 1).all()):
        if bool(((out_BK.sum(1) - 1).abs() < 1e-3).all()):
            return "probabilities"
        if bool((out_BK != out_BK[:1]).any()):
            return "sigmoid probabilities"
    if torch.allclose(out_BK.logsumexp(1), torch.zeros(()), atol=1e-3):
        return "log-probabilities"
    return "logits"


def as_logits(out_BK: Tensor, answers: Answers) -> Tensor:
    """The teacher's outputs before a softmax or sigmoid."""
    if answers == "probabilities":
        return out_BK.clamp_min(1e-12).log()
    if answers == "sigmoid probabilities":
        return out_BK.logit(eps=1e-7)
    return out_BK


def looks_like_detectors(logits_BK: Tensor) -> bool:
    """Whether logits on test signals look as if they were trained with a sigmoid per class.

    A softmax does not change when all logits shift, so that training with one leaves them around
    zero; a tagger says no to nearly everything.
    """
    many = logits_BK.shape[1] >= 10
    return many and bool((logits_BK < 0).float().mean() > 0.95) and float(logits_BK.mean()) < -2
