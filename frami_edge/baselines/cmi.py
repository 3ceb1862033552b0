"""CMI: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021, eqs. 3 to 8.

Defaults: the published CIFAR-10 script (scratch): BatchNorm 1, class 1, adversarial 0.5,
contrastive 0.8 at temperature 0.1, 200 steps a batch with a new generator, memory 40,960 of which
4,096 are negatives. Ours: views are mel views, for a mel has no mirror image; the sparring student.
Shape legend: B batch, E embedding, N memory.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.baselines.base import BaselineConfig, Learned, numbers, zeros
from frami_edge.inversion.contrastive import contrastive_view
from frami_edge.inversion.generator import balanced_labels
from frami_edge.inversion.losses import adversarial_loss
from frami_edge.inversion.sources.base import Batch, Context


class CmiConfig(BaselineConfig):
    """As published."""

    inner_steps: int = Field(200, ge=1)
    """Steps of one batch, after which the generator is new."""
    latent: int = Field(256, ge=1)
    """Size of z."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam, betas 0.5 and 0.999, on generator, z and the embedding's head."""
    class_loss: float = Field(1.0, ge=0)
    """Cross entropy with the requested class."""
    batch_norm: float = Field(1.0, ge=0)
    """BatchNorm statistics."""
    adversarial: float = Field(0.5, ge=0)
    """Masked divergence of the sparring student."""
    contrastive: float = Field(0.8, ge=0)
    """InfoNCE."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrastive loss."""
    negatives: int = Field(4096, ge=1)
    """Of a step, drawn from the memory."""
    memory: int = Field(40_960, ge=1)
    """Rows of the memory; the oldest go."""
    student_steps: int = Field(50, ge=1)
    """Sparring steps on every finished batch."""


class Cmi(Learned):
    """``L = oh CE + bn L_bn + adv L_adv + cr L_cr``; the best iterate of each batch is kept."""

    name = "cmi"
    config_type = CmiConfig

    def __init__(self, context: Context, config: BaselineConfig) -> None:
        super().__init__(context, config)
        assert isinstance(config, CmiConfig)
        self.config = config
        self._watch = self.watch()
        features = sum(layer.num_features for _, layer in self._watch.layers)
        self.head = nn.Sequential(nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, 256))
        self.head.to(context.choice.device)
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), lr=config.learning_rate)
        if config.adversarial:
            self.spar()
        self.tensors["memory"] = torch.zeros(0, features, device=context.choice.device)
        self._start()

    def _start(self) -> None:
        w = self.config
        self.generator = self.unconditional(w.latent, w.width)
        z = torch.randn(w.batch_size, w.latent).to(self.context.choice.device)
        self.z = z.requires_grad_(True)
        self.optimizer = torch.optim.Adam(
            [*self.generator.parameters(), self.z], lr=w.learning_rate, betas=(0.5, 0.999)
        )
        self.parts = {"generator": self.generator, "optimizer": self.optimizer}
        self.parts |= {"head": self.head, "head_optimizer": self.head_optimizer}
        self.tensors["z"] = self.z
        self._best: tuple[float, Tensor, Tensor] | None = None

    def _contrast(self, q: Tensor, k: Tensor, rng: torch.Generator) -> Tensor:
        memory = self.tensors["memory"]
        pick = torch.randperm(len(memory), generator=rng)[: self.config.negatives]
        queries = F.normalize(self.head(q), dim=1)
        keys = F.normalize(self.head(torch.cat([k, memory[pick.to(k.device)]])), dim=1).detach()
        return F.cross_entropy(
            queries @ keys.T / self.config.temperature, torch.arange(len(q), device=q.device)
        )

    def step(self, index: int) -> Batch:
        """One step of generator and z; the batch is kept after its last one."""
        c, w, rng = self.context, self.config, self.rng(index)
        inner = min(w.inner_steps, w.steps)
        if index and index % inner == 0:
            torch.manual_seed(rng.initial_seed())
            self._start()
        labels = balanced_labels(w.batch_size, c.n_classes, index // inner * w.batch_size)
        labels = labels.to(c.choice.device)
        self.generator.train()
        mels = self.generator(self.z, zeros(self.z))
        with self._watch:
            c.teacher.hidden(contrastive_view(mels, rng))
            query = self._watch.instance_means()
        with self._watch:
            logits = c.teacher.hidden(mels).logits_BK
            key = self._watch.instance_means()
        terms = {
            "class": w.class_loss * F.cross_entropy(logits, labels),
            "batch_norm": w.batch_norm * self._watch.loss(),
            "contrastive": w.contrastive * self._contrast(query, key, rng),
        }
        if self.sparring and index >= inner:
            guess = self.sparring.logits(mels)
            terms["adversarial"] = w.adversarial * adversarial_loss(logits, guess)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.head_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.head_optimizer.step()
        if self._best is None or loss.item() < self._best[0]:
            self._best = (loss.item(), mels.detach(), key.detach())
        last = (index + 1) % inner == 0
        made = self._best[1]
        if last:
            self.tensors["memory"] = torch.cat([self.tensors["memory"], self._best[2]])[-w.memory :]
            for _ in range(w.student_steps if self.sparring else 0):
                assert self.sparring is not None
                self.sparring.learn(made, rng)
        hit = (logits.argmax(1) == labels).float().mean()
        return Batch(made, labels, last, numbers(loss, terms) | {"requested": hit})
