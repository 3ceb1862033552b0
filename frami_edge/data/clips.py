"""Labelled audio files: their names, sets of them with their folds, and their samples."""

from __future__ import annotations

import io
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
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
