"""Typed configs: strict, frozen models of every recipe; `yaml_config` reads and writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.melspec import MelSpec

MANY = 10_000_000  # most steps, clips or rows that a config may ask for
WIDE = 1 << 16  # largest batch or layer


class Strict(BaseModel):
    """Base of every config: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


# --- Networks

Count = Annotated[int, Field(ge=1, le=MANY)]
Size = Annotated[int, Field(ge=1, le=WIDE)]
BatchSize = Annotated[int, Field(ge=2, le=WIDE)]
Channels = Annotated[int, Field(ge=4, le=1024)]
Weight = Annotated[float, Field(ge=0)]
"""A weight of 0 switches its term off."""
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Frames = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.05, le=60)]
Seed = Annotated[int, Field(ge=0)]


class TeacherArch(Strict):
    """A ResNet with statistics pooling."""

    channels: tuple[Channels, ...] = Field((16, 32, 64), min_length=1, max_length=16)
    """Channels of each stage; the last is C of the frame features."""
    blocks: int = Field(2, ge=1, le=8)  # residual blocks per stage
    dropout: Share = 0.0  # dropout before the head, in training


class InheritedLayer(Strict):
    """One of a teacher's layers in a student; `of` are numbers of earlier ones, 0 is the input."""

    op: Literal["conv", "add", "relu", "relu6", "hardswish", "silu"]
    of: tuple[int, ...]
    channels: Count = 1
    groups: Count = 1
    kernel: tuple[Count, Count] = (1, 1)  # mel bands, frames; so are the next three
    stride: tuple[Count, Count] = (1, 1)
    padding: tuple[Frames, Frames] = (0, 0)
    dilation: tuple[Count, Count] = (1, 1)

    @model_validator(mode="after")
    def _takes_its_inputs(self) -> InheritedLayer:
        if len(self.of) != (2 if self.op == "add" else 1):
            raise ValueError("add takes two layers, every other operation one")
        return self


SIZES = {
    "nano": (16, 32, 48, 64, 64),
    "small": (32, 64, 96, 128, 128),
    "base": (48, 96, 144, 192, 192),
}
"""Widths by name: a third, one and two times the parameters and arithmetic of the digit student."""


class StudentArch(Strict):
    """A depthwise-separable CNN without padding along time."""

    inherit: str | None = None
    """Name of the teacher's module up to which its layers become the student's first ones, frozen.
    The student then needs the teacher's front end, and `channels` and `time_kernels` are those of
    the layers behind them: the first spans all that is left of the mel bands."""
    layers: tuple[InheritedLayer, ...] = ()
    """What was inherited; found by `distill`."""
    channels: tuple[Channels, ...] = Field((24, 48, 64, 96, 96), max_length=32)
    """Channels of the stem and of each depthwise-separable block, or one of `SIZES` by name."""
    time_kernels: tuple[int, ...] = (3, 3, 3, 3, 3)
    """Kernel sizes along time, one per layer: 1 or 3, the first two 3. They decide the receptive
    field: 31 mel frames for all threes; (3, 3, 3, 1, 1) gives 15, for sounds as short as spoken
    digits."""
    out_channels: Channels = 64
    """C of the frame features, after a last 1x1 convolution: the teacher's own C where its head is
    reused, so that frame features match without a further projector."""

    @field_validator("channels", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in SIZES:
            raise ValueError(f"must be a list of numbers, or one of {', '.join(SIZES)}")
        return SIZES[value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _layers_match(self) -> StudentArch:
        if self.layers and not self.inherit:
            raise ValueError("layers are found by distill: set inherit to a module of the teacher")
        if len(self.channels) != len(self.time_kernels):
            raise ValueError("channels and time_kernels need the same length")
        if set(self.time_kernels) - {1, 3}:
            raise ValueError("time_kernels may hold 1 and 3 only")
        if not self.inherit and self.time_kernels[:2] != (3, 3):
            # Stem and first block stride by 2: a kernel of 1 would skip every other frame.
            raise ValueError("time_kernels must start with 3, 3")
        return self

    @model_serializer(mode="wrap")
    def _only_what_is_inherited(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A student without inherited layers reads as before there were any."""
        facts: dict[str, Any] = serialise(self)
        return {k: v for k, v in facts.items() if k not in ("inherit", "layers") or v}


# --- Published baselines; docs/METHOD.md gives the sources of the defaults
# Their budget is that of the inversion: `bank.inversion.steps`, `batch_size`, `burn_in` and `width`
# hold for all of them; CMI and DeepInversion have no burn-in.


class DeepInversionConfig(Strict):
    """DeepInversion that competes with a student: adaptive DeepInversion (ADI)."""

    iterations: Count = 75
    """Steps on one batch of log-mels, before the next one starts; published: 2000."""
    learning_rate: Positive = 0.1  # Adam on the log-mels themselves, betas 0.5 and 0.99
    class_loss: Weight = 1.0  # weight of the cross entropy with the target class
    batch_norm: Weight = 10.0
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    variation: Weight = 1e-3  # weight of the total variation
    competition: Weight = 1.0
    """Weight of the disagreement with an auxiliary student; 0 for DeepInversion without ADI."""
    temperature: Positive = 3.0  # softens both predictions in that term
    student_steps: Weight = 0.4
    """Auxiliary-student steps per step on the log-mels, all after the batch is finished."""


class AlternatingConfig(Strict):
    """A generator and a student that take turns; a weight of 0 switches its term off."""

    latent: Size = 256  # size of z
    learning_rate: Positive = 1e-3  # Adam on the generator, betas 0.5 and 0.999
    one_hot: Weight = 0.0  # weight of the cross entropy with the teacher's own prediction
    activation: Weight = 0.0  # weight of the mean absolute pooled state, which is raised
    balance: Weight = 0.0  # weight of the negative entropy of the batch's mean prediction
    adversarial: Weight = 0.0  # weight of the divergence of an auxiliary student, which is raised
    batch_norm: Weight = 0.0  # weight of the BatchNorm-statistics loss, a sum of norms as published
    student_steps: Count = 5
    """Auxiliary-student steps per generator step, on fresh clips; none where `adversarial` is 0."""


class DaflConfig(AlternatingConfig):
    """DAFL: the keys of `AlternatingConfig` with published weights."""

    latent: Size = 512
    one_hot: Weight = 1.0
    activation: Weight = 1e-3
    balance: Weight = 20.0


class ZsktConfig(AlternatingConfig):
    """ZSKT: the keys of `AlternatingConfig` with published weights."""

    adversarial: Weight = 1.0


class DfqConfig(AlternatingConfig):
    """DFQ: the keys of `AlternatingConfig` with published weights."""

    one_hot: Weight = 1.0
    balance: Weight = 20.0
    adversarial: Weight = 1.0
    batch_norm: Weight = 1.0
    student_steps: Count = 10


class CmiConfig(Strict):
    """CMI."""

    iterations: Count = 50  # steps on one batch, after which the generator is new; published: 200
    latent: Size = 256  # size of z
    learning_rate: Positive = 1e-3
    """Adam on generator, z and the embedding's head, betas 0.5 and 0.999."""
    class_loss: Weight = 1.0  # weight of the cross entropy with the target class
    batch_norm: Weight = 1.0  # weight of the BatchNorm-statistics loss, a sum of norms as published
    adversarial: Weight = 0.5
    """Weight of the disagreement with an auxiliary student, from the second batch on."""
    contrastive: Weight = 0.8  # weight of the contrastive loss
    temperature: Positive = 0.1  # temperature of the contrastive loss
    embedding: Size = 256  # size of the contrastive embedding
    memory: Count = 40_960  # finished clips whose features are kept; the oldest are dropped
    negatives: Count = 4096  # features drawn from the memory at each step
    student_steps: Weight = 2.0
    """Auxiliary-student steps per generator step, all after the batch is finished."""


class FastConfig(Strict):
    """Fast-Datafree: a meta-learned generator that needs few steps per batch."""

    iterations: Count = 5
    """Inner steps from the meta-learned generator to a batch; published: 2, 5 or 10."""
    latent: Size = 256  # size of z
    learning_rate: Positive = 3e-3
    """Adam on the inner generator; the outer one uses it times `iterations`."""
    latent_rate: Positive = 1e-2  # Adam on z
    class_loss: Weight = 0.5  # weight of the cross entropy with the target class
    batch_norm: Weight = 10.0
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    momentum: Share = 0.9  # share of earlier batches in the statistics that this loss compares
    adversarial: Weight = 1.33  # weight of the disagreement with an auxiliary student
    warmup: float = Field(20 / 220, ge=0, le=1)
    """Share of the steps without that term and without auxiliary-student steps."""
    student_steps: Weight = 1.0
    """Auxiliary-student steps per inner step, all after the batch is finished."""


class BaselinesConfig(Strict):
    """Synthesis by other methods, each a source of the bank under its name."""

    deep_inversion: DeepInversionConfig = DeepInversionConfig()  # DeepInversion (ADI)
    dafl: DaflConfig = DaflConfig()  # DAFL
    zskt: ZsktConfig = ZsktConfig()  # ZSKT
    dfq: DfqConfig = DfqConfig()  # DFQ
    cmi: CmiConfig = CmiConfig()  # CMI
    fast: FastConfig = FastConfig()  # Fast-Datafree


BASELINES = tuple(BaselinesConfig.model_fields)
"""Their names, as sources and as keys of `bank.baselines`."""


# --- The bank of synthetic clips


def frames_in(seconds: float, mel: MelSpec) -> int:
    """Mel frames of a front end that come nearest to so many seconds."""
    return max(1, round(seconds / mel.hop_s))


class AdversarialConfig(Strict):
    """Seeks clips on which a student in training still disagrees with the teacher."""

    weight: Weight = 0.0  # weight of the term; 0 trains no auxiliary student
    warmup_steps: int = Field(50, ge=0, le=MANY)
    """Steps before the term counts: an untrained student disagrees everywhere."""
    student_steps: Count = 2  # distillation steps of the auxiliary student per generator step


class InversionConfig(Strict):
    """A conditional generator trained against the teacher."""

    steps: Count = 150  # generator steps; the clips of each enter the bank after `burn_in` steps
    burn_in: int = Field(20, ge=0, le=MANY)  # first steps, whose clips are thrown away
    batch_size: BatchSize = 48  # clips per step
    batch_steps: Count = 10
    """Generator steps on the same noise and classes. More steps fit each clip better and give fewer
    different ones; 1 draws a new batch for each step."""
    latent_rate: Weight = 0.02
    """Adam's learning rate of the noise itself, which is trained where `batch_steps` is above 1;
    0 leaves it as drawn."""
    latent: Size = 128  # size of z
    width: int = Field(64, ge=8, le=WIDE)  # channels of the generator's coarsest layer
    learning_rate: Positive = 2e-3  # Adam, betas 0.5 and 0.999
    shortest_view: float = Field(0.5, gt=0, le=1)
    """Shortest stretch of a clip, relative to its frames, on which the losses of a step are
    computed; 1 for whole clips only. Students are trained on stretches too."""
    class_loss: Weight = 0.1
    """Weight of the cross entropy with balanced target classes. Larger weights give over-confident
    samples that resemble each other."""
    batch_norm: Weight = 10.0  # weight of the relative BatchNorm-statistics loss
    contrastive: Weight = 0.2  # weight of the feature-invariant contrastive loss
    contrastive_memory: Count = 1024  # earlier clips that serve as negatives
    temperature: Positive = 0.1  # temperature of the contrastive loss
    adversarial: AdversarialConfig = AdversarialConfig()  # adversarial teacher-student term


class TranslatorConfig(Strict):
    """Class-conditioned change of procedural log-mels, trained against the teacher."""

    steps: Count = 150  # training steps; the clips of each enter the bank after `burn_in` steps
    burn_in: int = Field(20, ge=0, le=MANY)  # first steps, whose clips are thrown away
    batch_size: BatchSize = 48  # clips per step
    learning_rate: Positive = 2e-3  # Adam's learning rate
    class_loss: Weight = 1.0  # weight of the cross entropy with balanced target classes
    batch_norm: Weight = 10.0  # weight of the relative BatchNorm-statistics loss
    change: Weight = 0.1  # weight of the mean squared change


class RefinementConfig(Strict):
    """Procedural clips that are refined by gradient steps, batch by batch."""

    steps: Count = 20  # batches
    batch_size: BatchSize = 40  # clips per batch
    iterations: Count = 40  # gradient steps on a batch
    learning_rate: Positive = 0.04  # Adam's, on the change of the log-mels
    class_loss: Weight = 0.3  # weight of the cross entropy with balanced target classes
    batch_norm: Weight = 1.0  # weight of the relative BatchNorm-statistics loss


class BreedingConfig(Strict):
    """Procedural clips that are varied, and selected by the teacher's answers."""

    steps: Count = 150  # steps; children near the elites enter the bank after `burn_in` steps
    burn_in: int = Field(15, ge=0, le=MANY)  # first steps, whose clips are thrown away
    batch_size: BatchSize = 120  # children per step, in turns for each class
    founders: Count = 2000  # procedural clips to begin with
    elites: Count = 40  # best clips of each class, of which children are made
    per_founder: Count = 3  # most places of one founder's descendants among them
    fresh: Share = 0.12  # share of the children of a founder instead of an elite
    margin: Weight = 1.0
    """How far below the last elite of its class a child may score to enter the bank, in nats."""


class BankConfig(Strict):
    """The synthetic clips that the student is trained on."""

    clip_s: Seconds = 0.96  # length of every clip, in seconds
    sources: dict[str, float] = Field(
        default={"inversion": 1.0, "procedural": 1.0, "translator": 1.0}
    )
    """Share of each source in a batch: `inversion`, `procedural`, `translator`, `breeding`,
    `refinement`, the user's own `recordings`, the controls `smooth_noise` and `white_noise`, and
    the baselines `deep_inversion`, `dafl`, `zskt`, `dfq`, `cmi` and `fast`. Inversion only:
    `{inversion: 1}`."""
    procedural_clips: Count = 5000  # clips of the procedural source
    control_clips: Count = 5000  # clips of each control source
    recordings: str | None = None
    """Folder of the user's own unlabelled audio, for the source `recordings`."""
    recordings_clips: Count = 5000  # random stretches of these recordings
    audio: bool = False
    """Hold audio, with log-mels of learned sources rendered, also where log-mels would do."""
    shard_clips: Count = 2048  # clips per file of the bank
    near_misses: Share = 0.25
    """For a teacher with a detector per class: share of the clips of learned sources that shall
    stay just below 0.5 for their target class."""
    pairs: Share = 0.1
    """For such a teacher: share of the other clips that shall have a second class as well."""
    inversion: InversionConfig = InversionConfig()  # the inversion
    translator: TranslatorConfig = TranslatorConfig()  # the translator
    breeding: BreedingConfig = BreedingConfig()  # breeding
    refinement: RefinementConfig = RefinementConfig()  # refinement
    baselines: BaselinesConfig = BaselinesConfig()
    """Other methods; steps, batch size, burn-in and width are those of `inversion`."""

    @model_serializer(mode="wrap")
    def _only_used_sources(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A bank without baselines or breeding reads, and hashes, as before there were any."""
        facts: dict[str, Any] = serialise(self)
        baselines, plain = facts.pop("baselines"), BaselinesConfig()
        kept = {
            name: baselines[name]
            for name in BASELINES
            if name in self.shares or getattr(self.baselines, name) != getattr(plain, name)
        }
        for name, unused in (("breeding", BreedingConfig()), ("refinement", RefinementConfig())):
            if name not in self.shares and getattr(self, name) == unused:
                facts.pop(name)
        return facts | ({"baselines": kept} if kept else {})

    @model_validator(mode="after")
    def _sources_known(self) -> BankConfig:
        known = {"inversion", "procedural", "translator", "breeding", "refinement", "recordings"}
        known |= {"smooth_noise", "white_noise", *BASELINES}
        unknown = sorted(set(self.sources) - known)
        if unknown:
            raise ValueError(
                f"unknown source {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        if any(w < 0 for w in self.sources.values()) or sum(self.sources.values()) <= 0:
            raise ValueError("the weights of the sources must be >= 0, and one must be positive")
        if self.sources.get("recordings") and not self.recordings:
            raise ValueError(
                "the source recordings needs a folder of audio: --recordings FOLDER, or "
                "bank.recordings"
            )
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Weights that sum to 1, without the sources that are switched off."""
        total = sum(self.sources.values())
        return {name: w / total for name, w in self.sources.items() if w > 0}


def section(source: str) -> str:
    """The dotted key of a source's own section, such as `bank.baselines.cmi`."""
    return f"bank.baselines.{source}" if source in BASELINES else f"bank.{source}"


def budget(source: str) -> str:
    """The dotted key of the section with a source's steps and burn-in."""
    return "bank.inversion" if source in BASELINES else f"bank.{source}"


def batch_norm_keys(config: BankConfig, source: str) -> list[str]:
    """Keys of a source's positive weights that need a teacher with BatchNorm statistics."""
    if source in BASELINES:
        found = getattr(config.baselines, source)
    else:
        found = {
            "inversion": config.inversion,
            "translator": config.translator,
            "refinement": config.refinement,
        }.get(source)
    # The features of CMI's contrastive loss are inputs of BatchNorm layers.
    weights = ("batch_norm", "contrastive") if source == "cmi" else ("batch_norm",)
    return [f"{section(source)}.{key}" for key in weights if getattr(found, key, 0)]


# --- The distillation


class DistillConfig(Strict):
    """The student's training on the bank, with live teacher predictions for augmented batches."""

    steps: Count = 800  # training steps
    batch_size: BatchSize = 64  # clips per step
    repeats: Count = 1
    """Steps per new batch; the others learn again from an earlier one. Teacher and inherited layers
    cost most of a step, and compute each batch once. Above 1, the last 400 batches stay in memory:
    1 to 2 GB behind inherited layers, more of log-mels."""
    learning_rate: Positive = 1.5e-2  # peak of the cosine schedule (AdamW)
    weight_decay: Weight = 1e-2  # AdamW, on matrices and kernels only
    warmup: Share = 0.05  # share of the steps over which the learning rate rises
    temperature: Positive = 2.0  # softens teacher and student in the logits term
    boundary: float = Field(0.93, gt=0, le=1)
    """For a teacher with a detector per class: the logits term compares probabilities around the
    logit that this share of the clips stays below; 1 for the boundary of probability 0.5."""
    ranking: Weight = 0.1
    """For such a teacher: weight, inside the logits term, of the divergence of the softmax over its
    kept logits."""
    whole: Weight = 0.5
    """Where classes were selected: weight of the term on all logits of the teacher, by a head that
    is dropped after training."""
    balance: Share = 0.5
    """For such a teacher: share of a batch that is drawn evenly from the clips that it finds likely
    for each class; the rest follows the weights of the sources."""
    logits: Weight = 1.0  # weight of the logits term
    before_pooling: Weight = 3.0
    """Weight of the frame-feature term (hidden state before the pooling)."""
    after_pooling: Weight = 3.0
    """Weight of the pooled-statistics term (hidden state after the pooling)."""
    reuse_head: bool = True
    """Keep the teacher's head behind an affine projector; both are one matrix at export."""
    join: Count = 1
    """Clips of the bank, one after the other, that make one clip of a batch: sounds come and go, as
    in recordings."""
    crop_min_s: Seconds = 0.48  # shortest random stretch of a clip, in seconds
    crop_max_s: Seconds = 0.96  # longest random stretch, in seconds
    gain: Weight = 0.3  # standard deviation of the random loudness, in units of the front end's std
    roll: bool = False  # start each clip at a random place and wrap around, before the crop
    mixup: float = Field(0.25, ge=0, le=1)
    """Probability that a clip is blended with another of its batch, of any source."""
    mask_bands: Frames = 0  # widest masked stripe of mel bands
    mask_frames: Frames = 0  # widest masked stripe of frames
    overlay: float = Field(0.0, ge=0, le=1)
    """Probability that another clip of the batch sounds at the same time, 0 to 20 dB weaker; this
    and the next four need a bank of log-mels."""
    tempo: Share = 0.0  # largest change of a clip's speed, relative
    pitch_bands: Weight = 0.0  # largest shift of a clip, in mel bands
    equaliser_db: Weight = 0.0  # standard deviation of a smooth change of the spectrum, in dB
    low_pass: float = Field(0.0, ge=0, le=1)
    """Probability that a clip ends at a random band of the upper half, as a recording at a lower
    rate does."""
    checkpoint_steps: Count = 100  # steps between checkpoints

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        if self.crop_min_s > self.crop_max_s:
            raise ValueError("crop_min_s must not exceed crop_max_s")
        if not (self.logits or self.before_pooling or self.after_pooling):
            raise ValueError("one of logits, before_pooling and after_pooling must be positive")
        if not self.logits and not self.reuse_head:
            raise ValueError("logits 0 needs reuse_head: nothing else would train the head")
        return self


class JourneyConfig(Strict):
    """Teacher to student: the bank and the distillation."""

    student: StudentArch = StudentArch()  # the student's network
    student_mel: dict[str, Any] | str | None = None
    """The student's own front end: keys of a MelSpec, a file of them, or a preset such as
    `mel/log-mel-16k-64`; None for the teacher's. A mean of 0 and a std of 1 are measured on the
    bank. Where its log-mels cannot be computed from the teacher's, the bank holds audio."""
    bank: BankConfig = BankConfig()  # synthetic clips
    distill: DistillConfig = DistillConfig()  # distillation on them
    seed: Seed = 0  # seeds everything random

    @model_validator(mode="after")
    def _crop_fits(self) -> JourneyConfig:
        longest, join, clip = self.distill.crop_max_s, self.distill.join, self.bank.clip_s
        if longest > join * clip:
            times = f"distill.join {join} x " if join > 1 else ""
            raise ValueError(f"distill.crop_max_s {longest:g} exceeds {times}bank.clip_s {clip:g}")
        return self


# --- Teacher training


class MelConfig(Strict):
    """The mel front end. Mean and standard deviation are measured on the training clips."""

    sample_rate: int = 16_000  # Hz; clips of other rates are resampled
    n_fft: int = 512  # FFT size in samples
    win_length: int = 400  # window in samples
    hop_length: int = 160  # samples between frames
    n_mels: int = 64  # Mel bands
    f_min: float = 0.0  # lower edge of the lowest band, in Hz
    f_max: float = 0.0  # upper edge of the highest band, in Hz; 0 for half the sample rate
    mel_scale: Literal["htk", "slaney"] = "htk"  # Mel formula
    norm: Literal["none", "slaney"] = "none"  # area normalisation of the bands
    power: float = 2.0  # 2 for energy, 1 for magnitude
    log: Literal["ln", "log2", "log10", "db"] = "ln"  # kind of logarithm
    log_eps: float = 1e-6  # keeps the logarithm finite
    log_floor: Literal["add", "clamp"] = "add"  # log(x + eps) or log(max(x, eps))
    center: bool = False
    """Reflect half a window at both ends. Off suits streams: no start or end case."""

    def spec(self, **statistics: Any) -> MelSpec:
        """The front end with its statistics."""
        return MelSpec(**self.model_dump(), **statistics)

    def model_post_init(self, _: Any) -> None:
        """Let MelSpec check the fields against each other."""
        try:
            self.spec()
        except MelSpecError as error:
            raise ValueError(str(error)) from error


class DataConfig(Strict):
    """The training clips and the fold held out."""

    name: str  # `fsdd`, `esc10`, `esc50`, `urbansound8k`, `audiomnist`, or `folder:PATH`
    fold: str  # the official fold or split held out for testing: the teacher is never trained on it

    @field_validator("fold", mode="before")
    @classmethod
    def _number_is_a_name(cls, value: Any) -> Any:
        # `--set data.fold=1` is a number in YAML.
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class TrainConfig(Strict):
    """The training recipe of a teacher."""

    epochs: Count = 30  # passes over the training clips
    batch_size: BatchSize = 32  # clips per step
    learning_rate: Positive = 2e-3  # peak of the one-cycle cosine schedule (AdamW)
    weight_decay: Weight = 1e-2  # AdamW, on matrices and kernels only
    warmup: Share = 0.1  # share of the steps over which the learning rate rises
    crop_s: Weight = 0.0  # train on random stretches of so many seconds; 0 for whole clips
    mixup: float = Field(0.0, ge=0, le=1)  # probability that a clip is blended with another
    mask_bands: Frames = 8  # SpecAugment: widest stripe of mel bands
    mask_frames: Frames = 0  # SpecAugment: widest stripe of frames
    gain: Weight = 0.2  # standard deviation of the random loudness, in units of the front end's std
    label_smoothing: Share = 0.0  # label smoothing of the cross entropy
    checkpoint_epochs: Count = 1  # epochs between checkpoints, from which a killed run is resumed


class TeacherConfig(Strict):
    """Everything that `train-teacher` needs to train one teacher."""

    data: DataConfig  # training clips and the fold held out
    mel: MelConfig = MelConfig()  # front end
    arch: TeacherArch = TeacherArch()  # network
    train: TrainConfig = TrainConfig()  # recipe
    seed: Seed = 0  # seeds weights, order and augmentation
