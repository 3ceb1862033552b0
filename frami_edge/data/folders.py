"""A plain tree with a folder per class, with or without given splits."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from frami_edge.data.clips import Clip, SoundSet
from frami_edge.data.errors import DataError
from frami_edge.data.reading import AUDIO_SUFFIXES

HASH_FOLDS = 5
_FOLD_NAME = re.compile(r"fold[-_ ]?(\d+)", re.IGNORECASE)
_LAYOUTS = "CLASS/*.wav, train/CLASS/*.wav with test/CLASS/*.wav, or fold1/CLASS/*.wav and so on"


def load_folder(root: Path) -> SoundSet:
    """Clips of a tree ``CLASS/*``, ``train/CLASS/*`` with ``test/CLASS/*``, or ``foldN/CLASS/*``.

    Without a given split the folds "1" to "5" come from the file names alone:
    ``1 + int(sha256("CLASS/FILE")[:8], 16) % 5``. Adding a file moves no other, and the split is
    the same on every machine. Hidden files are passed over, sub-folders of a class are searched.

    Raises:
        DataError: No folder, no classes, or a class without audio files.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", fix="Correct the path after folder:.")
    names = [p.name for p in _folders(root)]
    lowered = {name.lower(): name for name in names}
    fold_of: dict[str, str] = {}
    if {"train", "test"} <= set(lowered):
        kept = {"train": "train", "test": "test"}
        kept |= {name: "validation" for name in ("val", "valid", "validation") if name in lowered}
        fold_of = {lowered[name]: fold for name, fold in kept.items()}
    elif names and all(_FOLD_NAME.fullmatch(name) for name in names):
        fold_of = {name: str(int(_FOLD_NAME.sub(r"\1", name))) for name in names}
    trees = [(root / name, fold) for name, fold in fold_of.items()] or [(root, "")]
    labels = tuple(sorted({p.name for tree, _ in trees for p in _folders(tree)}))
    clips = sorted(
        (
            Clip(
                path, labels.index(label), fold or _hash_fold(f"{label}/{inner}"), _name(path, root)
            )
            for tree, fold in trees
            for label, inner, path in _audio(tree)
        ),
        key=lambda clip: clip.name,
    )
    _check(root, labels, clips)
    if "test" in fold_of.values():
        folds: tuple[str, ...] = ("test",)
    else:
        folds = tuple(sorted({clip.fold for clip in clips}, key=int))
    return SoundSet(
        name=f"folder:{root.name}",
        labels=labels,
        clips=tuple(clips),
        folds=folds,
        licence="not stated",
        source="local folder",
        root=root,
        validation_of={"test": "validation"} if "validation" in fold_of.values() else {},
    )


def _check(root: Path, labels: tuple[str, ...], clips: list[Clip]) -> None:
    heard = {clip.label for clip in clips}
    empty = [label for i, label in enumerate(labels) if i not in heard]
    if len(labels) < 2 or empty:
        what = f"no audio in {', '.join(empty[:5])}" if empty else f"{len(labels)} class folders"
        raise DataError(
            f"{root} is no set of classes: {what}.",
            fix=f"Lay it out as {_LAYOUTS}; {', '.join(sorted(AUDIO_SUFFIXES))} are read.",
        )


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _audio(tree: Path) -> Iterator[tuple[str, str, Path]]:
    for label in _folders(tree):
        for folder, _, files in os.walk(label):
            for file in files:
                if not file.startswith(".") and Path(file).suffix.lower() in AUDIO_SUFFIXES:
                    path = Path(folder) / file
                    yield label.name, _name(path, label), path


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _hash_fold(name: str) -> str:
    return str(1 + int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % HASH_FOLDS)
