"""DeepInversion: H. Yin et al., *Dreaming to Distill*, CVPR 2020, eqs. 2 to 4; ADI: section 3.3.

Defaults: Adam 0.1 with betas 0.5 and 0.99, class 1, BatchNorm 10, total variation 1e-3, competition
1 at temperature 3, 1000 steps a batch, as in the framework of G. Fang et al., *CMI*, IJCAI 2021.
Jitter rolls along time only: bands are no neighbours of equal rank, and a mel has no mirror image.
Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from frami_edge.augment import random_roll
from frami_edge.baselines.base import BaselineConfig, Learned, numbers
from frami_edge.baselines.losses import jensen_shannon, total_variation
from frami_edge.inversion.generator import balanced_labels
from frami_edge.inversion.sources.base import Batch, Context


class DeepInversionConfig(BaselineConfig):
    """As published."""

    inner_steps: int = Field(1000, ge=1)
    """Steps on the mels of one batch."""
    learning_rate: float = Field(0.1, gt=0)
    """Adam."""
    class_loss: float = Field(1.0, ge=0)
    """Cross entropy with the requested class."""
    batch_norm: float = Field(10.0, ge=0)
    """BatchNorm statistics."""
    variation: float = Field(1e-3, ge=0)
    """Total variation."""
    l2: float = Field(0.0, ge=0)
    """Norm of the mels."""
    adversarial: float = Field(1.0, ge=0)
    """Competition with the sparring student (ADI); 0 for plain DeepInversion."""
    temperature: float = Field(3.0, gt=0)
    """Of the competition."""
    student_steps: int = Field(50, ge=1)
    """Sparring steps on every finished batch."""


class DeepInversion(Learned):
    """``L = CE + bn L_bn + tv TV + l2 ‖x‖ - adv JS(t, s)``, minimised over the mels themselves."""

    name = "deep_inversion"
    config_type = DeepInversionConfig

    def __init__(self, context: Context, config: BaselineConfig) -> None:
        super().__init__(context, config)
        assert isinstance(config, DeepInversionConfig)
        self.config, spec = config, context.spec
        band = (1, 1, spec.n_mels, 1)
        device = context.choice.device
        self._floor = torch.from_numpy(spec.floor).view(band).to(device)
        self._ceiling = torch.from_numpy(spec.ceiling).view(band).to(device)
        self._watch = self.watch()
        if config.adversarial:
            self.spar()
        self._start(0)

    def _start(self, index: int) -> None:
        c = self.context
        shape = (self.config.batch_size, 1, c.spec.n_mels, c.config.frames)
        noise = torch.randn(shape, generator=self.rng(-1 - index)).to(c.choice.device)
        self.mels = noise.clamp(self._floor, self._ceiling).requires_grad_(True)
        rate = self.config.learning_rate
        self.optimizer = torch.optim.Adam([self.mels], lr=rate, betas=(0.5, 0.99))
        self.parts, self.tensors = {"optimizer": self.optimizer}, {"mels": self.mels}

    def step(self, index: int) -> Batch:
        """One step on the mels; the batch is kept after its last one."""
        c, w, rng = self.context, self.config, self.rng(index)
        # A budget below the published steps is one batch.
        inner = min(w.inner_steps, w.steps)
        if index and index % inner == 0:
            self._start(index)
        labels = balanced_labels(w.batch_size, c.n_classes, index // inner * w.batch_size)
        labels = labels.to(c.choice.device)
        x = random_roll(self.mels, rng)
        with self._watch:
            logits = c.teacher.hidden(x).logits_BK
        terms: dict[str, Tensor] = {
            "class": w.class_loss * F.cross_entropy(logits, labels),
            "batch_norm": w.batch_norm * self._watch.loss(),
            "variation": w.variation * total_variation(x) + w.l2 * x.norm(),
        }
        # The first batch has no student to compete with yet.
        if self.sparring and index >= inner:
            away = jensen_shannon(logits, self.sparring.logits(x), w.temperature)
            terms["adversarial"] = -w.adversarial * away
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.mels.clamp_(self._floor, self._ceiling)
        made = self.mels.detach().clone()
        last = (index + 1) % inner == 0
        if last and self.sparring:
            for _ in range(w.student_steps):
                self.sparring.learn(made, rng)
        hit = (logits.argmax(1) == labels).float().mean()
        return Batch(made, labels, last, numbers(loss, terms) | {"requested": hit})
