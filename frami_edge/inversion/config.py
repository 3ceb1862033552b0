"""What the inversion reads from YAML; a weight of 0 switches its term off."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from frami_edge.config import MANY, WIDE, Strict
from frami_edge.inversion.baselines_config import BASELINES, BaselinesConfig, section


class AdversarialConfig(Strict):
    """Seek clips on which a student in training still disagrees with the teacher."""

    weight: float = Field(0.0, ge=0)
    """Of the term; 0 trains no sparring student."""
    warmup_steps: int = Field(50, ge=0, le=MANY)
    """Steps before the term counts: an untrained student disagrees everywhere."""
    student_steps: int = Field(2, ge=1, le=MANY)
    """Distillation steps of the sparring student for each generator step."""


class InversionConfig(Strict):
    """Conditional generator against the teacher."""

    steps: int = Field(150, ge=1, le=MANY)
    """Generator steps; each one's clips enter the bank once `burn_in` steps are over."""
    burn_in: int = Field(20, ge=0, le=MANY)
    """First steps, whose clips are thrown away."""
    batch_size: int = Field(48, ge=2, le=WIDE)
    """Clips a step."""
    batch_steps: int = Field(10, ge=1, le=MANY)
    """Generator steps on the same noise and classes. Longer ones fit each clip better and give
    fewer that differ; 1 draws a new batch for each step."""
    latent_rate: float = Field(0.02, ge=0)
    """Adam's learning rate of the noise itself, which learns along where `batch_steps` is above 1;
    0 leaves it as drawn."""
    latent: int = Field(128, ge=1, le=WIDE)
    """Size of z."""
    width: int = Field(64, ge=8, le=WIDE)
    """Channels of the generator's coarsest layer."""
    learning_rate: float = Field(2e-3, gt=0)
    """Adam, betas 0.5 and 0.999."""
    shortest_view: float = Field(0.5, gt=0, le=1)
    """Shortest stretch of a clip, relative to its frames, that the teacher is asked about at a
    step; 1 for whole clips only. Students learn from stretches too."""
    class_loss: float = Field(0.1, ge=0)
    """Weight of the cross entropy towards balanced classes. Larger ones give clips that the teacher
    is surer of than of sounds, and that resemble each other."""
    batch_norm: float = Field(10.0, ge=0)
    """Weight of the relative BatchNorm-statistics loss."""
    contrastive: float = Field(0.2, ge=0)
    """Weight of the feature-invariant contrastive loss."""
    contrastive_memory: int = Field(1024, ge=1, le=MANY)
    """Earlier clips that serve as negatives."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrastive loss."""
    adversarial: AdversarialConfig = AdversarialConfig()
    """Adversarial teacher-student term."""


class TranslatorConfig(Strict):
    """Class-conditioned change of procedural log-mels, learned against the teacher."""

    steps: int = Field(150, ge=1, le=MANY)
    """Steps."""
    burn_in: int = Field(20, ge=0, le=MANY)
    """First steps, whose clips are thrown away."""
    batch_size: int = Field(48, ge=2, le=WIDE)
    """Clips a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Adam."""
    class_loss: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards balanced classes."""
    batch_norm: float = Field(10.0, ge=0)
    """Weight of the relative BatchNorm-statistics loss."""
    change: float = Field(0.1, ge=0)
    """Weight of the mean squared change."""


class BankConfig(Strict):
    """What the student learns from."""

    frames: int = Field(96, ge=8, le=WIDE)
    """Mel frames (T) of every clip."""
    sources: dict[str, float] = Field(
        default={"inversion": 1.0, "procedural": 1.0, "translator": 1.0}
    )
    """Share of each source in a batch: `inversion`, `procedural`, `translator`, the controls
    `smooth_noise` and `white_noise`, and the baselines `deep_inversion`, `dafl`, `zskt`, `dfq`,
    `cmi` and `fast`. Inversion only: `{inversion: 1}`."""
    procedural_clips: int = Field(5000, ge=1, le=MANY)
    """Clips of the procedural source."""
    control_clips: int = Field(5000, ge=1, le=MANY)
    """Clips of each control source."""
    shard_clips: int = Field(2048, ge=1, le=MANY)
    """Clips in a file of the bank."""
    inversion: InversionConfig = InversionConfig()
    """The inversion."""
    translator: TranslatorConfig = TranslatorConfig()
    """The translator."""
    baselines: BaselinesConfig = BaselinesConfig()
    """Other methods; steps, batch size, burn-in and width are those of `inversion`."""

    @model_serializer(mode="wrap")
    def _only_used_baselines(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A bank without baselines reads, and hashes, as it did before there were any."""
        facts: dict[str, Any] = serialise(self)
        plain = BaselinesConfig()
        kept = {
            name: facts["baselines"][name]
            for name in BASELINES
            if name in self.shares or getattr(self.baselines, name) != getattr(plain, name)
        }
        others = {key: value for key, value in facts.items() if key != "baselines"}
        return others | ({"baselines": kept} if kept else {})

    @model_validator(mode="after")
    def _sources_known(self) -> BankConfig:
        known = {"inversion", "procedural", "translator", "smooth_noise", "white_noise", *BASELINES}
        unknown = sorted(set(self.sources) - known)
        if unknown:
            raise ValueError(
                f"unknown source {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        if any(w < 0 for w in self.sources.values()) or sum(self.sources.values()) <= 0:
            raise ValueError("the weights of the sources must be >= 0, and one must be positive")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Weights that sum to 1, without the sources that are switched off."""
        total = sum(self.sources.values())
        return {name: w / total for name, w in self.sources.items() if w > 0}


def batch_norm_keys(config: BankConfig, source: str) -> list[str]:
    """Keys of a source's weights, other than 0, that need a teacher with BatchNorm statistics."""
    if source in BASELINES:
        found = getattr(config.baselines, source)
    else:
        found = {"inversion": config.inversion, "translator": config.translator}.get(source)
    # The features of CMI's contrastive loss are inputs of BatchNorm layers.
    weights = ("batch_norm", "contrastive") if source == "cmi" else ("batch_norm",)
    return [f"{section(source)}.{key}" for key in weights if getattr(found, key, 0)]
