"""Losses of the published methods.

Shape legend: B batch, M mel bands, T frames, K classes, C channels, N rows with a memory.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from frami_edge.augment import random_crop, random_gain, random_masks, random_roll
from frami_edge.config import DistillConfig
from frami_edge.device import Compute, autocast
from frami_edge.distributed import Rows, channel_moments, shared_layer_moments, world
from frami_edge.errors import TeacherError
from frami_edge.models import Hidden, ReusedHead, StudentNet, TeacherLike

# --- The other terms of the inversion
# Shape legend: B batch, K classes.


def class_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Cross entropy towards the requested class: ``-mean log softmax(z)_y``.

    Source: H. Chen et al., *DAFL*, ICCV 2019 (one-hot loss), with labels asked for instead of
    guessed.
    """
    return F.cross_entropy(logits_BK.float(), labels_B)


def adversarial_loss(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """``-mean_i 1[argmax z_s = argmax z_t] KL(softmax z_t ‖ softmax z_s)``.

    Clips on which both agree on the class are pushed to where the student is least sure; the
    others are left alone, for the student has yet to learn them.
    Source: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021.
    """
    t, s = teacher_BK.float(), student_BK.float()
    kl_B = F.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="none").sum(1)
    agree_B = (t.argmax(1) == s.argmax(1)).float()
    return -(agree_B * kl_B).mean()


# --- BatchNorm-statistics loss: synthetic clips should excite the teacher as its training data d
# Shape legend: B batch, C channels.
# Source: H. Yin et al., *Dreaming to Distill* (DeepInversion), CVPR 2020, eq. 4; the relative form
# is ours.


def live_batch_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """BatchNorm layers, 1-D and 2-D, that still hold statistics of their training data."""
    return [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None
    ]


class BatchNormStatistics:
    """While entered, watches the input of every BatchNorm of a teacher; `loss` compares it.

    The hooks are removed on leaving, whatever happened inside.

    Raises:
        TeacherError: The teacher has no live BatchNorm (folded, frozen or another norm).
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = live_batch_norms(model)
        if not self.layers:
            raise TeacherError(
                "The teacher has no BatchNorm with running statistics: they were folded into the "
                "weights, or it uses another norm.",
                fix="Give the checkpoint from before folding, or switch the term off with "
                "--set bank.inversion.batch_norm=0 (expect a poorer bank).",
            )
        self._handles: list[Any] = []
        self._observed: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> BatchNormStatistics:
        """Attach the hooks."""
        self._observed.clear()
        for i, (_, layer) in enumerate(self.layers):
            self._handles.append(layer.register_forward_pre_hook(self._hook(i)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, index: int) -> Any:
        def observe(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._observed[index] = channel_moments(inputs[0])

        return observe

    def loss(self, rows: Rows | None = None) -> Tensor:
        """Mean over layers of ‖Δμ‖² / Σ(μ² + σ²) + ‖Δσ²‖² / ‖σ²‖².

        Δ is batch minus running statistics. Each layer's error is relative to that layer's own
        scale, so that wide or loud layers do not swamp the class term (a plain sum of norms does).

        Args:
            rows: What of a batch this process has seen; the loss is that of the whole batch.

        Returns:
            Scalar; below about 0.05 the bank's activations look like the training data's.
        """
        errors = []
        moments = list(self._observed.values())
        if rows:
            moments = shared_layer_moments(moments, rows)
        for i, (mean_C, var_C) in zip(self._observed, moments, strict=True):
            layer = self.layers[i][1]
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mu_C, sigma2_C = layer.running_mean.float(), layer.running_var.float()
            shift = (mean_C - mu_C).square().sum() / (mu_C.square() + sigma2_C).sum()
            spread = (var_C - sigma2_C).square().sum() / sigma2_C.square().sum()
            errors.append(shift + spread)
        return torch.stack(errors).mean()


# --- The feature-invariant contrastive loss: our reading of the FRAMI abstract
# Shape legend: B batch, C channels, T frames, D = 2C pooled statistics, E embedding size, N memory
# size. Source: the loss is InfoNCE with a memory bank as in G. Fang et al., *Contrastive Model
# Inversion*, IJCAI 2021; that its features are the hidden states before and after the statistics
# pooling is our reading of Z. Kang et al., *FRAMI*, ICASSP 2023, whose abstract names both but not
# how they are joined.


def contrastive_view(
    x_B1MT: Tensor, generator: torch.Generator, *, shortest: float = 0.5, gain: float = 0.3
) -> Tensor:
    """A second look at the same clips: rolled, cropped, louder or softer, masked.

    Different lengths are the point: statistics pooling should make them agree.

    Returns:
        (B, 1, M, T'), T' between ``shortest`` * T and T, one length for the batch.
    """
    _, _, m, t = x_B1MT.shape
    keep = shortest + (1 - shortest) * float(torch.rand((), generator=generator))
    x = random_crop(random_roll(x_B1MT, generator), max(1, round(keep * t)), generator)
    x = random_gain(x, gain, generator)
    return random_masks(x, m // 8, x.shape[3] // 8, generator)


class FeatureInvariantContrast(nn.Module):
    """Two views of one synthetic clip agree, different clips and a memory bank differ.

    ``L = -mean_i log( exp(q_i·k_i / τ) / Σ_j exp(q_i·k_j / τ) )``, j over the batch and the memory.
    q and k join an embedding of the frame features (projected frame by frame, then averaged) with
    one of the pooled statistics; keys carry no gradient.

    Args:
        channels: C of the teacher's frame features.
        pooled: D of its pooled state.
        embedding: Size of each half of the embedding.
        memory: Keys of earlier clips that serve as negatives.
        temperature: τ.
    """

    memory: Tensor
    filled: Tensor

    def __init__(
        self,
        channels: int,
        pooled: int,
        embedding: int = 64,
        memory: int = 1024,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.before = nn.Sequential(nn.Conv1d(channels, embedding, 1), nn.ReLU())
        self.before_out = nn.Linear(embedding, embedding)
        self.after = nn.Sequential(
            nn.Linear(pooled, embedding), nn.ReLU(), nn.Linear(embedding, embedding)
        )
        self.register_buffer("memory", torch.zeros(memory, 2 * embedding))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        # A copy on the host: reading the buffer on a GPU would wait for it at every step.
        self._filled = 0
        self.register_load_state_dict_post_hook(_recount)  # type: ignore[no-untyped-call]

    def embed(self, hidden: Hidden) -> Tensor:
        """(B, 2E) float32 of unit length."""
        before = self.before_out(self.before(hidden.frames_BCT.float()).mean(dim=2))
        after = self.after(hidden.pooled_BD.float())
        joined = torch.cat([F.normalize(before, dim=1), F.normalize(after, dim=1)], dim=1)
        return F.normalize(joined, dim=1)

    def forward(
        self, query: Hidden, key: Hidden, rows: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of two views, row by row, and the keys (B, 2E).

        With ``rows``, the views are those of this process, loss and keys those of the whole batch.
        """
        q = self.embed(query)
        k = self.embed(key).detach()
        if rows:
            q, k = rows.gather(q), rows.gather(k)
        stored = self.memory[: min(self._filled, self.memory.shape[0])]
        similarity = q @ torch.cat([k, stored]).T / self.temperature
        return F.cross_entropy(similarity, torch.arange(q.shape[0], device=q.device)), k

    @torch.no_grad()
    def remember(self, keys: Tensor) -> None:
        """Store keys of clips that entered the bank, over the oldest ones."""
        size = self.memory.shape[0]
        keys = keys[-size:]
        index = (self._filled + torch.arange(keys.shape[0], device=keys.device)) % size
        self.memory[index] = keys
        self.filled += keys.shape[0]
        self._filled += keys.shape[0]


def _recount(module: nn.Module, _: object) -> None:
    assert isinstance(module, FeatureInvariantContrast)
    module._filled = int(module.filled)


# --- The distillation terms: logits, and the hidden states before and after the statistics pooli
# Shape legend: B batch, C channels, T frames, D = 2C pooled statistics, K classes.


def logits_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """``τ² KL(softmax(z_t / τ) ‖ softmax(z_s / τ))``, mean over the batch.

    Source: G. Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015; τ² keeps the
    size of the gradient when τ changes.
    """
    s = (student_BK.float() / temperature).log_softmax(1)
    t = (teacher_BK.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(s, t, log_target=True, reduction="batchmean")


def align_frames(h_BCT: Tensor, positions: Tensor) -> Tensor:
    """Frame features at fractional frame positions, linearly interpolated and held at the ends.

    Args:
        h_BCT: Frame features of the teacher.
        positions: (T',) where to read, in frames of ``h_BCT``.

    Returns:
        (B, C, T').
    """
    position = positions.clamp(0, h_BCT.shape[2] - 1)
    low = position.floor().long().clamp_max(max(0, h_BCT.shape[2] - 2))
    high = (low + 1).clamp_max(h_BCT.shape[2] - 1)
    part = (position - low).to(h_BCT.dtype)
    return h_BCT[:, :, low] * (1 - part) + h_BCT[:, :, high] * part


@dataclass
class FeatureScale:
    """Variances of the teacher's hidden states over the bank: each feature counts alike.

    Attributes:
        frames_C: Of each channel of the frame features.
        pooled_D: Of each pooled statistic.
    """

    frames_C: Tensor
    pooled_D: Tensor

    @classmethod
    def measure(cls, hidden: Hidden) -> FeatureScale:
        """From one large batch; small variances are raised, so that dead features stay harmless."""
        frames_C = hidden.frames_BCT.float().var(dim=(0, 2))
        pooled_D = hidden.pooled_BD.float().var(dim=0)
        return cls(
            frames_C.clamp_min(0.05 * frames_C.mean()), pooled_D.clamp_min(0.05 * pooled_D.mean())
        )


class HiddenMatch(nn.Module):
    """Match the student's hidden states to the teacher's, before and after the pooling.

    ``L_before = mean (P_f h_s - h_t)² / var(h_t)``, frame by frame at the same mel frame, and
    ``L_after = mean (P s_s - s_t)² / var(s_t)``, where P is the projector that leads into the
    reused head. The frame projector P_f is the identity where the student has the teacher's C; it
    is thrown away after training in any case.
    Source: our reading of Z. Kang et al., *FRAMI*, ICASSP 2023: "the hidden states before and
    after the statistics pooling layer are reused".
    """

    scale_C: Tensor
    scale_D: Tensor

    def __init__(self, student: StudentNet, teacher: TeacherLike, scale: FeatureScale) -> None:
        super().__init__()
        c_s, c_t = student.channels, teacher.channels
        self.frame_projector: nn.Module = nn.Identity() if c_s == c_t else nn.Conv1d(c_s, c_t, 1)
        # Without the teacher's head there is no projector to lend: a plain one stands in.
        self.pooled_projector: nn.Module | None = None
        if not isinstance(student.head, ReusedHead):
            self.pooled_projector = nn.Linear(2 * c_s, teacher.pooled_size)
        self.stride, self.offset = teacher.frame_stride, teacher.frame_offset
        self.register_buffer("scale_C", scale.frames_C)
        self.register_buffer("scale_D", scale.pooled_D)

    def before(self, student: StudentNet, s: Hidden, t: Hidden) -> Tensor:
        """The frame-feature term; the student's frames are compared where they are centred."""
        centres = student.frame_centres(s.frames_BCT.shape[2], s.frames_BCT.device)
        target = align_frames(t.frames_BCT.float(), (centres - self.offset) / self.stride)
        error = (self.frame_projector(s.frames_BCT.float()) - target).square()
        return torch.mean(error / self.scale_C[None, :, None])

    def after(self, student: StudentNet, s: Hidden, t: Hidden) -> Tensor:
        """The pooled-statistics term."""
        head = student.head
        projector = head.projector if isinstance(head, ReusedHead) else self.pooled_projector
        assert projector is not None
        error = (projector(s.pooled_BD) - t.pooled_BD.float()).square()
        return torch.mean(error / self.scale_D)


# --- The student and its loss terms as one module, which DistributedDataParallel can wrap
# Shape legend: B batch, M mel bands, T frames, K classes.


class Terms(nn.Module):
    """The terms of a distillation whose weight is not 0, each a mean over the clips given.

    Args:
        student: Trained.
        match: The terms of the hidden states.
        config: Weights and temperature.
        compute: Device and precision.
        student_autocast: Whether the student runs at low precision too.
    """

    def __init__(
        self,
        student: StudentNet,
        match: HiddenMatch,
        config: DistillConfig,
        compute: Compute,
        student_autocast: bool,
    ) -> None:
        super().__init__()
        self.student, self.match, self.config = student, match, config
        self.compute, self.student_autocast = compute, student_autocast
        weights = {
            "logits": config.logits,
            "before": config.before_pooling,
            "after": config.after_pooling,
        }
        named = tuple(name for name, weight in weights.items() if weight)
        self.names = named
        self.uses_all = len(named) == len(weights)

    def forward(self, x_B1MT: Tensor, t: Hidden) -> tuple[Tensor, Tensor]:
        """The weighted terms in the order of `names`, and the student's logits (B, K)."""
        c, student = self.config, self.student
        kind, dtype = self.compute.device.type, self.compute.dtype
        with autocast(self.compute), torch.autocast(kind, dtype, self.student_autocast):
            s = student.hidden(x_B1MT)
        terms = []
        if c.logits:
            terms.append(c.logits * logits_loss(s.logits_BK, t.logits_BK, c.temperature))
        if c.before_pooling:
            terms.append(c.before_pooling * self.match.before(student, s, t))
        if c.after_pooling:
            terms.append(c.after_pooling * self.match.after(student, s, t))
        return torch.stack(terms), s.logits_BK


def over_processes(terms: Terms) -> nn.Module:
    """Average the gradients of all processes; the module itself where there is one."""
    if world().size == 1:
        return terms
    with warnings.catch_warnings():
        # Torch 2.14 has a new name for `broadcast_buffers`, which 2.11 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            terms,
            # The statistics of `SharedBatchNorm2d` are the same everywhere.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=not terms.uses_all,
        )


# --- Losses of the published methods


class PublishedBatchNorm(BatchNormStatistics):
    """``Σ_l ‖μ_l - μ̄_l‖₂ + ‖σ²_l - σ̄²_l‖₂``: a plain sum of norms over the layers.

    Source: H. Yin et al., *Dreaming to Distill* (DeepInversion), CVPR 2020; CMI, DFQ and
    Fast-Datafree use it too. With ``momentum`` m the batch's moments are first mixed with the
    running ones of earlier batches, ``(1 - m) μ + m μ_ema``, and so is σ² (G. Fang et al., *Up to
    100x Faster Data-Free Knowledge Distillation*, AAAI 2022).

    Args:
        model: Teacher.
        momentum: m.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.0) -> None:
        super().__init__(model)
        self.momentum = momentum
        self.earlier: list[Tensor] = []
        self._means: dict[int, Tensor] = {}

    def __enter__(self) -> PublishedBatchNorm:
        """Attach the hooks."""
        self._means.clear()
        super().__enter__()
        return self

    def _hook(self, index: int) -> Any:
        observe = super()._hook(index)

        def both(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            observe(module, inputs)
            x = inputs[0].float()
            self._means[index] = x.flatten(2).mean(2) if x.ndim > 2 else x

        return both

    def instance_means(self, clips: int) -> Tensor:
        """(B, ΣC) mean of every BatchNorm's input over time and bands, clip by clip.

        Layers that see something else than ``clips`` rows are left out.
        """
        return torch.cat([m for m in self._means.values() if len(m) == clips], dim=1)

    def loss(self, rows: Rows | None = None) -> Tensor:
        """The sum of norms; `rows` is not for here, every process has the whole batch."""
        terms = []
        for place, (i, (mean_C, var_C)) in enumerate(self._observed.items()):
            layer = self.layers[i][1]
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mean, var = mean_C, var_C
            if self.earlier:
                old_mean, old_var = self.earlier[place]
                mean = torch.lerp(mean, old_mean, self.momentum)
                var = torch.lerp(var, old_var, self.momentum)
            terms.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())
        return torch.stack(terms).sum()

    @torch.no_grad()
    def remember(self) -> None:
        """Mix the latest moments into those of earlier batches."""
        latest = [torch.stack(pair).detach() for pair in self._observed.values()]
        m = self.momentum
        if self.earlier:
            latest = [
                torch.lerp(new, old, m) for new, old in zip(latest, self.earlier, strict=True)
            ]
        self.earlier = latest if m else []


def balance_loss(logits_BK: Tensor) -> Tensor:
    """``Σ_k p̄_k log p̄_k``, p̄ the batch's mean answer: classes should be equally frequent.

    Source: H. Chen et al., *Data-Free Learning of Student Networks* (DAFL), ICCV 2019.
    """
    p_K = logits_BK.float().softmax(1).mean(0)
    return (p_K * p_K.clamp_min(1e-12).log()).sum()


def divergence(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """``KL(teacher ‖ student)``, mean over clips: what ZSKT's generator raises.

    Source: P. Micaelli and A. Storkey, *Zero-shot Knowledge Transfer*, NeurIPS 2019.
    """
    t, s = teacher_BK.float().log_softmax(1), student_BK.float().log_softmax(1)
    return F.kl_div(s, t, log_target=True, reduction="batchmean")


def jensen_shannon(a_BK: Tensor, b_BK: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence of two softened answers, in nats, mean over clips.

    Source: H. Yin et al., *Dreaming to Distill*, CVPR 2020 (adaptive DeepInversion).
    """
    a, b = ((x.float() / temperature).log_softmax(1) for x in (a_BK, b_BK))
    middle = (0.5 * (a.exp() + b.exp())).clamp_min(1e-12).log()
    sides = [F.kl_div(middle, x, log_target=True, reduction="batchmean") for x in (a, b)]
    return 0.5 * (sides[0] + sides[1])


def total_variation(x_B1MT: Tensor) -> Tensor:
    """Sum of the l2 norms of the differences of neighbours in band, time and both diagonals.

    Source: H. Yin et al., *Dreaming to Distill*, CVPR 2020, whose prior on images it is.
    """
    x = x_B1MT
    differences = (
        x[:, :, 1:] - x[:, :, :-1],
        x[..., 1:] - x[..., :-1],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        x[:, :, 1:, 1:] - x[:, :, :-1, :-1],
    )
    return torch.stack([torch.linalg.vector_norm(d) for d in differences]).sum()


def split_contrast(query_NE: Tensor, key_NE: Tensor, current: int, temperature: float) -> Tensor:
    """``Σ_part -mean_{i ∈ part} log( exp(q_i·k_i / τ) / Σ_j exp(q_i·k_j / τ) )``.

    The parts are the first ``current`` rows, those of the running batch, and the rest, those of a
    memory: one mean over all would thin out what reaches the generator.
    Source: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021.
    """
    own = torch.arange(len(query_NE), device=query_NE.device)
    each_N = F.cross_entropy(query_NE @ key_NE.T / temperature, own, reduction="none")
    loss = each_N[:current].mean()
    return loss if len(each_N) == current else loss + each_N[current:].mean()
