"""What a teacher is trained and tested on: clips, their fold, and normalised log-mels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frami_edge.cli._output import Output
from frami_edge.data import (
    Clip,
    Features,
    FeatureStore,
    SoundSet,
    load_set,
    measure_normalisation,
    resolve_fold,
)
from frami_edge.models.checkpoint import TrainedOn
from frami_edge.training.config import TeacherConfig
from frami_edge_runtime.melspec import MelSpec

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


def load_material(config: TeacherConfig, root: Path | None, out: Output) -> Material:
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


def load_features(spec: MelSpec, clips: Sequence[Clip], out: Output, what: str) -> Features:
    """Features with progress on stderr."""
    with out.progress(what, len(clips), fields=()) as bar:
        return FeatureStore(spec).load(clips, lambda done, _: bar.update(done - bar.completed))


def warn_rejected(features: Features, what: str, out: Output) -> None:
    """Say which files were left out, and why."""
    rejected = features.rejected
    if not rejected:
        return
    lines = [f"\n  {r.name}: {r.reason}" for r in rejected[:REJECTED_SHOWN]]
    if len(rejected) > REJECTED_SHOWN:
        lines.append(f"\n  and {len(rejected) - REJECTED_SHOWN} more")
    total = len(rejected) + len(features)
    out.warn(f"{len(rejected)} of {total} {what} cannot be used:{''.join(lines)}")
