"""One training inside a run folder: checkpoints, metrics, the teacher and its card."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge import plots
from frami_edge.augment import mix_pairs, random_crop, random_gain, random_masks
from frami_edge.cards import teacher_readme
from frami_edge.checkpoint import Card, TrainedOn, load_checkpoint, parameters, save_checkpoint
from frami_edge.config import TeacherConfig, TrainConfig
from frami_edge.data.sets import Clip, SoundSet, load_set, resolve_fold
from frami_edge.data.store import (
    Features,
    FeatureStore,
    collate,
    length_buckets,
    measure_normalisation,
)
from frami_edge.device import Compute, autocast, generator
from frami_edge.distillation import cosine_with_warmup, weight_groups
from frami_edge.errors import TeacherError
from frami_edge.evaluation import Score, predict, score
from frami_edge.io import atomic_write_text
from frami_edge.models import ResNetTeacher
from frami_edge.runs import NEVER, RunFolder, Stop, Trail, damaged, load_state, save_state
from frami_edge_runtime.melspec import MelSpec

# --- What a teacher is trained and tested on: clips, their fold, and normalised log-mels

REJECTED_SHOWN = 10
"""Files that are named on the terminal; the manifest names all."""


@dataclass
class Material:
    """The two sides of a fold.

    Attributes:
        data: The whole set.
        fold: The one that is held out.
        train: Log-mels of the clips that the teacher hears.
        test: Log-mels of the clips that it never hears.
    """

    data: SoundSet
    fold: str
    train: Features
    test: Features

    @property
    def spec(self) -> MelSpec:
        """Front end, with the mean and standard deviation of the training clips."""
        return self.train.spec

    def trained_on(self) -> TrainedOn:
        """For the teacher's card."""
        return TrainedOn(
            data=self.data.name,
            test_fold=self.fold,
            clips=len(self.train),
            sha256=self.train.sha256,
            licence=self.data.licence,
            source=self.data.source,
        )

    def manifest(self) -> dict[str, Any]:
        """For the run's manifest: what was heard and tested, and what was left out and why."""
        return {
            "name": self.data.name,
            "test_fold": self.fold,
            "licence": self.data.licence,
            "source": self.data.source,
            "train": self.train.manifest(),
            "test": self.test.manifest(),
        }


def choose_clips(
    config: TeacherConfig, root: Path | None
) -> tuple[SoundSet, str, list[Clip], list[Clip]]:
    """The set, the held-out fold, and the clips to train and to test on; raises as `load_set`."""
    data = load_set(config.data.name, root)
    fold = resolve_fold(data, config.data.fold)
    return data, fold, *data.split(fold)


def load_material(config: TeacherConfig, root: Path | None, out: Any) -> Material:
    """Compute, or read from the cache, the log-mels of a fold.

    Mean and standard deviation are measured on the training clips alone.

    Raises:
        DataError: The set or fold is not there, or no clip of one side can be used.
    """
    data, fold, train_clips, test_clips = choose_clips(config, root)
    raw = load_features(config.mel.spec(), train_clips, out, "Log-mels to train on")
    mean, std = measure_normalisation(raw)
    spec = config.mel.spec(mean=mean, std=std)
    del raw
    train = FeatureStore(spec).load(train_clips)
    test = load_features(spec, test_clips, out, "Log-mels to test on")
    for side, features in (("training", train), ("test", test)):
        warn_rejected(features, f"{side} clips", out)
    return Material(data, fold, train, test)


def load_features(spec: MelSpec, clips: Sequence[Clip], out: Any, what: str) -> Features:
    """Features with progress on stderr."""
    with out.progress(what, len(clips), fields=()) as bar:
        return FeatureStore(spec).load(clips, lambda done, _: bar.update(done - bar.completed))


def warn_rejected(features: Features, what: str, out: Any) -> None:
    """Say which files were left out, and why."""
    rejected = features.rejected
    if not rejected:
        return
    lines = [f"\n  {r.name}: {r.reason}" for r in rejected[:REJECTED_SHOWN]]
    if len(rejected) > REJECTED_SHOWN:
        lines.append(f"\n  and {len(rejected) - REJECTED_SHOWN} more")
    total = len(rejected) + len(features)
    out.warn(f"{len(rejected)} of {total} {what} cannot be used:{''.join(lines)}")


# --- The training loop of a teacher
# Shape legend: B batch, M mel bands, T frames, K classes.


class TeacherTrainer:
    """Trains a teacher on real clips; the last epoch's weights are the result, not the best one's.

    The order of an epoch comes from the seed and the epoch, every random choice of a step from the
    seed and the step, so that a resumed run is the same run.

    Args:
        model: Maps (x_B1MT, lengths_B) to logits (B, K); trained in place.
        features: Training clips.
        config: The recipe.
        compute: Device and precision.
        seed: Of order and augmentation.
    """

    def __init__(
        self, model: nn.Module, features: Features, config: TrainConfig, compute: Compute, seed: int
    ) -> None:
        self.model, self.features, self.config = model, features, config
        self.compute, self.seed = compute, seed
        self._lengths = [min(n, config.crop_frames or n) for n in features.lengths]
        self.steps = sum(len(self._batches(epoch)) for epoch in range(config.epochs))
        self.epochs_done = self.steps_done = 0
        # Of the epoch under way: batches done, and sums of loss, hits and clips over them.
        self._batches_done, self._sums = 0, [0.0, 0.0, 0.0]
        model.to(compute.device)
        if compute.channels_last:
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
        with autocast(self.compute):
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
        device, labels = self.compute.device, features.labels[indices]
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
    compute: Compute,
    seed: int,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda *_: None,
    trail: Trail | None = None,
) -> None:
    """A whole training in one call.

    Args:
        model: As for `TeacherTrainer`, which the other arguments are passed to.
        features: Training clips.
        config: The recipe.
        compute: Device and precision.
        seed: Of order and augmentation.
        on_step: Called with (step, steps, {"loss": ...}) after each step.
        trail: Where the state is kept after each epoch, from which the training goes on.
    """
    trainer = TeacherTrainer(model, features, config, compute, seed)
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


# --- One training inside a run folder: checkpoints, metrics, the teacher and its card

CHECKPOINT = "train-state.pt"
TEACHER = "teacher.safetensors"


@dataclass
class TrainedTeacher:
    """What a training gave.

    Attributes:
        path: Of the checkpoint.
        sha256: Of the checkpoint.
        card: What it says of itself.
        score: On the held-out fold, after the last epoch.
        parameters: Of the network.
        seconds: Of training, those of the runs that this one resumes included.
    """

    path: Path
    sha256: str
    card: Card
    score: Score
    parameters: int
    seconds: float


def train_teacher(
    run: RunFolder, config: TeacherConfig, root: Path | None, compute: Compute, out: Any
) -> TrainedTeacher:
    """Train, or go on where a killed run stopped, and test on the held-out fold.

    Writes `teacher.safetensors`, `plots/*.png` and `README.md` into the run. The fold is scored
    once, after the last epoch: it selects nothing.
    """
    with run.timed("features"):
        material = load_material(config, root, out)
    run.record(data=material.manifest(), mel=material.spec.to_dict())
    if (run.folder / TEACHER).exists():
        # Killed after the last epoch: what was trained is not trained again.
        model = load_checkpoint(run.folder / TEACHER, "teacher").model
        assert isinstance(model, ResNetTeacher)
        model.to(compute.device)
    else:
        model = fit(run, config, material, compute, out)
    with run.timed("test"):
        logits_NK = predict(model, material.test.mels)
    result = score(logits_NK, material.test.labels)
    seconds = float(run.manifest["seconds"].get("train", 0.0))
    metrics = {"accuracy": result.accuracy, "test_clips": result.clips}
    card = Card(
        kind="teacher",
        arch=config.arch.model_dump(mode="json"),
        mel=material.spec.to_dict(),
        labels=material.data.labels,
        trained_on=material.trained_on(),
        recipe=config.model_dump(mode="json"),
        metrics=metrics,
        licence=material.data.licence,
    )
    sha256 = save_checkpoint(run.path(TEACHER), model, card)
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    trained = TrainedTeacher(run.folder / TEACHER, sha256, card, result, parameters(model), seconds)
    recall = dict(zip(card.labels, result.per_class(), strict=True))
    run.record(**metrics, recall=recall, parameters=trained.parameters, teacher_sha256=sha256)
    pictures = draw(run, card, result)
    atomic_write_text(run.path("README.md"), teacher_readme(trained, pictures, run.manifest))
    return trained


def fit(
    run: RunFolder, config: TeacherConfig, material: Material, compute: Compute, out: Any
) -> ResNetTeacher:
    """All epochs that are left, with progress, a row of metrics and a checkpoint after each."""
    torch.manual_seed(generator(config.seed, "teacher").initial_seed())
    model = ResNetTeacher(config.arch, material.spec.n_mels, len(material.data.labels))
    trainer = TeacherTrainer(model, material.train, config.train, compute, config.seed)
    saved = run.path(CHECKPOINT)
    if saved.exists():
        state = load_state(saved)
        if state is None:
            out.warn(damaged(saved, "the training"))
        else:
            trainer.load_state(state)
            done = f"epoch {trainer.epochs_done} of {config.train.epochs}"
            out.note(f"Going on after {done}, step {trainer.steps_done} of {trainer.steps}.")
    run.rewind(trainer.epochs_done, phase="train")

    def on_epoch(metrics: dict[str, float]) -> None:
        run.log(step=trainer.epochs_done, phase="train", **metrics)
        if trainer.epochs_done % config.train.checkpoint_epochs == 0:
            save()

    def save() -> None:
        save_state(saved, trainer.state())

    with (
        run.timed("train"),
        out.progress("train", trainer.steps, completed=trainer.steps_done) as bar,
        Stop() as stop,
    ):
        trainer.run(lambda loss: bar.update(loss=loss), on_epoch, save, stop)
    return model


def draw(run: RunFolder, card: Card, result: Score) -> dict[str, str]:
    """Training curves and the confusion picture; their paths inside the run."""
    pictures = {"curves": "plots/curves.png", "confusion": "plots/confusion.png"}
    rows = [r | {"epoch": r["step"]} for r in run.metrics() if r.get("phase") == "train"]
    plots.curves(
        run.path(pictures["curves"]),
        rows,
        [["loss"], ["train_accuracy"], ["lr"]],
        "Training",
        x="epoch",
    )
    plots.confusion(
        run.path(pictures["confusion"]), result.confusion_KK, card.labels, "Held-out fold"
    )
    return pictures
