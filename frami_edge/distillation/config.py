"""What the distillation reads from YAML."""

from __future__ import annotations

from pydantic import Field, model_validator

from frami_edge.config import MANY, WIDE, Strict
from frami_edge.inversion.config import BankConfig
from frami_edge.models.config import StudentArch


class DistillConfig(Strict):
    """The student's training on the bank; the teacher answers live to every augmented batch."""

    steps: int = Field(800, ge=1, le=MANY)
    """Training steps."""
    batch_size: int = Field(64, ge=2, le=WIDE)
    """Clips a step."""
    learning_rate: float = Field(1.5e-2, gt=0)
    """Peak of the cosine schedule (AdamW)."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW, on matrices and kernels only."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    temperature: float = Field(2.0, gt=0)
    """Softens teacher and student in the logits term."""
    logits: float = Field(1.0, ge=0)
    """Weight of the logits term."""
    before_pooling: float = Field(3.0, ge=0)
    """Weight of the frame-feature term (hidden state before the pooling)."""
    after_pooling: float = Field(3.0, ge=0)
    """Weight of the pooled-statistics term (hidden state after the pooling)."""
    reuse_head: bool = True
    """Keep the teacher's head behind an affine projector; both are one matrix at export."""
    crop_min: int = Field(48, ge=1)
    """Shortest random stretch, in mel frames."""
    crop_max: int = Field(96, ge=1)
    """Longest random stretch, in mel frames."""
    gain: float = Field(0.3, ge=0)
    """Standard deviation of the random loudness, in units of the front end's std."""
    mixup: float = Field(0.25, ge=0, le=1)
    """Probability that a clip is blended with another of its batch, of whatever source."""
    mask_bands: int = Field(0, ge=0)
    """Widest masked stripe of mel bands."""
    mask_frames: int = Field(0, ge=0)
    """Widest masked stripe of frames."""
    checkpoint_steps: int = Field(100, ge=1, le=MANY)
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def _crops_ordered(self) -> DistillConfig:
        if self.crop_min > self.crop_max:
            raise ValueError("crop_min must not exceed crop_max")
        if not (self.logits or self.before_pooling or self.after_pooling):
            raise ValueError("one of logits, before_pooling and after_pooling must be positive")
        if not self.logits and not self.reuse_head:
            raise ValueError("logits 0 needs reuse_head: nothing else would train the head")
        return self


class JourneyConfig(Strict):
    """Teacher to student: the bank and the distillation."""

    student: StudentArch = StudentArch()
    """The student."""
    bank: BankConfig = BankConfig()
    """Synthetic clips."""
    distill: DistillConfig = DistillConfig()
    """Distillation on them."""
    seed: int = Field(0, ge=0)
    """Of everything that chance touches."""

    @model_validator(mode="after")
    def _crop_fits(self) -> JourneyConfig:
        if self.distill.crop_max > self.bank.frames:
            raise ValueError(
                f"distill.crop_max {self.distill.crop_max} exceeds bank.frames {self.bank.frames}"
            )
        return self
