"""Live audio: a microphone behind a bounded ring, or raw PCM from a pipe.

A source has a ``sample_rate``, and a ``read`` that gives (mono samples, samples lost right before
them), or None at the end. Nothing is spliced and nothing is lost in silence::

    with Microphone(clf.info.mel.sample_rate) as mic:
        stream = clf.stream(mic.sample_rate, window_s=1.0)
        while (block := mic.read()) is not None:
            samples, lost = block
            results = (stream.gap(lost) if lost else []) + stream.push(samples)
"""

from __future__ import annotations

from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._arecord import Arecord
from frami_edge_runtime._portaudio import PortAudio, find_sounddevice
from frami_edge_runtime._ring import CaptureStats, Policy, SampleRing
from frami_edge_runtime.audio import check_rate
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.wavfile import Channel, check_channel, to_mono

__all__ = ["CaptureStats", "Microphone", "PcmPipe", "Policy", "SampleRing"]

STALLED_S: Final = 5.0
PCM_FORMATS: Final = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}
_PIPE_FRAMES: Final = 8192


class Microphone:
    """Captures mono int16 into a `SampleRing`, by PortAudio (sounddevice) or ALSA's arecord.

    The driver's thread only copies. Samples lost in the ring are counted exactly; what the driver
    itself loses is estimated from its time stamps (PortAudio) or its messages (arecord).

    Args:
        sample_rate: Hz that is wanted. A device that cannot is opened at its own rate.
        device: Name or number of a sounddevice device, or name of an ALSA PCM (``plughw:1``).
        seconds: Capacity of the ring.
        policy: See `SampleRing`.

    Raises:
        AudioError: There is no way to record here, or the device does not exist or is in use.
    """

    live = True

    def __init__(
        self,
        sample_rate: int,
        device: str | int | None = None,
        *,
        seconds: float = 10.0,
        policy: Policy = "drop_oldest",
    ) -> None:
        """Start capturing."""
        wanted = check_rate(sample_rate)
        sounddevice, why = find_sounddevice()
        self._driver: PortAudio | Arecord
        if sounddevice is not None:
            self._driver = PortAudio(sounddevice, wanted, device, seconds, policy)
        elif Arecord.found():
            self._driver = Arecord(wanted, device, seconds, policy)
        else:
            raise AudioError(
                f"There is no way to record here: {why}, and there is no arecord on the PATH.",
                fix="pip install 'frami-edge-runtime[mic]' and apt-get install libportaudio2, or "
                "apt-get install alsa-utils.",
            )
        self.sample_rate = self._driver.ring.sample_rate
        """Hz of the samples that come."""
        self.name = self._driver.name
        self.device_note = self._driver.note
        """What had to be done otherwise than wanted, or an empty string."""

    def read(
        self, most: int | None = None, timeout: float = STALLED_S
    ) -> tuple[npt.NDArray[np.int16], int] | None:
        """Wait for samples: (samples, samples lost right before them), or None after `close`.

        Raises:
            AudioError: None came within ``timeout`` seconds, or the device failed.
        """
        block = self._driver.ring.read(most, timeout)
        if block is not None and len(block[0]) == 0:
            raise AudioError(
                f"No audio came from {self.name} for {timeout:g} s.",
                fix="Check that the microphone is plugged in and not muted by a switch.",
            )
        return block

    @property
    def stats(self) -> CaptureStats:
        """What was captured and what was lost."""
        return self._driver.ring.stats

    def warning(self) -> str | None:
        """See `SampleRing.warning`."""
        return self._driver.ring.warning()

    def close(self) -> None:
        """Stop capturing; what is in the ring can still be read."""
        self._driver.close()

    def __enter__(self) -> Microphone:
        """Itself; capturing since it was made."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()


class PcmPipe:
    """Raw PCM from a pipe, as ``ffmpeg -i ... -f s16le -ac 1 -ar 16000 -`` writes it.

    A writer that is faster than the reader waits, so nothing is lost here. Bytes after the last
    whole frame are ignored.

    Args:
        stream: Binary, for example ``sys.stdin.buffer``.
        sample_rate: Hz.
        encoding: ``s16le``, ``s32le`` or ``f32le``.
        channels: Interleaved.
        channel: See `frami_edge_runtime.wavfile.AudioFile`.

    Raises:
        AudioError: The rate, encoding or channel is not one.
    """

    live = False
    name = "standard input"
    device_note = ""

    def __init__(
        self,
        stream: BinaryIO,
        sample_rate: int,
        encoding: str = "s16le",
        *,
        channels: int = 1,
        channel: Channel = "mix",
    ) -> None:
        """Nothing is read yet."""
        self.sample_rate = check_rate(sample_rate)
        if encoding not in PCM_FORMATS:
            raise AudioError(
                f"There is no raw format {encoding!r}.",
                fix=f"Use one of {', '.join(PCM_FORMATS)}.",
            )
        check_channel(channel, channels, self.name)
        self._stream: Any = stream
        self._dtype = np.dtype(PCM_FORMATS[encoding])
        self._channels, self._channel = channels, channel
        self._rest = b""
        self._first = True

    def read(self) -> tuple[npt.NDArray[Any], int] | None:
        """What has come, at least one frame; None at the end.

        Raises:
            AudioError: It is no raw PCM but a WAV stream.
        """
        size = self._dtype.itemsize * self._channels
        take = getattr(self._stream, "read1", self._stream.read)
        while True:
            data = take(_PIPE_FRAMES * size)
            if not data:
                return None
            data = self._rest + data
            if self._first and len(data) >= 4:
                self._first = False
                if data[:4] == b"RIFF":
                    raise AudioError(
                        "A WAV file came through the pipe, where raw samples were expected.",
                        fix="Give the file by its name, or let ffmpeg write raw: -f s16le -",
                    )
            whole = len(data) - len(data) % size
            self._rest = data[whole:]
            if whole:
                break
        x_NC = np.frombuffer(data[:whole], self._dtype).reshape(-1, self._channels)
        if self._dtype.str == "<i4":
            x_NC = (x_NC * 2.0**-31).astype(np.float32)
        return to_mono(x_NC, self._channel), 0

    def close(self) -> None:
        """The stream belongs to whoever opened it."""
