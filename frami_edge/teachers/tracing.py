"""Watch one forward pass of a network, and find in it where time disappears.

Frame features are the last hidden state that still has time; the pooled state is the first one
without it. A squeeze-excite block also loses time, but time comes back after it, so only states
after the last tensor with time count. Whether two states belong together is checked on values:
mean, maximum and attention pooling all stay between a feature's least and largest value over time.

The axis of time is the one that grows with the clip. A network of one clip length has no longer
clip: there it is the axis along which a change at the start of the clip stays near the start, and
one at its end near the end. A patch transformer flattens frequency and time into tokens; the
convolution that cut the patches tells how.

Shape legend: B batch, C channels, F' patches along frequency, T' frames, D pooled size, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from frami_edge.errors import TeacherError
from frami_edge.teachers.calling import BATCH, Calling, arrange, first_tensor

_TOLERANCE = 1e-4
_LISTED = 6
_VAGUE = "weighted or mixed"
_MOST_STATISTICS = 4
"""Statistics per feature: mean, deviation, least, greatest. Fewer channels than that are attention
scores, between whose extremes the few values compared may be by chance."""
_MOST_PREFIX = 4
"""Tokens without a place in time at the start of a sequence: class and distillation tokens."""
ANSWER = "@answer"
"""Name of the answer itself as a state without time."""
MEAN = "@mean"
"""Name of the mean over time of the frame features, where the answers are one per frame."""


@dataclass(frozen=True)
class Grid:
    """How a sequence of tokens is made of patches in frequency and time."""

    prefix: int  # tokens before the patches, such as a class token
    bands: int  # patches along frequency
    band_major: bool  # all times of the lowest band come first

    def unflatten(self, x_BNC: Tensor) -> Tensor:
        """Tokens to (B, C, F', T')."""
        b, n, c = x_BNC.shape
        times = (n - self.prefix) // self.bands
        patches = x_BNC[:, self.prefix :].transpose(1, 2)
        if self.band_major:
            return patches.reshape(b, c, self.bands, times)
        return patches.reshape(b, c, times, self.bands).transpose(2, 3)


@dataclass(frozen=True, eq=False)
class TracedTensor:
    """A tensor that went into, or came out of, a module."""

    name: str  # of the module, as in `named_modules`; `NAME@in` for its input
    tensor: Tensor  # of the shorter pass
    longer: tuple[int, ...]  # shape in the longer pass
    leaf: bool  # the module has no children
    call: int  # how often the module had run before in this pass
    time_axis: int | None  # None where time is gone
    grid: Grid | None = None  # of the tokens along the axis of time

    @property
    def has_frames(self) -> bool:
        """Whether it may be a state over time: (B, ...) with channels and time."""
        return self.time_axis is not None and self.tensor.ndim >= 3 and len(self.tensor) == BATCH

    @property
    def is_pooled(self) -> bool:
        """Whether it may be a state without time: (B, ...)."""
        return self.time_axis is None and self.tensor.ndim >= 2 and len(self.tensor) == BATCH

    def frames(self) -> Tensor:
        """(B, C, T') frame features of the shorter pass."""
        return frames_of(self.tensor, self.time_axis, self.grid)


@dataclass(frozen=True)
class HiddenStates:
    """The two states around the pooling."""

    frames: str  # name of the state with time
    pooled: str  # name of the state without
    channels: int  # C of the frame features
    pooled_size: int  # D
    pooling: str  # kind of pooling that the values suggest
    calls: tuple[int, int]  # which runs of the two modules, where one runs several times in a pass


# --- What happens in a pass


@torch.no_grad()
def trace(model: nn.Module, calling: Calling) -> list[TracedTensor]:
    """Every float tensor that went into or came out of a module, in the order of the pass.

    Raises:
        TeacherError: Passes of two lengths ran through different modules.
    """
    modules = dict(model.named_modules())
    probe = calling.input.probe(calling.lengths[0])
    short = record(model, calling, probe)
    events = []
    if calling.length is None:
        long = record(model, calling, calling.input.probe(calling.lengths[1]))
        _same_modules(short, long)
        for (name, number, tensor), (_, _, other) in zip(short, long, strict=True):
            if tensor.ndim == other.ndim:
                pairs = enumerate(zip(tensor.shape, other.shape, strict=True))
                axis = next((i for i, (a, b) in pairs if a != b), None)
                shape = tuple(other.shape)
                events.append(TracedTensor(name, tensor, shape, _leaf(modules, name), number, axis))
    else:
        part = max(1, calling.length // 8)
        changed = []
        for where in (slice(None, part), slice(-part, None)):
            x = probe.clone()
            x[..., where] = x[..., where].flip(0) + 0.5
            changed.append(record(model, calling, x))
            _same_modules(short, changed[-1])
        for row, first, last in zip(short, *changed, strict=True):
            name, number, tensor = row
            axis = _local_axis(tensor, first[2] - tensor, last[2] - tensor)
            shape = tuple(tensor.shape)
            events.append(TracedTensor(name, tensor, shape, _leaf(modules, name), number, axis))
    return _with_grids(events, fixed=calling.length is not None)


def _leaf(modules: Mapping[str, nn.Module], name: str) -> bool:
    return next(modules[name.removesuffix("@in")].children(), None) is None


def _same_modules(
    one: Sequence[tuple[str, int, Tensor]], other: Sequence[tuple[str, int, Tensor]]
) -> None:
    if [row[:2] for row in one] != [row[:2] for row in other]:
        raise TeacherError(
            "The teacher runs through other modules for clips of another length or content.",
            fix="Wrap it in a module that always takes the same path.",
        )


def _local_axis(x: Tensor, at_start: Tensor, at_end: Tensor) -> int | None:
    """The axis along which changes at both ends of the clip stay apart."""
    if x.ndim < 3 or x.shape[0] != BATCH:
        return None
    found, widest = None, 0.3
    for axis in range(1, x.ndim):
        n = x.shape[axis]
        if n < 3:
            continue
        place = torch.linspace(0, 1, n)
        rest = [i for i in range(x.ndim) if i != axis]
        weights = [d.abs().mean(rest) for d in (at_start, at_end)]
        if min(float(w.sum()) for w in weights) == 0:
            continue
        first, last = (float((place * w).sum() / w.sum()) for w in weights)
        if last - first > widest:
            found, widest = axis, last - first
    return found


def _with_grids(events: list[TracedTensor], *, fixed: bool) -> list[TracedTensor]:
    """The same events; sequences of patches know how they were flattened."""
    sources: dict[tuple[int, ...], TracedTensor] = {}  # attention has such tensors too
    found = []
    for event in events:
        if event.tensor.ndim == 4 and event.time_axis in (2, 3):
            sources[event.tensor.shape] = event
        elif event.tensor.ndim == 3 and event.tensor.shape[0] == BATCH:
            grids = (_grid(source, event, fixed) for source in reversed(sources.values()))
            grid = next((g for g in grids if g is not None), None)
            if grid is not None:
                event = replace(event, time_axis=1, grid=grid)
        found.append(event)
    return found


def _grid(source: TracedTensor, event: TracedTensor, fixed: bool) -> Grid | None:
    assert source.time_axis is not None
    bands = source.tensor.shape[5 - source.time_axis]
    counts = [shape[source.time_axis] * bands for shape in (source.tensor.shape, source.longer)]
    prefix = event.tensor.shape[1] - counts[0]
    if not 0 <= prefix <= _MOST_PREFIX or event.longer[1] - counts[1] != prefix:
        return None
    if (not fixed and event.time_axis != 1) or (bands == 1 and not prefix):
        return None
    return Grid(prefix, bands, band_major=source.time_axis == 3)


def record(model: nn.Module, calling: Calling, x: Tensor) -> list[tuple[str, int, Tensor]]:
    """(name, call, tensor) of every float tensor into or out of a module."""
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
        model(arrange(x, calling.layout))
    finally:
        for handle in handles:
            handle.remove()
    return rows


# --- The two states


def find_states(
    events: Sequence[TracedTensor],
    raw: Tensor,
    calling: Calling,
    model: nn.Module,
    frames: str | None = None,
    pooled: str | None = None,
) -> HiddenStates:
    """The hidden states around the pooling, by name where given, else found.

    `events` are those of `trace`, `raw` the teacher's outputs in the shorter pass.

    Raises:
        TeacherError: A name is unknown or of the wrong kind, or nothing is unambiguous; the message
            lists the candidates.
    """
    if calling.frame_axis is not None:
        before = _state_over_time(events, raw, model, frames)
        c, how = before.frames().shape[1], "mean of the answers per frame"
        return HiddenStates(before.name, MEAN, c, c, how, (before.call, 0))
    after = _named(events, pooled, with_time=False) if pooled else _first_without_time(events)
    if after is None:  # scores are pooled over time and returned at once
        before = _state_over_time(events, raw, model, frames)
        c, how = before.frames().shape[1], "scores per frame, pooled over time"
        return HiddenStates(before.name, ANSWER, c, raw.shape[1], how, (before.call, 0))
    found = _named(events, frames, with_time=True) if frames else _last_that_fits(events, after)
    if found is None and not pooled:
        # A network that flattens time, or several layers between: the head's own input is a state
        # of a useful size.
        after = _last_affine(events, raw, model) or after
        found = _last_with_time(events[: events.index(after)])
    if found is None:
        raise TeacherError(
            f"The state before the pooling is not unambiguous: none fits {after.name} "
            f"{tuple(after.tensor.shape)}.",
            fix=f"Name it: --frames takes one of {_candidates(events, True)}.",
        )
    before = found if frames else _outside_deviation(events, found)
    frames_BCT, pooled_BD = before.frames(), after.tensor.flatten(1)
    return HiddenStates(
        frames=before.name,
        pooled=after.name,
        channels=frames_BCT.shape[1],
        pooled_size=pooled_BD.shape[1],
        pooling=_kind_of_pooling(frames_BCT, pooled_BD),
        calls=(before.call, after.call),
    )


def _state_over_time(
    events: Sequence[TracedTensor], raw: Tensor, model: nn.Module, asked: str | None
) -> TracedTensor:
    """The features behind a head that answers per frame, or the state that the user named."""
    if asked:
        return _named(events, asked, with_time=True)
    found = _frame_head(events, raw, model) or _last_with_time(events)
    if found is None:
        raise TeacherError(
            "No module of the teacher gives a hidden state over time.",
            fix="Wrap it in a module whose layers are modules.",
        )
    return found


def _frame_head(
    events: Sequence[TracedTensor], raw: Tensor, model: nn.Module
) -> TracedTensor | None:
    """Input of the last affine layer that gives K values per frame."""
    k = raw.shape[1] if raw.ndim == 2 else None
    for event in reversed(events):
        if event.time_axis is None or event.name.endswith("@in") or event.tensor.ndim != 3:
            continue
        wanted = k or raw.shape[1 if raw.shape[2] == event.tensor.shape[event.time_axis] else 2]
        if event.frames().shape[1] == wanted and as_linear(model.get_submodule(event.name)):
            names = [(e.name, e.call) for e in events]
            place = names.index((f"{event.name}@in", event.call))
            return events[place] if events[place].time_axis is not None else None
    return None


def _last_affine(
    events: Sequence[TracedTensor], raw: Tensor, model: nn.Module
) -> TracedTensor | None:
    """Input without time of the affine layer whose output has the shape of the answer."""
    at = {(event.name, event.call): event for event in events}
    for event in reversed(events):
        given = at.get((f"{event.name}@in", event.call))
        same = event.tensor.flatten(1).shape == raw.shape
        timeless = given and event.time_axis is None and given.time_axis is None
        if same and timeless and as_linear(model.get_submodule(event.name)) is not None:
            return given
    return None


def _last_with_time(events: Sequence[TracedTensor]) -> TracedTensor | None:
    return next((e for e in reversed(events) if e.has_frames), None)


def frames_of(x: Tensor, time_axis: int | None, grid: Grid | None = None) -> Tensor:
    """Frame features (B, C, T'): time last, frequency averaged out.

    Args:
        x: (B, C, T'), (B, T', C), or with a frequency axis before or after time; with a grid
            (B, tokens, C).
        time_axis: Axis of x.
        grid: How the tokens are made of patches.
    """
    assert time_axis is not None
    if grid is not None:
        return grid.unflatten(x).mean(2)
    if x.ndim == 3:
        return x if time_axis == 2 else x.transpose(1, 2)
    rest = [axis for axis in range(1, x.ndim) if axis != time_axis]
    return x.movedim((rest[0], time_axis), (1, x.ndim - 1)).flatten(2, -2).mean(2)


def _named(events: Sequence[TracedTensor], name: str, *, with_time: bool) -> TracedTensor:
    option, kind = ("--frames", "with") if with_time else ("--pooled", "without")
    fix = f"{option} takes one of: {_candidates(events, with_time)}."
    found = [event for event in events if event.name == name]
    fitting = [e for e in found if (e.has_frames if with_time else e.is_pooled)]
    if fitting:
        return fitting[-1] if with_time else fitting[0]
    problem = f"The teacher has no module {name} that runs on its way to the logits."
    if found:
        problem = (
            f"{name} gives {tuple(found[0].tensor.shape)} for {BATCH} clips of one length and "
            f"{found[0].longer} for longer ones: that is no state {kind} time."
        )
    raise TeacherError(problem, fix=fix)


def _first_without_time(events: Sequence[TracedTensor]) -> TracedTensor | None:
    last = max((i for i, e in enumerate(events) if e.time_axis is not None), default=-1)
    return next((e for e in events[last + 1 :] if e.is_pooled), None)


def _last_that_fits(events: Sequence[TracedTensor], after: TracedTensor) -> TracedTensor | None:
    pooled_BD = after.tensor.flatten(1)
    earlier = [event for event in events[: events.index(after)] if event.has_frames]
    # An activation inside `forward` has no name: the state before it is what can be watched.
    for activated in (False, True):
        for event in reversed(earlier):
            frames_BCT = event.frames()
            statistics, rest = divmod(pooled_BD.shape[1], frames_BCT.shape[1])
            if rest or statistics > _MOST_STATISTICS:
                continue
            vague = _kind_of_pooling(frames_BCT, pooled_BD).startswith(_VAGUE)
            if not vague or _is_within(event, pooled_BD, activated=activated):
                # The same tensor passes several modules: the first has the name that people know.
                return next(
                    e
                    for e in events
                    if e.tensor.shape == event.tensor.shape
                    and e.time_axis == event.time_axis
                    and torch.equal(e.tensor, event.tensor)
                )
    return None


def _outside_deviation(events: Sequence[TracedTensor], before: TracedTensor) -> TracedTensor:
    """The state itself for its (squared) distance from its mean over time.

    In a graph of single operations, the inside of a standard deviation is a state as well.
    """
    for event in events:
        x, axis = event.tensor, event.time_axis
        if axis is not None and (x.shape, axis) == (before.tensor.shape, before.time_axis):
            distance = x - x.mean(axis, keepdim=True)
            if any(
                torch.allclose(inside, before.tensor, atol=1e-4, rtol=1e-3)
                for inside in (distance, distance.square())
            ):
                return event
    return before


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
        mean, most = h_BCT.mean(2), h_BCT.amax(2)
        kinds = (("mean", mean), ("maximum", most), ("mean plus maximum", mean + most))
        for kind, value in kinds:
            if torch.allclose(first, value, atol=1e-4, rtol=1e-3):
                return f"{kind}{further}{how}"
    return f"{_VAGUE}{further}"


def _candidates(events: Sequence[TracedTensor], with_time: bool) -> str:
    names = [e.name for e in events if e.leaf and (e.has_frames if with_time else e.is_pooled)]
    shown = names[-_LISTED:] if with_time else names[:_LISTED]
    return ", ".join(dict.fromkeys(shown)) or "none"


def find_head(
    model: nn.Module,
    events: Sequence[TracedTensor],
    states: HiddenStates,
    logits_BK: Tensor,
    *,
    named: bool,
) -> tuple[str, HiddenStates]:
    """Name of the affine layer that maps the pooled state to the logits; "" where there is none.

    It is recognised by its values, so anything that is the identity in evaluation (dropout) may be
    between, and a (log-)softmax may follow. Where further layers are between pooling and head, the
    head's input becomes the pooled state, unless the user `named` one: a student can then reuse
    the head.
    """
    at = {(event.name, event.call): event.tensor for event in events}
    if states.pooled == ANSWER:
        return "", states
    if states.pooled == MEAN:
        return _head_per_frame(model, events, states, logits_BK), states
    pooled_BD = at[states.pooled, states.calls[1]].flatten(1)
    log_p = logits_BK.log_softmax(1)
    deeper = "", states
    for (name, number), out in at.items():
        x = at.get((f"{name}@in", number))
        if x is None or out.flatten(1).shape != logits_BK.shape or len(x) != len(out):
            continue
        same_out = torch.allclose(out.flatten(1).log_softmax(1), log_p, atol=1e-4)
        if not same_out or as_linear(model.get_submodule(name)) is None:
            continue
        x_BD = x.flatten(1)
        if x_BD.shape == pooled_BD.shape and torch.allclose(x_BD, pooled_BD, atol=1e-5):
            return name, states
        if not named:
            calls = (states.calls[0], number)
            size = x_BD.shape[1]
            how = f"{states.pooling}, then further layers"
            deeper = (
                name,
                replace(states, pooled=f"{name}@in", pooled_size=size, calls=calls, pooling=how),
            )
    return deeper


def _head_per_frame(
    model: nn.Module, events: Sequence[TracedTensor], states: HiddenStates, logits_BK: Tensor
) -> str:
    """An affine layer over frames, whose mean is the layer of the mean."""
    name = states.frames.removesuffix("@in")
    head = as_linear(model.get_submodule(name))
    if head is None or not states.frames.endswith("@in"):
        return ""
    event = next(e for e in events if (e.name, e.call) == (states.frames, states.calls[0]))
    with torch.no_grad():
        again_BK: Tensor = head(event.frames().mean(2))
    same = again_BK.shape == logits_BK.shape and torch.allclose(again_BK, logits_BK, atol=1e-3)
    return name if same else ""


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
