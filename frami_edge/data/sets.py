"""Sets of labelled audio files with their official folds: known data sets, and plain folders."""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from frami_edge.errors import DataError, IncompleteSetError

ROOT_VARIABLE = "FRAMI_EDGE_DATA"
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".mp3"})
HASH_FOLDS = 5


@dataclass(frozen=True)
class Clip:
    """One labelled audio file."""

    path: Path
    label: int  # index into the set's labels
    fold: str  # its official fold or split
    name: str = ""
    """Path within the set, with forward slashes: the same on every machine."""


@dataclass(frozen=True)
class SoundSet:
    """A data set with its official folds."""

    name: str  # as given to `load_set`
    labels: tuple[str, ...]  # class names; a clip's label is an index into them
    clips: tuple[Clip, ...]  # in the order of their names
    folds: tuple[str, ...]  # folds that may be the test fold
    licence: str
    source: str  # where it comes from
    root: Path  # the set's own folder
    validation_of: Mapping[str, str] = field(default_factory=dict)
    """The fold that validates while the key is tested, where the protocol has one."""

    def split(self, fold: str | int) -> tuple[list[Clip], list[Clip]]:
        """(train, test) clips of one fold.

        Test is that fold. Train is everything else, less the validation fold where the official
        protocol has one (AudioMNIST).

        Raises:
            DataError: The set has no such fold, or a class has no clip to train on.
        """
        key = resolve_fold(self, fold)
        held_out = {key, self.validation_of.get(key, key)}
        train = [c for c in self.clips if c.fold not in held_out]
        test = [c for c in self.clips if c.fold == key]
        counts = Counter(c.label for c in train)
        missing = [name for i, name in enumerate(self.labels) if not counts[i]]
        if missing or not test:
            what = f"no training clip of {', '.join(missing[:5])}" if missing else "no test clip"
            raise DataError(
                f"Fold {key} of {self.name} leaves {what}.",
                fix="Add clips, or arrange the folder as train/CLASS/*.wav and test/CLASS/*.wav.",
            )
        return train, test


def resolve_fold(sound_set: SoundSet, fold: str | int | None) -> str:
    """The official name of a fold: ``3``, ``"3"`` and ``"fold3"`` are the same one.

    None stands for the only fold of a set that has one.

    Raises:
        DataError: The set has no such fold, or several and none was named.
    """
    folds = sound_set.folds
    if fold is None and len(folds) == 1:
        return folds[0]
    key = "" if fold is None else str(fold).strip()
    for candidate in (key, re.sub(r"^fold[-_ ]?", "", key, flags=re.IGNORECASE)):
        if candidate in folds:
            return candidate
    what = "needs a fold" if fold is None else f"has no fold {str(fold)!r}"
    raise DataError(f"{sound_set.name} {what}.", fix=f"Its folds are {', '.join(folds)}.")


def check_disjoint(others: SoundSet, scored: SoundSet) -> None:
    """Check that an unrelated set shares no file with the set that is scored.

    Raises:
        DataError: It does.
    """
    scored_paths = {clip.path.resolve() for clip in scored.clips}
    shared = sum(clip.path.resolve() in scored_paths for clip in others.clips)
    if shared:
        raise DataError(
            f"{others.name} is not unrelated to {scored.name}: {shared} clips are in both.",
            fix="Name a set of other recordings (for esc10: esc40).",
        )


def load_set(name: str, root: Path | None = None) -> SoundSet:
    """A complete data set.

    Args:
        name: A known set (`known_sets`), or ``folder:PATH`` for a tree with one folder per class.
        root: The data root; None for $FRAMI_EDGE_DATA. Not used by ``folder:PATH``.

    Raises:
        DataError: No such set, no data root, or the set is not in it.
        IncompleteSetError: Clips are missing or too many; the message names some.
    """
    if name.startswith("folder:"):
        return load_folder(Path(name.removeprefix("folder:")).expanduser())
    info = set_info(name)
    base = data_root(root)
    folder = find_folder(info, base)
    if folder is None:
        raise DataError(
            f"{info.name} is not in {base}: there is no folder {info.folders[0]}.",
            fix=f"Run `{info.get}`, or put the folder there.",
        )
    return load_known(info, folder)


def data_root(option: Path | None) -> Path:
    """The folder that holds the sets by their official names: the option, or $FRAMI_EDGE_DATA.

    Raises:
        DataError: Neither is given, or it is not a folder.
    """
    value = option or os.environ.get(ROOT_VARIABLE)
    if not value:
        raise DataError(
            "No data root is given.",
            fix=f"Pass --data-root PATH or set {ROOT_VARIABLE}: the folder that holds the sets.",
        )
    root = Path(value).expanduser()
    if not root.is_dir():
        where = "--data-root" if option else ROOT_VARIABLE
        raise DataError(
            f"The data root {root} ({where}) is not a folder.", fix="Create it or correct the path."
        )
    return root


# --- Plain folders


def load_folder(root: Path) -> SoundSet:
    """Clips of a tree ``CLASS/*``, ``train/CLASS/*`` with ``test/CLASS/*``, or ``foldN/CLASS/*``.

    Without a given split, the folds "1" to "5" come from the file names alone:
    ``1 + int(sha256("CLASS/FILE")[:8], 16) % 5``. Adding a file moves no other, and the split is
    the same on every machine. Hidden files are skipped, sub-folders of a class are searched.

    Raises:
        DataError: No folder, no classes, or a class without audio files.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", fix="Correct the path after folder:.")
    tops = {folder.name: folder for folder in _folders(root)}
    lowered = {name.lower(): name for name in tops}
    fold_of: dict[str, str] = {}
    if {"train", "test"} <= set(lowered):
        kept = {"train": "train", "test": "test"}
        kept |= dict.fromkeys({"val", "valid", "validation"} & set(lowered), "validation")
        fold_of = {lowered[name]: fold for name, fold in kept.items()}
    elif tops and all(re.fullmatch(r"fold[-_ ]?\d+", name) for name in lowered):
        fold_of = {name: str(int(re.sub(r"\D", "", name))) for name in tops}
    trees = [(tops[name], fold) for name, fold in fold_of.items()] or [(root, "")]
    classes = [(label, fold) for tree, fold in trees for label in _folders(tree)]
    labels = tuple(sorted({label.name for label, _ in classes}))
    clips = []
    for label, fold in classes:
        for path in filter(is_audio, label.rglob("*")):
            inner = f"{label.name}/{path.relative_to(label).as_posix()}"
            digest = int(hashlib.sha256(inner.encode()).hexdigest()[:8], 16)
            own_fold = fold or str(1 + digest % HASH_FOLDS)
            name = path.relative_to(root).as_posix()
            clips.append(Clip(path, labels.index(label.name), own_fold, name))
    empty = sorted(set(labels) - {labels[clip.label] for clip in clips})
    if len(labels) < 2 or empty:
        what = f"no audio in {', '.join(empty[:5])}" if empty else f"{len(labels)} class folders"
        raise DataError(
            f"{root} is not a set of classes: {what}.",
            fix="Arrange it as CLASS/*.wav, train/CLASS/*.wav with test/CLASS/*.wav, or "
            f"fold1/CLASS/*.wav and so on; {', '.join(sorted(AUDIO_SUFFIXES))} are read.",
        )
    split = "test" in fold_of.values()
    return SoundSet(
        name=f"folder:{root.name}",
        labels=labels,
        clips=tuple(sorted(clips, key=lambda clip: clip.name)),
        folds=("test",) if split else tuple(sorted({clip.fold for clip in clips}, key=int)),
        licence="not stated",
        source="local folder",
        root=root,
        validation_of={"test": "validation"} if "validation" in fold_of.values() else {},
    )


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def is_audio(path: Path) -> bool:
    """Whether the name is that of an audio file which is read; hidden files are not."""
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


# --- The known sets
# Folds follow each set's authors. ESC-50: K. Piczak, 2015. UrbanSound8K: J. Salamon et al., 2014.
# AudioMNIST: S. Becker et al., 2018. Free Spoken Digit Dataset: Z. Jackson et al.


@dataclass(frozen=True)
class SetInfo:
    """A known set: where it comes from, what it must hold, and its licence."""

    name: str
    title: str
    folders: tuple[str, ...]
    """Accepted names in the data root; the first is the official one."""
    clips: int
    classes: int
    folds: tuple[str, ...]
    licence: str
    source: str
    url: str = ""
    """Zip archive that `frami-edge data get` may fetch."""
    keep: tuple[str, ...] = ()
    """Path prefixes within the archive's top folder that are unpacked."""
    form: str = ""
    """Page with the form to fill in, for a set that may not be fetched by a program."""
    part_of: str = ""
    """The set whose download holds this one."""

    @property
    def get(self) -> str:
        """The command that fetches it, or where its form is."""
        if self.form:
            return f"form: {self.form}"
        return f"frami-edge data get {self.part_of or self.name}"


_GITHUB = "https://github.com/"
_ZIP = "/archive/refs/heads/master.zip"
_FSDD = SetInfo(
    name="fsdd",
    title="Free Spoken Digit Dataset, official test takes 0-4",
    folders=(
        "free-spoken-digit-dataset",
        "free-spoken-digit-dataset-master",
        "free-spoken-digit-dataset-1.0.10",
    ),
    clips=3000,
    classes=10,
    folds=("test",),
    licence="CC BY-SA 4.0",
    source=f"{_GITHUB}Jakobovski/free-spoken-digit-dataset",
    url=f"{_GITHUB}Jakobovski/free-spoken-digit-dataset{_ZIP}",
    keep=("recordings/", "README.md"),
)
_FSDD_SPEAKER = replace(
    _FSDD,
    name="fsdd-speaker",
    title="Free Spoken Digit Dataset, one speaker left out (our own folds)",
    folds=("george", "jackson", "lucas", "nicolas", "theo", "yweweler"),
    part_of="fsdd",
)
_ESC50 = SetInfo(
    name="esc50",
    title="ESC-50: environmental sounds",
    folders=("ESC-50-master", "ESC-50"),
    clips=2000,
    classes=50,
    folds=("1", "2", "3", "4", "5"),
    licence="CC BY-NC 3.0",
    source=f"{_GITHUB}karolpiczak/ESC-50",
    url=f"{_GITHUB}karolpiczak/ESC-50{_ZIP}",
    keep=("audio/", "meta/", "README.md", "LICENSE"),
)
_ESC10 = replace(
    _ESC50,
    name="esc10",
    title="ESC-10: ten classes of ESC-50",
    clips=400,
    classes=10,
    licence="CC BY 3.0",
    part_of="esc50",
)
_ESC40 = replace(
    _ESC50,
    name="esc40",
    title="The 40 classes of ESC-50 that are not in ESC-10 (control data)",
    clips=1600,
    classes=40,
    part_of="esc50",
)
_URBANSOUND = SetInfo(
    name="urbansound8k",
    title="UrbanSound8K: street sounds",
    folders=("UrbanSound8K",),
    clips=8732,
    classes=10,
    folds=tuple(str(i) for i in range(1, 11)),
    licence="CC BY-NC 3.0",
    source="https://urbansounddataset.weebly.com/urbansound8k.html",
    form="https://urbansounddataset.weebly.com/download-urbansound8k.html",
)
_AUDIOMNIST = SetInfo(
    name="audiomnist",
    title="AudioMNIST: digits of 60 speakers",
    folders=("AudioMNIST", "AudioMNIST-master"),
    clips=30_000,
    classes=10,
    folds=("1", "2", "3", "4", "5"),
    licence="MIT",
    source=f"{_GITHUB}soerenab/AudioMNIST",
    url=f"{_GITHUB}soerenab/AudioMNIST{_ZIP}",
    keep=("data/", "README.md", "LICENSE"),
)
_SETS = (_FSDD, _FSDD_SPEAKER, _ESC50, _ESC10, _ESC40, _URBANSOUND, _AUDIOMNIST)

# S. Becker et al., AudioMNIST, digit task: the test speakers of each split. The validation speakers
# of a split are the test speakers of the one before.
AUDIOMNIST_TEST_SPEAKERS: Mapping[str, tuple[int, ...]] = {
    "1": (26, 52, 60, 18, 32, 42, 5, 13, 22, 33, 45, 51),
    "2": (28, 56, 7, 19, 35, 1, 6, 16, 23, 34, 46, 53),
    "3": (36, 57, 9, 24, 37, 2, 8, 17, 29, 39, 48, 54),
    "4": (43, 58, 14, 25, 38, 3, 10, 20, 30, 40, 49, 55),
    "5": (12, 47, 59, 15, 27, 41, 4, 11, 21, 31, 44, 50),
}
AUDIOMNIST_VALIDATION = {"1": "5", "2": "1", "3": "2", "4": "3", "5": "4"}


def known_sets() -> tuple[SetInfo, ...]:
    """Every set that `load_set` knows by name."""
    return _SETS


def set_info(name: str) -> SetInfo:
    """One known set by name.

    Raises:
        DataError: No set has that name.
    """
    names = {info.name: info for info in _SETS}
    key = name.strip().lower()
    if key in names:
        return names[key]
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise DataError(
        f"There is no data set {name!r}.",
        fix=f"{hint}Known: {', '.join(names)}; or folder:PATH, with one sub-folder per class.",
    )


def find_folder(info: SetInfo, root: Path) -> Path | None:
    """The set's own folder in the data root, or the root itself where it is that folder."""
    for folder in info.folders:
        if (root / folder).is_dir():
            return root / folder
    return root if root.resolve().name in info.folders else None


def load_known(info: SetInfo, folder: Path) -> SoundSet:
    """A known set from its own folder, complete; raises as `load_set`."""
    found = expected_set(info, folder)
    expected = {clip.name for clip in found.clips}
    there: set[str] = set()
    for parent in {name.rpartition("/")[0] for name in expected}:
        if (folder / parent).is_dir():
            with os.scandir(folder / parent) as files:
                there.update(f"{parent}/{file.name}" for file in files if file.is_file())
    missing = [clip for clip in found.clips if clip.name not in there]
    # ESC-10 and ESC-40 share their folder with the rest of ESC-50.
    unknown = (
        ()
        if info in (_ESC10, _ESC40)
        else sorted(name for name in there - expected if is_audio(Path(name)))
    )
    if not missing and not unknown:
        return found
    count = len(expected & there) + len(unknown)
    parts = [f"{info.name} in {folder} has {count} clips, not {info.clips}"]
    if missing:
        folds = Counter(clip.fold for clip in missing)
        per_fold = ", ".join(f"fold {fold}: {n}" for fold, n in sorted(folds.items()))
        names = ", ".join(clip.name for clip in missing[:3])
        parts.append(f"{len(missing)} missing ({per_fold}), for example {names}")
    if unknown:
        parts.append(f"{len(unknown)} not of this set, for example {', '.join(unknown[:3])}")
    fix = f"Move {folder.name} away and get the set again ({info.get}), or add the missing files."
    if not missing:
        fix = "Move the clips that are not of this set out of its folder."
    raise IncompleteSetError("; ".join(parts) + ".", fix=fix)


@dataclass(frozen=True)
class SetStatus:
    """Whether a known set is in the data root, and complete."""

    info: SetInfo
    folder: Path | None
    problem: str
    """Why it cannot be used; empty where it is complete."""

    @property
    def complete(self) -> bool:
        """Exactly the published clips are there."""
        return not self.problem

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        kept = ("name", "title", "clips", "classes", "folds", "licence", "source")
        return {key: getattr(self.info, key) for key in kept} | {
            "found": self.folder is not None,
            "folder": str(self.folder) if self.folder else None,
            "complete": self.complete,
            "problem": self.problem or None,
            "get": self.info.get,
        }


def survey(root: Path | None) -> list[SetStatus]:
    """The status of every known set; without a data root none is found."""
    found = []
    for info in _SETS:
        folder = find_folder(info, root) if root else None
        problem = "not found"
        if folder:
            try:
                load_known(info, folder)
                problem = ""
            except DataError as error:
                problem = error.message
        found.append(SetStatus(info, folder, problem))
    return found


def expected_set(info: SetInfo, folder: Path) -> SoundSet:
    """The clips that a set must hold, from its own metadata where it has any; files are not read.

    Raises:
        IncompleteSetError: The metadata file is missing or lists another number of clips.
        DataError: The metadata file cannot be parsed.
    """
    labels: Sequence[str] = tuple(str(digit) for digit in range(10))
    # Entries are (path in the folder, label, fold).
    entries: list[tuple[str, int, str]] = []
    if info in (_FSDD, _FSDD_SPEAKER):
        for speaker, digit, take in product(_FSDD_SPEAKER.folds, range(10), range(50)):
            fold = ("test" if take < 5 else "train") if info is _FSDD else speaker
            entries.append((f"recordings/{digit}_{speaker}_{take}.wav", digit, fold))
    elif info is _AUDIOMNIST:
        for fold, speakers in AUDIOMNIST_TEST_SPEAKERS.items():
            for s, digit, take in product(speakers, range(10), range(50)):
                entries.append((f"data/{s:02d}/{digit}_{s:02d}_{take}.wav", digit, fold))
    else:
        labels, entries = _from_metadata(info, folder)
    return SoundSet(
        name=info.name,
        labels=tuple(labels),
        clips=tuple(Clip(folder / name, lab, fold, name) for name, lab, fold in sorted(entries)),
        folds=info.folds,
        licence=info.licence,
        source=info.source,
        root=folder,
        validation_of=AUDIOMNIST_VALIDATION if info is _AUDIOMNIST else {},
    )


def _from_metadata(info: SetInfo, folder: Path) -> tuple[Sequence[str], list[tuple[str, int, str]]]:
    """Labels and entries of ESC-50 with its views, and of UrbanSound8K."""
    urban = info is _URBANSOUND
    path = folder / ("metadata/UrbanSound8K.csv" if urban else "meta/esc50.csv")
    columns = "slice_file_name classID class" if urban else "filename target category"
    file, number, label = columns.split()
    refetch = f"Fetch the set again from {info.source}."
    try:
        with path.open(newline="", encoding="utf-8") as text:
            rows = list(csv.DictReader(text))
        if not urban:
            wanted = {"esc10": ("True",), "esc40": ("False",)}.get(info.name, ("True", "False"))
            rows = [row for row in rows if row["esc10"] in wanted]
        ordered = sorted({(int(row[number]), row[label]) for row in rows})
        labels = [name for _, name in ordered]
        entries = [
            (
                f"audio/fold{row['fold']}/{row[file]}" if urban else f"audio/{row[file]}",
                labels.index(row[label]),
                row["fold"],
            )
            for row in rows
        ]
    except FileNotFoundError:
        raise IncompleteSetError(f"{info.name}: {path} is missing.", fix=refetch) from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error!r}.", fix=refetch) from None
    folds = {fold for _, _, fold in entries}
    names = {name for name, _, _ in entries}
    if (len(names), len(labels), folds) != (info.clips, info.classes, set(info.folds)):
        raise IncompleteSetError(
            f"{info.name}: {path.name} lists {len(names)} clips of {len(labels)} classes in folds "
            f"{', '.join(sorted(folds))}, not {info.clips} of {info.classes} in "
            f"{', '.join(info.folds)}.",
            fix=refetch,
        )
    return labels, entries
