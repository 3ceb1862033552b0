"""Official folder layouts: which files a set must hold, with their labels and folds.

A layout lists what should be there; `frami_edge.data.sets` compares that with what is there.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from frami_edge.data.catalogue import SetInfo
from frami_edge.data.errors import DataError, IncompleteSetError

_DIGITS = tuple(str(d) for d in range(10))
_FSDD_TEST_TAKES = 5

# S. Becker et al., AudioMNIST, digit task: the test speakers of each split.
AUDIOMNIST_TEST_SPEAKERS: Mapping[str, tuple[int, ...]] = {
    "1": (26, 52, 60, 18, 32, 42, 5, 13, 22, 33, 45, 51),
    "2": (28, 56, 7, 19, 35, 1, 6, 16, 23, 34, 46, 53),
    "3": (36, 57, 9, 24, 37, 2, 8, 17, 29, 39, 48, 54),
    "4": (43, 58, 14, 25, 38, 3, 10, 20, 30, 40, 49, 55),
    "5": (12, 47, 59, 15, 27, 41, 4, 11, 21, 31, 44, 50),
}
# ... and the validation speakers of a split are the test speakers of the one before.
AUDIOMNIST_VALIDATION = {"1": "5", "2": "1", "3": "2", "4": "3", "5": "4"}


@dataclass(frozen=True)
class Entry:
    """A file that the set must hold."""

    name: str
    """Path within the set's folder, with forward slashes."""
    label: int
    fold: str


@dataclass(frozen=True)
class Layout:
    """What a set must hold."""

    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    audio_folders: tuple[str, ...]
    """Folders whose audio files must all be among the entries; none: others are allowed."""
    validation_of: Mapping[str, str] = field(default_factory=dict)


def read_layout(info: SetInfo, folder: Path) -> Layout:
    """The layout of a known set, from its own metadata where it has any.

    Raises:
        IncompleteSetError: The metadata file is missing or lists another number of clips.
        DataError: The metadata file cannot be parsed.
    """
    match info.name:
        case "fsdd" | "fsdd-speaker":
            return _fsdd(info)
        case "esc50" | "esc10" | "esc40":
            return _esc(info, folder)
        case "urbansound8k":
            return _urbansound(info, folder)
        case _:
            return _audiomnist(info)


def _fsdd(info: SetInfo) -> Layout:
    from frami_edge.data.catalogue import set_info

    entries = []
    for speaker in set_info("fsdd-speaker").folds:
        for digit in range(10):
            for take in range(50):
                part = "test" if take < _FSDD_TEST_TAKES else "train"
                fold = part if info.name == "fsdd" else speaker
                entries.append(Entry(f"recordings/{digit}_{speaker}_{take}.wav", digit, fold))
    return Layout(_DIGITS, tuple(entries), ("recordings",))


def _audiomnist(info: SetInfo) -> Layout:
    fold_of = {s: fold for fold, speakers in AUDIOMNIST_TEST_SPEAKERS.items() for s in speakers}
    entries = tuple(
        Entry(f"data/{speaker:02d}/{digit}_{speaker:02d}_{take}.wav", digit, fold_of[speaker])
        for speaker in range(1, 61)
        for digit in range(10)
        for take in range(50)
    )
    folders = tuple(f"data/{speaker:02d}" for speaker in range(1, 61))
    return Layout(_DIGITS, entries, folders, AUDIOMNIST_VALIDATION)


def _esc(info: SetInfo, folder: Path) -> Layout:
    rows = _rows(
        info, folder / "meta" / "esc50.csv", ("filename", "fold", "target", "category", "esc10")
    )
    wanted = {"esc50": ("True", "False"), "esc10": ("True",), "esc40": ("False",)}[info.name]
    rows = [row for row in rows if row["esc10"] in wanted]
    ordered = sorted({(int(row["target"]), row["category"]) for row in rows})
    labels = tuple(category for _, category in ordered)
    index = {category: i for i, category in enumerate(labels)}
    entries = (
        Entry(f"audio/{row['filename']}", index[row["category"]], row["fold"]) for row in rows
    )
    return _checked(info, labels, entries, ("audio",) if info.name == "esc50" else ())


def _urbansound(info: SetInfo, folder: Path) -> Layout:
    path = folder / "metadata" / "UrbanSound8K.csv"
    rows = _rows(info, path, ("slice_file_name", "fold", "classID", "class"))
    labels = tuple(
        name for _, name in sorted({(int(row["classID"]), row["class"]) for row in rows})
    )
    index = {name: i for i, name in enumerate(labels)}
    entries = (
        Entry(f"audio/fold{row['fold']}/{row['slice_file_name']}", index[row["class"]], row["fold"])
        for row in rows
    )
    return _checked(info, labels, entries, tuple(f"audio/fold{fold}" for fold in info.folds))


def _checked(
    info: SetInfo, labels: tuple[str, ...], entries: Iterable[Entry], audio: tuple[str, ...]
) -> Layout:
    listed = tuple(entries)
    names = {entry.name for entry in listed}
    folds = {entry.fold for entry in listed}
    if len(names) != info.clips or len(labels) != info.classes or folds != set(info.folds):
        raise IncompleteSetError(
            f"{info.name}: the metadata lists {len(names)} clips of {len(labels)} classes in folds "
            f"{', '.join(sorted(folds))}, not {info.clips} of {info.classes} "
            f"in {', '.join(info.folds)}.",
            fix=f"Fetch the set again from {info.source}.",
        )
    if any(".." in name.split("/") or "\\" in name for name in names):
        raise DataError(
            f"{info.name}: the metadata names files outside the set.", fix="Fetch it again."
        )
    return Layout(labels, listed, audio)


def _rows(info: SetInfo, path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise IncompleteSetError(
            f"{info.name}: {path} is missing.", fix=f"Fetch the set again from {info.source}."
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.", fix="Fetch the set again.") from None
    numbers = [c for c in columns if c in ("fold", "target", "classID")]
    for line, row in enumerate(rows, start=2):
        if any(row.get(c) is None for c in columns) or not all(row[c].isdecimal() for c in numbers):
            raise DataError(
                f"{path}, line {line} lacks one of {', '.join(columns)}, or one is no number.",
                fix=f"Fetch the set again from {info.source}.",
            )
    return rows
