"""Every formula of inversion and distillation, each with its source.

Shape legend: B batch, M mel bands, T frames, C channels, D pooled state, K classes, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from frami_edge.augment import random_crop, random_gain, random_masks, random_roll
from frami_edge.config import DistillConfig
from frami_edge.device import Compute, autocast
from frami_edge.errors import TeacherError
from frami_edge.models import Hidden, ReusedHead, StudentNet, TeacherLike

# --- Answers: one of K classes (softmax), or a detector per class (sigmoid)

Output = Literal["softmax", "sigmoid"]


def same_decision(a_BK: Tensor, b_BK: Tensor, output: Output) -> Tensor:
    """(B,) bool: the same class is best, or with detectors the same classes are above 0.5.

    Its mean over clips is the agreement of every table.
    """
    if output == "sigmoid":
        return ((a_BK > 0) == (b_BK > 0)).all(1)
    return a_BK.argmax(1) == b_BK.argmax(1)


def has_class(logits_BK: Tensor, labels_B: Tensor, output: Output) -> Tensor:
    """(B,) bool: whether the answer has the class: the largest logit, or p > 0.5 of a detector.

    A label below 0 stands for no class, which no answer has.
    """
    if output == "softmax":
        return logits_BK.argmax(1) == labels_B
    own_B = logits_BK.gather(1, labels_B.clamp_min(0)[:, None])[:, 0]
    return (own_B > 0) & (labels_B >= 0)


def kl_from(teacher_BK: Tensor, model_BK: Tensor, output: Output) -> Tensor:
    """(B,) KL(teacher ‖ model) in nats; with detectors the sum over their binary divergences."""
    t, s = teacher_BK, model_BK
    if output == "softmax":
        kl = F.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="none")
        return kl.sum(1)
    parts = [(x * t).sigmoid() * (F.logsigmoid(x * t) - F.logsigmoid(x * s)) for x in (1, -1)]
    return torch.stack(parts).sum(0).sum(1)


# --- Class and adversarial terms of the inversion


def class_loss(logits_BK: Tensor, labels_B: Tensor, wanted_BK: Tensor | None = None) -> Tensor:
    """Cross entropy towards the target class: ``-mean log softmax(z)_y``.

    With detectors ``mean -p* log σ(z) - (1 - p*) log σ(-z)`` over the requested ones: p* is 1,
    which gives softplus(-z), or less for a clip near the decision boundary. Detectors without a
    request answer as the teacher likes.

    Source: H. Chen et al., *DAFL*, ICCV 2019 (one-hot loss), with given targets instead of the
    teacher's own predictions; sampled probabilities of detectors are ours.

    Args:
        logits_BK: The teacher's logits.
        labels_B: Target classes.
        wanted_BK: p* of detectors, NaN where nothing is requested; None for one class of K.
    """
    if wanted_BK is None:
        return F.cross_entropy(logits_BK.float(), labels_B)
    asked = ~wanted_BK.isnan()  # as weights: an index would wait for the device
    z, p = logits_BK.float(), wanted_BK.nan_to_num(0.0)
    return F.binary_cross_entropy_with_logits(z, p, asked.float(), reduction="sum") / asked.sum()


def adversarial_loss(teacher_BK: Tensor, student_BK: Tensor, output: Output = "softmax") -> Tensor:
    """``-mean_i 1[argmax z_s = argmax z_t] KL(softmax z_t ‖ softmax z_s)``.

    With detectors the sets of classes above 0.5 must agree, and the KL is summed over detectors.
    Clips whose class the student already predicts like the teacher move to where the student is
    least certain; the others do not move, because the student has yet to learn them.
    Source: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021.
    """
    kl_B = kl_from(teacher_BK.float(), student_BK.float(), output)
    agree_B = same_decision(teacher_BK, student_BK, output).float()
    return -(agree_B * kl_B).mean()


def change_loss(change_B1MT: Tensor) -> Tensor:
    """``mean(change²)``: the translator should keep the texture of its input. Source: ours."""
    return change_B1MT.square().mean()


# --- BatchNorm statistics: clips should excite the teacher as its training data did


def live_batch_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """Name and module of each BatchNorm that holds statistics of its training data."""
    return [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None
    ]


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and population variance (C,) of (B, C) or (B, C, ...), in float32.

    On a CPU with the kernel of BatchNorm itself, which takes a tenth of the time of
    `torch.var_mean` over all axes but one.
    """
    x = x.float()
    if x.device.type == "cpu":
        mean_C, var_C = _Moments.apply(x)
        return mean_C, var_C
    var_C, mean_C = torch.var_mean(x, dim=[d for d in range(x.ndim) if d != 1], correction=0)
    return mean_C, var_C


class _Moments(torch.autograd.Function):
    """d mean / dx = 1 / n, d var / dx = 2 (x - mean) / n, with n values per channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        _, mean_C, invstd_C = torch.native_batch_norm(x, None, None, None, None, True, 0.0, 0.0)
        ctx.save_for_backward(x, mean_C)
        # The kernel returns 0 as the inverse of 0.
        return mean_C, torch.where(invstd_C == 0, 0.0, invstd_C.pow(-2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, mean_C = ctx.saved_tensors
        of_mean_C, of_var_C = gradients
        n = x.numel() // x.shape[1]
        slope_C = 2 / n * of_var_C
        offset_C = of_mean_C / n - slope_C * mean_C
        view = (1, -1, *[1] * (x.ndim - 2))
        return torch.addcmul(offset_C.view(view), slope_C.view(view), x)


class BatchNormStatistics:
    """Batch moments at the input of every BatchNorm of a teacher, and their relative error.

    A context manager: a forward pass inside the block is observed, then `loss` compares its moments
    with the running statistics. The hooks are removed on exit.

    Source: H. Yin et al., *Dreaming to Distill* (DeepInversion), CVPR 2020, eq. 4; the relative
    form is ours.

    Raises:
        TeacherError: The teacher has no live BatchNorm (folded, frozen or another norm).
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [layer for _, layer in live_batch_norms(model)]
        if not self.layers:
            raise TeacherError(
                "The teacher has no BatchNorm with running statistics: they were folded into the "
                "weights, or it uses another norm.",
                fix="Use the checkpoint from before folding, or run without that term: "
                "--set bank.inversion.batch_norm=0 (expect a poorer bank).",
            )
        self._handles: list[Any] = []
        self.observed: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> BatchNormStatistics:
        self.observed.clear()
        for i, layer in enumerate(self.layers):

            def hook(_: nn.Module, inputs: tuple[Tensor, ...], i: int = i) -> None:
                self.observe(i, inputs[0])

            self._handles.append(layer.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def observe(self, layer: int, x: Tensor) -> None:
        """Keep the moments of one layer's input."""
        self.observed[layer] = channel_moments(x)

    def loss(self) -> Tensor:
        """Mean over layers of ‖Δμ‖² / Σ(μ² + σ²) + ‖Δσ²‖² / ‖σ²‖².

        Δ is batch minus running statistics. Each layer's error is relative to that layer's own
        scale, so that wide or loud layers do not swamp the class term (a plain sum of norms does).

        Returns:
            Scalar; below about 0.05 the bank's activations look like the training data's.
        """
        errors = []
        for i, (mean_C, var_C) in self.observed.items():
            mu_C, sigma2_C = _running(self.layers[i])
            mu_C, sigma2_C = mu_C.float(), sigma2_C.float()
            shift = (mean_C - mu_C).square().sum() / (mu_C.square() + sigma2_C).sum()
            spread = (var_C - sigma2_C).square().sum() / sigma2_C.square().sum()
            errors.append(shift + spread)
        return torch.stack(errors).mean()


def _running(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


# --- The feature-invariant contrastive loss: our reading of the FRAMI abstract


def contrastive_view(
    x_B1MT: Tensor, generator: torch.Generator, *, shortest: float = 0.5, gain: float = 0.3
) -> Tensor:
    """A second view of the same clips: rolled, cropped, louder or softer, masked.

    The views differ in length on purpose: statistics pooling should make them agree.

    Returns:
        (B, 1, M, T'), T' between ``shortest`` * T and T, the same for the whole batch.
    """
    _, _, m, t = x_B1MT.shape
    keep = shortest + (1 - shortest) * float(torch.rand((), generator=generator))
    x = random_crop(random_roll(x_B1MT, generator), max(1, round(keep * t)), generator)
    x = random_gain(x, gain, generator)
    return random_masks(x, m // 8, x.shape[3] // 8, generator)


class FeatureInvariantContrast(nn.Module):
    """Two views of one synthetic clip agree; different clips and a memory of keys differ.

    ``L = -mean_i log( exp(q_i·k_i / τ) / Σ_j exp(q_i·k_j / τ) )``, j over the batch and the memory.
    q and k join an embedding of the frame features (projected frame by frame, then averaged) with
    one of the pooled statistics; keys carry no gradient.

    Source: InfoNCE with a memory as in G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021.
    That its features are the hidden states before and after the statistics pooling is our reading
    of Z. Kang et al., *FRAMI*, ICASSP 2023, whose abstract names both but not how they are joined.

    Args:
        channels: C of the teacher's frame features.
        pooled: D of its pooled state.
        embedding: E, size of each half of the embedding.
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

    def forward(self, query: Hidden, key: Hidden) -> tuple[Tensor, Tensor]:
        """The loss of two views, row by row, and the keys (B, 2E)."""
        q, k = self.embed(query), self.embed(key).detach()
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


# --- Distillation: logits, and the hidden states before and after the statistics pooling


def logits_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """``τ² KL(softmax(z_t / τ) ‖ softmax(z_s / τ))``, mean over the batch.

    Source: G. Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015; τ² keeps the
    size of the gradient when τ changes.
    """
    s = (student_BK.float() / temperature).log_softmax(1)
    t = (teacher_BK.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(s, t, log_target=True, reduction="batchmean")


def detection_boundary(teacher_NK: Tensor, quantile: float) -> Tensor:
    """(K,) logit of each detector that this share of the clips stays below, but at most 0.

    It is 0, the boundary of probability 0.5, for a quantile of 1 and for frequent classes.
    """
    if quantile >= 1:
        return teacher_NK.new_zeros(teacher_NK.shape[1], dtype=torch.float32)
    return teacher_NK.float().quantile(quantile, dim=0).clamp_max(0)


def detectors_loss(
    student_BK: Tensor, teacher_BK: Tensor, temperature: float, boundary_K: Tensor
) -> Tensor:
    """``τ² mean_ik KL(σ((z_t - b_k) / τ) ‖ σ((z_s - b_k) / τ))`` of K detectors.

    It is the cross entropy with the teacher's probabilities as soft labels, less its smallest
    value, so that 0 is a perfect copy. With b = 0 a detector of a rare class is best copied by
    "no": its logits lie between -12 and -6 for nearly every clip. The boundary b_k moves to where
    the detector tells the clips apart (`detection_boundary`), and the temperature widens it.

    Source: binary cross entropy per label, as taggers are trained; softened as in G. Hinton et al.,
    *Distilling the Knowledge in a Neural Network*, 2015; the moved boundary is ours.
    """
    t = (teacher_BK.float() - boundary_K) / temperature
    s = (student_BK.float() - boundary_K) / temperature
    p = t.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(t, p)
    return temperature**2 * (F.binary_cross_entropy_with_logits(s, p) - entropy)


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
    """Variances of the teacher's hidden states over the bank, so that each feature counts alike.

    Attributes:
        frames_C: One per channel of the frame features.
        pooled_D: One per pooled statistic.
        whole_K: One per class of a teacher of which a selection is distilled; None for others.
        whole_mean_K: Means of these logits, from which their head starts.
    """

    frames_C: Tensor
    pooled_D: Tensor
    whole_K: Tensor | None = None
    whole_mean_K: Tensor | None = None

    @classmethod
    def measure(cls, hidden: Hidden) -> FeatureScale:
        """From one large batch; small variances are raised, so that dead features stay harmless."""
        frames_C = hidden.frames_BCT.float().var(dim=(0, 2))
        pooled_D = hidden.pooled_BD.float().var(dim=0)
        whole_K = mean_K = None
        if hidden.whole_BK is not None:
            whole_K, mean_K = torch.var_mean(hidden.whole_BK.float(), dim=0)
            whole_K = whole_K.clamp_min(0.05 * whole_K.mean())
        return cls(
            frames_C.clamp_min(0.05 * frames_C.mean()),
            pooled_D.clamp_min(0.05 * pooled_D.mean()),
            whole_K,
            mean_K,
        )


class DistillationLoss(nn.Module):
    """``L = w_logits L_logits + w_before L_before + w_after L_after + w_whole L_whole``.

    A weight of 0 omits its term.

    ``L_before = mean (P_f h_s - h_t)² / var(h_t)``, frame by frame at the same time, and
    ``L_after = mean (P s_s - s_t)² / var(s_t)``, where P is the projector in front of the reused
    head. The frame projector P_f is the identity where the student has the teacher's C; it is
    dropped after training in any case. ``L_whole = mean (W s_s - z_t)² / var(z_t)`` is over all
    classes of a teacher of which a selection is distilled: what a sound is not says what it is. W
    is dropped too. It is a module that contains the student, so that DistributedDataParallel can
    wrap all that is trained.

    Source: our reading of Z. Kang et al., *FRAMI*, ICASSP 2023: "the hidden states before and
    after the statistics pooling layer are reused". The last term is ours.

    Args:
        student: Trained.
        teacher: Gives sizes, and the positions of its frames.
        scale: Variances of the teacher's hidden states.
        config: Weights and temperature.
        compute: Device and precision.
        boundary_K: Boundary of the `detectors_loss`; None for a teacher of one class of K.
        clock: Steps of the teacher's input per mel frame of the student, and its step at the
            student's mel frame 0; the default is one shared front end.
    """

    scale_C: Tensor
    scale_D: Tensor
    whole_K: Tensor | None
    boundary_K: Tensor | None

    def __init__(
        self,
        student: StudentNet,
        teacher: TeacherLike,
        scale: FeatureScale,
        config: DistillConfig,
        compute: Compute,
        boundary_K: Tensor | None = None,
        clock: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        super().__init__()
        self.student, self.config, self.compute = student, config, compute
        self.clock = clock
        c_s, c_t = student.channels, teacher.channels
        self.frame_projector: nn.Module = nn.Identity() if c_s == c_t else nn.Conv1d(c_s, c_t, 1)
        # A student with a head of its own has no projector yet.
        self.pooled_projector: nn.Module | None = None
        if not isinstance(student.head, ReusedHead):
            self.pooled_projector = nn.Linear(2 * c_s, teacher.pooled_size)
        self.whole_head: nn.Module | None = None
        if scale.whole_K is not None and config.whole:
            self.whole_head = nn.Linear(2 * c_s, len(scale.whole_K))
            if scale.whole_mean_K is not None:
                self.whole_head.bias.data.copy_(scale.whole_mean_K)
        self.stride, self.offset = teacher.frame_stride, teacher.frame_offset
        self.register_buffer("whole_K", scale.whole_K)
        self.register_buffer("scale_C", scale.frames_C)
        self.register_buffer("scale_D", scale.pooled_D)
        self.register_buffer("boundary_K", boundary_K)

    def forward(self, first: Tensor, t: Hidden) -> tuple[dict[str, Tensor], Tensor]:
        """The weighted terms by name, and the student's logits (B, K), of `StudentNet.first`."""
        w = self.config
        # oneDNN's backward of depthwise kernels is several times slower in bf16 than in fp32.
        with autocast(self.compute, enabled=self.compute.device.type != "cpu"):
            s = self.student.rest(first.float())
        terms = {}
        if w.logits:
            terms["logits"] = w.logits * self.answers(s.logits_BK, t.logits_BK)
        if w.before_pooling:
            terms["before"] = w.before_pooling * self.before(s, t)
        if w.after_pooling:
            terms["after"] = w.after_pooling * self.after(s, t)
        if self.whole_head is not None and t.whole_BK is not None:
            error = (self.whole_head(s.pooled_BD) - t.whole_BK.float()).square()
            terms["whole"] = w.whole * torch.mean(error / self.whole_K)
        return terms, s.logits_BK

    def answers(self, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        """The logits term: KL of one answer of K, or of K detectors and of their ranking."""
        w = self.config
        if self.boundary_K is None:
            return logits_loss(student_BK, teacher_BK, w.temperature)
        loss = detectors_loss(student_BK, teacher_BK, w.temperature, self.boundary_K)
        if w.ranking:
            # Each detector alone shrinks towards its class's prior: the order of classes is lost.
            loss = loss + w.ranking * logits_loss(student_BK, teacher_BK, w.temperature)
        return loss

    def before(self, s: Hidden, t: Hidden) -> Tensor:
        """The frame-feature term; frames are compared where they are centred in time."""
        centres = self.student.frame_centres(s.frames_BCT.shape[2], s.frames_BCT.device)
        rate, start = self.clock
        at = centres * rate + start  # in steps of the teacher's input
        target = align_frames(t.frames_BCT.float(), (at - self.offset) / self.stride)
        error = (self.frame_projector(s.frames_BCT.float()) - target).square()
        return torch.mean(error / self.scale_C[None, :, None])

    def after(self, s: Hidden, t: Hidden) -> Tensor:
        """The pooled-statistics term."""
        head = self.student.head
        projector = head.projector if isinstance(head, ReusedHead) else self.pooled_projector
        assert projector is not None
        error = (projector(s.pooled_BD) - t.pooled_BD.float()).square()
        return torch.mean(error / self.scale_D)


# --- Terms of the published baselines


class PublishedBatchNorm(BatchNormStatistics):
    """``Σ_l ‖μ_l - μ̄_l‖₂ + ‖σ²_l - σ̄²_l‖₂``: a plain sum of norms over the layers.

    With ``momentum`` m the batch's moments are first mixed with those of earlier batches,
    ``(1 - m) μ + m μ_ema``, and σ² likewise.

    Source: H. Yin et al., *Dreaming to Distill* (DeepInversion), CVPR 2020; also in CMI, DFQ and
    Fast-Datafree. Momentum: G. Fang et al., *Up to 100x Faster Data-Free Knowledge Distillation*,
    AAAI 2022.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.0) -> None:
        super().__init__(model)
        self.momentum = momentum
        self.earlier: list[Tensor] = []
        self._means: dict[int, Tensor] = {}

    def __enter__(self) -> PublishedBatchNorm:
        self._means.clear()
        super().__enter__()
        return self

    def observe(self, layer: int, x: Tensor) -> None:
        """Keep the moments of one layer's input, and its means clip by clip."""
        super().observe(layer, x)
        x = x.float()
        self._means[layer] = x.flatten(2).mean(2) if x.ndim > 2 else x

    def instance_means(self, clips: int) -> Tensor:
        """(B, ΣC) mean of every BatchNorm's input over time and bands, clip by clip.

        Layers whose input does not have ``clips`` rows are left out.
        """
        return torch.cat([m for m in self._means.values() if len(m) == clips], dim=1)

    def loss(self) -> Tensor:
        """The sum of norms."""
        terms = []
        for place, (i, (mean, var)) in enumerate(self.observed.items()):
            mu_C, sigma2_C = _running(self.layers[i])
            if self.earlier:
                old_mean, old_var = self.earlier[place]
                mean = torch.lerp(mean, old_mean, self.momentum)
                var = torch.lerp(var, old_var, self.momentum)
            terms.append((mean - mu_C).norm() + (var - sigma2_C).norm())
        return torch.stack(terms).sum()

    @torch.no_grad()
    def remember(self) -> None:
        """Mix the latest moments into those of earlier batches."""
        latest = [torch.stack(pair).detach() for pair in self.observed.values()]
        m = self.momentum
        if self.earlier:
            latest = [
                torch.lerp(new, old, m) for new, old in zip(latest, self.earlier, strict=True)
            ]
        self.earlier = latest if m else []


def balance_loss(logits_BK: Tensor) -> Tensor:
    """``Σ_k p̄_k log p̄_k``, p̄ the mean prediction of the batch: classes should be equally frequent.

    Source: H. Chen et al., *Data-Free Learning of Student Networks* (DAFL), ICCV 2019.
    """
    p_K = logits_BK.float().softmax(1).mean(0)
    return (p_K * p_K.clamp_min(1e-12).log()).sum()


def divergence(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """``KL(teacher ‖ student)``, mean over clips: what ZSKT's generator maximises.

    Source: P. Micaelli and A. Storkey, *Zero-shot Knowledge Transfer*, NeurIPS 2019.
    """
    t, s = teacher_BK.float().log_softmax(1), student_BK.float().log_softmax(1)
    return F.kl_div(s, t, log_target=True, reduction="batchmean")


def jensen_shannon(a_BK: Tensor, b_BK: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence of two softened predictions, in nats, mean over clips.

    ``(KL(a ‖ m) + KL(b ‖ m)) / 2`` with m = (a + b) / 2.
    Source: H. Yin et al., *Dreaming to Distill*, CVPR 2020 (adaptive DeepInversion).
    """
    a, b = ((x.float() / temperature).log_softmax(1) for x in (a_BK, b_BK))
    middle = (0.5 * (a.exp() + b.exp())).clamp_min(1e-12).log()
    sides = [F.kl_div(middle, x, log_target=True, reduction="batchmean") for x in (a, b)]
    return 0.5 * (sides[0] + sides[1])


def total_variation(x_B1MT: Tensor) -> Tensor:
    """Sum of the l2 norms of the differences of neighbours in band, time and both diagonals.

    Source: H. Yin et al., *Dreaming to Distill*, CVPR 2020, where it is a prior on images.
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

    The parts are the first ``current`` rows, those of the current batch, and the rest, those of a
    memory: one mean over all would dilute what reaches the generator.
    Source: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021.
    """
    own = torch.arange(len(query_NE), device=query_NE.device)
    each_N = F.cross_entropy(query_NE @ key_NE.T / temperature, own, reduction="none")
    loss = each_N[:current].mean()
    return loss if len(each_N) == current else loss + each_N[current:].mean()
