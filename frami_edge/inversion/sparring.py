"""The sparring student: trained along with the generator, for the adversarial term only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frami_edge.augment import random_crop
from frami_edge.device import Choice, autocast
from frami_edge.distillation.losses import logits_loss
from frami_edge.models.config import STUDENT_PRESETS
from frami_edge.models.hidden import TeacherLike
from frami_edge.models.student import Student
from frami_edge_runtime.melspec import MelSpec


class SparringStudent:
    """A tiny student that learns the teacher's logits on the latest synthetic clips.

    Args:
        teacher: Frozen.
        spec: Front end, for the number of mel bands.
        n_classes: K.
        choice: Device and precision.
    """

    def __init__(self, teacher: TeacherLike, spec: MelSpec, n_classes: int, choice: Choice) -> None:
        self.teacher, self.choice = teacher, choice
        self.student = Student(STUDENT_PRESETS["tiny"], spec.n_mels, n_classes).to(choice.device)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=2e-3)

    def logits(self, x_B1MT: Tensor) -> Tensor:
        """(B, K) with a gradient to the clips; BatchNorm uses its running statistics."""
        self.student.eval()
        logits: Tensor = self.student(x_B1MT)
        return logits

    def learn(self, x_B1MT: Tensor, generator: torch.Generator) -> None:
        """One distillation step on random stretches of the clips."""
        self.student.train()
        frames = max(self.student.receptive_field, round(0.75 * x_B1MT.shape[3]))
        x = random_crop(x_B1MT, frames, generator)
        with autocast(self.choice):
            with torch.no_grad():
                target = self.teacher.hidden(x).logits_BK
            guess = self.student(x)
        loss = logits_loss(guess, target, temperature=2.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
