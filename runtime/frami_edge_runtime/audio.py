"""What counts as audio, and audio files of any length, block by block, in bounded memory.

PCM WAV (8, 16, 24, 32 bit; RIFF, RF64, BW64) is read here, also from a pipe, and to its end where
its header states another length. Everything else that libsndfile reads (FLAC, OGG, MP3, float WAV,
AIFF) needs the extra ``audio``.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import importlib
import os
import re
import select
import stat
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.monitor import (
    CaptureStats,
    Channel,
    InputMonitor,
    check_channel,
)
from frami_edge_runtime.state import reason

FULL_SCALE_LIMIT: Final = 16.0
"""Float samples beyond this (24 dB over full scale) are integers in disguise, not audio."""
LOWEST_RATE: Final = 1_000
HIGHEST_RATE: Final = 768_000
BLOCK_BYTES: Final = 1 << 18
POLL_S: Final = 1.0
LONGEST_HEADER: Final = 1 << 26
SPOOL_BYTES: Final = 1 << 24
"""More of a compressed pipe waits on disk, in a temporary file."""
_SHORT_CHUNK: Final = 4096
_PCM: Final = 1
_EXTENSIBLE: Final = 0xFFFE
_UNKNOWN: Final = 0xFFFFFFFF
_ENDLESS: Final = 0x7FFF0000
"""Writers to a pipe state lengths from here on: 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF."""
_CHUNK: Final = re.compile(rb"[A-Za-z0-9_ ]{4}")
_CONTAINERS: Final = {
    b"RIFF": "WAV",
    b"RIFX": "RIFX",
    b"RF64": "RF64",
    b"BW64": "BW64",
    b"riff": "W64",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"FORM": "AIFF",
    b".snd": "AU",
    b"caff": "CAF",
    b"ID3": "MP3",
    b"\x1aE\xdf\xa3": "Matroska",
}
# kbit/s of layer III by the four bits of a header, for MPEG-2 and MPEG-1.
_MP3_KBIT: Final = (
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)


def check_samples(samples: Any) -> npt.NDArray[Any]:
    """Mono samples as int16 or float32, otherwise unchanged; may be empty.

    The rules: 1-D; int16 (full scale 32768) or float32 / float64 (full scale 1, float64 is rounded
    to float32); finite, and within +-16, so that int16 values in a float array are an error and not
    a wrong answer. Any strides and byte order.

    Raises:
        AudioError: Anything else: stereo, other dtypes, NaN or infinity, lists of integers.
    """
    x = samples if type(samples) is np.ndarray else _as_array(samples)
    kind = x.dtype.char
    if kind not in "hfd":
        raise AudioError(
            f"Samples must be int16, float32 or float64, not {x.dtype}.",
            fix="Pass 16-bit PCM as int16 and all else as float with full scale 1: 8-bit PCM as "
            "(x.astype(np.float32) - 128) / 128, 32-bit PCM as x / 2**31.",
        )
    if x.ndim != 1:
        raise AudioError(
            f"Samples must be mono, of shape (N,), not {x.shape}.",
            fix="Take one channel, or average them: samples.mean(axis=...).astype(samples.dtype).",
        )
    if kind == "h":
        return x
    # NaN fails every comparison. On a short chunk one dot product is faster than a reduction,
    # and usually settles it.
    quiet = x.size <= _SHORT_CHUNK and x.dot(x) <= FULL_SCALE_LIMIT**2
    if not quiet and not np.abs(x).max() <= FULL_SCALE_LIMIT:
        raise AudioError(
            f"Samples must be finite with full scale 1; these reach {np.abs(x).max():.6g}.",
            fix="Check the capture or decoding step. Divide 16-bit values by 32768, or pass them "
            "as int16.",
        )
    return x if kind == "f" else x.astype(np.float32)


def _as_array(samples: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(samples)
    except Exception:  # whatever a foreign array raises, such as a tensor that needs gradients
        raise AudioError(
            f"Samples of type {type(samples).__name__} are no array of numbers.",
            fix="Pass a 1-D NumPy array of int16 or float32.",
        ) from None


def check_rate(sample_rate: Any) -> int:
    """A sample rate in Hz as a plain integer.

    Raises:
        AudioError: Not a whole number of Hz in 1,000..768,000.
    """
    number = isinstance(sample_rate, (int, float, np.integer, np.floating))
    if not number or not LOWEST_RATE <= sample_rate <= HIGHEST_RATE or sample_rate % 1:
        raise AudioError(
            f"sample_rate must be a whole number of Hz in {LOWEST_RATE}..{HIGHEST_RATE}, "
            f"not {sample_rate!r}.",
            fix="Give the rate that the samples were recorded at, for example 48000.",
        )
    return int(sample_rate)


def repeat_to(x: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Repeat a clip that is too short from its start, in order, up to ``length`` samples.

    Repetition keeps the statistics of the sound, which zeros would not.

    Args:
        x: (N, ...) with N >= 1; repeated along the first axis.
        length: Wanted N; longer clips are returned unchanged.

    Raises:
        AudioError: ``x`` is empty: there is nothing to repeat.
    """
    if len(x) >= length:
        return x
    if len(x) == 0:
        raise AudioError(
            "There are no samples to classify.", fix="Pass at least one sample of audio."
        )
    return np.take(x, np.arange(length) % len(x), axis=0)


class ByteStream:
    """Bytes of a file, a FIFO or a pipe in order, whether it can seek or not.

    Args:
        file: Open for reading in binary, with ``read1``.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._ahead = bytearray()
        self.regular = self._waits = False
        try:
            self.regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            self._waits = not self.regular
        except (AttributeError, OSError, ValueError):  # bytes in memory
            self.regular = True

    def wait(self, timeout: float) -> bool:
        """Whether there are bytes, or the end, within this many seconds."""
        if self._ahead or not self._waits:
            return True
        return bool(select.select([self._file.fileno()], [], [], timeout)[0])

    def read(self, most: int) -> bytes:
        """At least one byte, or none at the end."""
        if not self._ahead:
            # Not `read`, which waits for all of them; and no read-ahead that `wait` cannot see.
            data: bytes = self._file.read1(most)
            return data
        data = bytes(self._ahead[:most])
        del self._ahead[:most]
        return data

    def peek(self, size: int) -> bytes:
        """The next bytes, without taking them; fewer at the end."""
        while len(self._ahead) < size:
            if not (data := self._file.read1(size - len(self._ahead))):
                break
            self._ahead += data
        return bytes(self._ahead[:size])

    def container(self) -> str:
        """Name of the audio format that the first bytes state; empty for what may be raw PCM."""
        head = self.peek(12)
        if head[4:8] == b"ftyp":
            return "MP4"
        if head[:1] == b"\xff":
            return self._compressed_frames()
        found = (name for magic, name in _CONTAINERS.items() if head.startswith(magic))
        return next(found, "")

    def _compressed_frames(self) -> str:
        """MP3 or AAC, where three frames follow each other; one sync word alone may be PCM."""
        at, first = 0, b""
        for _ in range(3):
            head = self.peek(at + 6)[at:]
            first = first or head[:2]
            if len(head) < 6 or head[:2] != first:
                return ""
            layer, version = head[1] >> 1 & 3, head[1] >> 3 & 3
            if head[1] & 0xF6 == 0xF0:
                size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
            elif head[1] & 0xE0 == 0xE0 and layer == 1 and version != 1:
                rates = _MP3_KBIT[version == 3]
                bits, rate = head[2] >> 4, head[2] >> 2 & 3
                if not 0 < bits < 15 or rate == 3:
                    return ""
                hertz = (44_100, 48_000, 32_000)[rate] >> (3 - version if version else 2)
                size = (144 if version == 3 else 72) * 1000 * rates[bits - 1] // hertz
                size += head[2] >> 1 & 1
            else:
                return ""
            if size < 7:
                return ""
            at += size
        return "AAC" if layer == 0 else "MP3"

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PcmFrames:
    """Whole frames of raw PCM from a byte stream."""

    def __init__(self, stream: ByteStream, frame_bytes: int) -> None:
        self._stream, self._frame_bytes = stream, frame_bytes
        self._rest = b""

    def read(self, frames: int) -> bytes | None:
        """At least one frame; no bytes if none came within `POLL_S`, None at the end."""
        size = self._frame_bytes
        data = self._rest
        while len(data) < size:
            if not self._stream.wait(POLL_S):
                self._rest = data
                return b""
            if not (more := self._take(max(1, frames) * size - len(data))):
                return None  # the stream may end within a frame
            data += more
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        return data[:whole]

    def _take(self, most: int) -> bytes:
        return self._stream.read(most)


class AudioFile:
    """One audio file as mono blocks; ``frami-edge-listen`` reads it like a microphone.

    Samples are int16 for mono 16-bit (and 8-bit) PCM, else float32 with full scale 1.

    Args:
        source: Path of a file or a FIFO, or a `ByteStream`, which `close` leaves open. What is
            neither PCM WAV nor can seek is read to its end first.
        channel: ``"mix"`` averages all channels; 1 is the first, 2 the second, and so on.
        name: Name for messages; default: the path.
        stall_s: Seconds without data after which `read` fails; None: never.

    Raises:
        AudioError: It is missing, damaged, no audio, of an absurd rate, has no such channel, or
            needs soundfile, which is not installed.
    """

    device_note = ""

    def __init__(
        self,
        source: str | os.PathLike[str] | ByteStream,
        channel: Channel = "mix",
        *,
        name: str = "",
        stall_s: float | None = None,
    ) -> None:
        """Read the header."""
        path = None if isinstance(source, ByteStream) else Path(source)
        self.name = name or str(path)
        stream = source if isinstance(source, ByteStream) else _open_stream(Path(source))
        self._stream = None if path is None else stream
        self._decoder: _PcmWave | _SoundFile | None = None
        try:
            self._decoder = _open_decoder(stream, path, self.name)
            self.channels = self._decoder.channels
            self.sample_rate = check_rate(self._decoder.sample_rate)
            """Hz."""
            check_channel(channel, self.channels, self.name)
        except AudioError:
            self.close()
            raise
        self.live = isinstance(self._decoder, _PcmWave) and not stream.regular
        """Whether the samples may be heard as they are read: a WAV file through a pipe or FIFO."""
        self._monitor = InputMonitor(self.name, self.sample_rate, channel, stall_s)
        self.take_warnings = self._monitor.take_warnings

    def read(self, most: int = 16_384) -> tuple[npt.NDArray[Any], int] | None:
        """The next block (N,) of at most this length, and 0 samples lost; None at the end.

        N is 0 only where a FIFO or pipe delivered nothing for a second.

        Raises:
            AudioError: The file is damaged here, or a FIFO stalled for ``stall_s``.
        """
        # The size in bytes is bounded too: a header may claim hundreds of channels.
        frames = max(1, min(most, BLOCK_BYTES // (4 * self.channels)))
        try:
            x_NC = self._decoder.read(frames)  # type: ignore[union-attr]
        except Exception as error:  # decoders raise unrelated types
            raise _damaged(self.name, reason(error)) from None
        if x_NC is None:
            self._monitor.review()
            if why := getattr(self._decoder, "wrong_length", ""):
                self._monitor.warn("header", why)
            return None
        if len(x_NC) == 0:
            self._monitor.stalled(POLL_S)
        return self._monitor.mono(x_NC), 0

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """All blocks, to the end."""
        while (block := self.read()) is not None:
            yield block[0]

    @property
    def stats(self) -> CaptureStats:
        """Counters so far."""
        return replace(self._monitor.stats)

    def close(self) -> None:
        """Close the file."""
        if isinstance(self._decoder, _SoundFile):
            self._decoder.close()
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open_stream(path: Path) -> ByteStream:
    try:
        return ByteStream(path.open("rb"))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"cannot be read: {reason(error)}"
        raise AudioError(f"{path} {what}.", fix="Check the path.") from None


def _open_decoder(stream: ByteStream, path: Path | None, name: str) -> _PcmWave | _SoundFile:
    try:
        head = stream.peek(12)
        pcm_wave = head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE"
        if pcm_wave and (wave := _open_wave(stream)):
            return wave
    except struct.error:
        raise _damaged(name, "its header ends too early") from None
    except (OSError, ValueError) as error:
        raise _damaged(name, reason(error)) from None
    return _SoundFile(stream, path if stream.regular else None, name)


def _open_wave(stream: ByteStream) -> _PcmWave | None:
    """The samples of a WAV file, whose header is then taken from the stream; None if not PCM."""
    fmt, long_size, at = b"", 0, 12
    while True:
        name, size = struct.unpack("<4sI", stream.peek(at + 8)[at:])
        at += 8
        if name == b"data":
            break
        if at + size > LONGEST_HEADER:
            raise ValueError(f"its header is longer than {LONGEST_HEADER >> 20} MiB")
        chunk = stream.peek(at + size)[at:]
        if name == b"fmt ":
            fmt = chunk[:26]
        elif name == b"ds64":
            long_size = int.from_bytes(chunk[8:16], "little")
        at += size + size % 2
    tag, channels, rate, _, block, bits = struct.unpack("<HHIIHH", fmt[:16])
    # ffmpeg and sox write 24-bit files as WAVE_FORMAT_EXTENSIBLE, with the real tag further on.
    if tag == _EXTENSIBLE and len(fmt) == 26:
        tag = int.from_bytes(fmt[24:26], "little")
    if tag != _PCM or bits not in (8, 16, 24, 32):
        return None
    if channels == 0 or block != channels * bits // 8:
        raise ValueError(f"{channels} channels of {bits} bits do not make frames of {block} bytes")
    while at > 0:
        at -= len(stream.read(at))
    stated = long_size if size == _UNKNOWN and long_size else size
    return _PcmWave(stream, channels, rate, bits // 8, stated)


class _PcmWave(PcmFrames):
    """PCM samples of a WAV file.

    The length that its header states is wrong where a recorder was killed, could not seek, or wrote
    more than 4 GiB: what follows the stated end is then no chunk, but more samples.
    """

    def __init__(
        self, stream: ByteStream, channels: int, sample_rate: int, width: int, stated: int
    ) -> None:
        super().__init__(stream, width * channels)
        self.channels, self.sample_rate = channels, sample_rate
        self._width = width  # bytes per sample
        self._stated = self._left = stated  # bytes
        self._taken = 0
        self.wrong_length = ""
        """A sentence, at the end."""

    def read(self, frames: int) -> npt.NDArray[Any] | None:  # type: ignore[override]
        if (data := super().read(frames)) is not None:
            return _decode_pcm(data, self._width).reshape(-1, self.channels)
        # A writer to a pipe cannot know the length: only a file is expected to state it.
        if self._taken != self._stated and (self._stream.regular or self._stated < _ENDLESS):
            stated_s, taken_s = (
                bytes_ / (self._frame_bytes * self.sample_rate)
                for bytes_ in (self._stated, self._taken)
            )
            self.wrong_length = (
                f"The header states {stated_s:.1f} s of audio, and {taken_s:.1f} s were found and "
                "read: the recorder was interrupted, or wrote more than a header can state."
            )
        return None

    def _take(self, most: int) -> bytes:
        if self._left == 0:
            if self._at_chunk():
                return b""
            self._left = 1 << 32  # by which a long file's stated length is wrong
        data = self._stream.read(min(most, self._left))
        self._left -= len(data)
        self._taken += len(data)
        return data

    def _at_chunk(self) -> bool:
        """Whether another chunk or the end comes next, and not samples."""
        pad = self._stated % 2
        after = self._stream.peek(8 + pad)[pad:]
        named = _CHUNK.match(after) and int.from_bytes(after[4:8], "little") < 1 << 24
        return len(after) < 8 or bool(named)


def _decode_pcm(data: bytes, width: int) -> npt.NDArray[Any]:
    if width == 1:  # the only unsigned one
        return (np.frombuffer(data, np.uint8).astype(np.int16) - 128) * np.int16(256)
    if width == 2:
        return np.frombuffer(data, "<i2").astype(np.int16, copy=False)
    if width == 4:
        return (np.frombuffer(data, "<i4") * 2.0**-31).astype(np.float32)
    padded = np.zeros((len(data) // 3, 4), np.uint8)
    padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return (padded.view("<i4")[:, 0] * 2.0**-31).astype(np.float32)


class _SoundFile:
    """Everything else, by libsndfile; what cannot seek is copied first."""

    def __init__(self, stream: ByteStream, path: Path | None, name: str) -> None:
        convert = "ffmpeg -i IN -c:a pcm_s16le OUT.wav"
        try:
            # Imported here: it is an extra, and PCM WAV does not need it.
            soundfile: Any = importlib.import_module("soundfile")
        except (ImportError, OSError):
            raise AudioError(
                f"{name} is no PCM WAV, and soundfile, which reads the rest, is not installed.",
                fix=f"pip install 'frami-edge-runtime[audio]', or convert it: {convert}",
            ) from None
        try:
            file: Any = str(path)
            if path is None:
                import tempfile  # only here, and it takes as long to load as all of this module

                file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115
                while data := stream.read(BLOCK_BYTES):
                    file.write(data)
                file.seek(0)
            self._file: Any = soundfile.SoundFile(file)
        except Exception as error:  # libsndfile's own errors, and TypeError for headerless formats
            why = getattr(error, "error_string", "") or reason(error)
            if "does not exist" in why:  # so libsndfile says of a damaged MP3
                why = "Format not recognised"
            raise AudioError(
                f"{name} is no audio file that can be read: {why.rstrip('.')}.",
                fix=f"Convert it: {convert}",
            ) from None
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)

    def read(self, frames: int) -> npt.NDArray[Any] | None:
        x_NC: npt.NDArray[Any] = self._file.read(frames, dtype="float32", always_2d=True)
        return x_NC if len(x_NC) else None

    def close(self) -> None:
        self._file.close()


def _damaged(name: str, why: str) -> AudioError:
    return AudioError(
        f"{name} is damaged: {why.rstrip('.')}.",
        fix="Record or convert it again, or cut off the rest.",
    )
