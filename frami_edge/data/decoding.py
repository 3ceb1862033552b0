"""Audio files to mono samples; a file that cannot be used is refused with the reason."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from frami_edge.data.clips import is_utf8
from frami_edge.errors import UnusableClipError
from frami_edge.io import read_small

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
