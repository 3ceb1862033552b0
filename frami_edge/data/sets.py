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
from frami_edge.io import nfc

ROOT_VARIABLE = "FRAMI_EDGE_DATA"
FORMATS = {
    "WAV": "wav wave",
    "FLAC": "flac",
    "OGG": "ogg oga opus",
    "MP3": "mp3",
    "AIFF": "aiff aif aifc",
    "AU": "au snd",
    "CAF": "caf",
    "W64": "w64",
    "RF64": "rf64",
}
"""Suffixes of the formats that libsndfile decodes, by its name of the format."""
NOT_DECODED = "m4a m4b mp4 aac ac3 wma amr 3gp webm weba mka mp2 ape wv dts ra"
AUDIO_SUFFIXES = frozenset(
    f".{suffix}" for names in (*FORMATS.values(), NOT_DECODED) for suffix in names.split()
)
"""Files that count as clips; those that cannot be decoded are left out and named."""
HASH_FOLDS = 5
PART = "-part"
"""End of the name of a known set that is incomplete."""


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
    notes: tuple[str, ...] = ()
    """What was left out or assumed, in sentences."""

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
        if len(self.labels) < 2:
            raise DataError(
                f"{self.name} has one class, {self.labels[0]}: there is nothing to learn.",
                fix="Add a folder of other sounds. One class can be scored: `frami-edge evaluate`.",
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
    """A data set, complete unless its name ends in ``-part``.

    Args:
        name: A known set (`known_sets`), or ``folder:PATH`` for a tree with one folder per class.
            ``NAME-part`` stands for what is there of an incomplete set.
        root: The data root; None for $FRAMI_EDGE_DATA. Not used by ``folder:PATH``.

    Raises:
        DataError: No such set, no data root, or the set is not in it.
        IncompleteSetError: Clips are missing or too many; the message names some.
    """
    if name.startswith("folder:"):
        return load_folder(Path(name.removeprefix("folder:")).expanduser())
    info = set_info(whole_name(name))
    base = data_root(root)
    folder = find_folder(info, base)
    if folder is None:
        raise DataError(
            f"{info.name} is not in {base}: there is no folder {info.folders[0]}.",
            fix=f"Run `{info.get}`, or put the folder there.",
        )
    return load_known(info, folder, allow_partial=name.strip().lower().endswith(PART))


def whole_name(name: str) -> str:
    """The name of a known set without the ending of a part of it; folders keep theirs."""
    if name.startswith("folder:"):
        return name
    return re.sub(f"{PART}$", "", name.strip(), flags=re.IGNORECASE)


def part_name(name: str) -> str:
    """The name under which an incomplete set may be used; a folder is never incomplete."""
    return name if name.startswith("folder:") else whole_name(name) + PART


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
    split is the test fold; ``test/CLASS/*`` alone is a test set. Hidden files are skipped, and
    sub-folders of a class are searched. Labels and names are in Unicode's form NFC.

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
    ignored: Counter[str] = Counter()
    tops = {top: _audio_below(top, ignored) for top in _folders(root, notes)}
    splits = _splits_of(root, tops)
    grouped: dict[tuple[str, str], list[Path]] = {}
    for top, files in tops.items():
        for folder in [top] if not splits else _folders(top, notes) if top in splits else []:
            inside = [path for path in files if folder in path.parents]
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
        if path.is_dir() and not path.name.startswith((".", "__")):
            if is_utf8(path.name):
                found.append(path)
            else:
                notes.append(
                    f"The folder {readable(path.name)} is left out: its name is not UTF-8."
                )
    return found


def _audio_below(folder: Path, ignored: Counter[str]) -> list[Path]:
    """Audio files in a folder and its sub-folders; other files are counted by suffix."""
    audio = []
    for path in sorted(folder.rglob("*")):
        if is_audio(path):
            audio.append(path)
        elif path.is_file() and not path.name.startswith("."):
            ignored[readable(path.suffix.lower()) or "without a suffix"] += 1
    return audio


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
    shown = ", ".join([*seen[:6], "..."][: len(seen)]) or "no folders"
    return DataError(
        f"{root} is not a set of classes: {problem}. It holds {shown}.",
        fix=f"Arrange it as {_LAYOUTS}. Folders whose name begins with a dot are skipped.",
    )


def is_audio(path: Path) -> bool:
    """Whether the name is that of an audio file; hidden files are not."""
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


def is_utf8(name: str) -> bool:
    """Whether a file's name is text on every machine."""
    return not any("\udc80" <= char <= "\udcff" for char in name)


def readable(name: str) -> str:
    r"""A file's name as text in the form NFC; bytes that are not UTF-8 become ``\xNN``."""
    return nfc(os.fsencode(name).decode("utf-8", "backslashreplace"))


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


def load_known(info: SetInfo, folder: Path, *, allow_partial: bool = False) -> SoundSet:
    """A known set from its own folder, complete unless `allow_partial`; raises as `load_set`."""
    found = expected_set(info, folder, allow_partial=allow_partial)
    expected = {clip.name for clip in found.clips}
    there: set[str] = set()
    for parent in {name.rpartition("/")[0] for name in expected}:
        if (folder / parent).is_dir():
            with os.scandir(folder / parent) as files:
                there.update(f"{parent}/{readable(file.name)}" for file in files if file.is_file())
    missing = [clip for clip in found.clips if clip.name not in there]
    # ESC-10 and ESC-40 share their folder with the rest of ESC-50.
    unknown = (
        ()
        if info in (_ESC10, _ESC40)
        else sorted(name for name in there - expected if is_audio(Path(name)))
    )
    present = tuple(clip for clip in found.clips if clip.name in there)
    if len(present) == info.clips and not unknown:
        return found
    if allow_partial and present:
        return _part(info, found, present, len(unknown))
    count = len(present) + len(unknown)
    parts = [f"{info.name} in {folder} has {count} clips, not {info.clips}"]
    if missing:
        folds = Counter(clip.fold for clip in missing)
        per_fold = ", ".join(f"fold {fold}: {n}" for fold, n in sorted(folds.items()))
        names = ", ".join(clip.name for clip in missing[:3])
        parts.append(f"{len(missing)} missing ({per_fold}), for example {names}")
    if unknown:
        parts.append(f"{len(unknown)} not of this set, for example {', '.join(unknown[:3])}")
    fix = (
        f"Move {folder.name} away and get the set again ({info.get}), or add the missing files. "
        f"{_USE_PART}"
    )
    if not missing:
        fix = "Move the clips that are not of this set out of its folder."
    raise IncompleteSetError("; ".join(parts) + ".", fix=fix)


_USE_PART = "Or use what is there: --allow-partial, or folder:PATH with one folder per class."


def _part(info: SetInfo, found: SoundSet, present: tuple[Clip, ...], unknown: int) -> SoundSet:
    """The clips of an incomplete set that are there, under a name that says so."""
    counts = Counter(clip.fold for clip in present)
    folds = tuple(fold for fold in found.folds if counts[fold])
    listed = ", ".join(f"fold {fold}: {counts[fold]}" for fold in folds)
    notes = [f"A part of {info.name}: {len(present)} of {info.clips} clips ({listed})."]
    kept = sorted({clip.label for clip in present})
    if lost := [label for i, label in enumerate(found.labels) if i not in kept]:
        notes.append(f"No clip is there of {', '.join(lost[:5])}.")
    if unknown:
        notes.append(f"Audio files that are not of {info.name}, which are not read: {unknown}.")
    return replace(
        found,
        name=info.name + PART,
        labels=tuple(found.labels[i] for i in kept),
        clips=tuple(replace(clip, label=kept.index(clip.label)) for clip in present),
        folds=folds,
        notes=tuple(notes),
    )


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


def expected_set(info: SetInfo, folder: Path, *, allow_partial: bool = False) -> SoundSet:
    """The clips that a set must hold, from its own metadata where it has any; files are not read.

    With `allow_partial` the metadata may list fewer clips.

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
        labels, entries = _from_metadata(info, folder, allow_partial=allow_partial)
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


def _from_metadata(
    info: SetInfo, folder: Path, *, allow_partial: bool
) -> tuple[Sequence[str], list[tuple[str, int, str]]]:
    """Labels and entries of ESC-50 with its views, and of UrbanSound8K."""
    urban = info is _URBANSOUND
    path = folder / ("metadata/UrbanSound8K.csv" if urban else "meta/esc50.csv")
    columns = "slice_file_name classID class" if urban else "filename target category"
    file, number, label = columns.split()
    refetch = f"Fetch the set again from {info.source}."
    if allow_partial and not path.exists():  # a part may come with a list of its own
        path = next(iter(sorted(path.parent.glob("*.csv"))), path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
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
        raise IncompleteSetError(
            f"{info.name}: {path} is missing.", fix=f"{refetch} {_USE_PART}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error!r}.", fix=refetch) from None
    folds = {fold for _, _, fold in entries}
    names = {name for name, _, _ in entries}
    whole = (len(names), len(labels), folds) == (info.clips, info.classes, set(info.folds))
    if not (whole or (allow_partial and folds <= set(info.folds))):
        raise IncompleteSetError(
            f"{info.name}: {path.name} lists {len(names)} clips of {len(labels)} classes in folds "
            f"{', '.join(sorted(folds))}, not {info.clips} of {info.classes} in "
            f"{', '.join(info.folds)}.",
            fix=f"{refetch} {_USE_PART}",
        )
    return labels, entries
