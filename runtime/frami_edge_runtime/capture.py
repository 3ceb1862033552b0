"""Live audio: a microphone behind a bounded queue, or raw PCM from a pipe.

A source has a ``sample_rate`` and a ``read`` that returns (mono samples, samples lost right before
them), or None at the end. Lost samples are counted and never spliced over::

    with Microphone(clf.info.mel.sample_rate) as mic:
        stream = clf.stream(mic.sample_rate, window_s=1.0)
        while (block := mic.read()) is not None:
            samples, lost = block
            results = (stream.gap(lost) if lost else []) + stream.push(samples)
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import Channel, check_channel, check_rate, to_mono
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.state import reason

LONGEST_QUEUE_S: Final = 600.0
STALLED_S: Final = 5.0
PCM_FORMATS: Final = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}
_PIPE_FRAMES: Final = 8192
_OVERRUN: Final = re.compile(r"overrun.*?([\d.]+) ms")
_OTHER_RATE: Final = re.compile(r"rate is not accurate.*?got = (\d+)", re.IGNORECASE)


@dataclass
class CaptureStats:
    """Counters since the capture was opened, in samples at its rate."""

    samples_in: int = 0
    """Captured samples, including those that were dropped later."""
    dropped: int = 0
    """Lost samples: dropped before they were read, or reported lost by the device."""
    overruns: int = 0
    """How many times samples were lost."""
    lag_s: float = 0.0
    """Seconds of audio that wait to be read."""
    max_lag_s: float = 0.0
    """The most that ever waited."""


class SampleQueue:
    """Passes blocks of samples from a capture thread to a slower reader, in order.

    When it is full, the oldest blocks are dropped, but never the newest. Every lost sample is
    counted, and a read never joins samples across a loss.

    Args:
        sample_rate: Hz.
        seconds: Capacity.

    Raises:
        AudioError: The rate or capacity is out of range.
    """

    def __init__(self, sample_rate: int, seconds: float = 10.0) -> None:
        self.sample_rate = check_rate(sample_rate)
        if not 0 < seconds <= LONGEST_QUEUE_S:
            raise AudioError(
                f"Audio of {seconds:g} s cannot wait for the model.",
                fix=f"Use more than 0 s and at most {LONGEST_QUEUE_S:g} s.",
            )
        self._capacity = seconds * sample_rate
        self._changed = threading.Condition()
        self._blocks: deque[tuple[int, npt.NDArray[np.int16]]] = deque()  # (lost before, samples)
        self._lost = 0  # since the newest block
        self._waiting = 0  # samples
        self._stats = CaptureStats()
        self._closed = False
        self._error: AudioError | None = None

    def put(self, samples: npt.NDArray[np.int16]) -> None:
        """Append a copy of (N,) samples; never waits."""
        if len(samples) == 0:
            return
        with self._changed:
            self._blocks.append((self._lost, samples.copy()))
            self._lost = 0
            self._stats.samples_in += len(samples)
            self._waiting += len(samples)
            while self._waiting > self._capacity and len(self._blocks) > 1:
                lost, oldest = self._blocks.popleft()
                lost_next, rest = self._blocks.popleft()
                self._blocks.appendleft((lost + len(oldest) + lost_next, rest))
                self._waiting -= len(oldest)
                self._stats.dropped += len(oldest)
                self._stats.overruns += 1
            self._stats.max_lag_s = max(self._stats.max_lag_s, self._waiting / self.sample_rate)
            self._changed.notify()

    def lose(self, samples: int) -> None:
        """Count samples that the device itself lost after those put so far."""
        with self._changed:
            self._lost += samples
            self._stats.dropped += samples
            self._stats.overruns += 1

    def get(
        self, most: int | None = None, timeout: float | None = None
    ) -> tuple[npt.NDArray[np.int16], int] | None:
        """Take what waits, up to the next loss and ``most`` samples; wait ``timeout`` s for some.

        Returns:
            (samples (N,), samples lost right before them); N is 0 after a timeout. None at the end.

        Raises:
            AudioError: The capture failed, and everything before the failure was read.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._closed, timeout)
            if not self._blocks:
                if self._error is not None:
                    raise self._error
                return None if self._closed else (np.empty(0, np.int16), 0)
            lost, samples = self._blocks.popleft()
            taken = [samples]
            while self._blocks and self._blocks[0][0] == 0:
                taken.append(self._blocks.popleft()[1])
            joined = np.concatenate(taken)
            if most is not None and len(joined) > most:
                self._blocks.appendleft((0, joined[most:]))
                joined = joined[:most]
            self._waiting -= len(joined)
            return joined, lost

    def close(self, error: AudioError | None = None) -> None:
        """End the capture: readers get what waits, then ``error`` or None."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
            self._changed.notify()

    @property
    def stats(self) -> CaptureStats:
        """Counters of captured, waiting and lost samples."""
        with self._changed:
            return replace(self._stats, lag_s=self._waiting / self.sample_rate)


class Microphone:
    """Captures mono int16 with PortAudio (sounddevice) or, without it, with ALSA's arecord.

    A capture thread only copies into a `SampleQueue`. Samples that the queue drops are counted
    exactly; losses in the driver are estimated from its time stamps (PortAudio) or its messages
    (arecord).

    Args:
        sample_rate: Wanted rate in Hz. A PortAudio device without it is opened at its own rate;
            ALSA converts.
        device: Name or number of a sounddevice device, or name of an ALSA PCM (``plughw:1``); None
            for the default.
        seconds: Audio that may wait for the reader before the oldest is dropped.

    Raises:
        AudioError: There is no way to record here, or the device does not exist or is in use.
    """

    def __init__(
        self, sample_rate: int, device: str | int | None = None, *, seconds: float = 10.0
    ) -> None:
        self._driver: _PortAudio | _Arecord
        rate = check_rate(sample_rate)
        try:
            sounddevice = importlib.import_module("sounddevice")
        except (ImportError, OSError):  # OSError: there is no PortAudio library
            if not shutil.which("arecord"):
                raise AudioError(
                    "There is no way to record here: neither PortAudio nor arecord is installed.",
                    fix="pip install 'frami-edge-runtime[mic]' and apt-get install libportaudio2, "
                    "or apt-get install alsa-utils.",
                ) from None
            self._driver = _Arecord(rate, device, seconds)
        else:
            self._driver = _PortAudio(sounddevice, rate, device, seconds)
        self._queue = self._driver.queue
        self.sample_rate = self._queue.sample_rate
        """Rate of the captured samples in Hz."""
        self.name = self._driver.name
        self.device_note = self._driver.note
        """How the device differs from what was asked for, or an empty string."""

    def read(
        self, most: int | None = None, timeout: float = STALLED_S
    ) -> tuple[npt.NDArray[np.int16], int] | None:
        """Wait for up to ``most`` samples; None after `close`.

        Returns:
            (samples (N,), samples lost right before them)

        Raises:
            AudioError: No samples came within ``timeout`` seconds, or the device failed.
        """
        block = self._queue.get(most, timeout)
        if block is not None and len(block[0]) == 0:
            raise AudioError(
                f"No audio came from {self.name} for {timeout:g} s.",
                fix="Check that the microphone is plugged in and not muted by a switch.",
            )
        return block

    @property
    def stats(self) -> CaptureStats:
        """Counters of captured and lost samples."""
        return self._queue.stats

    def close(self) -> None:
        """Stop capturing; samples that wait can still be read."""
        self._driver.close()

    def __enter__(self) -> Microphone:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _PortAudio:
    """An open sounddevice stream that fills a queue."""

    def __init__(
        self, sounddevice: Any, wanted: int, device: str | int | None, seconds: float
    ) -> None:
        if isinstance(device, str) and device.isdigit():
            device = int(device)
        self.name = "the microphone" if device is None else f"microphone {device}"
        self.note = ""
        self._expected: float | None = None  # time stamp of the next buffer, in seconds
        settings = {"device": device, "channels": 1, "dtype": "int16"}
        try:
            rate = self._usable_rate(sounddevice, wanted, settings)
            self.queue = SampleQueue(rate, seconds)
            self._stream = sounddevice.InputStream(
                samplerate=rate,
                callback=self._callback,
                finished_callback=self.queue.close,
                **settings,
            )
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise AudioError(
                f"The microphone cannot be opened: {reason(error).rstrip('.')}.",
                fix="`python -m sounddevice` lists the devices; choose one by name or number.",
            ) from None

    def close(self) -> None:
        self._stream.close()
        self.queue.close()

    def _usable_rate(self, sounddevice: Any, wanted: int, settings: dict[str, Any]) -> int:
        try:
            sounddevice.check_input_settings(samplerate=wanted, **settings)
            return wanted
        except sounddevice.PortAudioError:
            described = sounddevice.query_devices(settings["device"], "input")
            own = check_rate(described["default_samplerate"])
            if own == wanted:
                raise
            self.note = f"The microphone cannot record at {wanted} Hz; it is opened at {own} Hz."
            return own

    def _callback(self, indata: Any, frames: int, time: Any, status: Any) -> None:
        begin = float(time.inputBufferAdcTime)
        if status.input_overflow:
            # PortAudio reports that samples were lost, not how many: its time stamps jump.
            jump = 0.0 if self._expected is None else begin - self._expected
            self.queue.lose(max(1, round(jump * self.queue.sample_rate)))
        self._expected = begin + frames / self.queue.sample_rate
        self.queue.put(indata[:, 0])


class _Arecord:
    """A running arecord, and two threads that read its samples and its messages.

    Every Linux board has arecord, or apt-get does. The ALSA device converts the rate where the
    hardware cannot.
    """

    note = ""

    def __init__(self, wanted: int, device: str | int | None, seconds: float) -> None:
        pcm = "default" if device is None else str(device)
        self.name = f"ALSA device {pcm}"
        self.queue = SampleQueue(wanted, seconds)
        self._last_message = ""
        command = ["arecord", "-q", "-D", pcm, "-t", "raw", "-f", "S16_LE", "-c", "1"]
        self._process = subprocess.Popen(
            [*command, "-r", str(wanted)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},  # its messages are parsed
            start_new_session=True,  # Ctrl-C reaches only this program, and close() ends arecord
        )
        self._messages = threading.Thread(target=self._read_messages, daemon=True)
        self._samples = threading.Thread(target=self._read_samples, daemon=True)
        self._messages.start()
        self._samples.start()

    def close(self) -> None:
        self.queue.close()
        with self._process:  # waits for its end and closes the pipes
            self._process.kill()
            self._messages.join()
            self._samples.join()

    def _read_samples(self) -> None:
        pipe: Any = self._process.stdout
        pcm = PcmPipe(pipe, self.queue.sample_rate)
        while (block := pcm.read()) is not None:
            self.queue.put(block[0])
        self._messages.join()  # its last message
        why = self._last_message or f"exit code {self._process.wait()}"
        fix = "`arecord -L` lists the devices; choose one with the device option."
        self.queue.close(AudioError(f"arecord stopped recording: {why.rstrip('.')}.", fix=fix))

    def _read_messages(self) -> None:
        rate = self.queue.sample_rate
        for line in self._process.stderr or ():
            text = line.decode("utf-8", "replace").strip()
            if overrun := _OVERRUN.search(text):
                self.queue.lose(max(1, round(float(overrun[1]) / 1000 * rate)))
            elif other := _OTHER_RATE.search(text):
                found = f"{self.name} records at {other[1]} Hz only, not at {rate} Hz."
                fix = "Use a device that converts (plughw:...), or that rate."
                self.queue.close(AudioError(found, fix=fix))
            elif text:
                self._last_message = text.rpartition("arecord: ")[2]


class PcmPipe:
    """Raw PCM from a pipe, as ``ffmpeg -i ... -f s16le -ac 1 -ar 16000 -`` writes it.

    A writer that is faster than the reader waits, so nothing is lost. Bytes after the last whole
    frame are ignored.

    Args:
        stream: Buffered binary stream, for example ``sys.stdin.buffer``; the caller closes it.
        sample_rate: Hz.
        encoding: ``s16le``, ``s32le`` or ``f32le``.
        channels: Number of interleaved channels.
        channel: ``"mix"`` averages all channels; 1 is the first.

    Raises:
        AudioError: The rate, encoding or channel is out of range.
    """

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
        self._at_start = True

    def read(self) -> tuple[npt.NDArray[Any], int] | None:
        """(samples that have arrived, at least one, and 0 lost samples); None at the end.

        Raises:
            AudioError: The stream is a WAV file.
        """
        size = self._dtype.itemsize * self._channels
        data = self._rest
        while len(data) < size:
            chunk = self._stream.read1(_PIPE_FRAMES * size)
            if not chunk:
                return None
            data += chunk
        if self._at_start and data[:4] == b"RIFF":
            raise AudioError(
                "A WAV file came through the pipe, where raw samples were expected.",
                fix="Give the file by its name, or let ffmpeg write raw: -f s16le -",
            )
        self._at_start = False
        frames = len(data) // size
        self._rest = data[frames * size :]
        x_NC = np.frombuffer(data, self._dtype, frames * self._channels)
        x_NC = x_NC.reshape(frames, self._channels)
        if self._dtype.str == "<i4":
            x_NC = (x_NC * 2.0**-31).astype(np.float32)
        return to_mono(x_NC, self._channel), 0

    def close(self) -> None:
        """Do nothing: the caller closes the stream."""
