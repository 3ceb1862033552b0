"""Where time disappears in a teacher, and what follows from it.

Frame features are the last hidden state that still has time; the pooled state is the first one
without it. A squeeze-excite block also loses time, but time comes back after it, so only what lies
behind the last tensor with time counts. Whether two states belong together is checked on values:
mean, maximum and attention pooling all stay between a feature's least and largest value over time.

Shape legend: B batch, C channels, F frequency, T' frames, D pooled size, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frami_edge.errors import TeacherError
from frami_edge.teachers.tracing import BATCH, Event

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
