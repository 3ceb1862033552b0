"""Other methods' synthesis as sources of clips: same teacher, student and distillation as ours."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import random_roll, random_stretch
from frami_edge.config import AlternatingConfig, section
from frami_edge.device import autocast, generator, upload
from frami_edge.errors import BankError
from frami_edge.losses import (
    PublishedBatchNorm,
    adversarial_loss,
    balance_loss,
    divergence,
    jensen_shannon,
    split_contrast,
    total_variation,
)
from frami_edge.sources.base import NO_LABEL, Batch, Context, as_module, named_seed
from frami_edge.sources.generator import Generator, SparringStudent, balanced_labels

# --- What the baselines share: the budget, a sparring student, their state
# Synthesis and distillation stay apart, unlike in the papers: a method that needs a student in its
# loop plays against a `SparringStudent`, and the student that is scored learns from the finished bank
# like that of every other method. Several processes all compute the whole batch.
# Shape legend: B batch, M mel bands, T frames, K classes, Z latent size.

PADDED_CROP = 0.875
"""Shortest stretch, relative to the clip, that stands for a random crop of an image of 32 pixels
padded by 4."""
POOL_CLIPS = 512
"""Latest finished clips that a sparring student of a batch-wise method draws from."""


class Baseline(ABC):
    """A learned source; a subclass lists what it must remember in `parts` and `tensors`.

    Args:
        context: Teacher, front end, configuration, device, seed.

    Attributes:
        parts: Modules and optimisers by name.
        tensors: Other tensors a resumed run needs, by name.
        sparring: The student of the loop, where the method has one.
    """

    name: str

    def __init__(self, context: Context) -> None:
        self.context, self.budget = context, context.config.inversion
        self.steps = self.budget.steps
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {}
        self.tensors: dict[str, Tensor] = {}
        self.sparring: SparringStudent | None = None
        torch.manual_seed(named_seed(context.seed, self.name))

    def spar(self) -> None:
        """Have a student to play against."""
        c = self.context
        self.sparring = SparringStudent(c.teacher, c.spec, c.n_classes, c.compute)

    def unconditional(self, latent: int) -> Generator:
        """The inversion's own generator without a class: its one-hot input is a constant."""
        c = self.context
        made = Generator(c.spec, 1, c.config.frames, latent, self.budget.width)
        return made.to(c.compute.device)

    def rng(self, index: int) -> torch.Generator:
        """Chance of one step."""
        return generator(self.context.seed, f"{self.name}/{index}")

    @abstractmethod
    def step(self, index: int) -> Batch:
        """One step of the synthesis."""

    def state(self) -> dict[str, Any]:
        """Networks, optimisers, tensors, sparring student."""
        state: dict[str, Any] = {
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "tensors": {name: value.detach().clone() for name, value in self.tensors.items()},
        }
        if self.sparring:
            state["sparring"] = self.sparring.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        for name, value in state["tensors"].items():
            held = self.tensors.get(name)
            if held is not None and held.shape == value.shape:
                # In place: an optimiser, or the step, holds this very tensor.
                held.data.copy_(value)
            else:
                self.tensors[name] = value.to(self.context.compute.device)
        if self.sparring:
            self.sparring.load_state(state["sparring"])


class BatchWise(Baseline):
    """A method that works on one batch for many steps and keeps its best iterate.

    The budget is shared out evenly: ``steps // iterations`` batches, at least one, so that none is
    left unfinished. A subclass implements `begin` and `iterate`.

    Args:
        context: See `Baseline`.
        iterations: Steps on one batch, at least.
        student_steps: Sparring steps for each of them.
    """

    def __init__(self, context: Context, iterations: int, student_steps: float) -> None:
        super().__init__(context)
        self.student_steps = student_steps
        self.batches = max(1, self.steps // iterations)
        shape = (self.budget.batch_size, 1, context.spec.n_mels, context.config.frames)
        device = context.compute.device
        self.tensors["best"] = torch.zeros(shape, device=device)
        self.tensors["best_loss"] = torch.full((), torch.inf, device=device)
        self.tensors["pool"] = torch.zeros(0, *shape[1:], device=device)
        self.batch = 0

    def place(self, index: int) -> tuple[int, bool, bool]:
        """Which batch a step belongs to, and whether it is that batch's first and last step."""
        before, number, after = (
            (i * self.batches) // self.steps for i in (index - 1, index, index + 1)
        )
        return number, before != number, after != number

    def requested(self) -> Tensor:
        """(B,) classes of the running batch, which take turns over all batches."""
        size = self.budget.batch_size
        labels = balanced_labels(size, self.context.n_classes, self.batch * size)
        return upload(labels, self.context.compute.device)

    @abstractmethod
    def begin(self, number: int) -> None:
        """Start a batch anew."""

    @abstractmethod
    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One optimiser step: the clips it was taken on, their logits, and the weighted terms."""

    def end(self) -> None:
        """What happens once a batch is finished, beside sparring."""

    def better(self, loss: Tensor) -> Tensor:
        """Whether this iterate is the best of its batch so far; a tensor, so that no one waits."""
        return loss.detach() < self.tensors["best_loss"]

    def spars(self, index: int) -> bool:
        """Whether the sparring student learns from a batch that ends with this step."""
        return self.sparring is not None

    def step(self, index: int) -> Batch:
        """One step; a batch is given for keeps with its last step, and it is its best iterate."""
        rng = self.rng(index)
        number, first, last = self.place(index)
        self.batch = number
        if first:
            self.tensors["best_loss"].fill_(torch.inf)
            self.begin(number)
        labels = self.requested()
        mels, logits, terms = self.iterate(index, labels, rng)
        loss = torch.stack(list(terms.values())).sum().detach()
        better, best = self.better(loss), self.tensors["best"]
        best.copy_(torch.where(better, mels.detach(), best))
        self.tensors["best_loss"].copy_(torch.where(better, loss, self.tensors["best_loss"]))
        if last:
            self._check_finite(index)
            pool = self.tensors["pool"] = torch.cat([self.tensors["pool"], best])[-POOL_CLIPS:]
            if self.sparring and self.spars(index):
                taken = self.steps // self.batches
                for _ in range(round(self.student_steps * taken)):
                    pick = torch.randint(0, len(pool), (len(best),), generator=rng)
                    self.sparring.learn(pool[upload(pick, pool.device)], rng)
            self.end()
        hit = (logits.argmax(1) == labels).float().mean()
        metrics = told(terms) | {"requested": hit}
        return Batch(best.clone(), labels, last and self.keeps(index), metrics)

    def _check_finite(self, index: int) -> None:
        """A loss that never was a number has no best iterate: the clips would be the last batch's.

        Raises:
            BankError: No iterate of this batch had a finite loss.
        """
        if not torch.isfinite(self.tensors["best_loss"]):
            raise BankError(
                f"The source {self.name} diverged by step {index + 1}: no loss of its batch is "
                "finite.",
                fix=f"Use a smaller {section(self.name)}.learning_rate and another --out, or "
                "--precision fp32.",
            )

    def keeps(self, index: int) -> bool:
        """Whether a batch that ends with this step is for the bank."""
        return True


def told(terms: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
    """Metrics of a step."""
    parts = {name: value.detach() for name, value in terms.items()}
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def descend(terms: Mapping[str, Tensor], *optimizers: torch.optim.Optimizer) -> None:
    """Set the gradients to those of the sum of the terms; the steps are left to the caller."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()


def no_class(z_BZ: Tensor) -> Tensor:
    """(B,) the only class of an unconditional generator."""
    return torch.zeros(len(z_BZ), dtype=torch.int64, device=z_BZ.device)


# --- DeepInversion, and with a sparring student adaptive DeepInversion (ADI)
# Source: H. Yin et al., *Dreaming to Distill*, CVPR 2020; weights as in the framework of G. Fang et
# al., *Contrastive Model Inversion*, IJCAI 2021. Shape legend: B batch, M mel bands, T frames.


class DeepInversion(BatchWise):
    """``L = CE + bn L_bn + tv TV + adi (1 - clamp(JS(z_t, z_s), 0, 1))`` over the log-mels x.

    x starts as white noise and stays in the range that the front end can give. The jitter rolls
    along time only: a shift along the bands is another sound.
    """

    name = "deep_inversion"

    def __init__(self, context: Context) -> None:
        config = self.config = context.config.baselines.deep_inversion
        super().__init__(context, config.iterations, config.student_steps)
        spec, device = context.spec, context.compute.device
        band = (1, 1, spec.n_mels, 1)
        self._floor = torch.from_numpy(spec.floor).view(band).to(device)
        self._ceiling = torch.from_numpy(spec.ceiling).view(band).to(device)
        self._watch = None
        if config.batch_norm:
            self._watch = PublishedBatchNorm(as_module(context.teacher))
        if config.competition:
            self.spar()
        self.begin(0)

    def begin(self, number: int) -> None:
        """White noise and a fresh optimiser."""
        c, rng = self.context, generator(self.context.seed, f"{self.name}/batch/{number}")
        shape = tuple(self.tensors["best"].shape)
        noise = upload(torch.randn(shape, generator=rng), c.compute.device)
        self.mels = noise.clamp(self._floor, self._ceiling).requires_grad_()
        rate = self.config.learning_rate
        self.optimizer = torch.optim.Adam([self.mels], lr=rate, betas=(0.5, 0.99))
        self.parts["optimizer"], self.tensors["mels"] = self.optimizer, self.mels

    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step on the log-mels; there is nobody to compete with during the first batch."""
        c, w = self.context, self.config
        before = self.mels.detach().clone()
        x = random_roll(self.mels, rng)
        competes = self.sparring if self.batch else None
        with autocast(c.compute):
            if self._watch:
                with self._watch:
                    logits = c.teacher.hidden(x).logits_BK
            else:
                logits = c.teacher.hidden(x).logits_BK
            guess = competes.logits(x) if competes else None
        terms = {"class": w.class_loss * F.cross_entropy(logits.float(), labels_B)}
        if self._watch:
            terms["batch_norm"] = w.batch_norm * self._watch.loss()
        if w.variation:
            terms["variation"] = w.variation * total_variation(x)
        if guess is not None:
            away = jensen_shannon(logits, guess, w.temperature).clamp(0, 1)
            terms["adversarial"] = w.competition * (1 - away)
        descend(terms, self.optimizer)
        self.optimizer.step()
        with torch.no_grad():
            self.mels.clamp_(self._floor, self._ceiling)
        return before, logits.detach(), terms


# --- DAFL, ZSKT and DFQ: one generator step, then some of a student
# Sources: H. Chen et al., *Data-Free Learning of Student Networks* (DAFL), ICCV 2019; P. Micaelli and
# A. Storkey, *Zero-shot Knowledge Transfer* (ZSKT), NeurIPS 2019; Y. Choi et al., *Data-Free Network
# Quantization With Adversarial Knowledge Distillation* (DFQ), CVPR Workshops 2020. Losses and weights
# are those of the CIFAR-10 scripts in the framework of G. Fang et al., *Contrastive Model Inversion*
# (CMI), IJCAI 2021. Shape legend: B batch, K classes.


class Alternating(Baseline):
    """``L = oh CE(z_t, argmax z_t) - act mean|s_t| + bal Σ p̄ log p̄ - adv KL(t ‖ s) + bn L_bn``.

    s_t is the teacher's pooled state. Nobody asks for a class: the clips have no label.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = self.config = self.weights()
        self.generator = self.unconditional(config.latent)
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=config.learning_rate, betas=(0.5, 0.999)
        )
        self.parts = {"generator": self.generator, "optimizer": self.optimizer}
        teacher = as_module(context.teacher)
        self._watch = PublishedBatchNorm(teacher) if config.batch_norm else None
        if config.adversarial:
            self.spar()

    def weights(self) -> AlternatingConfig:
        """Of this method."""
        found: AlternatingConfig = getattr(self.context.config.baselines, self.name)
        return found

    def _clips(self, rng: torch.Generator) -> Tensor:
        z = torch.randn(self.budget.batch_size, self.config.latent, generator=rng)
        z = upload(z, self.context.compute.device)
        with autocast(self.context.compute):
            mels: Tensor = self.generator(z, no_class(z))
        return mels

    def step(self, index: int) -> Batch:
        """One generator step and the student's; the clips are those of the generator's step."""
        c, w, rng = self.context, self.config, self.rng(index)
        self.generator.train()
        mels = self._clips(rng)
        with autocast(c.compute):
            with self._watch or contextlib.nullcontext():
                seen = c.teacher.hidden(mels)
            guess = self.sparring.logits(mels) if self.sparring else None
        logits, terms = seen.logits_BK.float(), {}
        if w.one_hot:
            terms["class"] = w.one_hot * F.cross_entropy(logits, logits.detach().argmax(1))
        if w.activation:
            terms["activation"] = -w.activation * seen.pooled_BD.float().abs().mean()
        if w.balance:
            terms["balance"] = w.balance * balance_loss(logits)
        if guess is not None:
            terms["adversarial"] = -w.adversarial * divergence(logits, guess)
        if self._watch:
            terms["batch_norm"] = w.batch_norm * self._watch.loss()
        descend(terms, self.optimizer)
        self.optimizer.step()
        if self.sparring:
            for _ in range(w.student_steps):
                with torch.no_grad():
                    fresh = self._clips(rng)
                self.sparring.learn(fresh, rng)
        labels = torch.full((self.budget.batch_size,), NO_LABEL, device=mels.device)
        return Batch(mels.detach(), labels, index >= self.budget.burn_in, told(terms))


class Dafl(Alternating):
    """DAFL; its loss does not look at a student, so none is trained."""

    name = "dafl"


class Zskt(Alternating):
    """ZSKT."""

    name = "zskt"


class Dfq(Alternating):
    """DFQ."""

    name = "dfq"


# --- CMI: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021
# Shape legend: B batch, E embedding, N rows of the memory.

LOCAL = 0.25
"""Shortest stretch of the local view, relative to the clip: a scale of 0.25 in the original."""


class Cmi(BatchWise):
    """``L = oh CE + bn L_bn + cr L_cr + adv L_adv`` over z and a generator that is new each batch.

    L_cr compares, under a two-layer head, the mean inputs of every BatchNorm for a local view
    (queries) and a global one (keys, without a gradient) of the running clips and of earlier ones.
    The other terms look at the global view.
    """

    name = "cmi"

    def __init__(self, context: Context) -> None:
        config = self.config = context.config.baselines.cmi
        super().__init__(context, config.iterations, config.student_steps)
        device = context.compute.device
        self._watch = None
        if config.batch_norm or config.contrastive:
            self._watch = PublishedBatchNorm(as_module(context.teacher))
        if config.adversarial:
            self.spar()
        if config.contrastive:
            size = self._features(self.tensors["best"][:2].clone())[1].shape[1]
            e = config.embedding
            self.head = nn.Sequential(nn.Linear(size, e), nn.ReLU(), nn.Linear(e, e)).to(device)
            self.head_optimizer = torch.optim.Adam(
                self.head.parameters(), lr=config.learning_rate, betas=(0.5, 0.999)
            )
            self.parts |= {"head": self.head, "head_optimizer": self.head_optimizer}
            # Of the best iterate, and of finished batches: local and global view.
            self.tensors["views"] = torch.zeros(self.budget.batch_size, 2, size, device=device)
            self.tensors["memory"] = torch.zeros(0, 2, size, device=device)
        self.begin(0)

    def begin(self, number: int) -> None:
        """A new generator, new z, a fresh optimiser."""
        c, w = self.context, self.config
        rng = generator(c.seed, f"{self.name}/batch/{number}")
        torch.manual_seed(rng.initial_seed())
        self.generator = self.unconditional(w.latent)
        z = torch.randn(self.budget.batch_size, w.latent, generator=rng)
        self.z = upload(z, c.compute.device).requires_grad_()
        self.optimizer = torch.optim.Adam(
            [*self.generator.parameters(), self.z], lr=w.learning_rate, betas=(0.5, 0.999)
        )
        self.parts |= {"generator": self.generator, "optimizer": self.optimizer}
        self.tensors["z"] = self.z

    def _features(self, view_B1MT: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits, and its features of one view (B, ΣC)."""
        teacher = self.context.teacher
        with autocast(self.context.compute):
            if self._watch is None:
                return teacher.hidden(view_B1MT).logits_BK, view_B1MT.new_zeros(len(view_B1MT), 0)
            with self._watch:
                logits = teacher.hidden(view_B1MT).logits_BK
        return logits, self._watch.instance_means(len(view_B1MT))

    def _contrast(self, local: Tensor, near: Tensor, rng: torch.Generator) -> Tensor:
        w, memory = self.config, self.tensors["memory"]
        pick = upload(torch.randperm(len(memory), generator=rng)[: w.negatives], memory.device)
        queries = self.head(torch.cat([local, memory[pick, 0]]))
        keys = self.head(torch.cat([near, memory[pick, 1]])).detach()
        return split_contrast(
            F.normalize(queries, dim=1), F.normalize(keys, dim=1), len(local), w.temperature
        )

    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step of generator, z and head."""
        c, w = self.context, self.config
        self.generator.train()
        with autocast(c.compute):
            mels = self.generator(self.z, no_class(self.z))
        far = None
        if w.contrastive:
            far = self._features(random_stretch(mels, LOCAL, rng))[1]
        view = random_stretch(mels, PADDED_CROP, rng)
        logits, near = self._features(view)
        terms = {"class": w.class_loss * F.cross_entropy(logits.float(), labels_B)}
        if self._watch and w.batch_norm:
            terms["batch_norm"] = w.batch_norm * self._watch.loss()
        optimizers = [self.optimizer]
        if far is not None:
            terms["contrastive"] = w.contrastive * self._contrast(far, near, rng)
            optimizers.append(self.head_optimizer)
        if self.sparring and self.batch:
            with autocast(c.compute):
                guess = self.sparring.logits(view)
            terms["adversarial"] = w.adversarial * adversarial_loss(logits, guess)
        descend(terms, *optimizers)
        for optimizer in optimizers:
            optimizer.step()
        if far is not None:
            loss = torch.stack(list(terms.values())).sum()
            views, now = self.tensors["views"], torch.stack([far, near], dim=1).detach()
            views.copy_(torch.where(self.better(loss), now, views))
        return mels.detach(), logits.detach(), terms

    def end(self) -> None:
        """Remember the features of the batch."""
        if self.config.contrastive:
            rows = torch.cat([self.tensors["memory"], self.tensors["views"]])
            self.tensors["memory"] = rows[-self.config.memory :].clone()


# --- Fast-Datafree: a meta-learned generator
# Source: G. Fang et al., *Up to 100x Faster Data-Free Knowledge Distillation*, AAAI 2022; first-order
# MAML. Shape legend: B batch, Z latent size.


class Fast(BatchWise):
    """``L = oh CE + bn L_bn + adv L_adv`` over z and a copy of the meta-learned generator.

    The gradients of all inner steps add up to that of the outer step (FOMAML).
    """

    name = "fast"

    def __init__(self, context: Context) -> None:
        config = self.config = context.config.baselines.fast
        super().__init__(context, config.iterations, config.student_steps)
        self.meta = self.unconditional(config.latent)
        self.outer = torch.optim.Adam(
            self.meta.parameters(), lr=config.learning_rate * config.iterations, betas=(0.5, 0.999)
        )
        self._watch = None
        if config.batch_norm:
            self._watch = PublishedBatchNorm(as_module(context.teacher), config.momentum)
        if config.adversarial:
            self.spar()
        self.parts |= {"meta": self.meta, "outer": self.outer}
        for name, parameter in self.meta.named_parameters():
            self.tensors[f"gathered/{name}"] = torch.zeros_like(parameter)
        self.begin(0)

    def begin(self, number: int) -> None:
        """A copy of the meta-learned generator, new z, fresh optimiser."""
        c, w = self.context, self.config
        rng = generator(c.seed, f"{self.name}/batch/{number}")
        self.quick = copy.deepcopy(self.meta)
        z = torch.randn(self.budget.batch_size, w.latent, generator=rng)
        self.z = upload(z, c.compute.device).requires_grad_()
        groups: list[dict[str, Any]] = [
            {"params": list(self.quick.parameters())},
            {"params": [self.z], "lr": w.latent_rate},
        ]
        self.inner = torch.optim.Adam(groups, lr=w.learning_rate, betas=(0.5, 0.999))
        self.parts |= {"quick": self.quick, "inner": self.inner}
        self.tensors["z"] = self.z
        for name, _ in self.meta.named_parameters():
            self.tensors[f"gathered/{name}"].zero_()

    def _warmed_up(self, index: int) -> bool:
        return index >= self.config.warmup * self.steps

    def iterate(
        self, index: int, labels_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One inner step."""
        c, w = self.context, self.config
        self.quick.train()
        with autocast(c.compute):
            mels = self.quick(self.z, no_class(self.z))
            view = random_stretch(mels, PADDED_CROP, rng)
            if self._watch:
                with self._watch:
                    logits = c.teacher.hidden(view).logits_BK
            else:
                logits = c.teacher.hidden(view).logits_BK
            guess = self.sparring.logits(view) if self.sparring and self._warmed_up(index) else None
        terms = {"class": w.class_loss * F.cross_entropy(logits.float(), labels_B)}
        if self._watch:
            terms["batch_norm"] = w.batch_norm * self._watch.loss()
        if guess is not None:
            terms["adversarial"] = w.adversarial * adversarial_loss(logits, guess)
        descend(terms, self.inner)
        for name, parameter in self.quick.named_parameters():
            assert parameter.grad is not None
            self.tensors[f"gathered/{name}"] += parameter.grad
        self.inner.step()
        return mels.detach(), logits.detach(), terms

    def spars(self, index: int) -> bool:
        """Not during the warm-up."""
        return self._warmed_up(index)

    def keeps(self, index: int) -> bool:
        """What the generator makes before the burn-in is over is thrown away."""
        return index >= self.budget.burn_in

    def end(self) -> None:
        """The outer step."""
        for name, parameter in self.meta.named_parameters():
            parameter.grad = self.tensors[f"gathered/{name}"].clone()
        self.outer.step()
        if self._watch:
            self._watch.remember()

    def state(self) -> dict[str, Any]:
        """Both generators and optimisers, gathered gradients, earlier moments, sparring student."""
        earlier = list(self._watch.earlier) if self._watch else []
        return super().state() | {"earlier": earlier}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().load_state(state)
        if self._watch:
            self._watch.earlier = [x.to(self.context.compute.device) for x in state["earlier"]]


# --- Other methods' synthesis as sources of clips: same teacher, student and distillation as our

__all__ = ["Baseline", "Cmi", "Dafl", "DeepInversion", "Dfq", "Fast", "Zskt"]
