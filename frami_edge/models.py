"""The built-in teacher, the student, and the statistics pooling that they share.

Shape legend: B batch, M mel bands, T frames, C channels, D = 2C pooled statistics, K classes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from frami_edge.config import InheritedLayer, StudentArch, TeacherArch
from frami_edge_runtime.melspec import MelSpec


@dataclass
class Hidden:
    """The hidden states before and after the pooling, and the logits, of one forward pass.

    Attributes:
        frames_BCT: Frame features, before the pooling.
        pooled_BD: State after the pooling; in our own networks [mean; std] of the frame features.
        logits_BK: Class scores.
        whole_BK: Scores of all classes, where ``logits_BK`` are those of a selection.
    """

    frames_BCT: Tensor
    pooled_BD: Tensor
    logits_BK: Tensor
    whole_BK: Tensor | None = None


class TeacherLike(Protocol):
    """What inversion and distillation need from a teacher's network; foreign ones are wrapped."""

    takes: Literal["mel", "audio"]
    """What `hidden` takes: (B, 1, M, T) normalised log-mels, or (B, N) samples."""
    channels: int
    """C of the frame features."""
    pooled_size: int
    """D of the pooled state: 2C after statistics pooling, C after a mean."""
    frame_stride: int
    """Mel frames (samples, where it takes audio) from one frame feature to the next."""
    frame_offset: float
    """Mel frame (sample) at which frame feature 0 is centred."""

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features, pooled statistics and logits of what the teacher takes."""
        ...

    @property
    def head(self) -> nn.Linear | None:
        """The affine map from pooled state to logits; None where that map is not affine."""
        ...


POOL_EPS = 1e-5
"""Added to the variance before the root; the same in graphs, trainer and runtime."""


def frame_mask(lengths_B: Tensor, frames: int) -> Tensor:
    """(B, T) bool: True where a frame belongs to the clip and not to its padding."""
    return torch.arange(frames, device=lengths_B.device)[None, :] < lengths_B[:, None]


class StatsPool(nn.Module):
    """Mean and population standard deviation over time: [μ; σ], σ = sqrt(max(var, 0) + eps).

    Two passes (the mean first, then the mean squared distance from it) in float32, because the
    one-pass formula loses the variance of loud, steady sounds at low precision.
    Source: D. Snyder et al., *X-vectors*, ICASSP 2018.
    """

    def __init__(self, eps: float = POOL_EPS) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, h_BCT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """(B, 2C) float32, over all frames or the first `lengths_B` of each clip."""
        h_BCT = h_BCT.float()
        if lengths_B is None:
            mean_BC = h_BCT.mean(dim=2)
            var_BC = (h_BCT - mean_BC[:, :, None]).square().mean(dim=2)
        else:
            mask_B1T = frame_mask(lengths_B, h_BCT.shape[2])[:, None, :].to(h_BCT.dtype)
            count_B1 = lengths_B[:, None].to(h_BCT.dtype)
            mean_BC = (h_BCT * mask_B1T).sum(dim=2) / count_B1
            var_BC = ((h_BCT - mean_BC[:, :, None]).square() * mask_B1T).sum(dim=2) / count_B1
        return torch.cat([mean_BC, (var_BC.clamp_min(0) + self.eps).sqrt()], dim=1)


# --- The teacher: a small ResNet over log-mels


def _masked(x_BCMT: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Zero the padding, which is then exactly what the convolution pads a single clip with."""
    if lengths_B is None:
        return x_BCMT
    return x_BCMT * frame_mask(lengths_B, x_BCMT.shape[3])[:, None, None, :]


class _Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(c_out)
        self.conv2: nn.Module = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(c_out)
        self.time_stride = stride[1]
        self.shortcut: nn.Module = nn.Identity()
        if stride != (1, 1) or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x_BCMT: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        out_B = None if lengths_B is None else -(-lengths_B // self.time_stride)
        y = _masked(F.relu(self.bn1(self.conv1(x_BCMT)), inplace=True), out_B)
        y = F.relu(self.bn2(self.conv2(y)) + self.shortcut(x_BCMT), inplace=True)
        return _masked(y, out_B), out_B

    def fold(self) -> None:
        """Make the BatchNorms part of the convolutions before them."""
        self.conv1, self.bn1 = _folded(self.conv1, self.bn1)
        self.conv2, self.bn2 = _folded(self.conv2, self.bn2)
        if isinstance(self.shortcut, nn.Sequential):
            self.shortcut = nn.Sequential(*_folded(*self.shortcut))


def _folded(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(conv, norm), nn.Identity()


class ResNetTeacher(nn.Module):
    """Normalised log-mels (B, 1, M, T) to logits (B, K), one frame feature per 4 mel frames.

    Frame features are averaged over frequency, then pooled to [mean; std] over time. With
    ``lengths`` a padded batch gives what each clip alone would give.
    Source: K. He et al., *Deep Residual Learning*, CVPR 2016 (basic block).
    """

    takes: Literal["mel", "audio"] = "mel"
    frame_stride = 4
    frame_offset = 0.0

    def __init__(self, arch: TeacherArch, n_mels: int, n_classes: int) -> None:
        super().__init__()
        self.arch = arch
        self.n_mels = n_mels
        first = arch.channels[0]
        self.stem: nn.Module = nn.Conv2d(1, first, 3, (2, 2), padding=1, bias=False)
        self.stem_bn: nn.Module = nn.BatchNorm2d(first)
        blocks: list[nn.Module] = []
        c_in, self.receptive_field, jump = first, 3, 2  # in mel frames
        for stage, c_out in enumerate(arch.channels):
            for i in range(arch.blocks):
                # The stem and stage 1 halve time; every stage but the first halves frequency.
                stride = (1, 1) if stage == 0 or i > 0 else (2, 2 if stage == 1 else 1)
                blocks.append(_Block(c_in, c_out, stride))
                self.receptive_field += 2 * jump + 2 * jump * stride[1]
                c_in, jump = c_out, jump * stride[1]
        self.blocks = nn.ModuleList(blocks)
        self.pool = StatsPool()
        self.dropout = nn.Dropout(arch.dropout)
        self.channels, self.pooled_size = c_in, 2 * c_in
        self.fc = nn.Linear(2 * c_in, n_classes)

    @property
    def head(self) -> nn.Linear:
        """The affine map from pooled statistics to logits."""
        return self.fc

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features (B, C, ceil(T / 4)), pooled statistics (B, D) and logits (B, K)."""
        n_B = None if lengths_B is None else (lengths_B + 1) // 2
        x = F.relu(self.stem_bn(self.stem(_masked(x_B1MT, lengths_B))), inplace=True)
        x = _masked(x, n_B)
        for block in self.blocks:
            x, n_B = block(x, n_B)
        frames_BCT = x.mean(dim=2)
        pooled_BD = self.pool(frames_BCT, n_B)
        return Hidden(frames_BCT, pooled_BD, self.fc(self.dropout(pooled_BD)))

    def forward(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits (B, K)."""
        return self.hidden(x_B1MT, lengths_B).logits_BK


def only_answers(teacher: TeacherLike) -> TeacherLike:
    """A frozen teacher for where nothing observes its BatchNorms, in evaluation mode.

    A copy with the BatchNorms folded, where the network is built in: half the time of the answers.
    Others are returned as they are.
    """
    assert isinstance(teacher, nn.Module)
    if not any(isinstance(m, ResNetTeacher) for m in teacher.modules()):
        return teacher
    copied = copy.deepcopy(teacher)
    for module in list(copied.modules()):
        if isinstance(module, _Block):
            module.fold()
        elif isinstance(module, ResNetTeacher):
            module.stem, module.stem_bn = _folded(module.stem, module.stem_bn)
    return copied


# --- The student: a trunk that streams exactly, statistics pooling and an affine head


def _conv_bn_relu(
    c_in: int,
    c_out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad: bool = True,
) -> list[nn.Module]:
    padding = (kernel[0] // 2 if pad else 0, 0)
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


class FrequencyMean(nn.Module):
    """(B, C, M', T) to (B, C, T)."""

    def forward(self, x_BCMT: Tensor) -> Tensor:
        """Mean over the frequency axis."""
        return x_BCMT.mean(dim=2)


_ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "silu": F.silu}


class InheritedLayers(nn.Module):
    """A teacher's first layers: (B, 1, M, T) to (B, C, M', T'), as convolutions that stream.

    They pad along time as they do in the teacher; frames that the padding reaches are cut off.

    Args:
        layers: As `teachers.inheriting.inherit` found them.
        n_mels: M.

    Raises:
        ValueError: They are no such layers.
    """

    def __init__(self, layers: tuple[InheritedLayer, ...], n_mels: int) -> None:
        super().__init__()
        self.layers = layers
        self.convolutions = nn.ModuleDict()
        channels, bands, reaches, strides = [1], [n_mels], [0], [1]
        for number, layer in enumerate(layers, 1):
            if not 0 <= min(layer.of) <= max(layer.of) < number:
                raise ValueError("a layer takes what comes behind it")
            if len({strides[i] for i in layer.of}) > 1:
                raise ValueError("paths of unlike stride along time are added")
            i = layer.of[0]
            c, m, reach, stride = channels[i], bands[i], max(reaches[j] for j in layer.of), 1
            if layer.op == "conv":
                conv = nn.Conv2d(
                    c, layer.channels, layer.kernel, layer.stride, layer.padding, layer.dilation,
                    layer.groups,
                )  # fmt: skip
                self.convolutions[str(number)] = conv
                c, stride = layer.channels, layer.stride[1]
                span = layer.dilation[0] * (layer.kernel[0] - 1) + 1
                m = (m + 2 * layer.padding[0] - span) // layer.stride[0] + 1
                reach += layer.dilation[1] * (layer.kernel[1] - 1) // 2 * strides[i]
            channels.append(c)
            bands.append(m)
            reaches.append(reach)
            strides.append(strides[i] * stride)
        self.channels, self.bands, self.stride = channels[-1], bands[-1], strides[-1]
        self.reaches, self.strides = reaches, strides
        self.cut = -(-reaches[-1] // self.stride)
        """Frames cut off at either end."""
        self.receptive_field = 2 * self.cut * self.stride + 1
        self.requires_grad_(False)

    def convolution(self, number: int) -> nn.Conv2d:
        """The convolution of that layer."""
        return cast(nn.Conv2d, self.convolutions[str(number)])

    def forward(self, x_B1MT: Tensor) -> Tensor:
        """(B, C, M', T'), T' = (T - receptive_field) // stride + 1."""
        values = [x_B1MT]
        for number, layer in enumerate(self.layers, 1):
            x = values[layer.of[0]]
            if layer.op == "conv":
                values.append(self.convolution(number)(x))
            elif layer.op == "add":
                values.append(x + values[layer.of[1]])
            else:
                values.append(_ACTIVATIONS[layer.op](x))
        x = values[-1]
        return x[..., self.cut : x.shape[3] - self.cut]

    def in_silence(self, x_B1MT: Tensor) -> Tensor:
        """`forward` of clips between ``cut * stride`` frames of 0: (B, C, M', ceil(T / stride)).

        Far from a clip every layer gives one column over and over. It is computed once, and the
        layers themselves only where the clip is heard: up to four times as fast for short clips.
        """
        frames = x_B1MT.shape[3]
        values = [_Around(x_B1MT, 0, torch.zeros_like(x_B1MT[:1, ..., :1]))]
        for number, layer in enumerate(self.layers, 1):
            x = values[layer.of[0]]
            if layer.op == "conv":
                ahead = self.reaches[-1] - self.reaches[number]  # what later layers look around
                x = x.convolved(self.convolution(number))
                stride = self.strides[number]
                x = x.within(ahead // stride, (frames - 1 + ahead) // stride + 1)
            elif layer.op == "add":
                x = x.added(values[layer.of[1]])
            else:
                act = _ACTIVATIONS[layer.op]
                x = _Around(act(x.x_BCMT), x.before, act(x.silence_1CM1))
            values.append(x)
        return values[-1].within(0, (frames - 1) // self.stride + 1).x_BCMT


@dataclass(frozen=True)
class _Around:
    """A layer's frames, the first of them ``before`` frame 0, in endless silence."""

    x_BCMT: Tensor
    before: int
    silence_1CM1: Tensor

    def within(self, before: int, after: int) -> _Around:
        """No more than these frames before and from frame 0 on."""
        first = max(0, self.before - before)
        return _Around(
            self.x_BCMT[..., first : self.before + after], self.before - first, self.silence_1CM1
        )

    def padded(self, left: int, right: int) -> Tensor:
        """The frames with silence around them."""
        silence = self.silence_1CM1.expand(len(self.x_BCMT), -1, -1, -1)
        parts = [silence.expand(-1, -1, -1, left), self.x_BCMT, silence.expand(-1, -1, -1, right)]
        return torch.cat([part for part in parts if part.shape[3]], 3)

    def convolved(self, conv: nn.Conv2d) -> _Around:
        """All frames in which a convolution hears these, on its own grid of frames."""
        stride, pad = int(conv.stride[1]), conv.dilation[1] * (conv.kernel_size[1] - 1) // 2
        after = self.x_BCMT.shape[3] - self.before
        before, last = (self.before + pad) // stride, (after - 1 + pad) // stride
        x = self.padded(stride * before + pad - self.before, stride * last + pad - (after - 1))

        def valid(x: Tensor) -> Tensor:
            edges = (int(conv.padding[0]), 0)
            return F.conv2d(
                x, conv.weight, conv.bias, conv.stride, edges, conv.dilation, conv.groups
            )

        return _Around(valid(x), before, valid(self.silence_1CM1.expand(-1, -1, -1, 2 * pad + 1)))

    def added(self, other: _Around) -> _Around:
        """The sum, over the frames of both."""
        before = max(self.before, other.before)
        after = max(x.x_BCMT.shape[3] - x.before for x in (self, other))
        a, b = (
            x.padded(before - x.before, after - (x.x_BCMT.shape[3] - x.before))
            for x in (self, other)
        )
        return _Around(a + b, before, self.silence_1CM1 + other.silence_1CM1)


def build_trunk(arch: StudentArch, n_mels: int) -> tuple[nn.Module, int, int]:
    """Stem, blocks of a depthwise and a 1x1 convolution, a last 1x1, mean over frequency.

    The first two layers stride by 2 in time, the first four by 2 in frequency. Behind inherited
    layers nothing strides, and the stem spans all bands that are left. Nothing may pad along time
    or mix the whole clip: the export checks it.

    Returns:
        The module, (B, 1, M, T) to (B, C, T'), T' = (T - field) // stride + 1; the receptive field
        and the stride of its frame features, in mel frames.
    """
    layers: list[nn.Module] = []
    c_in, field, jump, stem, bands = 1, 1, 1, 3, 3
    if arch.layers:
        inherited = InheritedLayers(arch.layers, n_mels)
        layers.append(inherited)
        c_in, field, jump = inherited.channels, inherited.receptive_field, inherited.stride
        stem, bands = inherited.bands, 1
    for i, (c, k) in enumerate(zip(arch.channels, arch.time_kernels, strict=True)):
        stride = (1, 1) if arch.layers else (2 if i < 4 else 1, 2 if i < 2 else 1)
        if i == 0:
            layers += _conv_bn_relu(c_in, c, (stem, k), stride, pad=not arch.layers)
        else:
            layers += _conv_bn_relu(c_in, c_in, (bands, k), stride, groups=c_in)
            layers += _conv_bn_relu(c_in, c, (1, 1))
        field, jump = field + (k - 1) * jump, jump * stride[1]
        c_in = c
    layers += _conv_bn_relu(c_in, arch.out_channels, (1, 1))
    return nn.Sequential(*layers, FrequencyMean()), field, jump


class ReusedHead(nn.Module):
    """The teacher's own head behind an affine projector of the pooled statistics.

    ``z = W_t (P s + p) + b_t``: both maps are affine, so that at export they are one matrix
    ``W_t P`` with bias ``W_t p + b_t``, and reuse costs nothing on the device. The head is copied
    and frozen.
    Source: D. Chen et al., *Knowledge Distillation with the Reused Teacher Classifier*, CVPR 2022;
    the projector comes after the pooling, because a standard deviation does not commute with it.
    """

    def __init__(self, channels: int, teacher_head: nn.Linear) -> None:
        super().__init__()
        self.head = copy.deepcopy(teacher_head).requires_grad_(False)
        self.projector = nn.Linear(2 * channels, teacher_head.in_features)
        if self.projector.in_features == self.projector.out_features:
            nn.init.eye_(self.projector.weight)
            nn.init.zeros_(self.projector.bias)

    def forward(self, s_BD: Tensor) -> Tensor:
        """Pooled statistics of the student (B, 2C) to logits (B, K)."""
        logits: Tensor = self.head(self.projector(s_BD))
        return logits

    def collapse(self) -> nn.Linear:
        """The same map as one layer, computed in float64."""
        w, b = self.head.weight.double(), self.head.bias.double()
        one = nn.Linear(self.projector.in_features, self.head.out_features)
        with torch.no_grad():
            one.weight.copy_((w @ self.projector.weight.double()).float())
            one.bias.copy_((w @ self.projector.bias.double() + b).float())
        return one.to(self.head.weight.device)


class StudentNet(nn.Module):
    """Normalised log-mels (B, 1, M, T) to logits (B, K), as an exact stream.

    No layer of the trunk pads along time and none mixes the whole clip before the pooling, so a
    frame feature depends on ``receptive_field`` mel frames only: a stream that carries
    ``receptive_field - stride`` of them gives the offline answer. The clip as a whole gets
    ``context`` frames of 0 (the training mean) before its start and after its end, so that onsets
    and short clips count in full and a clip of any length has a frame feature (docs/LOG.md). A
    ``teacher_head`` is reused behind an affine projector.
    """

    def __init__(
        self, arch: StudentArch, n_mels: int, n_classes: int, teacher_head: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.arch, self.n_mels, self.n_classes = arch, n_mels, n_classes
        self.trunk, self.receptive_field, self.stride = build_trunk(arch, n_mels)
        self.channels = arch.out_channels
        self.pool = StatsPool()
        self.head: nn.Module
        if teacher_head is None:
            self.head = nn.Linear(2 * self.channels, n_classes)
        else:
            self.head = ReusedHead(self.channels, teacher_head)

    @property
    def pool_eps(self) -> float:
        """Added to the variance in the pooling."""
        return self.pool.eps

    @property
    def inherited(self) -> InheritedLayers:
        """The layers that are its teacher's, where it has such."""
        return cast(InheritedLayers, cast(nn.Sequential, self.trunk)[0])

    @property
    def context(self) -> tuple[int, int]:
        """Mel frames of 0 before the start and after the end of a clip."""
        left = (self.receptive_field - 1) // 2
        return left, self.receptive_field - 1 - left

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Number of frame features of clips with that many mel frames."""
        return (lengths_B - 1) // self.stride + 1

    def frame_centres(self, frames: int, device: torch.device | None = None) -> Tensor:
        """(frames,) mel frame at which each frame feature is centred."""
        return torch.arange(frames, device=device) * float(self.stride)

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features (B, C, ceil(T / stride)), pooled statistics (B, D) and logits (B, K).

        Pad a batch with 0, the value of the context: each clip then gives what it gives alone.
        """
        return self.rest(self.first(x_B1MT), lengths_B)

    def first(self, x_B1MT: Tensor) -> Tensor:
        """What training does not change: the clips in their context, behind inherited layers."""
        if not self.arch.layers:
            return F.pad(x_B1MT, self.context)
        far = self.inherited.cut * self.stride
        return self.inherited.in_silence(F.pad(x_B1MT, [frames - far for frames in self.context]))

    def rest(self, first: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """`hidden`, of what `first` made of the clips."""
        frames_BCT = first
        for layer in list(self.trunk.children())[1 if self.arch.layers else 0 :]:
            frames_BCT = layer(frames_BCT)
        n_B = None if lengths_B is None else self.frame_lengths(lengths_B)
        pooled_BD = self.pool(frames_BCT, n_B)
        return Hidden(frames_BCT, pooled_BD, self.head(pooled_BD))

    def forward(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits (B, K)."""
        return self.hidden(x_B1MT, lengths_B).logits_BK

    def collapsed_head(self) -> tuple[Tensor, Tensor]:
        """Weight (K, 2C) and bias (K,) of the whole map from pooled statistics to logits."""
        head = self.head.collapse() if isinstance(self.head, ReusedHead) else self.head
        assert isinstance(head, nn.Linear)
        return head.weight.detach(), head.bias.detach()

    def collapse(self) -> StudentNet:
        """A copy with the reused head and its projector as one matrix, ready to save or export."""
        copied = copy.deepcopy(self)
        if isinstance(copied.head, ReusedHead):
            copied.head = copied.head.collapse()
        return copied


@torch.no_grad()
def macs(model: nn.Module, spec: MelSpec, frames: int) -> int:
    """Multiply-accumulates of convolutions and linear layers, for one clip."""
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += module.weight.numel()
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            total += module.weight.numel() * output[0, 0].numel()

    handles = [m.register_forward_hook(count) for m in model.modules()]
    try:
        device = next(model.parameters()).device
        model(torch.zeros(1, 1, spec.n_mels, frames, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return total


def macs_per_second(model: nn.Module, spec: MelSpec) -> int:
    """Multiply-accumulates per second of a long stream: the difference of two lengths."""
    one_s = max(1, round(1 / spec.hop_s))
    ten, twenty = macs(model, spec, 10 * one_s), macs(model, spec, 20 * one_s)
    return (twenty - ten) // 10
