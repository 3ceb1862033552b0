"""What `frami-edge train-teacher` reads from YAML."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from frami_edge.config import MANY, WIDE, Strict
from frami_edge.models.config import TeacherArch
from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.melspec import MelSpec


class MelConfig(Strict):
    """The mel front end. Mean and standard deviation are measured on the training clips."""

    sample_rate: int = 16_000
    """Hz; clips of other rates are resampled."""
    n_fft: int = 512
    """FFT size in samples."""
    win_length: int = 400
    """Window in samples."""
    hop_length: int = 160
    """Samples between frames."""
    n_mels: int = 64
    """Mel bands."""
    f_min: float = 0.0
    """Hz."""
    f_max: float = 0.0
    """Hz; 0 for half the sample rate."""
    mel_scale: Literal["htk", "slaney"] = "htk"
    """Mel formula."""
    norm: Literal["none", "slaney"] = "none"
    """Area normalisation of the bands."""
    power: float = 2.0
    """2 for energy, 1 for magnitude."""
    log: Literal["ln", "log2", "log10", "db"] = "ln"
    """Kind of logarithm."""
    log_eps: float = 1e-6
    """Keeps the logarithm finite."""
    log_floor: Literal["add", "clamp"] = "add"
    """log(x + eps) or log(max(x, eps))."""
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
    """Which clips."""

    name: str
    """`fsdd`, `esc10`, `esc50`, `urbansound8k`, `audiomnist`, or `folder:PATH`."""
    fold: str
    """The official fold or split that is held out for testing: the teacher never hears it."""

    @field_validator("fold", mode="before")
    @classmethod
    def _number_is_a_name(cls, value: Any) -> Any:
        # `--set data.fold=1` is a number in YAML.
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class TrainConfig(Strict):
    """The recipe."""

    epochs: int = Field(30, ge=1, le=MANY)
    """Passes over the training clips."""
    batch_size: int = Field(32, ge=2, le=WIDE)
    """Clips a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the one-cycle cosine schedule (AdamW)."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW, on matrices and kernels only."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    crop_frames: int = Field(0, ge=0)
    """Train on random stretches of this many mel frames; 0 for whole clips."""
    mixup: float = Field(0.0, ge=0, le=1)
    """Probability that a clip is blended with another."""
    mask_bands: int = Field(8, ge=0)
    """SpecAugment: widest stripe of mel bands."""
    mask_frames: int = Field(0, ge=0)
    """SpecAugment: widest stripe of frames."""
    gain: float = Field(0.2, ge=0)
    """Standard deviation of the random loudness, in units of the front end's std."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Of the cross entropy."""
    checkpoint_epochs: int = Field(1, ge=1, le=MANY)
    """Epochs between checkpoints, from which a killed run is resumed."""


class TeacherConfig(Strict):
    """One teacher."""

    data: DataConfig
    """Training clips and the fold held out."""
    mel: MelConfig = MelConfig()
    """Front end."""
    arch: TeacherArch = TeacherArch()
    """Network."""
    train: TrainConfig = TrainConfig()
    """Recipe."""
    seed: int = Field(0, ge=0)
    """Of weights, order and augmentation."""
