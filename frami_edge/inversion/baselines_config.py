"""What the baselines read from YAML: published weights, and what we had to change.

Their budget is that of the inversion: `bank.inversion.steps`, `batch_size`, `burn_in` and `width`
hold for all of them; CMI and DeepInversion have no burn-in. Where the defaults come from stands in
docs/METHOD.md.
"""

from __future__ import annotations

from pydantic import Field

from frami_edge.config import MANY, WIDE, Strict


class DeepInversionConfig(Strict):
    """DeepInversion, with a student to compete with: adaptive DeepInversion (ADI)."""

    iterations: int = Field(75, ge=1, le=MANY)
    """Steps on one batch of log-mels, before the next one starts; published: 2000."""
    learning_rate: float = Field(0.1, gt=0)
    """Adam on the log-mels themselves, betas 0.5 and 0.99."""
    class_loss: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards the requested class."""
    batch_norm: float = Field(10.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    variation: float = Field(1e-3, ge=0)
    """Weight of the total variation."""
    competition: float = Field(1.0, ge=0)
    """Weight of the disagreement with a sparring student; 0 for DeepInversion without ADI."""
    temperature: float = Field(3.0, gt=0)
    """Softens both answers in that term."""
    student_steps: float = Field(0.4, ge=0)
    """Sparring steps for each step on the log-mels, all after the batch is finished."""


class AlternatingConfig(Strict):
    """A generator and a student that take turns; a weight of 0 switches its term off."""

    latent: int = Field(256, ge=1, le=WIDE)
    """Size of z."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam on the generator, betas 0.5 and 0.999."""
    one_hot: float = Field(0.0, ge=0)
    """Weight of the cross entropy towards the teacher's own answer."""
    activation: float = Field(0.0, ge=0)
    """Weight of the mean absolute pooled state, which is raised."""
    balance: float = Field(0.0, ge=0)
    """Weight of the negative entropy of the batch's mean answer."""
    adversarial: float = Field(0.0, ge=0)
    """Weight of the divergence of a sparring student, which is raised."""
    batch_norm: float = Field(0.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    student_steps: int = Field(5, ge=1, le=MANY)
    """Sparring steps for each generator step, on fresh clips; none where `adversarial` is 0."""


class DaflConfig(AlternatingConfig):
    """DAFL."""

    latent: int = Field(512, ge=1, le=WIDE)
    """Size of z."""
    one_hot: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards the teacher's own answer."""
    activation: float = Field(1e-3, ge=0)
    """Weight of the mean absolute pooled state, which is raised."""
    balance: float = Field(20.0, ge=0)
    """Weight of the negative entropy of the batch's mean answer."""


class ZsktConfig(AlternatingConfig):
    """ZSKT."""

    adversarial: float = Field(1.0, ge=0)
    """Weight of the divergence of a sparring student, which is raised."""


class DfqConfig(AlternatingConfig):
    """DFQ."""

    one_hot: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards the teacher's own answer."""
    balance: float = Field(20.0, ge=0)
    """Weight of the negative entropy of the batch's mean answer."""
    adversarial: float = Field(1.0, ge=0)
    """Weight of the divergence of a sparring student, which is raised."""
    batch_norm: float = Field(1.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    student_steps: int = Field(10, ge=1, le=MANY)
    """Sparring steps for each generator step, on fresh clips; none where `adversarial` is 0."""


class CmiConfig(Strict):
    """CMI."""

    iterations: int = Field(50, ge=1, le=MANY)
    """Steps on one batch, after which the generator is new; published: 200."""
    latent: int = Field(256, ge=1, le=WIDE)
    """Size of z."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam on generator, z and the embedding's head, betas 0.5 and 0.999."""
    class_loss: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards the requested class."""
    batch_norm: float = Field(1.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    adversarial: float = Field(0.5, ge=0)
    """Weight of the disagreement with a sparring student, from the second batch on."""
    contrastive: float = Field(0.8, ge=0)
    """Weight of the contrastive loss."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrastive loss."""
    embedding: int = Field(256, ge=1, le=WIDE)
    """Size of the contrastive embedding."""
    memory: int = Field(40_960, ge=1, le=MANY)
    """Finished clips whose features are kept; the oldest go."""
    negatives: int = Field(4096, ge=1, le=MANY)
    """Of them, drawn at each step."""
    student_steps: float = Field(2.0, ge=0)
    """Sparring steps for each generator step, all after the batch is finished."""


class FastConfig(Strict):
    """Fast-Datafree: a meta-learned generator that needs few steps a batch."""

    iterations: int = Field(5, ge=1, le=MANY)
    """Inner steps from the meta-learned generator to a batch; published: 2, 5 or 10."""
    latent: int = Field(256, ge=1, le=WIDE)
    """Size of z."""
    learning_rate: float = Field(3e-3, gt=0)
    """Adam on the inner generator; the outer one takes it times `iterations`."""
    latent_rate: float = Field(1e-2, gt=0)
    """Adam on z."""
    class_loss: float = Field(0.5, ge=0)
    """Weight of the cross entropy towards the requested class."""
    batch_norm: float = Field(10.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of earlier batches in the statistics that this loss compares."""
    adversarial: float = Field(1.33, ge=0)
    """Weight of the disagreement with a sparring student."""
    warmup: float = Field(20 / 220, ge=0, le=1)
    """Share of the steps without that term and without sparring."""
    student_steps: float = Field(1.0, ge=0)
    """Sparring steps for each inner step, all after the batch is finished."""


class BaselinesConfig(Strict):
    """Other methods' synthesis, each a source of the bank under its name."""

    deep_inversion: DeepInversionConfig = DeepInversionConfig()
    """DeepInversion (ADI)."""
    dafl: DaflConfig = DaflConfig()
    """DAFL."""
    zskt: ZsktConfig = ZsktConfig()
    """ZSKT."""
    dfq: DfqConfig = DfqConfig()
    """DFQ."""
    cmi: CmiConfig = CmiConfig()
    """CMI."""
    fast: FastConfig = FastConfig()
    """Fast-Datafree."""


BASELINES = tuple(BaselinesConfig.model_fields)
"""Their names, as sources and as keys of `bank.baselines`."""

BUDGET = ("steps", "burn_in", "batch_size", "width")
"""Keys of `bank.inversion` that hold for them too."""


def section(source: str) -> str:
    """Where a source's own keys stand in the config: `bank.cmi` would not be found."""
    return f"bank.baselines.{source}" if source in BASELINES else f"bank.{source}"


def budget(source: str) -> str:
    """Where a source's steps and burn-in stand in the config."""
    return "bank.inversion" if source in BASELINES else f"bank.{source}"
