"""A foreign module that shows its hidden states: what inversion and distillation ask of a teacher.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' frames, D pooled size, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from frami_edge.errors import TeacherError
from frami_edge.models import Hidden
from frami_edge.teachers.tracing import (
    LENGTHS,
    Event,
    HiddenStates,
    answer,
    arrange,
    as_linear,
    call,
    find_head,
    find_layout,
    find_states,
    flat,
    frames_of,
    log_probabilities,
    maybe_tensor,
    other_layouts,
    probe_mels,
    shortest_clip,
    trace,
)


def _plain_gradient(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> None:
    """Give BatchNorm's backward a gradient in plain order.

    torch's CPU kernel (2.14) reads a gradient in channels-last order wrongly where an axis has the
    size 1, and says nothing; a BatchNorm over mel bands, (B, M, T, 1), meets that case.
    """
    if out.requires_grad and out.device.type == "cpu" and 1 in out.shape[2:]:
        out.register_hook(lambda gradient: gradient.contiguous())


@dataclass(frozen=True)
class Anatomy:
    """What was found out about a foreign teacher.

    Attributes:
        layout: Order of its input's axes.
        states: The hidden states around the pooling.
        stride: Mel frames between frame features.
        offset: Mel frame at which frame feature 0 is centred.
        receptive_field: Mel frames that a frame feature sees; None: the whole clip.
        head: Name of its affine head; "" where the way from pooled state to logits is not affine.
        answers: ``logits``, ``log-probabilities`` or ``probabilities``.
        also: Other orders of axes that it takes without complaint.
    """

    layout: str
    states: HiddenStates
    stride: int
    offset: float
    receptive_field: int | None
    head: str
    answers: str
    also: tuple[str, ...]


class ForeignTeacher(nn.Module):
    """Any log-mel classifier behind our interface (`models.hidden.TeacherLike`).

    Args:
        module: Takes log-mels of any length, gives one answer of K classes.
        n_mels: M.
        classes: K.
        layout: Order of the input's axes, or ``auto``.
        frames: Name of the state with time; found where None.
        pooled: Name of the state without time; found where None.

    Raises:
        TeacherError: It takes no such mels, or its hidden states are not unambiguous.
    """

    def __init__(
        self,
        module: nn.Module,
        n_mels: int,
        classes: int,
        *,
        layout: str = "auto",
        frames: str | None = None,
        pooled: str | None = None,
    ) -> None:
        super().__init__()
        # Whatever precision its owner left it in: half is for GPUs, and mels are float32.
        self.module = module.float().eval().requires_grad_(False)
        self.n_mels, self.classes = n_mels, classes
        found = find_layout(module, n_mels, classes, layout)
        events = trace(module, n_mels, found)
        states = find_states(events, frames, pooled)
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.register_forward_hook(_plain_gradient)
        self._seen: dict[str, Tensor] = {}
        self._time_axis = next(e.time_axis for e in events if e.name == states.frames)
        self._watch(states.frames, "frames")
        self._watch(states.pooled, "pooled")
        self.shortest = shortest_clip(module, n_mels, found)
        raw_BK, again_BK = (
            call(module, arrange(probe_mels(n_mels, LENGTHS[0]), found), classes) for _ in range(2)
        )
        self._seen.clear()
        if not torch.allclose(raw_BK, again_BK, atol=1e-3, rtol=1e-3, equal_nan=True):
            raise TeacherError(
                "The teacher answers differently each time: something is random in evaluation.",
                fix="Let chance follow the mode: nn.Dropout, or F.dropout(x, p, self.training).",
            )
        if not torch.isfinite(raw_BK).all():
            raise TeacherError(
                "The teacher's answers are not finite.",
                fix="Check the weights and the mel's mean and std.",
            )
        self._probabilities = log_probabilities(raw_BK) is not raw_BK
        head = find_head(module, events, states.pooled, raw_BK)
        self._head = as_linear(module.get_submodule(head)) if head else None
        if self._head is not None:
            self._head.requires_grad_(False)
        self.channels, self.pooled_size = states.channels, states.pooled_size
        self.frame_stride, self.frame_offset, field = self._geometry(events, states, found)
        normalised = torch.allclose(raw_BK.logsumexp(1), torch.zeros(()), atol=1e-3)
        answers = "log-probabilities" if normalised else "logits"
        self.anatomy = Anatomy(
            found, states, self.frame_stride, self.frame_offset, field, head,
            "probabilities" if self._probabilities else answers,
            other_layouts(module, n_mels, classes, found) if layout == "auto" else (),
        )  # fmt: skip

    @property
    def head(self) -> nn.Linear | None:
        """The affine map from pooled state to logits; None where it is not affine."""
        return self._head

    @property
    def doubts(self) -> tuple[str, ...]:
        """What its owner alone can know, in sentences."""
        if not self.anatomy.also:
            return ()
        layout, others = self.anatomy.layout, " or ".join(self.anatomy.also)
        return (
            f"The teacher takes mels as {others} without complaint as well, and {layout} was "
            f"assumed. A wrong order gives nonsense: say --layout {layout} once you are sure.",
        )

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features (B, C, T'), pooled state (B, D) and logits (B, K).

        A clip that is too short for the network is repeated until it is not.
        Clips of different lengths in one padded batch have no common frames: pass them apart.
        """
        if lengths_B is not None and bool((lengths_B != x_B1MT.shape[3]).any()):
            raise TeacherError(
                "A foreign teacher knows no masks: its hidden states need clips of one length.",
                fix="Batch clips of equal length.",
            )
        if x_B1MT.shape[3] < self.shortest:  # convolutions without padding reach further
            times = -(-self.shortest // x_B1MT.shape[3])
            x_B1MT = x_B1MT.repeat(1, 1, 1, times)[..., : self.shortest]
        try:
            out = answer(self.module(arrange(x_B1MT, self.anatomy.layout)), self.classes)
            logits_BK = out.clamp_min(1e-12).log() if self._probabilities else out
            frames_BCT = frames_of(self._seen["frames"], self._time_axis)
            return Hidden(frames_BCT, flat(self._seen["pooled"]), logits_BK)
        finally:
            self._seen.clear()

    def forward(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits (B, K); each clip of a padded batch is answered at its own length."""
        if lengths_B is None:
            return self.hidden(x_B1MT).logits_BK
        rows: dict[int, Tensor] = {}
        for n in lengths_B.unique().tolist():
            index = (lengths_B == n).nonzero()[:, 0]
            logits = self.hidden(x_B1MT[index, :, :, : int(n)]).logits_BK
            rows.update(zip(index.tolist(), logits, strict=True))
        return torch.stack([rows[i] for i in range(len(x_B1MT))])

    def _watch(self, name: str, key: str) -> None:
        of_input = name.endswith("@in")
        module = self.module.get_submodule(name.removesuffix("@in"))

        def keep(tensor: Any) -> None:
            found = maybe_tensor(tensor)
            assert found is not None
            # A copy, because an in-place activation may follow.
            self._seen[key] = found.clone()

        if of_input:
            module.register_forward_pre_hook(lambda _, inputs: keep(inputs))
        else:
            module.register_forward_hook(lambda _, __, out: keep(out))

    def _geometry(
        self, events: list[Event], states: HiddenStates, layout: str
    ) -> tuple[int, float, int | None]:
        """Stride, centre of frame 0, receptive field: by differences and by gradients."""
        event = next(e for e in events if e.name == states.frames)
        assert event.time_axis is not None
        grown = event.longer[event.time_axis] - event.tensor.shape[event.time_axis]
        stride = max(1, round((LENGTHS[1] - LENGTHS[0]) / grown))
        x = probe_mels(self.n_mels, LENGTHS[1]).requires_grad_()
        with torch.enable_grad():
            self.module(arrange(x, layout))
            frames_BCT = frames_of(self._seen.pop("frames"), event.time_axis)
            self._seen.clear()
            middle = frames_BCT.shape[2] // 2
            (gradient,) = torch.autograd.grad(frames_BCT[:, :, middle].square().sum(), x)
        touched = gradient.abs().sum(dim=(0, 1, 2)).nonzero()[:, 0]
        if len(touched) == 0:
            return stride, (stride - 1) / 2, None
        first, last = int(touched[0]), int(touched[-1])
        if last - first + 1 >= LENGTHS[1] - stride:
            return stride, (stride - 1) / 2, None
        return stride, (first + last) / 2 - middle * stride, last - first + 1
