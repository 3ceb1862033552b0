"""Audio files to mono samples; whatever cannot be used is refused with its reason.

soundfile reads WAV, FLAC, OGG and MP3. What libsndfile forgives is checked here: it shortens a
truncated WAV or Ogg without a word.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from frami_edge.data.errors import UnusableClipError
from frami_edge.io import read_small

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
