"""Train a teacher on real clips with one fold held out, and score it on that fold once.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge import plots
from frami_edge.augment import mix_pairs, random_crop, random_gain, random_masks
from frami_edge.cards import teacher_readme
from frami_edge.checkpoint import Card, TrainedOn, load_checkpoint, parameters, save_checkpoint
from frami_edge.config import TeacherConfig, TrainConfig, frames_in
from frami_edge.data.clips import Clip, SoundSet, resolve_fold
from frami_edge.data.sets import load_set
from frami_edge.data.store import (
    Features,
    collate,
    length_buckets,
    load_features,
    measure_normalisation,
)
from frami_edge.device import Compute, autocast, fused, generator, place
from frami_edge.distillation import cosine_with_warmup, weight_groups
from frami_edge.errors import DataError, TeacherError
from frami_edge.evaluation import Score, predict, score, training_clips
from frami_edge.io import atomic_write_text
from frami_edge.models import ResNetTeacher
from frami_edge.progress import Progress, ProgressCallback
from frami_edge.runs import RunFolder, damaged, load_state, save_state

log = logging.getLogger("frami_edge")

CHECKPOINT = "train-state.pt"
TEACHER = "teacher.safetensors"


@dataclass
class TrainedTeacher:
    """A checkpoint with its score on the held-out fold, after the last epoch."""

    path: Path
    sha256: str
    card: Card
    score: Score
    parameters: int
    seconds: float  # of training, earlier parts of a resumed run included


def train_teacher(
    run: RunFolder,
    config: TeacherConfig,
    root: Path | None,
    compute: Compute,
    progress: ProgressCallback | None = None,
) -> TrainedTeacher:
    """Train, or resume a killed run after its last checkpoint, and test on the held-out fold.

    Writes `teacher.safetensors`, `plots/*.png` and `README.md` into the run. The fold is scored
    once, after the last epoch: it selects nothing. `root` holds the data sets; None for
    $FRAMI_EDGE_DATA.

    Raises:
        DataError: The set or fold is missing, or no clip of one side can be used.
        TeacherError: The training diverged.
    """
    with run.timed("features"):
        data, fold, train_clips, test_clips = choose_clips(config, root)
        raw = load_features(config.mel.spec(), train_clips, progress, "log-mels to train on")
        silent = set(range(len(data.labels))) - set(raw.labels.tolist())
        if silent:  # no clip of a class can be decoded
            listed = ", ".join(data.labels[i] for i in sorted(silent)[:5])
            raise DataError(
                f"No training clip of {listed} can be used.",
                fix="The warning above names the files and why; convert or replace them.",
            )
        mean, std = measure_normalisation(raw)  # of the training clips alone
        mel = config.mel.spec(mean=mean, std=std)
        train = raw.normalised(mel)
        test = load_features(mel, test_clips, progress, "log-mels to test on")
    known = TrainedOn(
        data=data.name,
        test_fold=fold,
        clips=len(train),
        sha256=train.sha256,
        licence=data.licence,
        source=data.source,
        audio=TrainedOn.pack(train.audio),
    )
    heard = training_clips(test, known, data, fold)
    test = heard.left_out(test)
    for note in data.notes:
        log.warning("%s: %s", data.name, note)
    facts = known.model_dump(include={"test_fold", "licence", "source"})
    facts |= {"notes": [note for note in (*data.notes, heard.note) if note]}
    facts |= {"train": train.manifest(), "test": test.manifest() | {"training_clips": heard.count}}
    run.record(data={"name": data.name, **facts}, mel=mel.to_dict())
    file = run.path(TEACHER)
    if file.exists():  # killed after the last epoch
        model: nn.Module = load_checkpoint(file, "teacher").model.to(compute.device)
    else:
        torch.manual_seed(generator(config.seed, "teacher").initial_seed())
        model = ResNetTeacher(config.arch, mel.n_mels, len(data.labels))
        with run.timed("train"):
            train_epochs(
                model,
                train,
                config.train,
                compute=compute,
                seed=config.seed,
                checkpoint=run.path(CHECKPOINT),
                run=run,
                progress=progress,
            )
    with run.timed("test"):
        result = score(predict(model, test.mels), test.labels)
    metrics = {"accuracy": result.accuracy, "test_clips": result.clips}
    card = Card(
        kind="teacher",
        arch=config.arch.model_dump(mode="json"),
        mel=mel.to_dict(),
        labels=data.labels,
        trained_on=known,
        recipe=config.model_dump(mode="json"),
        metrics=metrics,
        licence=data.licence,
    )
    sha256 = save_checkpoint(file, model, card)
    run.path(CHECKPOINT).unlink(missing_ok=True)
    seconds = float(run.manifest["seconds"].get("train", 0.0))
    trained = TrainedTeacher(file, sha256, card, result, parameters(model), seconds)
    recall = dict(zip(card.labels, result.per_class(), strict=True))
    run.record(**metrics, recall=recall, parameters=trained.parameters, teacher_sha256=sha256)
    pictures = {"curves": "plots/curves.png", "confusion": "plots/confusion.png"}
    rows = [row for row in run.metrics() if row.get("phase") == "train"]
    names = ("loss", "train_accuracy", "lr")
    plots.curves(run.path(pictures["curves"]), rows, names, "Training", x="epoch")
    confusion = run.path(pictures["confusion"])
    plots.confusion(confusion, result.confusion_KK, card.labels, "Held-out fold")
    atomic_write_text(run.path("README.md"), teacher_readme(trained, pictures, run.manifest))
    return trained


def choose_clips(
    config: TeacherConfig, root: Path | None
) -> tuple[SoundSet, str, list[Clip], list[Clip]]:
    """The set, the held-out fold, and the clips to train and to test on; raises as `load_set`."""
    data = load_set(config.data.name, root)
    fold = resolve_fold(data, config.data.fold)
    return data, fold, *data.split(fold)


def train_epochs(
    model: nn.Module,
    features: Features,
    config: TrainConfig,
    *,
    compute: Compute,
    seed: int,
    checkpoint: Path | None = None,
    run: RunFolder | None = None,
    phase: str = "train",
    progress: ProgressCallback | None = None,
) -> None:
    """Train on real clips; the last epoch's weights are the result, not the best one's.

    The loss is the cross entropy with the (blended, smoothed) one-hot labels. The order of an epoch
    depends on the seed and the epoch, every random choice of a step on the seed and the step, so
    that a resumed training gives the same result. The model maps (x_B1MT, lengths_B) to logits
    (B, K).

    `checkpoint` is written every `config.checkpoint_epochs` epochs, and resumed where it exists.
    `run` receives one row per epoch: mean loss, share of correctly predicted training clips,
    learning rate.

    Raises:
        TeacherError: The loss is not finite, or the checkpoint was made from other clips.
    """
    crop = frames_in(config.crop_s, features.mel) if config.crop_s else 0
    lengths = [min(n, crop or n) for n in features.lengths]

    def batches(epoch: int) -> list[list[int]]:
        # BatchNorm cannot train on a single clip, hence at least two per batch.
        rng = generator(seed, f"train/epoch/{epoch}")
        return length_buckets(lengths, config.batch_size, generator=rng, min_batch=2)

    steps = sum(len(batches(epoch)) for epoch in range(config.epochs))
    place(model, compute)
    groups = weight_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused(compute))
    material = {"clips": features.sha256, "mel": features.mel.digest}
    first, step = _resume(checkpoint, model, optimizer, material)
    if run:
        run.rewind(first, phase=phase)
    for epoch in range(first, config.epochs):
        model.train()
        loss_sum, hits, clips = 0.0, 0.0, 0
        for indices in batches(epoch):
            rng = generator(seed, f"train/{step}")
            torch.manual_seed(rng.initial_seed())  # dropout draws from the global stream
            rate = config.learning_rate * cosine_with_warmup(step, steps, config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            x_B1MT, lengths_B, labels_B, partner_B, lam_B = (
                tensor.to(compute.device) for tensor in _batch(features, indices, config, rng)
            )
            with autocast(compute):
                logits_BK = model(x_B1MT, lengths_B)
            target_BK = F.one_hot(labels_B, logits_BK.shape[1]).float()
            target_BK = lam_B[:, None] * target_BK + (1 - lam_B[:, None]) * target_BK[partner_B]
            loss = F.cross_entropy(
                logits_BK.float(), target_BK, label_smoothing=config.label_smoothing
            )
            value = loss.item()
            if not math.isfinite(value):
                raise TeacherError(
                    f"The training diverged: the loss of step {step + 1} of {steps} is {value}.",
                    fix="Use a smaller train.learning_rate, or --precision fp32.",
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            loss_sum += value * len(indices)
            hits += float((logits_BK.argmax(1) == labels_B).sum())
            clips += len(indices)
            if progress:
                progress(Progress(phase, step, steps, {"loss": value}))
        if run:
            metrics = {"loss": loss_sum / clips, "train_accuracy": hits / clips, "lr": rate}
            run.log(step=epoch + 1, phase=phase, **metrics)
        if checkpoint and (epoch + 1) % config.checkpoint_epochs == 0:
            state = {"epochs": epoch + 1, "steps": step, "model": model.state_dict()}
            save_state(checkpoint, state | {"optimizer": optimizer.state_dict()} | material)
    model.eval()


def _resume(
    checkpoint: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    material: dict[str, str],
) -> tuple[int, int]:
    """Load a checkpoint where there is one; epochs and steps done."""
    if checkpoint is None or not checkpoint.exists():
        return 0, 0
    state = load_state(checkpoint)
    if state is None:
        log.warning(damaged(checkpoint, "the training"))
        return 0, 0
    if {key: state.get(key) for key in material} != material:
        raise TeacherError(
            "The training clips are not those that this run was started with.",
            fix="Restore them, or start again with another --out.",
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info(f"Continuing after epoch {state['epochs']}.")
    return int(state["epochs"]), int(state["steps"])


def _batch(
    features: Features, indices: list[int], config: TrainConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Augmented clips: mels (B, 1, M, T), lengths, labels, blend partners and shares, (B,) each."""
    mels = [features.mels[i] for i in indices]
    if config.crop_s:
        crop = frames_in(config.crop_s, features.mel)
        mels = [random_crop(m[None, None], crop, rng)[0, 0] for m in mels]
    # 0 is the value that networks of this family pad with; the lengths mask it out.
    x_B1MT, lengths_B = collate(mels, range(len(mels)), pad_value=0.0)
    if config.gain:
        x_B1MT = random_gain(x_B1MT, config.gain, rng)
    partner_B, lam_B = torch.arange(len(mels)), torch.ones(len(mels))
    if config.mixup:
        x_B1MT, partner_B, lam_B = mix_pairs(x_B1MT, config.mixup, rng)
        shorter_B = torch.minimum(lengths_B, lengths_B[partner_B])
        lengths_B = torch.where(lam_B < 1, shorter_B, lengths_B)
    if config.mask_bands or config.mask_frames:
        x_B1MT = random_masks(x_B1MT, config.mask_bands, config.mask_frames, rng)
    # At least three frames: the stem turns one or two into a single column. On a CPU, oneDNN 3.12,
    # the convolution library of torch 2.14.1, then reads uninitialised memory in the weight
    # gradient of a 3x3 convolution of stride 2 (bf16, channels last): random gradients, and NaN.
    x_B1MT = F.pad(x_B1MT, (0, max(0, 3 - x_B1MT.shape[3])))
    return x_B1MT, lengths_B, features.labels[indices], partner_B, lam_B
