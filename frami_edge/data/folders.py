"""Sets of one folder per class, in any of three layouts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from frami_edge.data.clips import (
    Clip,
    SoundSet,
    audio_below,
    is_audio,
    is_hidden,
    is_utf8,
    readable,
)
from frami_edge.errors import DataError
from frami_edge.io import nfc

HASH_FOLDS = 5
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("val", "valid", "validation", "dev"),
}
_LAYOUTS = "CLASS/*.wav, train/CLASS/*.wav with test/CLASS/*.wav, or fold1/CLASS/*.wav and so on"
_Tops = dict[Path, list[Path]]  # folders in a set's root, with the audio files below each


def load_folder(root: Path) -> SoundSet:
    """Clips of a tree ``CLASS/*``, ``train/CLASS/*`` with ``test/CLASS/*``, or ``foldN/CLASS/*``.

    Splits may have their usual names (``training``, ``val``). Without a test split the validation
    split is the test fold; ``test/CLASS/*`` alone is a test set. Sub-folders of a class are
    searched; hidden files and folders, and ``__MACOSX``, are left out. Labels and names are in
    Unicode's form NFC.

    Without a given split, the folds "1" to "5" come from the file names alone:
    ``1 + int(sha256("CLASS/FILE")[:8], 16) % 5``. Adding a file moves no other, and the split is
    the same on every machine. A class of which some fold would have no clip is dealt to the folds
    in turn instead, in the order of that hash.

    Raises:
        DataError: No folder, no classes, a class without audio files, or another layout.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", fix="Correct the path after folder:.")
    notes: list[str] = []
    ignored, hidden = Counter[str](), Counter[str]()
    tops = {top: audio_below(top, ignored, hidden) for top in _folders(root, notes)}
    splits = _splits_of(root, tops)
    grouped: dict[tuple[str, str], list[Path]] = {}
    for top, files in tops.items():
        classes = {top: files}
        if splits:  # a folder without audio may lie beside them
            classes = {folder: [] for folder in (_folders(top, notes) if top in splits else ())}
            for path in files:  # those of a folder that is left out are dropped
                classes.get(top / path.relative_to(top).parts[0], []).append(path)
        for folder, inside in classes.items():
            grouped.setdefault((nfc(folder.name), splits.get(top, "")), []).extend(inside)
    labels = tuple(sorted({label for label, _ in grouped}))
    empty = sorted(set(labels) - {label for (label, _), files in grouped.items() if files})
    if empty or not labels:
        what = f"no audio in {', '.join(empty[:5])}" if empty else "0 class folders"
        raise _other_layout(root, tops, what)
    clips = []
    for (label, split), files in grouped.items():
        names = {path: readable(path.relative_to(root).as_posix()) for path in files}
        folds = {} if split else _hash_folds(names)
        for path, name in names.items():
            clips.append(Clip(path, labels.index(label), split or folds[path], name))
    found = {clip.fold for clip in clips}
    test = "test" if "test" in found else "validation"
    if found == {"train", "validation"}:
        notes.append("There is no test split: the validation split is the test fold.")
    if ignored:
        listed = ", ".join(f"{n} {suffix}" for suffix, n in ignored.most_common(5))
        notes.append(f"Files in the class folders that are not audio: {listed}.")
    if hidden:
        listed = ", ".join(f"{n} {where}" for where, n in hidden.most_common(5))
        notes.append(f"Hidden audio files, which are left out: {listed}.")
    if beside := sum(is_audio(path) for path in root.iterdir()):
        notes.append(f"Audio files beside the folders, which are not read: {beside}.")
    return SoundSet(
        name=f"folder:{readable(root.absolute().name)}",
        labels=labels,
        clips=tuple(sorted(clips, key=lambda clip: clip.name)),
        folds=(test,) if test in found else tuple(sorted(found, key=int)),
        licence="not stated",
        source="local folder",
        root=root,
        validation_of={"test": "validation"} if {"test", "validation"} <= found else {},
        notes=tuple(notes),
    )


def _folders(parent: Path, notes: list[str]) -> list[Path]:
    """Folders that are not hidden and whose name can be a label."""
    found = []
    for path in sorted(parent.iterdir()):
        if path.is_dir() and not is_hidden(path.name):
            if is_utf8(path.name):
                found.append(path)
            else:
                notes.append(
                    f"The folder {readable(path.name)} is left out: its name is not UTF-8."
                )
    return found


def _splits_of(root: Path, tops: _Tops) -> dict[Path, str]:
    """The split of each folder that holds audio; empty where these folders are classes.

    Raises:
        DataError: The layout is none of the three.
    """
    splits = {top: _split_of(top.name) for top, files in tops.items() if files}
    names = {split for split in splits.values() if split}
    of_folders = {top for top in splits if all(path.parent != top for path in tops[top])}
    # A class may be called train: splits hold class folders alone, or there are several.
    is_split = bool(names) and (
        all(splits.values())
        or any(splits[top] for top in of_folders)
        or ("train" in names and len(names) > 1)
    )
    problem = ""
    if is_split:
        strays = [top.name for top, split in splits.items() if not split]
        flat = [top.name for top in splits if top not in of_folders]
        if strays:
            problem = f"beside its splits, {', '.join(strays[:3])} holds audio as well"
        elif flat:
            problem = f"{', '.join(flat[:3])} holds audio without class folders"
        elif names & set(_SPLITS) and names - set(_SPLITS):
            problem = "it has numbered folds beside train, validation or test"
        elif names == {"train"}:
            problem = "there is no test split"
    elif of_folders and of_folders == set(splits):
        inner = {path.relative_to(top).parts[0] for top in of_folders for path in tops[top]}
        if all(map(_split_of, inner)):
            problem = "the splits are inside the class folders"
        elif len(tops) == 1:
            problem = "its only folder holds folders"
    if problem:
        raise _other_layout(root, tops, problem)
    return splits if is_split else {}


def _split_of(name: str) -> str:
    """``train``, ``test``, ``validation`` or a fold's number; "" for any other name."""
    name = name.casefold()
    if re.fullmatch(r"fold[-_ ]?\d+", name):
        return str(int(re.sub(r"\D", "", name)))
    return next((split for split, names in _SPLITS.items() if name in names), "")


def _hash_folds(names: Mapping[Path, str]) -> dict[Path, str]:
    """A fold for each clip of a class, as `load_folder` says."""
    numbers = {
        path: int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) for path, name in names.items()
    }
    folds = {path: str(1 + number % HASH_FOLDS) for path, number in numbers.items()}
    if len(set(folds.values())) == HASH_FOLDS:
        return folds
    ordered = sorted(names, key=lambda path: (numbers[path], path))
    return {path: str(1 + i % HASH_FOLDS) for i, path in enumerate(ordered)}


def _other_layout(root: Path, tops: _Tops, problem: str) -> DataError:
    seen = []
    for top, files in tops.items():
        inner = sorted(
            {f"{path.relative_to(top).parts[0]}/" for path in files if path.parent != top}
        )
        below = ", ".join([*inner[:2], "..."][: len(inner)]) or f"{len(files)} audio files"
        seen.append(f"{top.name}/ ({readable(below)})")
    if beside := sum(is_audio(path) for path in root.iterdir()):
        seen.append(f"{beside} audio files in no folder")
    shown = ", ".join([*seen[:6], "..."][: len(seen)]) or "no folders"
    return DataError(
        f"{root} is not a set of classes: {problem}. It holds {shown}.",
        fix=f"Arrange it as {_LAYOUTS}. Folders whose name begins with a dot are skipped.",
    )
