"""Audio files of any length, block by block, in bounded memory.

PCM WAV (8, 16, 24, 32 bit) needs the standard library only. Everything else that libsndfile reads
(FLAC, OGG, MP3, float WAV, AIFF) needs the extra ``audio``.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import AudioError

# --- What counts as audio, and the one rule for clips that are too short

INT16_SCALE: Final = np.float32(1 / 32768)
FULL_SCALE_LIMIT: Final = 16.0
"""Float samples beyond this (24 dB over full scale) are integers in disguise, not audio."""
LOWEST_RATE: Final = 1_000
HIGHEST_RATE: Final = 768_000
_KINDS: Final = "hfd"  # int16, float32, float64
_SHORT_CHUNK: Final = 4096


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
    if kind not in _KINDS:
        raise AudioError(
            f"Samples must be int16, float32 or float64, not {x.dtype}.", fix=_dtype_fix(x.dtype)
        )
    if x.ndim != 1:
        mean = "samples.mean(axis=...)" + (".astype(np.int16)" if x.dtype == np.int16 else "")
        raise AudioError(
            f"Samples must be mono, of shape (N,), not {x.shape}.",
            fix=f"Take one channel, or average them: {mean}.",
        )
    if kind == "h":
        return x
    if x.size and not _within_limit(x):
        raise AudioError(_why_unusable(x), fix=_value_fix(x))
    return x if kind == "f" else x.astype(np.float32)


def check_rate(sample_rate: Any) -> int:
    """A sample rate in Hz as a plain integer.

    Raises:
        AudioError: Not a whole number of Hz in 1,000..768,000.
    """
    integer = isinstance(sample_rate, (int, np.integer)) and not isinstance(sample_rate, bool)
    whole = isinstance(sample_rate, (float, np.floating)) and float(sample_rate).is_integer()
    if not (integer or whole) or not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise AudioError(
            f"sample_rate must be a whole number of Hz in {LOWEST_RATE}..{HIGHEST_RATE}, "
            f"not {str(sample_rate)[:40]}.",
            fix="Give the rate that the samples were recorded at, for example 48000.",
        )
    return int(sample_rate)


def repeat_to(x: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """The rule for what is too short: repeat it from its start, in order, up to ``length``.

    It is used by the offline and the streaming path alike, on samples that are fewer than
    `MelSpec.min_samples`. What is long enough is returned unchanged. Repetition keeps the
    statistics of the sound, which zeros would not.

    Args:
        x: (N, ...) with N >= 1; repeated along the first axis.
        length: Wanted N.

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


def _within_limit(x: npt.NDArray[Any]) -> bool:
    # NaN fails every comparison, so none of these lets it pass. On a short chunk one dot product is
    # twice as fast as two reductions, and usually settles it.
    if x.size <= _SHORT_CHUNK and x.dot(x) <= FULL_SCALE_LIMIT**2:
        return True
    return bool(x.max() <= FULL_SCALE_LIMIT and x.min() >= -FULL_SCALE_LIMIT)


def _as_array(samples: Any) -> npt.NDArray[Any]:
    if np.ma.isMaskedArray(samples) and np.ma.is_masked(samples):
        raise AudioError(
            "Some samples are masked.", fix="Decide what they are: samples.filled(0) is silence."
        )
    try:
        return np.asarray(samples)
    except Exception:  # whatever a foreign array raises, such as a tensor that needs gradients
        raise AudioError(
            f"Samples of type {type(samples).__name__} are no array of numbers.",
            fix="Pass a 1-D NumPy array of int16 or float32.",
        ) from None


def _dtype_fix(dtype: np.dtype[Any]) -> str:
    if dtype == np.uint8:
        return "For 8-bit PCM pass (samples.astype(np.float32) - 128) / 128."
    if dtype == np.int32:
        return "For 32-bit PCM pass samples / 2**31; for 24-bit in 32, samples / 2**23."
    if dtype.kind in "iub":
        return "Pass samples.astype(np.int16) if the values are 16-bit PCM."
    return "Pass samples.astype(np.float32) with full scale at 1."


def _why_unusable(x: npt.NDArray[Any]) -> str:
    if not np.isfinite(x).all():
        return f"Samples hold {int((~np.isfinite(x)).sum())} values that are NaN or infinite."
    return f"Float samples reach {float(np.abs(x).max()):.6g}; full scale is 1."


def _value_fix(x: npt.NDArray[Any]) -> str:
    if not np.isfinite(x).all():
        return "Check the capture or decoding step; numpy.nan_to_num hides it at your own risk."
    return "If these are 16-bit values, divide by 32768 or pass them as int16."


# --- Audio files of any length, block by block, in bounded memory

Channel: TypeAlias = "int | Literal['mix']"
BLOCK_BYTES: Final = 1 << 18
MOST_CHANNELS: Final = 256
_MOST_CHUNKS: Final = 64  # before fmt; it is the first one nearly always
_EXTENSIBLE: Final = b"\xfe\xff"
_PCM: Final = b"\x01\x00"
_BROKEN = (
    wave.Error, EOFError, OSError, ValueError, RuntimeError, OverflowError, MemoryError,
    struct.error, ZeroDivisionError,
)  # fmt: skip


class _Decoder(Protocol):
    sample_rate: int
    channels: int
    frames: int | None
    encoding: str

    def read(self, frames: int) -> npt.NDArray[Any]: ...

    def close(self) -> None: ...


class AudioFile:
    """One audio file as mono blocks, also a source for `frami_edge_runtime.capture`'s loop.

    Samples are int16 for mono 16-bit (and 8-bit) PCM, else float32 with full scale 1.

    Args:
        path: The file.
        channel: ``"mix"`` averages all channels; 1 is the first, 2 the second, and so on.

    Raises:
        AudioError: It is missing, damaged, no audio, of an absurd rate, has no such channel, or
            needs soundfile, which is not installed.
    """

    live = False
    device_note = ""

    def __init__(self, path: str | os.PathLike[str], channel: Channel = "mix") -> None:
        """Read the header."""
        self.name = str(path)
        self._decoder = _open(Path(path))
        try:
            self.sample_rate = check_rate(self._decoder.sample_rate)
            """Hz."""
            check_channel(channel, self._decoder.channels, self.name)
        except BaseException:
            self._decoder.close()
            raise
        self.channels = self._decoder.channels
        self.frames = self._decoder.frames
        """Samples a channel, as the header says; None where it does not know."""
        self.encoding = self._decoder.encoding
        self._channel: Channel = channel

    def read(self, most: int = 16_384) -> tuple[npt.NDArray[Any], int] | None:
        """The next block (N,), at most so long, and 0 samples lost; None at the end.

        Raises:
            AudioError: The file is damaged here.
        """
        # The size in bytes is bounded too: a header may claim hundreds of channels.
        frames = max(1, min(most, BLOCK_BYTES // (4 * self.channels)))
        try:
            x_NC = self._decoder.read(frames)
        except _BROKEN as error:
            raise _damaged(self.name, error) from None
        if len(x_NC) == 0:
            return None
        return to_mono(x_NC, self._channel), 0

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """All blocks, to the end."""
        while (block := self.read()) is not None:
            yield block[0]

    def close(self) -> None:
        """Close the file."""
        self._decoder.close()

    def __enter__(self) -> AudioFile:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()


def check_channel(channel: Channel, channels: int, name: str) -> None:
    """Refuse a channel that is not there.

    Raises:
        AudioError: As it says; also for more channels than `MOST_CHANNELS`.
    """
    if isinstance(channels, bool) or not 1 <= channels <= MOST_CHANNELS:
        raise AudioError(
            f"{name} has {channels} channels.", fix=f"Use 1 to {MOST_CHANNELS} channels."
        )
    number = isinstance(channel, int) and not isinstance(channel, bool)
    if channel != "mix" and not (number and 1 <= int(channel) <= channels):
        raise AudioError(
            f"{name} has no channel {channel!r}; it has {channels}.",
            fix=f"Use a number in 1..{channels}, or 'mix' for the average of all.",
        )


def to_mono(x_NC: npt.NDArray[Any], channel: Channel) -> npt.NDArray[Any]:
    """One channel of (N, C), counted from 1, as it is; or the average of all, in float32."""
    if channel != "mix":
        return x_NC[:, channel - 1]
    if x_NC.shape[1] == 1:
        return x_NC[:, 0]
    x_N: npt.NDArray[Any] = x_NC.mean(axis=1, dtype=np.float32)
    return x_N * INT16_SCALE if x_NC.dtype.kind == "i" else x_N


def _open(path: Path) -> _Decoder:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
        why = "" if isinstance(error, FileNotFoundError) else f": {error.strerror}"
        raise AudioError(f"{path} {what}{why}.", fix="Check the path.") from None
    if not head:
        raise AudioError(f"{path} is empty.", fix="Give a file with audio in it.")
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        try:
            return _Wave(path)
        except wave.Error as error:
            if "format" not in str(error):
                raise _damaged(str(path), error) from None
        except _BROKEN as error:
            raise _damaged(str(path), error) from None
    return _Sound(path)


class _Wave:
    """PCM WAV by the standard library."""

    def __init__(self, path: Path) -> None:
        self._raw = _PlainHeader(path)
        try:
            self._file = wave.open(self._raw, "rb")  # noqa: SIM115 - closed by close()
        except BaseException:
            self._raw.close()
            raise
        self.sample_rate = self._file.getframerate()
        self.channels = self._file.getnchannels()
        self._bytes = self._file.getsampwidth()
        self.frames: int | None = self._file.getnframes()
        self.encoding = f"{8 * self._bytes}-bit PCM"
        if self._bytes not in (1, 2, 3, 4):
            self.close()
            raise wave.Error(f"unknown sample format: {8 * self._bytes} bits")

    def read(self, frames: int) -> npt.NDArray[Any]:
        data = self._file.readframes(frames)
        size = self._bytes * self.channels
        data = data[: len(data) - len(data) % size]  # a file that was cut in the middle of a frame
        return _decode_pcm(data, self._bytes).reshape(-1, self.channels)

    def close(self) -> None:
        self._file.close()
        self._raw.close()


class _PlainHeader(io.FileIO):
    """A WAV file whose header says PCM where it says WAVE_FORMAT_EXTENSIBLE with PCM inside.

    ffmpeg and sox write 24-bit files so; the standard library reads them from Python 3.12 on.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._tag_at = -2
        at = 12
        for _ in range(_MOST_CHUNKS):
            self.seek(at)
            head = super().read(8 + 26)
            if len(head) < 8 + 26 or head[:4] == b"data":
                break
            if head[:4] == b"fmt ":
                if head[8:10] == _EXTENSIBLE and head[32:34] == _PCM:
                    self._tag_at = at + 8
                break
            at += 8 + int.from_bytes(head[4:8], "little")
            at += at % 2
        self.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        data = super().read(-1 if size is None else size) or b""
        if at <= self._tag_at and self._tag_at + 2 <= at + len(data):
            tag = self._tag_at - at
            data = data[:tag] + _PCM + data[tag + 2 :]
        return data


def _decode_pcm(data: bytes, size: int) -> npt.NDArray[Any]:
    if size == 1:  # the only unsigned one
        return (np.frombuffer(data, np.uint8).astype(np.int16) - 128) * np.int16(256)
    if size == 2:
        return np.frombuffer(data, "<i2").astype(np.int16, copy=False)
    if size == 4:
        return (np.frombuffer(data, "<i4") * 2.0**-31).astype(np.float32)
    padded = np.zeros((len(data) // 3, 4), np.uint8)
    padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return (padded.view("<i4")[:, 0] * 2.0**-31).astype(np.float32)


class _Sound:
    """Everything else by libsndfile."""

    def __init__(self, path: Path) -> None:
        # Imported here: it is an extra, and PCM WAV does not need it.
        try:
            soundfile: Any = importlib.import_module("soundfile")
        except (ImportError, OSError):
            raise AudioError(
                f"{path} is no PCM WAV, and soundfile, which reads the rest, is not installed.",
                fix="pip install 'frami-edge-runtime[audio]', or convert it: ffmpeg -i IN -c:a "
                "pcm_s16le OUT.wav",
            ) from None
        try:
            self._file: Any = soundfile.SoundFile(str(path))
        except (*_BROKEN, TypeError) as error:
            raise AudioError(
                f"{path} is no audio file that can be read: {_reason(error)}.",
                fix="Convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav",
            ) from None
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        known = 0 <= self._file.frames < 1 << 62
        self.frames: int | None = int(self._file.frames) if known else None
        self.encoding = f"{self._file.format} {self._file.subtype}"

    def read(self, frames: int) -> npt.NDArray[Any]:
        x_NC: npt.NDArray[Any] = self._file.read(frames, dtype="float32", always_2d=True)
        return x_NC

    def close(self) -> None:
        self._file.close()


def _damaged(name: str, error: BaseException) -> AudioError:
    return AudioError(
        f"{name} is damaged: {_reason(error)}.", fix="Record or convert it again, or cut the rest."
    )


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[-1].rstrip(".")[:200] if text else "it ends too early"
