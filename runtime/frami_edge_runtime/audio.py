"""What counts as audio, and audio files of any length, block by block, in bounded memory.

PCM WAV (8, 16, 24, 32 bit) is read here. Everything else that libsndfile reads (FLAC, OGG, MP3,
float WAV, AIFF) needs the extra ``audio``.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.state import reason

Channel: TypeAlias = "int | Literal['mix']"
INT16_SCALE: Final = np.float32(1 / 32768)
FULL_SCALE_LIMIT: Final = 16.0
"""Float samples beyond this (24 dB over full scale) are integers in disguise, not audio."""
LOWEST_RATE: Final = 1_000
HIGHEST_RATE: Final = 768_000
BLOCK_BYTES: Final = 1 << 18
_SHORT_CHUNK: Final = 4096
_PCM: Final = 1
_EXTENSIBLE: Final = 0xFFFE


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


def check_channel(channel: Channel, channels: int, name: str) -> None:
    """Refuse a channel that does not exist.

    Raises:
        AudioError: There is no such channel.
    """
    if channel != "mix" and channel not in range(1, channels + 1):
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


class AudioFile:
    """One audio file as mono blocks; ``frami-edge-listen`` reads it like a microphone.

    Samples are int16 for mono 16-bit (and 8-bit) PCM, else float32 with full scale 1.

    Args:
        path: The file.
        channel: ``"mix"`` averages all channels; 1 is the first, 2 the second, and so on.

    Raises:
        AudioError: It is missing, damaged, no audio, of an absurd rate, has no such channel, or
            needs soundfile, which is not installed.
    """

    device_note = ""

    def __init__(self, path: str | os.PathLike[str], channel: Channel = "mix") -> None:
        """Read the header."""
        self.name = str(path)
        self._decoder = _open(Path(path))
        self._channel: Channel = channel
        self.channels = self._decoder.channels
        try:
            self.sample_rate = check_rate(self._decoder.sample_rate)
            """Hz."""
            check_channel(channel, self.channels, self.name)
        except AudioError:
            self.close()
            raise

    def read(self, most: int = 16_384) -> tuple[npt.NDArray[Any], int] | None:
        """The next block (N,) of at most this length, and 0 samples lost; None at the end.

        Raises:
            AudioError: The file is damaged here.
        """
        # The size in bytes is bounded too: a header may claim hundreds of channels.
        frames = max(1, min(most, BLOCK_BYTES // (4 * self.channels)))
        try:
            x_NC = self._decoder.read(frames)
        except Exception as error:  # decoders raise unrelated types
            raise _damaged(self.name, reason(error)) from None
        return (to_mono(x_NC, self._channel), 0) if len(x_NC) else None

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """All blocks, to the end."""
        while (block := self.read()) is not None:
            yield block[0]

    def close(self) -> None:
        """Close the file."""
        self._decoder.close()

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open(path: Path) -> _PcmWave | _SoundFile:
    try:
        file = path.open("rb")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"cannot be read: {reason(error)}"
        raise AudioError(f"{path} {what}.", fix="Check the path.") from None
    try:
        if file.read(4) == b"RIFF" and file.read(8)[4:] == b"WAVE" and (wave := _open_wave(file)):
            return wave
    except struct.error:
        file.close()
        raise _damaged(str(path), "its header ends too early") from None
    except (OSError, ValueError) as error:
        file.close()
        raise _damaged(str(path), reason(error)) from None
    file.close()
    return _SoundFile(path)


def _open_wave(file: BinaryIO) -> _PcmWave | None:
    """The samples of a WAV file that is read up to its first chunk; None if it is not PCM."""
    fmt = b""
    while True:
        name, size = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            break
        after = file.tell() + size + size % 2
        if name == b"fmt ":
            fmt = file.read(min(size, 26))
        file.seek(after)
    tag, channels, rate, _, block, bits = struct.unpack("<HHIIHH", fmt[:16])
    # ffmpeg and sox write 24-bit files as WAVE_FORMAT_EXTENSIBLE, with the real tag further on.
    if tag == _EXTENSIBLE and len(fmt) == 26:
        tag = int.from_bytes(fmt[24:26], "little")
    if tag != _PCM or bits not in (8, 16, 24, 32):
        return None
    if channels == 0 or block != channels * bits // 8:
        raise ValueError(f"{channels} channels of {bits} bits do not make frames of {block} bytes")
    # A recorder that was cut off, or writes to a pipe, leaves another size than the file's.
    left = min(size, os.fstat(file.fileno()).st_size - file.tell())
    return _PcmWave(file, channels, rate, bits // 8, left)


@dataclass
class _PcmWave:
    """PCM samples from the current position of a WAV file."""

    file: BinaryIO
    channels: int
    sample_rate: int
    width: int  # bytes per sample
    left: int  # bytes of samples

    def read(self, frames: int) -> npt.NDArray[Any]:
        size = self.width * self.channels
        data = self.file.read(min(frames * size, self.left))
        self.left -= len(data)
        data = data[: len(data) - len(data) % size]  # the file may end within a frame
        return _decode_pcm(data, self.width).reshape(-1, self.channels)

    def close(self) -> None:
        self.file.close()


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
    """Everything else, by libsndfile."""

    def __init__(self, path: Path) -> None:
        convert = "ffmpeg -i IN -c:a pcm_s16le OUT.wav"
        try:
            # Imported here: it is an extra, and PCM WAV does not need it.
            soundfile: Any = importlib.import_module("soundfile")
        except (ImportError, OSError):
            raise AudioError(
                f"{path} is no PCM WAV, and soundfile, which reads the rest, is not installed.",
                fix=f"pip install 'frami-edge-runtime[audio]', or convert it: {convert}",
            ) from None
        try:
            self._file: Any = soundfile.SoundFile(str(path))
        except Exception as error:  # libsndfile's own errors, and TypeError for headerless formats
            raise AudioError(
                f"{path} is no audio file that can be read: {reason(error).rstrip('.')}.",
                fix=f"Convert it: {convert}",
            ) from None
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)

    def read(self, frames: int) -> npt.NDArray[Any]:
        x_NC: npt.NDArray[Any] = self._file.read(frames, dtype="float32", always_2d=True)
        return x_NC

    def close(self) -> None:
        self._file.close()


def _damaged(name: str, why: str) -> AudioError:
    return AudioError(
        f"{name} is damaged: {why.rstrip('.')}.",
        fix="Record or convert it again, or cut off the rest.",
    )
