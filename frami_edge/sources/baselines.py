"""What our sources are compared with: published data-free methods, and noise.

Teacher, student and distillation are the same for all.

Synthesis and distillation stay apart, unlike in the papers: a method that needs a student in its
loop uses an `AuxiliaryStudent`, and the student that is scored learns from the finished bank, like
that of every other method. Weights follow the CIFAR-10 scripts of G. Fang et al., *Contrastive
Model Inversion*, IJCAI 2021, whose code has all six methods; docs/METHOD.md lists what we changed.

Shape legend: B batch, M mel bands, T frames, K classes, Z latent size, E embedding.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import random_roll, random_stretch
from frami_edge.config import AlternatingConfig, CmiConfig, DeepInversionConfig, FastConfig
from frami_edge.device import autocast, generator, named_seed, upload
from frami_edge.filling import diverged
from frami_edge.inversion import AuxiliaryStudent, Generator
from frami_edge.losses import (
    PublishedBatchNorm,
    adversarial_loss,
    balance_loss,
    class_loss,
    divergence,
    jensen_shannon,
    split_contrast,
    total_variation,
)
from frami_edge.models import Hidden
from frami_edge.sources import NO_LABEL, Batch, SourceContext, balanced_labels, descend, metrics_of
from frami_edge.sources.procedural import Procedural
from frami_edge_runtime.melspec import MelSpec

PADDED_CROP = 0.875
"""Shortest stretch, relative to the clip, that stands for a random crop of an image of 32 pixels
padded by 4."""
LOCAL_CROP = 0.25
"""Shortest stretch of CMI's local view, relative to the clip: a scale of 0.25 in the original."""
POOL_CLIPS = 512
"""Latest finished clips that the auxiliary student of a batch-wise method draws from."""


class Baseline(ABC):
    """A learned source; a subclass lists in `parts` and `tensors` what a resumed run needs.

    Its config is `bank.baselines.NAME`. A weight of 0 for the BatchNorm term observes nothing, one
    for the adversarial term trains no auxiliary student.
    """

    name: str
    config: Any

    def __init__(self, context: SourceContext) -> None:
        self.context, self.budget = context, context.config.inversion
        self.device, self.steps = context.compute.device, self.budget.steps
        self.config = getattr(context.config.baselines, self.name)
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {}
        self.tensors: dict[str, Tensor] = {}
        # The features of CMI's contrastive term are inputs of BatchNorm layers.
        observed = self.config.batch_norm or getattr(self.config, "contrastive", 0)
        momentum = getattr(self.config, "momentum", 0.0)
        self.batch_norms = PublishedBatchNorm(context.module, momentum) if observed else None
        self.auxiliary: AuxiliaryStudent | None = None
        torch.manual_seed(named_seed(context.seed, self.name))

    @abstractmethod
    def step(self, index: int) -> Batch:
        """One step of the synthesis."""

    def _unconditional(self, latent: int) -> Generator:
        """The inversion's own generator without a class: its one-hot input is a constant."""
        c = self.context
        made = Generator(c.spec, 1, c.frames, latent, self.budget.width)
        return made.to(self.device)

    def _latents(self, latent: int, rng: torch.Generator) -> Tensor:
        z = torch.randn(self.budget.batch_size, latent, generator=rng)
        return upload(z, self.device)

    def _hidden(self, x_B1MT: Tensor) -> Hidden:
        """The teacher's hidden states, observed by the BatchNorm term where it is on."""
        with autocast(self.context.compute), self.batch_norms or contextlib.nullcontext():
            return self.context.teacher.hidden(x_B1MT)

    def state(self) -> dict[str, Any]:
        """Networks, optimisers, tensors, auxiliary student, earlier moments."""
        return {
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "tensors": {name: value.detach().clone() for name, value in self.tensors.items()},
            "auxiliary": self.auxiliary.state() if self.auxiliary else {},
            "earlier": list(self.batch_norms.earlier) if self.batch_norms else [],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        for name, value in state["tensors"].items():
            held = self.tensors.get(name)
            if held is not None and held.shape == value.shape:
                # In place: an optimiser, or the step, holds this very tensor.
                held.data.copy_(value)
            else:
                self.tensors[name] = value.to(self.device)
        if self.auxiliary:
            self.auxiliary.load_state(state["auxiliary"])
        if self.batch_norms:
            self.batch_norms.earlier = [x.to(self.device) for x in state["earlier"]]


def no_class(z_BZ: Tensor) -> Tensor:
    """(B,) the only class of an unconditional generator."""
    return torch.zeros(len(z_BZ), dtype=torch.int64, device=z_BZ.device)


# --- DAFL, ZSKT and DFQ: one generator step, then some of a student


class Alternating(Baseline):
    """``L = oh CE(z_t, argmax z_t) - act mean|s_t| + bal Σ p̄ log p̄ - adv KL(t ‖ s) + bn L_bn``.

    s_t is the teacher's pooled state. There are no target classes: the clips have no label. Each
    subclass is the method whose published weights its config holds; a weight of 0 omits its term.
    """

    config: AlternatingConfig

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context)
        self.generator = self._unconditional(self.config.latent)
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.999)
        )
        self.parts = {"generator": self.generator, "optimizer": self.optimizer}
        if self.config.adversarial:
            self.auxiliary = AuxiliaryStudent(context)

    def _clips(self, rng: torch.Generator) -> Tensor:
        z = self._latents(self.config.latent, rng)
        with autocast(self.context.compute):
            mels: Tensor = self.generator(z, no_class(z))
        return mels

    def step(self, index: int) -> Batch:
        """One generator step and the student's; the clips are those of the generator's step."""
        w, rng = self.config, generator(self.context.seed, f"{self.name}/{index}")
        self.generator.train()
        mels = self._clips(rng)
        hidden = self._hidden(mels)
        logits = hidden.logits_BK.float()
        terms: dict[str, Tensor] = {}
        if w.one_hot:
            terms["class"] = w.one_hot * class_loss(logits, logits.detach().argmax(1))
        if w.activation:
            terms["activation"] = -w.activation * hidden.pooled_BD.float().abs().mean()
        if w.balance:
            terms["balance"] = w.balance * balance_loss(logits)
        if self.auxiliary:
            predicted = self.auxiliary.logits(mels)
            terms["adversarial"] = -w.adversarial * divergence(logits, predicted)
        if self.batch_norms:
            terms["batch_norm"] = w.batch_norm * self.batch_norms.loss()
        descend(terms, self.optimizer)
        if self.auxiliary:
            for _ in range(w.student_steps):
                with torch.no_grad():
                    fresh = self._clips(rng)
                self.auxiliary.learn(fresh, rng)
        labels = torch.full((self.budget.batch_size,), NO_LABEL, device=mels.device)
        return Batch(mels.detach(), labels, index >= self.budget.burn_in, metrics_of(terms))


class Dafl(Alternating):
    """``CE(z_t, argmax z_t) - act mean|s_t| + bal Σ p̄ log p̄``, without a student in the loop.

    Source: H. Chen et al., *Data-Free Learning of Student Networks*, ICCV 2019.
    """

    name = "dafl"


class Zskt(Alternating):
    """``-KL(t ‖ s)``.

    Source: P. Micaelli and A. Storkey, *Zero-shot Knowledge Transfer*, NeurIPS 2019.
    """

    name = "zskt"


class Dfq(Alternating):
    """``CE(z_t, argmax z_t) + bal Σ p̄ log p̄ - KL(t ‖ s) + L_bn``.

    Source: Y. Choi et al., *Data-Free Network Quantization With Adversarial Knowledge
    Distillation*, CVPR Workshops 2020.
    """

    name = "dfq"


# --- DeepInversion, CMI and Fast-Datafree: many steps on one batch, whose best iterate is kept


class BatchWise(Baseline):
    """A method that works on one batch for many steps and keeps its best iterate.

    The budget is divided evenly: ``steps // iterations`` batches, at least one, so that none stays
    unfinished. A subclass implements `_start_batch` and `iterate`.
    """

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context)
        self.batches = max(1, self.steps // self.config.iterations)
        shape = (self.budget.batch_size, 1, context.spec.n_mels, context.frames)
        self.tensors["best"] = torch.zeros(shape, device=self.device)
        self.tensors["best_loss"] = torch.full((), torch.inf, device=self.device)
        self.tensors["pool"] = torch.zeros(0, *shape[1:], device=self.device)
        self.number = 0

    @abstractmethod
    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One optimiser step: the clips it was taken on, their logits, and the weighted terms."""

    @abstractmethod
    def _start_batch(self, rng: torch.Generator) -> None:
        """New optimisation variables for the batch `number`."""

    def _end_batch(self) -> None:
        """What follows a finished batch, after the steps of the auxiliary student."""

    def _warmed_up(self, index: int) -> bool:
        """Whether the auxiliary student learns and counts yet."""
        return True

    def _keeps(self, index: int) -> bool:
        """Whether a batch that ends with this step is for the bank."""
        return True

    def _better(self, loss: Tensor) -> Tensor:
        """Whether this iterate is the best of its batch so far; a tensor, without a host sync."""
        return loss.detach() < self.tensors["best_loss"]

    def _restart(self, number: int) -> None:
        self.number = number
        self.tensors["best_loss"].fill_(torch.inf)
        self._start_batch(generator(self.context.seed, f"{self.name}/batch/{number}"))

    def step(self, index: int) -> Batch:
        """One step; the last one of a batch returns its best iterate, to be kept."""
        rng = generator(self.context.seed, f"{self.name}/{index}")
        before, number, after = (
            (i * self.batches) // self.steps for i in range(index - 1, index + 2)
        )
        self.number = number
        if before != number:
            self._restart(number)
        size = self.budget.batch_size
        labels = balanced_labels(size, self.context.n_classes, number * size)
        labels = upload(labels, self.device)
        mels, logits, terms = self.iterate(index, labels, rng)
        metrics = metrics_of(terms, logits, labels)
        better, best = self._better(metrics["loss"]), self.tensors["best"]
        best.copy_(torch.where(better, mels, best))
        least = torch.where(better, metrics["loss"], self.tensors["best_loss"])
        self.tensors["best_loss"].copy_(least)
        last = after != number
        if last:
            if not torch.isfinite(least):
                # No best iterate: the clips would be those of the batch before.
                raise diverged(self.name, index + 1, "no loss of its batch is finite")
            self._teach(index, rng)
            self._end_batch()
        return Batch(best.clone(), labels, last and self._keeps(index), metrics)

    def _teach(self, index: int, rng: torch.Generator) -> None:
        """The auxiliary student learns from the latest finished clips."""
        best = self.tensors["best"]
        pool = self.tensors["pool"] = torch.cat([self.tensors["pool"], best])[-POOL_CLIPS:]
        if self.auxiliary and self._warmed_up(index):
            for _ in range(round(self.config.student_steps * (self.steps // self.batches))):
                pick = torch.randint(0, len(pool), (len(best),), generator=rng)
                self.auxiliary.learn(pool[upload(pick, pool.device)], rng)


class DeepInversion(BatchWise):
    """``L = CE + bn L_bn + tv TV + adi (1 - clamp(JS(z_t, z_s), 0, 1))`` over the log-mels x.

    x starts as white noise and stays in the range of the front end. The jitter rolls along time
    only: a shift along the bands is another sound.
    Source: H. Yin et al., *Dreaming to Distill*, CVPR 2020; with an auxiliary student this is
    adaptive DeepInversion (ADI).
    """

    name = "deep_inversion"

    config: DeepInversionConfig

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context)
        band = (1, 1, context.spec.n_mels, 1)
        self._floor = torch.from_numpy(context.spec.floor).view(band).to(self.device)
        self._ceiling = torch.from_numpy(context.spec.ceiling).view(band).to(self.device)
        if self.config.competition:
            self.auxiliary = AuxiliaryStudent(context)
        self._restart(0)

    def _start_batch(self, rng: torch.Generator) -> None:
        noise = upload(torch.randn(self.tensors["best"].shape, generator=rng), self.device)
        self.mels = noise.clamp(self._floor, self._ceiling).requires_grad_()
        rate = self.config.learning_rate
        self.optimizer = torch.optim.Adam([self.mels], lr=rate, betas=(0.5, 0.99))
        self.parts["optimizer"], self.tensors["mels"] = self.optimizer, self.mels

    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step on the log-mels; the first batch has no student to compete with."""
        w = self.config
        before = self.mels.detach().clone()
        x = random_roll(self.mels, rng)
        logits, predicted = self._hidden(x).logits_BK, None
        if self.auxiliary and self.number:
            predicted = self.auxiliary.logits(x)
        terms = {"class": w.class_loss * class_loss(logits, labels_B)}
        if self.batch_norms:
            terms["batch_norm"] = w.batch_norm * self.batch_norms.loss()
        if w.variation:
            terms["variation"] = w.variation * total_variation(x)
        if predicted is not None:
            apart = jensen_shannon(logits, predicted, w.temperature).clamp(0, 1)
            terms["adversarial"] = w.competition * (1 - apart)
        descend(terms, self.optimizer)
        with torch.no_grad():
            self.mels.clamp_(self._floor, self._ceiling)
        return before, logits.detach(), terms


class Cmi(BatchWise):
    """``L = oh CE + bn L_bn + cr L_cr + adv L_adv`` over z and a generator that is new each batch.

    L_cr compares, under a two-layer head, the mean inputs of every BatchNorm for a local view
    (queries) and a global one (keys, without a gradient) of the current clips and of earlier ones.
    The other terms use the global view.
    Source: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021.
    """

    name = "cmi"

    config: CmiConfig

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context)
        w = self.config
        if w.adversarial:
            self.auxiliary = AuxiliaryStudent(context)
        if w.contrastive:
            size = self._features(self.tensors["best"][:2].clone())[1].shape[1]
            e = w.embedding
            self.head = nn.Sequential(nn.Linear(size, e), nn.ReLU(), nn.Linear(e, e))
            self.head.to(self.device)
            self.head_optimizer = torch.optim.Adam(
                self.head.parameters(), lr=w.learning_rate, betas=(0.5, 0.999)
            )
            self.parts |= {"head": self.head, "head_optimizer": self.head_optimizer}
            # Local and global view of the best iterate, and of finished batches.
            views = (self.budget.batch_size, 2, size)
            self.tensors["views"] = torch.zeros(views, device=self.device)
            self.tensors["memory"] = torch.zeros(0, 2, size, device=self.device)
        self._restart(0)

    def _start_batch(self, rng: torch.Generator) -> None:
        w = self.config
        torch.manual_seed(rng.initial_seed())
        self.generator = self._unconditional(w.latent)
        self.z = self._latents(w.latent, rng).requires_grad_()
        self.optimizer = torch.optim.Adam(
            [*self.generator.parameters(), self.z], lr=w.learning_rate, betas=(0.5, 0.999)
        )
        self.parts |= {"generator": self.generator, "optimizer": self.optimizer}
        self.tensors["z"] = self.z

    def _features(self, view_B1MT: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits, and its features of one view (B, ΣC)."""
        logits = self._hidden(view_B1MT).logits_BK
        if self.batch_norms is None:
            return logits, view_B1MT.new_zeros(len(view_B1MT), 0)
        return logits, self.batch_norms.instance_means(len(view_B1MT))

    def _contrast(self, local: Tensor, whole: Tensor, rng: torch.Generator) -> Tensor:
        w, memory = self.config, self.tensors["memory"]
        pick = upload(torch.randperm(len(memory), generator=rng)[: w.negatives], memory.device)
        queries = self.head(torch.cat([local, memory[pick, 0]]))
        keys = self.head(torch.cat([whole, memory[pick, 1]])).detach()
        return split_contrast(
            F.normalize(queries, dim=1), F.normalize(keys, dim=1), len(local), w.temperature
        )

    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step of generator, z and head."""
        w, compute = self.config, self.context.compute
        self.generator.train()
        with autocast(compute):
            mels = self.generator(self.z, no_class(self.z))
        local = None
        if w.contrastive:
            local = self._features(random_stretch(mels, LOCAL_CROP, rng))[1]
        view = random_stretch(mels, PADDED_CROP, rng)
        logits, whole = self._features(view)
        terms = {"class": w.class_loss * class_loss(logits, labels_B)}
        optimizers = [self.optimizer]
        if self.batch_norms and w.batch_norm:
            terms["batch_norm"] = w.batch_norm * self.batch_norms.loss()
        if local is not None:
            terms["contrastive"] = w.contrastive * self._contrast(local, whole, rng)
            optimizers.append(self.head_optimizer)
        if self.auxiliary and self.number:
            predicted = self.auxiliary.logits(view)
            terms["adversarial"] = w.adversarial * adversarial_loss(logits, predicted)
        descend(terms, *optimizers)
        if local is not None:
            better = self._better(torch.stack(list(terms.values())).sum())
            views, now = self.tensors["views"], torch.stack([local, whole], dim=1).detach()
            views.copy_(torch.where(better, now, views))
        return mels.detach(), logits.detach(), terms

    def _end_batch(self) -> None:
        if self.config.contrastive:
            rows = torch.cat([self.tensors["memory"], self.tensors["views"]])
            self.tensors["memory"] = rows[-self.config.memory :].clone()


class Fast(BatchWise):
    """``L = oh CE + bn L_bn + adv L_adv`` over z and a copy of the meta-learned generator.

    The gradients of all inner steps add up to that of the outer step (first-order MAML).
    Source: G. Fang et al., *Up to 100x Faster Data-Free Knowledge Distillation*, AAAI 2022.
    """

    name = "fast"

    config: FastConfig

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context)
        w = self.config
        self.meta = self._unconditional(w.latent)
        self.outer = torch.optim.Adam(
            self.meta.parameters(), lr=w.learning_rate * w.iterations, betas=(0.5, 0.999)
        )
        if w.adversarial:
            self.auxiliary = AuxiliaryStudent(context)
        self.parts |= {"meta": self.meta, "outer": self.outer}
        for name, parameter in self.meta.named_parameters():
            self.tensors[f"gathered/{name}"] = torch.zeros_like(parameter)
        self._restart(0)

    def _start_batch(self, rng: torch.Generator) -> None:
        w = self.config
        self.quick = copy.deepcopy(self.meta)
        self.z = self._latents(w.latent, rng).requires_grad_()
        groups: list[dict[str, Any]] = [
            {"params": list(self.quick.parameters())},
            {"params": [self.z], "lr": w.latent_rate},
        ]
        self.inner = torch.optim.Adam(groups, lr=w.learning_rate, betas=(0.5, 0.999))
        self.parts |= {"quick": self.quick, "inner": self.inner}
        self.tensors["z"] = self.z
        for name, _ in self.meta.named_parameters():
            self.tensors[f"gathered/{name}"].zero_()

    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One inner step."""
        w, compute = self.config, self.context.compute
        self.quick.train()
        with autocast(compute):
            mels = self.quick(self.z, no_class(self.z))
            view = random_stretch(mels, PADDED_CROP, rng)
        logits = self._hidden(view).logits_BK
        terms = {"class": w.class_loss * class_loss(logits, labels_B)}
        if self.batch_norms:
            terms["batch_norm"] = w.batch_norm * self.batch_norms.loss()
        if self.auxiliary and self._warmed_up(index):
            predicted = self.auxiliary.logits(view)
            terms["adversarial"] = w.adversarial * adversarial_loss(logits, predicted)
        descend(terms, self.inner)
        for name, parameter in self.quick.named_parameters():
            assert parameter.grad is not None
            self.tensors[f"gathered/{name}"] += parameter.grad
        return mels.detach(), logits.detach(), terms

    def _warmed_up(self, index: int) -> bool:
        return index >= self.config.warmup * self.steps

    def _keeps(self, index: int) -> bool:
        return index >= self.budget.burn_in

    def _end_batch(self) -> None:
        for name, parameter in self.meta.named_parameters():
            parameter.grad = self.tensors[f"gathered/{name}"].clone()
        self.outer.step()
        if self.batch_norms:
            self.batch_norms.remember()


# --- Controls: noise, with neither a teacher nor a sound behind it

_SCALE_STD = 0.7  # each finer scale is weaker by this: the sum is smooth with some texture
_GAIN = (0.5, 1.5)  # contrast of one mel relative to another
_OFFSET_STD = 0.7  # standard deviation of one mel's level, in units of the sum's own


def smooth_noise_mels(spec: MelSpec, n: int, frames: int, seed: int) -> Tensor:
    """Multi-scale smooth noise in the mel plane.

    Gaussian noise at 2x2, 4x4, ... cells, bilinearly enlarged and summed, with a random gain and
    offset per mel; zero mean and unit standard deviation over the set, then clamped to the range of
    the front end.

    Returns:
        (n, 1, M, T) float32 on the CPU, normalised units.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (spec.n_mels, frames)
    mels = torch.zeros(n, 1, *size)
    cells, weight, shape = 2, 1.0, (0, 0)
    while shape != size:
        shape = (min(cells, size[0]), min(cells, size[1]))
        noise = torch.randn(n, 1, *shape, generator=generator)
        mels += weight * F.interpolate(noise, size, mode="bilinear", align_corners=False)
        cells, weight = cells * 2, weight * _SCALE_STD
    low, high = _GAIN
    gain = low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)
    offset = _OFFSET_STD * mels.std() * torch.randn(n, 1, 1, 1, generator=generator)
    mels = mels * gain + offset
    mels = (mels - mels.mean()) / mels.std(correction=0).clamp_min(1e-6)
    floor_M1, ceiling_M1 = (torch.from_numpy(x)[:, None] for x in (spec.floor, spec.ceiling))
    return mels.clamp(floor_M1, ceiling_M1)


def white_noise_mels(spec: MelSpec, n: int, frames: int, seed: int) -> Tensor:
    """Gaussian noise of mean 0 and standard deviation 1, the teacher's input scale; not clamped.

    Returns:
        (n, 1, M, T) float32 on the CPU, normalised units.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, spec.n_mels, frames, generator=generator)


class SmoothNoise(Procedural):
    """Control: multi-scale smooth noise in the mel plane."""

    name = "smooth_noise"
    audible = False

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context)
        self.clips = context.config.control_clips

    def make(self, n: int, seed: int) -> Tensor:
        """(n, 1, M, T) clips."""
        return smooth_noise_mels(self.context.spec, n, self.context.frames, seed)


class WhiteNoise(SmoothNoise):
    """Control: white Gaussian noise with the mean and standard deviation of the teacher's input."""

    name = "white_noise"

    def make(self, n: int, seed: int) -> Tensor:
        """(n, 1, M, T) clips."""
        return white_noise_mels(self.context.spec, n, self.context.frames, seed)
