"""Where the clips of the bank come from: one interface, five sources.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from frami_edge.device import Choice, autocast, generator
from frami_edge.inversion.bn_loss import BatchNormStatistics
from frami_edge.inversion.config import BankConfig, InversionConfig, TranslatorConfig
from frami_edge.inversion.contrastive import FeatureInvariantContrast, contrastive_view
from frami_edge.inversion.controls import smooth_noise_mels, white_noise_mels
from frami_edge.inversion.generator import Generator, balanced_labels
from frami_edge.inversion.losses import adversarial_loss, class_loss
from frami_edge.inversion.procedural import procedural_mels
from frami_edge.inversion.sparring import SparringStudent
from frami_edge.inversion.translator import Translator
from frami_edge.models.hidden import TeacherLike
from frami_edge_runtime.melspec import MelSpec

NO_LABEL = -1
"""The label of a clip that was made without a class in mind."""


@dataclass
class Batch:
    """Clips of one step.

    Attributes:
        mels_B1MT: Normalised log-mels, float32 on the CPU.
        labels_B: Requested classes, or `NO_LABEL`.
        keep: Whether the clips are good enough for the bank.
        metrics: Losses of the step.
    """

    mels_B1MT: Tensor
    labels_B: Tensor
    keep: bool
    metrics: dict[str, float]


class Source(Protocol):
    """Makes clips step by step. Step i depends on the seed, on i, and on what `state` holds."""

    name: str
    steps: int

    def step(self, index: int) -> Batch:
        """Make (and, for learned sources, learn from) the clips of one step."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; tensors and plain values only."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        ...


@dataclass
class Context:
    """What every source is made from."""

    teacher: TeacherLike
    spec: MelSpec
    n_classes: int
    config: BankConfig
    choice: Choice
    seed: int


class Inversion:
    """FRAMI: a conditional generator against the teacher, in its hidden states.

    ``L = w_class L_class + w_bn L_bn + w_con L_contrastive + w_adv L_adv``; see each loss for its formula.
    """

    name = "inversion"

    def __init__(self, context: Context) -> None:
        self.context, config = context, context.config.inversion
        self.config: InversionConfig = config
        self.steps = config.steps
        torch.manual_seed(_weight_seed(context.seed, self.name))
        self.generator = Generator(
            context.spec, context.n_classes, context.config.frames, config.latent, config.width
        ).to(context.choice.device)
        modules = nn.ModuleDict({"generator": self.generator})
        self.contrast: FeatureInvariantContrast | None = None
        if config.contrastive:
            self.contrast = FeatureInvariantContrast(
                context.teacher.channels,
                memory=config.contrastive_memory,
                temperature=config.temperature,
            ).to(context.choice.device)
            modules["contrast"] = self.contrast
        self.sparring: SparringStudent | None = None
        if config.adversarial.weight:
            self.sparring = SparringStudent(
                context.teacher, context.spec, context.n_classes, context.choice
            )
        self.modules = modules
        if context.choice.channels_last:
            self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(
            modules.parameters(), lr=config.learning_rate, betas=(0.5, 0.999)
        )
        self._watch = BatchNormStatistics(_module(context.teacher)) if config.batch_norm else None

    def step(self, index: int) -> Batch:
        """One generator step; the clips are those that the step was taken on."""
        c, config = self.context, self.config
        rng = generator(c.seed, f"{self.name}/{index}")
        z = torch.randn(config.batch_size, config.latent, generator=rng).to(c.choice.device)
        labels = balanced_labels(config.batch_size, c.n_classes, index * config.batch_size)
        labels = labels.to(c.choice.device)
        terms: dict[str, Tensor] = {}
        self.generator.train()
        with autocast(c.choice):
            mels = self.generator(z, labels)
            with self._watch or contextlib.nullcontext():
                seen = c.teacher.hidden(mels)
            other = c.teacher.hidden(contrastive_view(mels, rng)) if self.contrast else None
            sparring = self.sparring if index >= config.adversarial.warmup_steps else None
            guess = sparring.logits(mels) if sparring else None
        # The losses stay in float32: only the networks run at low precision.
        if self._watch:
            terms["batch_norm"] = config.batch_norm * self._watch.loss()
        if config.class_loss:
            terms["class"] = config.class_loss * class_loss(seen.logits_BK, labels)
        keys = None
        if self.contrast and other:
            raw, keys = self.contrast(other, seen)
            terms["contrastive"] = config.contrastive * raw
        if guess is not None:
            raw = adversarial_loss(seen.logits_BK, guess)
            terms["adversarial"] = config.adversarial.weight * raw
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        keep = index >= config.burn_in
        mels = mels.detach()
        if self.contrast and keys is not None and keep:
            self.contrast.remember(keys)
        if self.sparring:
            for _ in range(config.adversarial.student_steps):
                self.sparring.learn(mels, rng)
        hit = (seen.logits_BK.argmax(1) == labels).float().mean()
        metrics = {"loss": loss.item(), "requested": hit.item()}
        metrics |= {name: value.item() for name, value in terms.items()}
        return Batch(mels.cpu(), labels.cpu(), keep, metrics)

    def state(self) -> dict[str, Any]:
        """Generator, contrastive heads and memory, sparring student, optimisers."""
        state: dict[str, Any] = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.sparring:
            state["sparring"] = self.sparring.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.sparring:
            self.sparring.load_state(state["sparring"])


class Procedural:
    """Procedural audio through the real front end: no recording and no teacher involved."""

    name = "procedural"
    block = 250

    def __init__(self, context: Context) -> None:
        self.context = context
        self.clips = context.config.procedural_clips
        self.steps = -(-self.clips // self.block)

    def step(self, index: int) -> Batch:
        """The next block of clips."""
        n = min(self.block, self.clips - index * self.block)
        mels = self.make(n, index)
        return Batch(mels, torch.full((n,), NO_LABEL), True, {})

    def make(self, n: int, index: int) -> Tensor:
        """(n, 1, M, T) clips that depend on the seed and on the index only."""
        c = self.context
        return procedural_mels(c.spec, n, c.config.frames, _weight_seed(c.seed, f"{self.name}/{index}"))

    def state(self) -> dict[str, Any]:
        """Nothing: the clips depend on seed and step alone."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


class SmoothNoise(Procedural):
    """Control: multi-scale smooth noise in the mel plane."""

    name = "smooth_noise"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.clips = context.config.control_clips
        self.steps = -(-self.clips // self.block)

    def make(self, n: int, index: int) -> Tensor:
        """(n, 1, M, T) clips."""
        c = self.context
        return smooth_noise_mels(c.spec, n, c.config.frames, _weight_seed(c.seed, f"{self.name}/{index}"))


class WhiteNoise(SmoothNoise):
    """Control: white Gaussian noise with the mean and standard deviation of the teacher's input."""

    name = "white_noise"

    def make(self, n: int, index: int) -> Tensor:
        """(n, 1, M, T) clips."""
        c = self.context
        return white_noise_mels(c.spec, n, c.config.frames, _weight_seed(c.seed, f"{self.name}/{index}"))


class Translation:
    """Procedural log-mels moved to where the teacher hears each class; see `Translator`."""

    name = "translator"

    def __init__(self, context: Context) -> None:
        self.context, config = context, context.config.translator
        self.config: TranslatorConfig = config
        self.steps = config.steps
        torch.manual_seed(_weight_seed(context.seed, self.name))
        self.translator = Translator(context.spec, context.n_classes).to(context.choice.device)
        if context.choice.channels_last:
            self.translator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(
            self.translator.parameters(), lr=config.learning_rate, betas=(0.5, 0.999)
        )
        self._watch = BatchNormStatistics(_module(context.teacher)) if config.batch_norm else None
        self._pool: Tensor | None = None

    def _inputs(self, n: int, rng: torch.Generator) -> Tensor:
        """n procedural clips, drawn from a fixed pool that is made once."""
        c = self.context
        if self._pool is None:
            size = min(c.config.procedural_clips, 2000)
            seed = _weight_seed(c.seed, f"{self.name}/pool")
            self._pool = procedural_mels(c.spec, size, c.config.frames, seed)
        return self._pool[torch.randint(0, self._pool.shape[0], (n,), generator=rng)]

    def step(self, index: int) -> Batch:
        """One translator step; the clips are those that the step was taken on."""
        c, config = self.context, self.config
        rng = generator(c.seed, f"{self.name}/{index}")
        z = torch.randn(config.batch_size, self.translator.latent, generator=rng)
        x = self._inputs(config.batch_size, rng).to(c.choice.device)
        labels = balanced_labels(config.batch_size, c.n_classes, index * config.batch_size)
        labels = labels.to(c.choice.device)
        terms: dict[str, Tensor] = {}
        with autocast(c.choice):
            mels, change = self.translator(x, z.to(c.choice.device), labels)
            with self._watch or contextlib.nullcontext():
                seen = c.teacher.hidden(mels)
        if self._watch:
            terms["batch_norm"] = config.batch_norm * self._watch.loss()
        terms["class"] = config.class_loss * class_loss(seen.logits_BK, labels)
        terms["change"] = config.change * change.square().mean()
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        hit = (seen.logits_BK.argmax(1) == labels).float().mean()
        metrics = {"loss": loss.item(), "requested": hit.item()}
        metrics |= {name: value.item() for name, value in terms.items()}
        return Batch(mels.detach().cpu(), labels.cpu(), index >= config.burn_in, metrics)

    def state(self) -> dict[str, Any]:
        """Translator and optimiser."""
        return {"translator": self.translator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.translator.load_state_dict(state["translator"])
        self.optimizer.load_state_dict(state["optimizer"])


SOURCES: dict[str, type[Inversion | Procedural | Translation]] = {
    source.name: source for source in (Inversion, Procedural, Translation, SmoothNoise, WhiteNoise)
}
"""Every source by its name in the config."""


def _weight_seed(seed: int, name: str) -> int:
    return generator(seed, name).initial_seed()


def _module(teacher: TeacherLike) -> nn.Module:
    assert isinstance(teacher, nn.Module)
    return teacher
