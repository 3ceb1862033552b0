"""The training loop of a teacher.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import mix_pairs, random_crop, random_gain, random_masks
from frami_edge.data import Features, collate, length_buckets
from frami_edge.device import Choice, autocast, generator
from frami_edge.errors import TeacherError
from frami_edge.optim import cosine_with_warmup, weight_groups
from frami_edge.states import Trail
from frami_edge.stopping import NEVER, Stop
from frami_edge.training.config import TrainConfig


class TeacherTrainer:
    """Trains a teacher on real clips; the last epoch's weights are the result, not the best one's.

    The order of an epoch comes from the seed and the epoch, every random choice of a step from the
    seed and the step, so that a resumed run is the same run.

    Args:
        model: Maps (x_B1MT, lengths_B) to logits (B, K); trained in place.
        features: Training clips.
        config: The recipe.
        choice: Device and precision.
        seed: Of order and augmentation.
    """

    def __init__(
        self, model: nn.Module, features: Features, config: TrainConfig, choice: Choice, seed: int
    ) -> None:
        self.model, self.features, self.config = model, features, config
        self.choice, self.seed = choice, seed
        self._lengths = [min(n, config.crop_frames or n) for n in features.lengths]
        self.steps = sum(len(self._batches(epoch)) for epoch in range(config.epochs))
        self.epochs_done = self.steps_done = 0
        # Of the epoch under way: batches done, and sums of loss, hits and clips over them.
        self._batches_done, self._sums = 0, [0.0, 0.0, 0.0]
        model.to(choice.device)
        if choice.channels_last:
            model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            weight_groups(model, config.weight_decay), lr=config.learning_rate
        )

    def _batches(self, epoch: int) -> list[list[int]]:
        # BatchNorm cannot train on a clip alone, hence at least two in a batch.
        rng = generator(self.seed, f"train/epoch/{epoch}")
        return length_buckets(self._lengths, self.config.batch_size, generator=rng, min_batch=2)

    def run(
        self,
        on_step: Callable[[float], None] = lambda _: None,
        on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
        on_pause: Callable[[], None] = lambda: None,
        stop: Stop = NEVER,
    ) -> None:
        """All remaining epochs.

        Args:
            on_step: Called with the loss after each step.
            on_epoch: Called after each epoch with its mean loss, the share of training clips that
                it heard right, and the learning rate.
            on_pause: Called before the training ends in the midst of an epoch.
            stop: Asked after each step.

        Raises:
            TeacherError: The loss is no longer a finite number.
            KeyboardInterrupt: `stop` asked for it.
        """
        while self.epochs_done < self.config.epochs:
            self.model.train()
            for indices in self._batches(self.epochs_done)[self._batches_done :]:
                loss, right = self._step(indices)
                news = (loss * len(indices), right, len(indices))
                self._sums = [s + new for s, new in zip(self._sums, news, strict=True)]
                self._batches_done += 1
                on_step(loss)
                if stop.asked():
                    on_pause()
                    stop.leave()
            total, hits, clips = self._sums
            self.epochs_done += 1
            self._batches_done, self._sums = 0, [0.0, 0.0, 0.0]
            rate = float(self.optimizer.param_groups[0]["lr"])
            on_epoch({"loss": total / clips, "train_accuracy": hits / clips, "lr": rate})
        self.model.eval()

    def _step(self, indices: list[int]) -> tuple[float, float]:
        """One step on these clips; its loss, and how many of them were heard right."""
        config, i = self.config, self.steps_done
        rng = generator(self.seed, f"train/{i}")
        torch.manual_seed(rng.initial_seed())  # dropout draws from the global stream
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine_with_warmup(i, self.steps, config.warmup)
        x_B1MT, lengths_B, labels_B, partner_B, lam_B = self._batch(indices, rng)
        with autocast(self.choice):
            logits_BK = self.model(x_B1MT, lengths_B)
        target_BK = F.one_hot(labels_B, logits_BK.shape[1]).float()
        target_BK = lam_B[:, None] * target_BK + (1 - lam_B[:, None]) * target_BK[partner_B]
        loss = F.cross_entropy(logits_BK.float(), target_BK, label_smoothing=config.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise TeacherError(
                f"The training diverged: the loss of step {i + 1} of {self.steps} is {value}.",
                fix="Use a smaller train.learning_rate, or --precision fp32.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps_done += 1
        return value, float((logits_BK.argmax(1) == labels_B).sum())

    def _batch(
        self, indices: list[int], rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Augmented clips on the device: mels, lengths, labels, blend partners and shares."""
        config, features = self.config, self.features
        mels = [features.mels[i] for i in indices]
        if config.crop_frames:
            mels = [random_crop(m[None, None], config.crop_frames, rng)[0, 0] for m in mels]
        # 0 is the value that networks of this family pad with; the lengths mask it out.
        x, n = collate(mels, range(len(mels)), pad_value=0.0)
        if config.gain:
            x = random_gain(x, config.gain, rng)
        partner, lam = torch.arange(len(mels)), torch.ones(len(mels))
        if config.mixup:
            x, partner, lam = mix_pairs(x, config.mixup, rng)
            n = torch.where(lam < 1, torch.minimum(n, n[partner]), n)
        if config.mask_bands or config.mask_frames:
            x = random_masks(x, config.mask_bands, config.mask_frames, rng)
        device, labels = self.choice.device, features.labels[indices]
        return x.to(device), n.to(device), labels.to(device), partner.to(device), lam.to(device)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, after any step; tensors and plain values only."""
        return {
            "epochs_done": self.epochs_done,
            "batches_done": self._batches_done,
            "sums": list(self._sums),
            "steps_done": self.steps_done,
            "clips": self.features.sha256,
            "mel": self.features.spec.digest,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            TeacherError: It was trained on other clips, or with another front end.
        """
        if (state["clips"], state["mel"]) != (self.features.sha256, self.features.spec.digest):
            raise TeacherError(
                "The training clips are no longer those that this run was begun with.",
                fix="Restore them, or start again with another --out.",
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs_done, self.steps_done = int(state["epochs_done"]), int(state["steps_done"])
        self._batches_done, self._sums = int(state["batches_done"]), list(state["sums"])


def train_epochs(
    model: nn.Module,
    features: Features,
    config: TrainConfig,
    *,
    choice: Choice,
    seed: int,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda *_: None,
    trail: Trail | None = None,
) -> None:
    """A whole training in one call.

    Args:
        model: As for `TeacherTrainer`, which the other arguments are passed to.
        features: Training clips.
        config: The recipe.
        choice: Device and precision.
        seed: Of order and augmentation.
        on_step: Called with (step, steps, {"loss": ...}) after each step.
        trail: Where the state is kept after each epoch, from which the training goes on.
    """
    trainer = TeacherTrainer(model, features, config, choice, seed)
    state = trail.load() if trail else None
    if state is not None:
        trainer.load_state(state)

    def save() -> None:
        if trail:
            trail.save(trainer.state())

    trainer.run(
        lambda loss: on_step(trainer.steps_done, trainer.steps, {"loss": loss}),
        lambda _: save(),
        save,
        trail.stop if trail else NEVER,
    )
