"""Labelled audio files: their names, sets of them with folds, class folders, and their samples."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from frami_edge.errors import DataError, UnusableClipError
from frami_edge.io import nfc, read_small

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

    @property
    def files(self) -> set[Path]:
        """Where the clips lie, links followed."""
        return {clip.path.resolve() for clip in self.clips}

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


def check_unrelated(name: str, others: Iterable[Path | str], scored: Iterable[Path | str]) -> None:
    """Check that an unrelated set shares no file, or no hash of audio, with the scored clips.

    Raises:
        DataError: It does.
    """
    if shared := len(set(others) & set(scored)):
        raise DataError(
            f"{name} is not unrelated: {shared} of its clips are among those that are scored.",
            fix="Name a set of other recordings (for esc10: esc40).",
        )


def is_audio(path: Path) -> bool:
    """Whether the name is that of an audio file; hidden files are not."""
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


def is_hidden(folder: str) -> bool:
    """Whether a folder of that name holds no data: that of a cache, an editor or an archiver."""
    return folder.startswith(".") or folder in ("__MACOSX", "__pycache__")


def audio_below(
    folder: Path, others: Counter[str] | None = None, hidden: Counter[str] | None = None
) -> list[Path]:
    """Audio files in a folder and its sub-folders, sorted; nothing in hidden folders.

    Args:
        folder: The folder.
        others: Other files are counted here, by suffix.
        hidden: Audio files that are hidden, or in hidden folders, are counted here.
    """
    audio = []
    for path in sorted(folder.rglob("*")):
        above = path.relative_to(folder).parts[:-1]
        kept = next((f"{name}/" for name in above if is_hidden(name)), None)
        if path.name.startswith("."):
            kept = kept or ("._*" if path.name.startswith("._") else ".*")
        if path.suffix.lower() in AUDIO_SUFFIXES:
            if kept is None:
                audio.append(path)
            elif hidden is not None:
                hidden[kept] += 1
        elif others is not None and kept is None and path.is_file():
            others[readable(path.suffix.lower()) or "without a suffix"] += 1
    return audio


def is_utf8(name: str) -> bool:
    """Whether a file's name is text on every machine."""
    return not any("\udc80" <= char <= "\udcff" for char in name)


def readable(name: str) -> str:
    r"""A file's name as text in the form NFC; bytes that are not UTF-8 become ``\xNN``."""
    return nfc(os.fsencode(name).decode("utf-8", "backslashreplace"))


# --- Sets of one folder per class, in any of three layouts

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


# --- Their samples: a file that cannot be used is refused with the reason

CANCELLED = 0.01
"""A peak of the channels' mean below this share of theirs: they have opposite phase."""
SILENCE_PEAK = 1e-4  # -80 dBFS
LOUDEST_PEAK = 100.0  # float files beyond +40 dBFS hold integers never scaled to -1..1
MAX_FILE_BYTES = 1 << 29
MAX_CLIP_S = 600


def read_audio(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Mono samples (N,) float32 in -1..1, channels averaged, and their rate in Hz.

    Reads what libsndfile reads: WAV, FLAC, Ogg (Vorbis and Opus), MP3, AIFF and some more.

    Raises:
        UnusableClipError: Missing, unreadable, larger than 512 MB, or as `decode`.
    """
    return decode(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """The whole file, so that what is hashed is what is decoded; raises as `read_audio`."""
    if not is_utf8(path.name):  # no other machine and no JSON file can name it
        raise UnusableClipError("its name is not UTF-8")
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
    """Samples and rate of an audio file's bytes, as `read_audio` gives them.

    Raises:
        UnusableClipError: No audio, truncated, not finite, silent (peak below -80 dBFS), not
            scaled to -1..1, or longer than ten minutes.
    """
    import soundfile

    _check_wav_is_whole(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            promised, rate = file.frames, int(file.samplerate)
            if promised > MAX_CLIP_S * rate:
                raise UnusableClipError(f"longer than {MAX_CLIP_S} s")
            samples_NC = file.read(dtype="float32", always_2d=True)
    except (RuntimeError, TypeError, ValueError, OSError, MemoryError) as error:
        if isinstance(error, UnusableClipError):
            raise
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        if "Format not recognised" in reason:
            raise UnusableClipError(
                "not decodable, or not audio: convert it to WAV or FLAC"
            ) from None
        raise UnusableClipError(f"not decodable or truncated ({reason})") from None
    if len(samples_NC) < promised:
        raise UnusableClipError(f"truncated: {len(samples_NC)} of {promised} frames")
    if len(samples_NC) == 0:
        raise UnusableClipError("no samples (empty, or truncated before the first)")
    if not np.isfinite(samples_NC).all():
        raise UnusableClipError("samples that are not finite (NaN or infinity)")
    samples = samples_NC[:, 0] if samples_NC.shape[1] == 1 else samples_NC.mean(axis=1)
    peak = float(np.abs(samples).max())
    loudest = float(np.abs(samples_NC).max())
    if loudest >= SILENCE_PEAK and peak < CANCELLED * loudest:
        raise UnusableClipError(
            f"channels of opposite phase: peak {loudest:.2g}, in their mean {peak:.2g}; keep one "
            "channel"
        )
    if peak < SILENCE_PEAK:
        raise UnusableClipError(f"silent: peak {peak:.2g} of full scale")
    if peak > LOUDEST_PEAK:
        raise UnusableClipError(f"peak {peak:.3g} where full scale is 1: not scaled to -1..1")
    return np.ascontiguousarray(samples, dtype=np.float32), rate


def _check_wav_is_whole(data: bytes) -> None:
    """Compare the promised size: libsndfile shortens a truncated WAV without an error."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if kind == b"data":
            # Recorders that stream never return to the header to write the size.
            if size not in (0, 0xFFFFFFFF) and size > len(data) - at:
                raise UnusableClipError(f"truncated: {len(data) - at} of {size} bytes of samples")
            return
        at += size + size % 2
    raise UnusableClipError("truncated: the header ends before any samples")
