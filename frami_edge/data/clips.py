"""A clip, a set of clips with its official folds, and how a fold splits it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from frami_edge.data.errors import DataError

_FOLD_PREFIX = re.compile(r"^fold[-_ ]?", re.IGNORECASE)


@dataclass(frozen=True)
class Clip:
    """One labelled audio file."""

    path: Path
    """The file."""
    label: int
    """Index into the set's labels."""
    fold: str
    """The official fold or split it belongs to."""
    name: str = ""
    """Path within the set, with forward slashes: the same on every machine."""


@dataclass(frozen=True)
class SoundSet:
    """A data set in its official layout, with its official folds."""

    name: str
    """As given to `load_set`."""
    labels: tuple[str, ...]
    """Class names; a clip's label is an index into them."""
    clips: tuple[Clip, ...]
    """All of them, in the order of their names."""
    folds: tuple[str, ...]
    """Folds that may be the test fold."""
    licence: str
    source: str
    """Where it comes from."""
    root: Path
    """The set's own folder."""
    validation_of: Mapping[str, str] = field(default_factory=dict)
    """Where the protocol has one: the fold that validates while the key is tested."""

    def split(self, fold: str | int) -> tuple[list[Clip], list[Clip]]:
        """(train, test) clips of one fold.

        Test is that fold. Train is everything else, less the validation fold where the official
        protocol has one (AudioMNIST): see `validation`.

        Raises:
            DataError: The set has no such fold, or a class has no clip to train on.
        """
        key = resolve_fold(self, fold)
        held_out = {key, self.validation_of.get(key, key)}
        train = [c for c in self.clips if c.fold not in held_out]
        test = [c for c in self.clips if c.fold == key]
        seen = Counter(c.label for c in train)
        unseen = [name for i, name in enumerate(self.labels) if not seen[i]]
        if unseen or not test:
            what = f"no training clip of {', '.join(unseen[:5])}" if unseen else "no test clip"
            raise DataError(
                f"Fold {key} of {self.name} leaves {what}.",
                fix="Add clips, or lay the folder out as train/CLASS/*.wav and test/CLASS/*.wav.",
            )
        return train, test

    def validation(self, fold: str | int) -> list[Clip]:
        """The official validation clips of a fold; none where the protocol has none."""
        key = self.validation_of.get(resolve_fold(self, fold))
        return [c for c in self.clips if c.fold == key]


def check_disjoint(others: SoundSet, scored: SoundSet) -> None:
    """An unrelated set shares no file with the one that is scored.

    Raises:
        DataError: It does.
    """
    theirs = {clip.path.resolve() for clip in scored.clips}
    shared = sum(clip.path.resolve() in theirs for clip in others.clips)
    if shared:
        raise DataError(
            f"{others.name} is not unrelated to {scored.name}: {shared} clips are in both.",
            fix="Name a set of other recordings (for esc10: esc40).",
        )


def resolve_fold(sound_set: SoundSet, fold: str | int | None) -> str:
    """The official name of a fold: ``3``, ``"3"`` and ``"fold3"`` are one.

    None stands for the only fold of a set that has one.

    Raises:
        DataError: The set has no such fold, or several and none was named.
    """
    folds = sound_set.folds
    if fold is None and len(folds) == 1:
        return folds[0]
    if fold is not None:
        key = str(fold).strip()
        for candidate in (key, _FOLD_PREFIX.sub("", key)):
            if candidate in folds:
                return candidate
    what = "needs a fold" if fold is None else f"has no fold {str(fold)!r}"
    raise DataError(f"{sound_set.name} {what}.", fix=f"Its folds are {', '.join(folds)}.")
