"""FRAMI model inversion: a generator against the teacher, and a prior for one without BatchNorm.

Shape legend: B batch, M mel bands, T frames, C channels, Z latent size, K classes.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import random_crop, random_stretch
from frami_edge.config import (
    StudentArch,
)
from frami_edge.device import (
    autocast,
    fused,
    generator,
    named_seed,
    place,
    upload,
)
from frami_edge.frontend import LogMel, RenderedTeacher
from frami_edge.losses import (
    BatchNormStatistics,
    FeatureInvariantContrast,
    adversarial_loss,
    class_loss,
    contrastive_view,
    kl_from,
    live_batch_norms,
    logits_loss,
)
from frami_edge.models import Hidden, StudentNet, TeacherLike
from frami_edge.sources import (
    Batch,
    SourceContext,
    balanced_labels,
    condition,
    descend,
    metrics_of,
)
from frami_edge.sources.procedural import procedural_audio, procedural_mels, samples_for
from frami_edge_runtime.melspec import MelSpec

if TYPE_CHECKING:
    pass

log = logging.getLogger("frami_edge")


# --- The generator: noise and a class in, a normalised log-mel out


class PhysicalRange(nn.Module):
    """Squash into what the front end can produce: [floor, ceiling] of each mel band.

    ``y = f + (c - f) sigmoid(a + u / ((c - f) s (1 - s)))`` with s = sigmoid(a) = -f / (c - f): an
    input of 0 gives 0, the mean of the training data, with slope 1.
    """

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        floor_M, ceiling_M = torch.from_numpy(spec.floor), torch.from_numpy(spec.ceiling)
        width_M = ceiling_M - floor_M
        # A training mean outside the range (a broken front end) would have no logit.
        s_M = (-floor_M / width_M).clamp(0.02, 0.98)
        tensors = {
            "floor": floor_M,
            "width": width_M,
            "start": torch.logit(s_M),
            "slope": 1 / (width_M * s_M * (1 - s_M)),
        }
        for name, value_M in tensors.items():
            self.register_buffer(name, value_M[None, None, :, None], persistent=False)

    def forward(self, u_B1MT: Tensor) -> Tensor:
        """Any real numbers to normalised log-mels inside the range."""
        u = u_B1MT.float()
        y: Tensor = self.floor + self.width * torch.sigmoid(self.start + self.slope * u)  # type: ignore[operator]
        return y


class Generator(nn.Module):
    """Latents and classes to normalised log-mels.

    Source: the layer plan follows the small generator of G. Fang et al., *Contrastive Model
    Inversion*, IJCAI 2021; the class input, the smooth physical range and the sizes are ours.

    Args:
        spec: Front end of the teacher; the output stays in its physical range.
        n_classes: K.
        frames: T of the output.
        latent: Z.
        width: Channels of the first, coarsest layer.
    """

    def __init__(
        self, spec: MelSpec, n_classes: int, frames: int, latent: int = 128, width: int = 64
    ) -> None:
        super().__init__()
        self.latent, self.n_classes, self.width = latent, n_classes, width
        m, t = spec.n_mels, frames
        self.sizes = [(-(-m // 4), -(-t // 4)), (-(-m // 2), -(-t // 2)), (m, t)]
        self.start = nn.Linear(latent + n_classes, width * self.sizes[0][0] * self.sizes[0][1])
        self.bn0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width // 2, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 4)
        self.out = nn.Conv2d(width // 4, 1, 3, padding=1)
        self.range = PhysicalRange(spec)

    def forward(self, z_BZ: Tensor, labels_B: Tensor, wanted_BK: Tensor | None = None) -> Tensor:
        """Latents (B, Z) and classes (B,), or `requests` (B, K), to (B, 1, M, T) float32."""
        classes_BK = condition(labels_B, wanted_BK, self.n_classes).to(z_BZ.dtype)
        x = self.start(torch.cat([z_BZ, classes_BK], dim=1)).view(-1, self.width, *self.sizes[0])
        x = self.bn0(x)
        x = F.interpolate(x, size=self.sizes[1])
        x = F.leaky_relu(self.bn1(self.conv1(x)), 0.2)
        x = F.interpolate(x, size=self.sizes[2])
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2)
        mel: Tensor = self.range(self.out(x))
        return mel


class AuxiliaryStudent:
    """A tiny student, co-trained on the latest synthetic clips for the adversarial term only."""

    def __init__(self, context: SourceContext) -> None:
        self.teacher, self.compute = context.teacher, context.compute
        self.output, self.spec = context.output, context.spec
        self.front_end = LogMel(context.spec).to(context.compute.device)
        arch = StudentArch(channels=(16, 24, 32, 48, 48))
        self.student = StudentNet(arch, context.spec.n_mels, context.n_classes)
        self.student.to(context.compute.device)
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=2e-3, fused=fused(context.compute)
        )

    def logits(self, x_B1MT: Tensor) -> Tensor:
        """(B, K) with a gradient to the clips; BatchNorm uses its running statistics."""
        self.student.eval()
        with autocast(self.compute):
            logits: Tensor = self.student(x_B1MT)
        return logits

    def learn(self, x: Tensor, generator: torch.Generator) -> None:
        """One distillation step (`logits_loss`, τ = 2; detectors: their KL) on random stretches.

        The clips are log-mels (B, 1, M, T), or samples (B, N) for a `RenderedTeacher`.
        """
        self.student.train()
        audio = x.ndim == 2
        whole = self.spec.frames(x.shape[1]) if audio else x.shape[3]
        frames = max(self.student.receptive_field, round(0.75 * whole))
        x = random_crop(x, samples_for(self.spec, frames) if audio else frames, generator)
        with autocast(self.compute):
            with torch.no_grad():
                target = self.teacher.hidden(x).logits_BK
            prediction = self.student(self.front_end(x)[:, None] if audio else x)
        if self.output == "softmax":
            loss = logits_loss(prediction, target, temperature=2.0)
        else:
            loss = kl_from(target.float(), prediction.float(), self.output).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])


# --- A borrowed prior, for teachers without BatchNorm


class BorrowedPrior(nn.Module):
    """A teacher without BatchNorm, with the BatchNorms of a small student beside it.

    The student is distilled on procedural clips, which need no gradient of the teacher. Its running
    statistics then stand in for those of the teacher: clips of learned sources excite its features
    like plausible audio does. That is weaker than the teacher's own memory of its training data.
    """

    clips, steps, batch = 1_500, 400, 64

    def __init__(self, context: SourceContext) -> None:
        super().__init__()
        model = context.teacher
        self.model = context.module
        self.takes, self.head = model.takes, model.head
        self.channels, self.pooled_size = model.channels, model.pooled_size
        self.frame_stride, self.frame_offset = model.frame_stride, model.frame_offset
        torch.manual_seed(named_seed(context.seed, "prior"))
        learner = AuxiliaryStudent(context)
        seed = named_seed(context.seed, "prior/clips")
        spec = context.spec
        if isinstance(model, RenderedTeacher):
            clips = procedural_audio(spec.sample_rate, self.clips, context.samples, seed)
        else:
            clips = procedural_mels(spec, self.clips, context.frames, seed)
        for step in range(self.steps):
            rng = generator(context.seed, f"prior/{step}")
            index = torch.randint(0, len(clips), (self.batch,), generator=rng)
            learner.learn(upload(clips[index], context.compute.device), rng)
        self.prior = learner.student.eval().requires_grad_(False)
        self._layers = [layer for _, layer in live_batch_norms(self.prior)]

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """The teacher's; where BatchNorms are observed, the student runs too."""
        if any(layer._forward_pre_hooks for layer in self._layers):
            self.prior(x_B1MT)
        return cast(TeacherLike, self.model).hidden(x_B1MT, lengths_B)


# --- FRAMI: clips that excite the teacher's hidden states like its training data


class Inversion:
    """A conditional generator against the teacher, in its hidden states.

    ``L = w_bn L_bn + w_class L_class + w_con L_contrastive + w_adv L_adv``; `frami_edge.losses` has
    each formula. The teacher predicts a random stretch of each clip, as the student will.

    The latents z of a batch learn too, for ``batch_steps`` steps: one generator alone gives all
    clips one texture. Source: learned latents follow G. Fang et al., *Contrastive Model Inversion*,
    IJCAI 2021, and *Up to 100x Faster Data-Free Knowledge Distillation*, AAAI 2022, which drop or
    reset the generator after each batch; here it keeps learning.
    """

    name = "inversion"

    def __init__(self, context: SourceContext) -> None:
        self.context = context
        w = self.config = context.config.inversion
        self.steps = w.steps
        torch.manual_seed(named_seed(context.seed, self.name))
        self.generator = Generator(
            context.spec, context.n_classes, context.frames, w.latent, w.width
        )
        place(self.generator, context.compute)
        self.networks = nn.ModuleDict({"generator": self.generator})
        self.contrast: FeatureInvariantContrast | None = None
        if w.contrastive:
            self.contrast = FeatureInvariantContrast(
                context.teacher.channels,
                context.teacher.pooled_size,
                memory=w.contrastive_memory,
                temperature=w.temperature,
            ).to(context.compute.device)
            self.networks["contrast"] = self.contrast
        self.auxiliary = AuxiliaryStudent(context) if w.adversarial.weight else None
        self.batch_norms = BatchNormStatistics(context.module) if w.batch_norm else None
        self.optimizer = torch.optim.Adam(
            self.networks.parameters(),
            lr=w.learning_rate,
            betas=(0.5, 0.999),
            fused=fused(context.compute),
        )
        self._start_batch(torch.zeros(w.batch_size, w.latent, device=context.compute.device))

    def _start_batch(self, z_BZ: Tensor) -> None:
        self.z_BZ = z_BZ.requires_grad_()
        rate = self.config.latent_rate
        self.latent_optimizer = torch.optim.Adam([self.z_BZ], lr=rate, betas=(0.5, 0.999))

    def step(self, index: int) -> Batch:
        """One generator step; returns the clips that the step was taken on."""
        c, w = self.context, self.config
        rng = generator(c.seed, f"{self.name}/{index}")
        number, place_in_batch = divmod(index, w.batch_steps)
        if not place_in_batch:
            self._start_batch(
                upload(torch.randn(w.batch_size, w.latent, generator=rng), c.compute.device)
            )
        labels = balanced_labels(w.batch_size, c.n_classes, number * w.batch_size)
        asked, wanted = c.requests(labels, generator(c.seed, f"{self.name}/requests/{number}"))
        labels, asked = upload(labels, c.compute.device), upload(asked, c.compute.device)
        adversary = self.auxiliary if index >= w.adversarial.warmup_steps else None

        self.generator.train()
        query = predicted = None
        with autocast(c.compute):
            mels = self.generator(self.z_BZ, labels, wanted)
            stretch = random_stretch(mels, w.shortest_view, rng) if w.shortest_view < 1 else mels
            with self.batch_norms or contextlib.nullcontext():
                hidden = c.teacher.hidden(stretch)
            if self.contrast:
                query = c.teacher.hidden(contrastive_view(mels, rng))
            if adversary:
                predicted = adversary.logits(stretch)

        # The losses are in float32: only the networks run at low precision.
        terms: dict[str, Tensor] = {}
        if self.batch_norms:
            terms["batch_norm"] = w.batch_norm * self.batch_norms.loss()
        if w.class_loss:
            terms["class"] = w.class_loss * class_loss(hidden.logits_BK, labels, wanted)
        if self.contrast and query:
            contrastive, keys = self.contrast(query=query, key=hidden)
            terms["contrastive"] = w.contrastive * contrastive
        if predicted is not None:
            adversarial = adversarial_loss(hidden.logits_BK, predicted, c.output)
            terms["adversarial"] = w.adversarial.weight * adversarial
        descend(terms, self.optimizer, self.latent_optimizer)

        mels = mels.detach()
        keep = index >= w.burn_in
        if self.contrast and keep and place_in_batch + 1 == w.batch_steps:
            # Once per batch: the clips of its other steps are nearly the same, hence no negatives.
            self.contrast.remember(keys)
        if self.auxiliary:
            for _ in range(w.adversarial.student_steps):
                self.auxiliary.learn(mels, rng)
        return Batch(mels, asked, keep, metrics_of(terms, hidden.logits_BK, asked, c.output))

    @torch.no_grad()
    def fresh(self, n: int) -> Batch:
        """Clips of new latents."""
        c, rng = self.context, generator(self.context.seed, f"{self.name}/fresh")
        z_BZ = upload(torch.randn(n, self.config.latent, generator=rng), c.compute.device)
        labels = balanced_labels(n, c.n_classes)
        asked, wanted = c.requests(labels, rng)
        with autocast(c.compute):
            mels = self.generator(z_BZ, upload(labels, c.compute.device), wanted)
        return Batch(mels, asked, False, {})

    def state(self) -> dict[str, Any]:
        """Networks, latents, auxiliary student, optimisers."""
        return {
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "z": self.z_BZ.detach(),
            "latent_optimizer": self.latent_optimizer.state_dict(),
            "auxiliary": self.auxiliary.state() if self.auxiliary else {},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._start_batch(state["z"].to(self.context.compute.device))
        self.latent_optimizer.load_state_dict(state["latent_optimizer"])
        if self.auxiliary:
            self.auxiliary.load_state(state["auxiliary"])
