"""What is under the data root: every known set, found or not, complete or not."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from frami_edge.errors import DataError, IncompleteSetError, UnusableClipError
from frami_edge.io import read_small

# --- A clip, a set of clips with its official folds, and how a fold splits it

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


# --- The known data sets: where they come from, what they must hold, under which licence
# Folds follow each set's authors. ESC-50: K. Piczak, 2015. UrbanSound8K: J. Salamon et al., 2014.
# AudioMNIST: S. Becker et al., 2018. Free Spoken Digit Dataset: Z. Jackson et al.

ROOT_VARIABLE = "FRAMI_EDGE_DATA"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Archive:
    """What `frami-edge data get` may fetch, and its bounds."""

    url: str
    max_bytes: int
    """Of the download."""
    max_unpacked_bytes: int
    keep: tuple[str, ...]
    """Path prefixes within the archive's top folder that are unpacked."""


@dataclass(frozen=True)
class SetInfo:
    """One known set."""

    name: str
    title: str
    folders: tuple[str, ...]
    """Accepted names under the data root; the first is the official one."""
    clips: int
    """Exactly so many."""
    classes: int
    folds: tuple[str, ...]
    licence: str
    source: str
    archive: Archive | None = None
    form: str = ""
    """Page with the form to fill in, for a set that may not be fetched by a program."""
    part_of: str = ""
    """The set whose download holds this one."""


_FSDD_FOLDERS = (
    "free-spoken-digit-dataset",
    "free-spoken-digit-dataset-master",
    "free-spoken-digit-dataset-1.0.10",
)
_FSDD_SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
_FSDD_SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
_ESC_FOLDERS = ("ESC-50-master", "ESC-50")
_ESC_SOURCE = "https://github.com/karolpiczak/ESC-50"
_FIVE = ("1", "2", "3", "4", "5")

_SETS = (
    SetInfo(
        name="fsdd",
        title="Free Spoken Digit Dataset, official test takes 0-4",
        folders=_FSDD_FOLDERS,
        clips=3000,
        classes=10,
        folds=("test",),
        licence="CC BY-SA 4.0",
        source=_FSDD_SOURCE,
        archive=Archive(
            url=f"{_FSDD_SOURCE}/archive/refs/heads/master.zip",
            max_bytes=100 * MEGABYTE,
            max_unpacked_bytes=200 * MEGABYTE,
            keep=("recordings/", "README.md"),
        ),
    ),
    SetInfo(
        name="fsdd-speaker",
        title="Free Spoken Digit Dataset, one speaker left out (our own folds)",
        folders=_FSDD_FOLDERS,
        clips=3000,
        classes=10,
        folds=_FSDD_SPEAKERS,
        licence="CC BY-SA 4.0",
        source=_FSDD_SOURCE,
        part_of="fsdd",
    ),
    SetInfo(
        name="esc50",
        title="ESC-50: environmental sounds",
        folders=_ESC_FOLDERS,
        clips=2000,
        classes=50,
        folds=_FIVE,
        licence="CC BY-NC 3.0",
        source=_ESC_SOURCE,
        archive=Archive(
            url=f"{_ESC_SOURCE}/archive/refs/heads/master.zip",
            max_bytes=1000 * MEGABYTE,
            max_unpacked_bytes=1500 * MEGABYTE,
            keep=("audio/", "meta/", "README.md", "LICENSE"),
        ),
    ),
    SetInfo(
        name="esc10",
        title="ESC-10: ten classes of ESC-50",
        folders=_ESC_FOLDERS,
        clips=400,
        classes=10,
        folds=_FIVE,
        licence="CC BY 3.0",
        source=_ESC_SOURCE,
        part_of="esc50",
    ),
    SetInfo(
        name="esc40",
        title="The 40 classes of ESC-50 that are not in ESC-10 (control data)",
        folders=_ESC_FOLDERS,
        clips=1600,
        classes=40,
        folds=_FIVE,
        licence="CC BY-NC 3.0",
        source=_ESC_SOURCE,
        part_of="esc50",
    ),
    SetInfo(
        name="urbansound8k",
        title="UrbanSound8K: street sounds",
        folders=("UrbanSound8K",),
        clips=8732,
        classes=10,
        folds=tuple(str(i) for i in range(1, 11)),
        licence="CC BY-NC 3.0",
        source="https://urbansounddataset.weebly.com/urbansound8k.html",
        form="https://urbansounddataset.weebly.com/download-urbansound8k.html",
    ),
    SetInfo(
        name="audiomnist",
        title="AudioMNIST: digits of 60 speakers",
        folders=("AudioMNIST", "AudioMNIST-master"),
        clips=30_000,
        classes=10,
        folds=_FIVE,
        licence="MIT",
        source="https://github.com/soerenab/AudioMNIST",
        archive=Archive(
            url="https://github.com/soerenab/AudioMNIST/archive/refs/heads/master.zip",
            max_bytes=3000 * MEGABYTE,
            max_unpacked_bytes=5000 * MEGABYTE,
            keep=("data/", "README.md", "LICENSE"),
        ),
    ),
)


def known_sets() -> tuple[SetInfo, ...]:
    """Every set that `load_set` knows by name."""
    return _SETS


def set_info(name: str) -> SetInfo:
    """One known set by name.

    Raises:
        DataError: No set has that name.
    """
    key = name.strip().lower()
    for info in _SETS:
        if info.name == key:
            return info
    import difflib

    names = [info.name for info in _SETS]
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise DataError(
        f"There is no data set {name!r}.",
        fix=f"{hint}Known: {', '.join(names)}; or folder:PATH, with one sub-folder per class.",
    )


def data_root(cli_value: Path | None) -> Path:
    """The folder that holds the sets by their official names: the option, or $FRAMI_EDGE_DATA.

    Raises:
        DataError: Neither is given, or it is no folder.
    """
    value = cli_value if cli_value is not None else os.environ.get(ROOT_VARIABLE) or None
    if value is None:
        raise DataError(
            "No data root is given.",
            fix=f"Pass --data-root PATH or set {ROOT_VARIABLE}: the folder that holds the sets.",
        )
    root = Path(value).expanduser()
    if not root.is_dir():
        where = "--data-root" if cli_value is not None else ROOT_VARIABLE
        raise DataError(
            f"The data root {root} ({where}) is no folder.", fix="Create it or correct the path."
        )
    return root


def find_folder(info: SetInfo, root: Path) -> Path | None:
    """The set's own folder under the data root, or the root itself where it is that folder."""
    for folder in info.folders:
        if (root / folder).is_dir():
            return root / folder
    if root.resolve().name in info.folders:
        return root
    return None


# --- Official folder layouts: which files a set must hold, with their labels and folds
# A layout lists what should be there; `frami_edge.data.sets` compares that with what is there.

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


# --- Audio files to mono samples; whatever cannot be used is refused with its reason
# soundfile reads WAV, FLAC, OGG and MP3. What libsndfile forgives is checked here: it shortens a
# truncated WAV or Ogg without a word.

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".mp3"})
SILENCE_PEAK = 1e-4
"""Full scale is 1: a clip that never exceeds -80 dBFS holds no sound to learn from."""
LOUDEST_PEAK = 100.0
"""+40 dBFS: float files beyond it hold integers that nobody scaled to -1..1."""
MAX_FILE_BYTES = 1 << 29
MAX_CLIP_S = 600
_OGG_END = 4
_REVERSED_BITS = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))
_UNKNOWN_SIZE = {0, 0xFFFFFFFF}
"""Written by recorders that stream and never return to the header."""


@dataclass(frozen=True)
class Rejected:
    """A file that was left out, and why."""

    path: Path
    reason: str
    name: str = ""
    """Path within the set, as in `Clip.name`."""


def read_bytes(path: Path) -> bytes:
    """The whole file, so that what is hashed is what is decoded.

    Raises:
        UnusableClipError: It is missing, unreadable, empty or larger than 512 MB.
    """
    try:
        data = read_small(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise UnusableClipError("missing") from None
    except OSError as error:
        raise UnusableClipError(f"cannot be read ({error.strerror or error})") from None
    if not data:
        raise UnusableClipError("empty file")
    return data


def decode(data: bytes) -> tuple[npt.NDArray[np.float32], int]:
    """Samples (N,) float32, channels averaged, and their rate in Hz.

    Raises:
        UnusableClipError: No audio, truncated, not finite, silent (peak below -80 dBFS), not
            scaled to -1..1, or longer than ten minutes.
    """
    _check_riff(data)
    _check_ogg(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            promised, rate = file.frames, int(file.samplerate)
            if promised > MAX_CLIP_S * rate:
                raise UnusableClipError(f"longer than {MAX_CLIP_S} s")
            samples_NC = file.read(dtype="float32", always_2d=True)
            _check_flac(data, file)
    except (RuntimeError, TypeError, ValueError, OSError, MemoryError) as error:
        if isinstance(error, UnusableClipError):
            raise
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise UnusableClipError(f"not decodable or truncated ({reason})") from None
    if len(samples_NC) < promised:
        raise UnusableClipError(f"truncated: {len(samples_NC)} of {promised} frames")
    if len(samples_NC) == 0:
        raise UnusableClipError("no samples (empty, or truncated before the first)")
    if not np.isfinite(samples_NC).all():
        raise UnusableClipError("samples that are not finite (NaN or infinity)")
    samples = samples_NC[:, 0] if samples_NC.shape[1] == 1 else samples_NC.mean(axis=1)
    peak = float(np.abs(samples).max())
    if peak < SILENCE_PEAK:
        raise UnusableClipError(f"silent: peak {peak:.2g} of full scale")
    if peak > LOUDEST_PEAK:
        raise UnusableClipError(f"peak {peak:.3g} where full scale is 1: not scaled to -1..1")
    return np.ascontiguousarray(samples, dtype=np.float32), rate


def read_audio(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Mono samples (N,) float32 in -1..1 and their rate in Hz; raises `UnusableClipError`."""
    return decode(read_bytes(path))


def _check_riff(data: bytes) -> None:
    """Compare the size that a WAV's data chunk promises with the bytes that are there."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if kind == b"data":
            if size not in _UNKNOWN_SIZE and size > len(data) - at:
                raise UnusableClipError(f"truncated: {len(data) - at} of {size} bytes of samples")
            return
        at += size + size % 2
    raise UnusableClipError("truncated: the header ends before any samples")


def _check_flac(data: bytes, file: soundfile.SoundFile) -> None:
    """Compare the samples with the MD5 of them that the header holds; none, or a rare width: skip.

    Frames have checksums of their own, the number of samples has not: libsndfile stops there.
    Source: RFC 9639, section 8.2.
    """
    if data[:4] != b"fLaC" or len(data) < 42 or not any(known := data[26:42]):
        return
    bits = 1 + 16 * (data[20] & 1) + data[21] // 16
    if bits not in (8, 16, 24):
        return
    file.seek(0)
    width = bits // 8
    # libsndfile gives the samples in the upper bits; the MD5 is over their own bytes, lowest first.
    words_NC = file.read(dtype="int32", always_2d=True).astype("<i4")
    plain = words_NC.reshape(-1).view(np.uint8).reshape(-1, 4)[:, 4 - width :].tobytes()
    if hashlib.md5(plain, usedforsecurity=False).digest() != known:
        raise UnusableClipError("damaged: the checksum of the samples is wrong")


def _check_ogg(data: bytes) -> None:
    """Follow the pages: whole, in order, with their checksums, the last marked as the end.

    libsndfile passes over a page whose checksum is wrong, and over a gap, without a word.
    Source: RFC 3533, section 6.
    """
    at, last_flags = 0, _OGG_END
    number_of: dict[bytes, int] = {}
    while data[at : at + 4] == b"OggS":
        start = at
        segments = data[at + 26] if at + 27 <= len(data) else 0
        table_end = at + 27 + segments
        last_flags = data[at + 5] if at + 6 <= len(data) else 0
        at = table_end + sum(data[at + 27 : table_end])
        if at > len(data):
            raise UnusableClipError("truncated: the last page is cut")
        page = data[start:at]
        (checksum,) = struct.unpack_from("<I", page, 22)
        if _ogg_checksum(page[:22] + bytes(4) + page[26:]) != checksum:
            raise UnusableClipError("damaged: the checksum of a page is wrong")
        stream, number = page[14:18], struct.unpack_from("<I", page, 18)[0]
        if number != number_of.get(stream, -1) + 1:
            raise UnusableClipError("damaged: a page is missing")
        number_of[stream] = number
    if number_of and at < len(data):
        raise UnusableClipError("damaged: something that is no page lies among the pages")
    if at == len(data) and not last_flags & _OGG_END:
        raise UnusableClipError("truncated: no last page")


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with Ogg's polynomial, most significant bit first: zlib's, with bits reversed."""
    reflected = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


# --- A plain tree with a folder per class, with or without given splits

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


# --- `load_set`: a set by name, checked against what its authors published

_EXAMPLES = 3


def load_set(name: str, root: Path | None = None) -> SoundSet:
    """A data set in its official layout, complete.

    Args:
        name: A known set (`frami_edge.data.known_sets`), or ``folder:PATH`` for a plain tree with a
            folder per class.
        root: The data root; None for $FRAMI_EDGE_DATA. Not used by ``folder:PATH``.

    Raises:
        DataError: No such set, no data root, or the set is not under it.
        IncompleteSetError: Clips are missing or too many; says which, per fold and class.
    """
    if name.startswith("folder:"):
        return load_folder(Path(name.removeprefix("folder:")).expanduser())
    info = set_info(name)
    base = data_root(root)
    folder = find_folder(info, base)
    if folder is None:
        get = f"frami-edge data get {info.part_of or info.name}"
        raise DataError(
            f"{info.name} is not under {base}: there is no folder {info.folders[0]}.",
            fix=f"Run `{get}`, or put the folder there.",
        )
    return load_known(info, folder)


def load_known(info: SetInfo, folder: Path) -> SoundSet:
    """A known set from its own folder; raises as `load_set`."""
    layout = read_layout(info, folder)
    check = compare(layout, folder)
    if check.missing or check.unknown:
        raise IncompleteSetError(
            _sentence(info, layout, check, folder), fix=_fix(info, check, folder)
        )
    return as_sound_set(info, layout, folder)


def as_sound_set(info: SetInfo, layout: Layout, folder: Path) -> SoundSet:
    """The set that a layout promises, without looking whether the files are there."""
    entries = sorted(layout.entries, key=lambda e: e.name)
    return SoundSet(
        name=info.name,
        labels=layout.labels,
        clips=tuple(Clip(folder / e.name, e.label, e.fold, e.name) for e in entries),
        folds=info.folds,
        licence=info.licence,
        source=info.source,
        root=folder,
        validation_of=layout.validation_of,
    )


@dataclass(frozen=True)
class Comparison:
    """What is there against what should be."""

    found: int
    missing: tuple[Entry, ...]
    unknown: tuple[str, ...]


def compare(layout: Layout, folder: Path) -> Comparison:
    """Look for every file of a layout, and for audio files that do not belong to it."""
    parents = {entry.name.rpartition("/")[0] for entry in layout.entries}
    there: set[str] = set()
    for parent in parents:
        try:
            with os.scandir(folder / parent) as files:
                there.update(f"{parent}/{file.name}" for file in files if file.is_file())
        except OSError:
            continue
    expected = {entry.name for entry in layout.entries}
    return Comparison(
        found=len(expected & there),
        missing=tuple(entry for entry in layout.entries if entry.name not in there),
        unknown=tuple(
            sorted(
                name
                for name in there - expected
                if name.rpartition("/")[0] in layout.audio_folders
                and Path(name).suffix.lower() in AUDIO_SUFFIXES
                and not Path(name).name.startswith(".")
            )
        ),
    )


def _sentence(info: SetInfo, layout: Layout, check: Comparison, folder: Path) -> str:
    parts = [
        f"{info.name} in {folder} has {check.found + len(check.unknown)} clips, not {info.clips}"
    ]
    if check.missing:
        folds = Counter(e.fold for e in check.missing)
        per_fold = ", ".join(f"fold {fold}: {folds[fold]}" for fold in sorted(folds, key=_natural))
        classes = Counter(f"class {layout.labels[e.label]}" for e in check.missing)
        parts.append(
            f"{len(check.missing)} missing ({per_fold}; {_counts(classes)}), "
            f"for example {_some([e.name for e in check.missing])}"
        )
    if check.unknown:
        parts.append(
            f"{len(check.unknown)} not of this set, for example {_some(list(check.unknown))}"
        )
    return "; ".join(parts) + "."


def _fix(info: SetInfo, check: Comparison, folder: Path) -> str:
    if not check.missing:
        return "Move the clips that are not of this set out of its folder."
    if info.form:
        return f"Unpack the set again from {info.form}."
    get = f"frami-edge data get {info.part_of or info.name}"
    return f"Move {folder.name} away and run `{get}`, or add the missing files."


def _counts(counter: Counter[str]) -> str:
    shown = [f"{name}: {n}" for name, n in counter.most_common(_EXAMPLES)]
    return ", ".join(shown) + (
        f" and {len(counter) - _EXAMPLES} more" if len(counter) > _EXAMPLES else ""
    )


def _natural(fold: str) -> tuple[int, str]:
    return (int(fold), "") if fold.isdecimal() else (0, fold)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_EXAMPLES])


# --- What is under the data root: every known set, found or not, complete or not


@dataclass(frozen=True)
class SetStatus:
    """One known set, as it is on this disk."""

    info: SetInfo
    folder: Path | None
    clips: int
    """Of this set, found."""
    problem: str
    """Why it is not complete; empty when it is."""

    @property
    def complete(self) -> bool:
        """Exactly the published clips are there."""
        return self.folder is not None and not self.problem

    @property
    def how(self) -> str:
        """How to get it."""
        if self.info.form:
            return f"form: {self.info.form}"
        return f"frami-edge data get {self.info.part_of or self.info.name}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.info.name,
            "title": self.info.title,
            "found": self.folder is not None,
            "complete": self.complete,
            "clips": self.clips,
            "clips_expected": self.info.clips,
            "classes": self.info.classes,
            "folds": list(self.info.folds),
            "folder": str(self.folder) if self.folder else None,
            "problem": self.problem or None,
            "licence": self.info.licence,
            "source": self.info.source,
            "get": self.how,
        }


def survey(root: Path | None) -> list[SetStatus]:
    """The state of every known set; without a data root none is found."""
    return [status(info, root) for info in known_sets()]


def status(info: SetInfo, root: Path | None) -> SetStatus:
    """The state of one known set; without a data root it is not found."""
    folder = find_folder(info, root) if root is not None else None
    if folder is None:
        return SetStatus(info, None, 0, "not found")
    try:
        return SetStatus(info, folder, len(load_known(info, folder).clips), "")
    except DataError as error:
        problem = error.message
    try:
        clips = compare(read_layout(info, folder), folder).found
    except DataError:
        clips = 0
    return SetStatus(info, folder, clips, problem)
