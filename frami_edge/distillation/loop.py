"""The distillation loop.

Shape legend: B batch, M mel bands, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from frami_edge.augment import mix_pairs, random_crop, random_gain, random_masks
from frami_edge.device import Choice, autocast, generator, read_every, upload
from frami_edge.distillation.config import DistillConfig
from frami_edge.distillation.losses import FeatureScale, HiddenMatch
from frami_edge.distillation.terms import Terms, over_processes
from frami_edge.distributed import Rows, share_batch_norms
from frami_edge.errors import ConfigError, RunError
from frami_edge.models.hidden import TeacherLike
from frami_edge.models.student import ReusedHead, Student
from frami_edge.optim import cosine_with_warmup, weight_groups
from frami_edge.stopping import NEVER, Stop


class Feed(Protocol):
    """Where the clips of a batch come from: a bank, real clips, noise."""

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T) normalised log-mels, float32."""
        ...


class Distiller:
    """Teaches a student on clips whose labels nobody knows: the teacher answers.

    Every random choice of step i comes from the seed and i, so that a resumed run is the same run.
    Several processes share each batch out by rows; gradients, BatchNorm statistics and losses are
    those of the whole batch.

    Args:
        teacher: Frozen.
        student: Trained in place.
        config: Weights, augmentation, schedule.
        choice: Device and precision.
        seed: Of batches and augmentation.
        feed: Clips.

    Raises:
        ConfigError: No term would train the student's head.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: Student,
        config: DistillConfig,
        choice: Choice,
        seed: int,
        feed: Feed,
    ) -> None:
        self.teacher, self.student, self.config = teacher, student, config
        self.choice, self.seed, self.feed = choice, seed, feed
        # oneDNN's backward of depthwise kernels is several times slower in bf16 than in fp32 on a
        # CPU.
        self.student_autocast = choice.device.type != "cpu" and choice.dtype != torch.float32
        _check_head(teacher, student, config)
        self.done = 0
        self.rows = Rows(config.batch_size)
        share_batch_norms(student)
        student.to(choice.device)
        if choice.channels_last:
            student.to(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(choice):
            probe = feed.batch(256, generator(seed, "distill/scale")).to(choice.device)
            scale = FeatureScale.measure(teacher.hidden(probe))
        torch.manual_seed(generator(seed, "distill/projectors").initial_seed())
        self.match = HiddenMatch(student, teacher, scale).to(choice.device)
        groups = weight_groups(student, config.weight_decay) + weight_groups(
            self.match, config.weight_decay
        )
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.terms = Terms(student, self.match, config, choice, self.student_autocast)
        self._terms = over_processes(self.terms)

    def step(self) -> dict[str, float]:
        """One step; returns its losses, over all processes."""
        return self._read([self._advance()])[0]

    def _advance(self) -> Tensor:
        """One step; its loss, terms and agreement, which nobody waits for."""
        c, i = self.config, self.done
        rng = generator(self.seed, f"distill/{i}")
        x = upload(self.rows.take(self._augmented(rng)), self.choice.device)
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * cosine_with_warmup(i, c.steps, c.warmup)
        self.student.train()
        with torch.no_grad(), autocast(self.choice):
            t = self.teacher.hidden(x)
        terms, logits_BK = self._terms(x, t)
        loss = terms.sum()
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel takes the mean over processes, whose parts may differ by a row.
        size = self.rows.world.size
        (loss if size == 1 else loss * (size * self.rows.share)).backward()
        self.optimizer.step()
        self.done += 1
        agree = (logits_BK.argmax(1) == t.logits_BK.argmax(1)).float().mean()
        return torch.cat([loss.detach()[None], terms.detach(), agree[None]])

    def _read(self, latest: list[Tensor]) -> list[dict[str, float]]:
        """The numbers of the latest steps, over all processes, in one copy from the device."""
        names = ("loss", *self.terms.names, "agreement")
        rows = [
            dict(zip(names, values, strict=True))
            for values in self.rows.mean(torch.stack(latest)).tolist()
        ]
        for i, row in enumerate(rows):
            if not math.isfinite(row["loss"]):
                raise self._diverged(self.done - len(rows) + i + 1)
        return rows

    def _augmented(self, rng: torch.Generator) -> Tensor:
        c = self.config
        x = self.feed.batch(c.batch_size, rng)
        frames = int(torch.randint(c.crop_min, c.crop_max + 1, (), generator=rng))
        x = random_crop(x, frames, rng)
        if c.gain:
            x = random_gain(x, c.gain, rng)
        if c.mixup:
            x = mix_pairs(x, c.mixup, rng)[0]
        if c.mask_bands or c.mask_frames:
            x = random_masks(x, c.mask_bands, c.mask_frames, rng)
        return x

    def run(
        self,
        on_step: Callable[[int, dict[str, float]], None] = lambda *_: None,
        on_checkpoint: Callable[[dict[str, Any]], None] | None = None,
        stop: Stop = NEVER,
    ) -> Student:
        """All remaining steps; the last one's student is the result, never the best one's.

        Args:
            on_step: Called with the number of steps done and the losses.
            on_checkpoint: Called with `state` every ``checkpoint_steps``, after the last step, and
                before the loop ends because `stop` asked for it.
            stop: Asked whenever losses are read.

        Raises:
            RunError: The loss or a weight is no longer finite.
            KeyboardInterrupt: `stop` asked for it.
        """
        c = self.config
        unread: list[Tensor] = []
        while self.done < c.steps:
            unread.append(self._advance())
            due = self.done % c.checkpoint_steps == 0 or self.done == c.steps
            if due or len(unread) >= read_every(self.choice):
                first = self.done - len(unread) + 1
                for i, metrics in enumerate(self._read(unread)):
                    on_step(first + i, metrics)
                unread.clear()
                stopping = stop.asked()
                if on_checkpoint and (due or stopping):
                    on_checkpoint(self.state())
                if stopping:
                    stop.leave()
        if not all(torch.isfinite(p).all() for p in self.student.state_dict().values()):
            raise self._diverged(self.done)
        self.student.eval()
        return self.student

    def _diverged(self, step: int) -> RunError:
        return RunError(
            f"The distillation diverged by step {step} of {self.config.steps}: "
            "its loss or its weights are no longer finite.",
            fix="Use a smaller distill.learning_rate and another --out, or --precision fp32.",
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; tensors and plain values only."""
        return {
            "done": self.done,
            "student": self.student.state_dict(),
            "match": self.match.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.student.load_state_dict(state["student"])
        self.match.load_state_dict(state["match"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = int(state["done"])


def _check_head(teacher: TeacherLike, student: Student, config: DistillConfig) -> None:
    """Hidden terms alone train no head; the teacher's own needs none where it fits as it is."""
    if config.logits:
        return
    if isinstance(student.head, ReusedHead):
        projector = student.head.projector
        fits = projector.in_features == projector.out_features
        if config.after_pooling or (fits and student.channels == teacher.channels):
            return
    raise ConfigError(
        "No term would train the student's head: distill.logits is 0, and the terms on hidden "
        "states do not reach it.",
        fix="Set distill.logits above 0, or distill.reuse_head to true and distill.after_pooling "
        "above 0; with the teacher's head and student.out_channels equal to the teacher's C, "
        "distill.before_pooling alone will do.",
    )
