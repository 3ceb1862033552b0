"""A network that is not ours behind our interface: it shows its hidden states.

Shape legend: B batch, M mel bands, T mel frames, N samples, C channels, T' frames, D pooled size,
K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from frami_edge.errors import TeacherError
from frami_edge.models import Hidden
from frami_edge.teachers.calling import (
    Answers,
    Input,
    find_calling,
    first_tensor,
    in_words,
    kind_of_answers,
    looks_like_detectors,
    shortest_clip,
    takes,
)
from frami_edge.teachers.frontends import FrontEnd
from frami_edge.teachers.tracing import (
    ANSWER,
    MEAN,
    HiddenStates,
    TracedTensor,
    as_linear,
    find_head,
    find_states,
    frames_of,
    trace,
)


@dataclass(frozen=True)
class Anatomy:
    """What was found out about a foreign teacher."""

    layout: str  # order of its input's axes
    states: HiddenStates  # around the pooling
    stride: int  # mel frames (samples, of a teacher that takes audio) between frame features
    offset: float  # mel frame (sample) at which frame feature 0 is centred
    receptive_field: int | None  # frames (samples) behind a frame feature; None: the whole clip
    head: str  # name of its affine head; "" where the map from pooled state to logits is not affine
    answers: Answers  # what its outputs are
    output: Literal["softmax", "sigmoid"]  # how its logits become scores
    output_given: bool  # False where it was guessed
    also: tuple[str, ...]  # other orders of axes that it takes without an error
    clip_length: int | None  # the only length that it takes, in mel frames (samples); None: any
    answers_per_frame: bool  # its answers are averaged over time
    patch_bands: int  # patches along frequency of a patch transformer, averaged; 0 for others


class ForeignTeacher(nn.Module):
    """Any classifier of log-mels or audio behind our interface (`models.TeacherLike`).

    Args:
        module: Takes log-mels or audio, gives one output of K classes, or one per frame. It is
            frozen, put into evaluation mode and converted to float32.
        taken: What it takes: M mel bands, or an `Input`.
        classes: K.
        layout: Order of the input's axes, or ``auto``.
        frames: Name of the state with time; found where None.
        pooled: Name of the state without time; found where None.
        output: How its logits become scores; guessed from its answers where None.

    Raises:
        TeacherError: It takes no such input, or its hidden states are ambiguous.
    """

    def __init__(
        self,
        module: nn.Module,
        taken: Input | int,
        classes: int,
        *,
        layout: str = "auto",
        frames: str | None = None,
        pooled: str | None = None,
        output: Literal["softmax", "sigmoid"] | None = None,
    ) -> None:
        super().__init__()
        self.module = module.float().eval().requires_grad_(False)
        taken = Input(n_mels=taken) if isinstance(taken, int) else taken
        self.takes: Literal["mel", "audio"] = "mel" if taken.n_mels else "audio"
        self.classes = classes
        self.front_end: FrontEnd | None = None
        """The log-mel that was found inside it, where it takes audio by itself."""
        self.why_audio = ""
        """Why none was found."""
        self._calling = calling = find_calling(module, taken, classes, layout)
        events = trace(module, calling)
        x = taken.probe(calling.lengths[0])
        with torch.no_grad():
            raw, again = (calling.raw(module, x) for _ in range(2))
        if not torch.allclose(raw, again, atol=1e-3, rtol=1e-3, equal_nan=True):
            raise TeacherError(
                "The teacher's outputs differ between two equal calls: something is random in "
                "evaluation.",
                fix="Let chance follow the mode: nn.Dropout, or F.dropout(x, p, self.training).",
            )
        if not torch.isfinite(raw).all():
            raise TeacherError(
                "The teacher's outputs are not finite.",
                fix="Check the weights and the mel's mean and std.",
            )
        states = find_states(events, raw, calling, module, frames, pooled)
        at = {(event.name, event.call): event for event in events}
        frame_event = at[states.frames, states.calls[0]]
        self._time_axis, self._grid = frame_event.time_axis, frame_event.grid
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.register_forward_hook(_plain_gradient)
        self._answers: Answers
        self._kept: dict[str, Tensor] = {}
        self._runs: dict[str, int] = {}
        self._watch("frames", states.frames, states.calls[0])
        self.shortest = shortest_clip(module, calling)
        affine = any(
            event.tensor.shape == raw.shape
            and torch.equal(event.tensor, raw)
            and not event.name.endswith("@in")
            and as_linear(module.get_submodule(event.name)) is not None
            for event in events
        )  # the values of an untrained network may be between 0 and 1 by chance
        self._answers = "logits" if affine else kind_of_answers(calling.rows(raw))
        logits_BK = calling.logits(raw, self._answers)
        guess = _output(self._answers, logits_BK)
        if self._answers != "logits" and output not in (None, guess):
            raise TeacherError(
                f"The teacher's outputs are {self._answers}, which no {output} follows.",
                fix=f"Leave --output out, or give --output {guess}.",
            )
        head, states = find_head(module, events, states, logits_BK, named=pooled is not None)
        self._pooled = states.pooled
        if states.pooled not in (ANSWER, MEAN):
            self._watch("pooled", states.pooled, states.calls[1])
        self.head = as_linear(module.get_submodule(head)) if head else None
        """The affine map from pooled state to logits; None where it is not affine."""
        self.channels, self.pooled_size = states.channels, states.pooled_size
        self.frame_stride, self.frame_offset, field = self._geometry(events, frame_event)
        others = [o for o in taken.layouts if o != calling.layout] if layout == "auto" else []
        also = tuple(
            o for o in others if calling.length is None and takes(module, taken, classes, o)
        )
        self._forget()
        self.receptive_field = calling.length or field
        self.anatomy = Anatomy(
            calling.layout,
            states,
            self.frame_stride,
            self.frame_offset,
            field,
            head,
            self._answers,
            output or guess,
            output is not None or self._answers != "logits",
            also,
            calling.length,
            calling.frame_axis is not None,
            self._grid.bands if self._grid else 0,
        )
        self.requires_grad_(False)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Assumptions that its owner should confirm, in sentences."""
        found = []
        a = self.anatomy
        if a.also and self.takes == "mel":
            found.append(
                f"The teacher takes mels as {' or '.join(a.also)} without an error as well, and "
                f"{a.layout} was assumed. A wrong order gives nonsense: add --layout {a.layout} "
                "once you are sure."
            )
        if a.output == "sigmoid" and not a.output_given:
            found.append(
                "The teacher's logits look like those of a tagger with a sigmoid per label: add "
                "--output sigmoid once you are sure, or --output softmax if it chooses one of "
                f"{self.classes} classes."
            )
        if a.answers_per_frame:
            found.append(
                "The teacher answers per frame: the mean over time is its answer to a clip. If it "
                "was trained with another pooling, such as the maximum, return that one."
            )
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about it, in sentences."""
        found = []
        a = self.anatomy
        if self.front_end is not None:
            found.append(
                f"Its own log-mel, {self.front_end.spot}, was found and equals the front end shown "
                f"to {self.front_end.difference:.1g}: the teacher takes log-mels."
            )
        elif self.takes == "audio":
            found.append(
                f"It takes audio, because {self.why_audio or 'no log-mel was searched for'}: clips "
                "are kept as audio, and the front end shown is only proposed for the student."
            )
        if a.clip_length is not None:
            found.append(
                f"It takes clips of {a.clip_length} {self._calling.input.unit} alone: shorter ones "
                "are repeated up to that length, longer ones are answered in windows and averaged. "
                "Crops of that length suit it best (bank.clip_s, distill.crop_max_s)."
            )
        if a.patch_bands > 1:
            found.append(
                f"Its tokens are patches, {a.patch_bands} along frequency, whose mean is the frame "
                f"feature: one per {a.stride} {self._calling.input.unit}."
            )
        return tuple(found)

    def hidden(self, x: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features (B, C, T'), pooled state (B, D) and logits (B, K).

        A clip that is too short for the network is repeated until it is not; a longer one than a
        network of one clip length takes is answered in windows, whose pooled states and logits are
        averaged.

        Args:
            x: (B, 1, M, T) normalised log-mels, or (B, N) samples where it takes audio.
            lengths_B: Lengths of the clips of a padded batch.

        Raises:
            TeacherError: The clips of a padded batch differ in length, or are too long for it.
        """
        n = x.shape[-1]
        if lengths_B is not None and bool((lengths_B != n).any()):
            raise TeacherError(
                "A foreign teacher has no masks: its hidden states need clips of one length.",
                fix="Batch clips of equal length.",
            )
        if n < self.shortest:
            x = x[..., torch.arange(self.shortest, device=x.device) % n]
        length = self._calling.length
        if length is None or x.shape[-1] == length == n:
            return self._hidden(x)
        if x.shape[-1] == length:  # a repeated clip has frames beyond its end
            hidden = self._hidden(x)
            heard = -(-n // self.frame_stride)
            return Hidden(hidden.frames_BCT[:, :, :heard], hidden.pooled_BD, hidden.logits_BK)
        starts = [*range(0, n - length, length), n - length]
        parts = self._hidden(torch.cat([x[..., s : s + length] for s in starts]))
        frames = list(parts.frames_BCT.chunk(len(starts)))
        new = n - (len(starts) - 1) * length  # mel frames of the last window that are new
        frames[-1] = frames[-1][:, :, -max(1, round(new / self.frame_stride)) :]
        pooled, logits = (
            torch.stack(t.chunk(len(starts))).mean(0) for t in (parts.pooled_BD, parts.logits_BK)
        )
        return Hidden(torch.cat(frames, 2), pooled, logits)

    def _hidden(self, x: Tensor) -> Hidden:
        self._forget()
        try:
            raw = self._calling.raw(self.module, x)
            logits_BK = self._calling.logits(raw, self._answers)
            frames_BCT = frames_of(self._kept["frames"], self._time_axis, self._grid)
            if len(frames_BCT) != len(x):
                raise self._too_long(x, "cuts them into parts of its own")
            if self._pooled == ANSWER:
                pooled_BD = logits_BK
            elif self._pooled == MEAN:
                pooled_BD = frames_BCT.mean(2)
            else:
                pooled_BD = self._kept["pooled"].flatten(1)
            return Hidden(frames_BCT, pooled_BD, logits_BK)
        except RuntimeError as error:
            if x.shape[-1] <= self._calling.lengths[-1] or isinstance(
                error, torch.OutOfMemoryError
            ):
                raise  # clips of this length passed when the teacher was opened
            raise self._too_long(x, f"fails: {in_words(error)}") from error
        finally:
            self._forget()

    def _too_long(self, x: Tensor, why: str) -> TeacherError:
        unit = self._calling.input.unit
        return TeacherError(
            f"The teacher does not take clips of {x.shape[-1]} {unit}: it {why}.",
            fix="Give it shorter ones (bank.clip_s, distill.crop_max_s), or wrap it in a module "
            "that answers long clips in windows.",
        )

    def forward(self, x: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits (B, K); each clip of a padded batch is computed at its own length."""
        if lengths_B is None:
            return self.hidden(x).logits_BK
        rows: dict[int, Tensor] = {}
        for n in lengths_B.unique().tolist():
            index = (lengths_B == n).nonzero()[:, 0]
            logits = self.hidden(x[index][..., : int(n)]).logits_BK
            rows.update(zip(index.tolist(), logits, strict=True))
        return torch.stack([rows[i] for i in range(len(x))])

    def _forget(self) -> None:
        self._kept.clear()
        self._runs.clear()

    def _watch(self, key: str, name: str, number: int) -> RemovableHandle:
        """Keep a copy of a module's input or output in its run ``number`` of a pass."""
        module = self.module.get_submodule(name.removesuffix("@in"))

        # No closures: the hooks of a copied teacher must not keep tensors for this one.
        if name.endswith("@in"):
            return module.register_forward_pre_hook(partial(self._keep_input, key, number))
        return module.register_forward_hook(partial(self._keep_output, key, number))

    def _keep_input(self, key: str, number: int, _: nn.Module, inputs: Any) -> None:
        run = self._runs[key] = self._runs.get(key, -1) + 1
        tensor = first_tensor(inputs)
        if run == number and tensor is not None:
            self._kept[key] = tensor.clone()  # an in-place activation may follow

    def _keep_output(self, key: str, number: int, module: nn.Module, _: Any, output: Any) -> None:
        self._keep_input(key, number, module, output)

    def _geometry(
        self, events: Sequence[TracedTensor], event: TracedTensor
    ) -> tuple[int, float, int | None]:
        """Stride, centre of frame 0, receptive field: by gradients of two frame features.

        Where a frame feature depends on the whole clip, stride and centre are those of the first
        state with as many frames, which is before recurrence and attention as a rule.
        """
        count = event.frames().shape[2]
        first = next(e for e in events if e.has_frames and e.frames().shape[2] == count)
        for candidate in dict.fromkeys((event, first)):
            if found := self._local_geometry(candidate):
                stride, offset, field = found
                return stride, offset, field if candidate is event else None
        length = self._calling.lengths[0]
        stride = max(1, round(length / count))
        if self._calling.length is None:
            stride = self._stride_by_growth(event, count)
        return stride, (stride - 1) / 2, None

    def _stride_by_growth(self, event: TracedTensor, count: int, more: int = 8) -> int:
        """Samples or mel frames per frame feature: how much longer a clip with more of them is."""

        def shortest(frames: int, low: int) -> int:
            """Shortest clip with so many frame features."""
            high = self._calling.lengths[1]
            while high - low > 1:
                middle = (low + high) // 2
                if self._probed(event, middle)[1].shape[2] < frames:
                    low = middle
                else:
                    high = middle
            return high

        first = shortest(count + 1, self._calling.lengths[0])
        return max(1, round((shortest(count + 1 + more, first) - first) / more))

    def _probed(
        self, event: TracedTensor, length: int, batch: int = 1, *, gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Test signals and the frame features of a state."""
        handle = self._watch("probed", event.name, event.call)
        self._forget()
        x = self._calling.input.probe(length, batch).requires_grad_(gradient)
        try:
            with torch.set_grad_enabled(gradient):
                self._calling.raw(self.module, x)
                return x, frames_of(self._kept["probed"], event.time_axis, event.grid)
        finally:
            handle.remove()
            self._forget()

    @torch.enable_grad()
    def _local_geometry(self, event: TracedTensor) -> tuple[int, float, int] | None:
        """Stride, centre of frame 0 and receptive field; None for the whole clip."""
        shortest = self._calling.lengths[-1]
        for length in (shortest, 2 * shortest, 4 * shortest):
            try:
                edges = self._edges(event, length)
            except RuntimeError:
                if length == shortest:
                    raise
                break  # it takes no clips of this length
            if edges is None:
                return None
            (early, first, last), (late, begin, end) = edges
            field = end - begin + 1
            # What recurrence carries further may round to 0.
            if early == late or field > 0.7 * length:
                return None
            clipped = first == 0 or end == length - 1
            if not clipped or self._calling.length is not None:
                break
        stride = max(1, round(((begin - first) + (end - last)) / 2 / (late - early)))
        return stride, (begin + end) / 2 - late * stride, field

    def _edges(self, event: TracedTensor, length: int) -> list[tuple[int, int, int]] | None:
        """Two frame features, a quarter from either end, and the first and last input of each."""
        x, frames_BCT = self._probed(event, length, 4, gradient=True)
        if not frames_BCT.requires_grad:
            return None
        count, edges = frames_BCT.shape[2], []
        for frame in (count // 4, max(count // 4, 3 * count // 4 - 1)):
            square = frames_BCT[:, :, frame].square().sum()
            (gradient,) = torch.autograd.grad(square, x, retain_graph=True)
            touched = gradient.abs().flatten(0, -2).sum(0).nonzero()[:, 0]
            if not len(touched):
                return None
            edges.append((frame, int(touched[0]), int(touched[-1])))
        return edges


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
