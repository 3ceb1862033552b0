"""A network that is not ours behind our interface: it shows its hidden states.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' frames, D pooled size, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from frami_edge.errors import TeacherError
from frami_edge.models import Hidden
from frami_edge.teachers.tracing import (
    LAYOUTS,
    LENGTHS,
    Answers,
    HiddenStates,
    TracedTensor,
    answer,
    arrange,
    as_linear,
    as_logits,
    find_head,
    find_layout,
    find_states,
    first_tensor,
    frames_of,
    kind_of_answers,
    looks_like_detectors,
    probe_mels,
    shortest_clip,
    takes,
    trace,
)


@dataclass(frozen=True)
class Anatomy:
    """What was found out about a foreign teacher."""

    layout: str  # order of its input's axes
    states: HiddenStates  # around the pooling
    stride: int  # mel frames between frame features
    offset: float  # mel frame at which frame feature 0 is centred
    receptive_field: int | None  # mel frames that a frame feature depends on; None: the whole clip
    head: str  # name of its affine head; "" where the map from pooled state to logits is not affine
    answers: Answers  # what its outputs are
    output: Literal["softmax", "sigmoid"]  # how its logits become scores
    output_given: bool  # False where it was guessed
    also: tuple[str, ...]  # other orders of axes that it takes without an error


class ForeignTeacher(nn.Module):
    """Any log-mel classifier behind our interface (`models.TeacherLike`).

    Args:
        module: Takes log-mels of any length, gives one output of K classes. It is frozen, put into
            evaluation mode and converted to float32.
        n_mels: M.
        classes: K.
        layout: Order of the input's axes, or ``auto``.
        frames: Name of the state with time; found where None.
        pooled: Name of the state without time; found where None.
        output: How its logits become scores; guessed from its answers where None.

    Raises:
        TeacherError: It takes no such mels, or its hidden states are ambiguous.
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
        output: Literal["softmax", "sigmoid"] | None = None,
    ) -> None:
        super().__init__()
        self.module = module.float().eval().requires_grad_(False)
        self.n_mels, self.classes = n_mels, classes
        found = find_layout(module, n_mels, classes, layout)
        events = trace(module, n_mels, found)
        states = find_states(events, frames, pooled)
        at = {(event.name, event.call): event for event in events}
        frame_event = at[states.frames, states.calls[0]]
        self._time_axis = frame_event.time_axis
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.register_forward_hook(_plain_gradient)
        self._kept: dict[str, Tensor] = {}
        self._runs: dict[str, int] = {}
        self._watch("frames", states.frames, states.calls[0])
        self._watch("pooled", states.pooled, states.calls[1])
        self.shortest = shortest_clip(module, n_mels, found)
        x = arrange(probe_mels(n_mels, LENGTHS[0]), found)
        with torch.no_grad():
            raw_BK, again_BK = (answer(module(x), classes) for _ in range(2))
        if not torch.allclose(raw_BK, again_BK, atol=1e-3, rtol=1e-3, equal_nan=True):
            raise TeacherError(
                "The teacher's outputs differ between two equal calls: something is random in "
                "evaluation.",
                fix="Let chance follow the mode: nn.Dropout, or F.dropout(x, p, self.training).",
            )
        if not torch.isfinite(raw_BK).all():
            raise TeacherError(
                "The teacher's outputs are not finite.",
                fix="Check the weights and the mel's mean and std.",
            )
        self._answers = kind_of_answers(raw_BK)
        logits_BK = as_logits(raw_BK, self._answers)
        guess = _output(self._answers, logits_BK)
        if self._answers != "logits" and output not in (None, guess):
            raise TeacherError(
                f"The teacher's outputs are {self._answers}, which no {output} follows.",
                fix=f"Leave --output out, or give --output {guess}.",
            )
        head = find_head(module, events, states, logits_BK)
        self.head = as_linear(module.get_submodule(head)) if head else None
        """The affine map from pooled state to logits; None where it is not affine."""
        self.channels, self.pooled_size = states.channels, states.pooled_size
        self.frame_stride, self.frame_offset, field = self._geometry(frame_event, found)
        others = [o for o in LAYOUTS if o != found] if layout == "auto" else []
        also = tuple(o for o in others if takes(module, n_mels, classes, o))
        self._forget()
        self.anatomy = Anatomy(
            found,
            states,
            self.frame_stride,
            self.frame_offset,
            field,
            head,
            self._answers,
            output or guess,
            output is not None or self._answers != "logits",
            also,
        )
        self.requires_grad_(False)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Assumptions that only its owner can confirm, in sentences."""
        found = []
        if self.anatomy.also:
            layout, others = self.anatomy.layout, " or ".join(self.anatomy.also)
            found.append(
                f"The teacher takes mels as {others} without an error as well, and {layout} was "
                f"assumed. A wrong order gives nonsense: add --layout {layout} once you are sure."
            )
        if self.anatomy.output == "sigmoid" and not self.anatomy.output_given:
            found.append(
                "The teacher's logits look like those of a tagger with a sigmoid per label: add "
                "--output sigmoid once you are sure, or --output softmax if it chooses one of "
                f"{self.classes} classes."
            )
        return tuple(found)

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features (B, C, T'), pooled state (B, D) and logits (B, K).

        A clip that is too short for the network is repeated until it is not.

        Raises:
            TeacherError: The clips of a padded batch differ in length.
        """
        if lengths_B is not None and bool((lengths_B != x_B1MT.shape[3]).any()):
            raise TeacherError(
                "A foreign teacher has no masks: its hidden states need clips of one length.",
                fix="Batch clips of equal length.",
            )
        if x_B1MT.shape[3] < self.shortest:
            times = -(-self.shortest // x_B1MT.shape[3])
            x_B1MT = x_B1MT.repeat(1, 1, 1, times)[..., : self.shortest]
        self._forget()
        try:
            out = answer(self.module(arrange(x_B1MT, self.anatomy.layout)), self.classes)
            logits_BK = as_logits(out, self._answers)
            frames_BCT = frames_of(self._kept["frames"], self._time_axis)
            return Hidden(frames_BCT, self._kept["pooled"].flatten(1), logits_BK)
        finally:
            self._forget()

    def forward(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits (B, K); each clip of a padded batch is computed at its own length."""
        if lengths_B is None:
            return self.hidden(x_B1MT).logits_BK
        rows: dict[int, Tensor] = {}
        for n in lengths_B.unique().tolist():
            index = (lengths_B == n).nonzero()[:, 0]
            logits = self.hidden(x_B1MT[index, :, :, : int(n)]).logits_BK
            rows.update(zip(index.tolist(), logits, strict=True))
        return torch.stack([rows[i] for i in range(len(x_B1MT))])

    def _forget(self) -> None:
        self._kept.clear()
        self._runs.clear()

    def _watch(self, key: str, name: str, number: int) -> None:
        """Keep a copy of a module's input or output in its run ``number`` of a pass."""
        module = self.module.get_submodule(name.removesuffix("@in"))

        def keep(value: Any) -> None:
            run = self._runs[key] = self._runs.get(key, -1) + 1
            tensor = first_tensor(value)
            if run == number and tensor is not None:
                self._kept[key] = tensor.clone()  # an in-place activation may follow

        if name.endswith("@in"):
            module.register_forward_pre_hook(lambda _, inputs: keep(inputs))
        else:
            module.register_forward_hook(lambda _, __, out: keep(out))

    def _geometry(self, event: TracedTensor, layout: str) -> tuple[int, float, int | None]:
        """Stride, centre of frame 0, receptive field: by differences and by gradients."""
        assert event.time_axis is not None
        grown = event.longer[event.time_axis] - event.tensor.shape[event.time_axis]
        stride = max(1, round((LENGTHS[1] - LENGTHS[0]) / grown))
        self._forget()
        x = probe_mels(self.n_mels, LENGTHS[1]).requires_grad_()
        with torch.enable_grad():
            self.module(arrange(x, layout))
            frames_BCT = frames_of(self._kept["frames"], event.time_axis)
            middle = frames_BCT.shape[2] // 2
            (gradient,) = torch.autograd.grad(frames_BCT[:, :, middle].square().sum(), x)
        touched = gradient.abs().sum(dim=(0, 1, 2)).nonzero()[:, 0]
        first, last = (int(touched[0]), int(touched[-1])) if len(touched) else (0, LENGTHS[1])
        field = last - first + 1
        if field >= LENGTHS[1] - stride:
            return stride, (stride - 1) / 2, None
        return stride, (first + last) / 2 - middle * stride, field


def _output(answers: Answers, logits_BK: Tensor) -> Literal["softmax", "sigmoid"]:
    if answers == "logits":
        return "sigmoid" if looks_like_detectors(logits_BK) else "softmax"
    return "sigmoid" if answers == "sigmoid probabilities" else "softmax"


def _plain_gradient(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> None:
    """Give BatchNorm's backward a gradient in plain order.

    torch's CPU kernel (2.14) reads a gradient in channels-last order wrongly where an axis has the
    size 1, without an error; a BatchNorm over mel bands, (B, M, T, 1), meets that case.
    """
    if out.requires_grad and out.device.type == "cpu" and 1 in out.shape[2:]:
        out.register_hook(lambda gradient: gradient.contiguous())
