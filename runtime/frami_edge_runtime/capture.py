"""Live audio: a microphone behind a bounded queue, or raw PCM from a pipe.

A source has a ``sample_rate`` and a ``read`` that returns (mono samples, samples lost right before
them), or None at the end. Lost samples are counted and never spliced over. Its ``stats`` and
``take_warnings`` report what is wrong with the input, see `monitor`::

    with Microphone(clf.info.mel.sample_rate) as mic:
        stream = clf.stream(mic.sample_rate, window_s=1.0)
        while (block := mic.read()) is not None:
            samples, lost = block
            results = (stream.gap(lost) if lost else []) + stream.push(samples)
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections import deque
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import POLL_S, AudioFile, ByteStream, PcmFrames, check_rate
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.monitor import (
    STALLED_S,
    CaptureStats,
    Channel,
    InputMonitor,
    check_channel,
)
from frami_edge_runtime.state import reason

LONGEST_QUEUE_S: Final = 600.0
PCM_FORMATS: Final = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}
DRIVERS: Final = ("auto", "arecord", "portaudio")
MOST_CHANNELS: Final = 1024
"""Bounds the memory of raw PCM."""
CLOCK_SLACK_S: Final = 1.0
CLOSE_S: Final = 2.0
_PIPE_FRAMES: Final = 8192
_OVERRUN: Final = re.compile(r"overrun.*?([\d.]+) ms")
# arecord's description of the device, and of the stream that it opened; the first one is the outer.
_CAN: Final = re.compile(r"(CHANNELS|FORMAT): +\[?(.*?)\]?$")
_OPENED: Final = re.compile(r"rate +: (\d+)$")
_SILENT: Final = re.compile(r"(\d+) <- none$")  # a channel that ALSA adds, counted from 0
_FORMATS: Final = {"S16_LE": "s16le", "S32_LE": "s32le", "FLOAT_LE": "f32le"}
_ALSA_NAME: Final = re.compile(r"\w+:\S+")


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
        self._blocks: deque[tuple[int, npt.NDArray[Any]]] = deque()  # (lost before, samples)
        self._lost = 0  # since the newest block
        self._waiting = 0  # samples
        self._stats = CaptureStats()
        self._closed = False
        self._error: AudioError | None = None

    def put(self, samples: npt.NDArray[Any]) -> None:
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
    ) -> tuple[npt.NDArray[Any], int] | None:
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
    """Captures mono audio with PortAudio (sounddevice) or with ALSA's arecord.

    A capture thread only copies into a `SampleQueue`. Samples that the queue drops are counted
    exactly; losses in the driver are estimated from its time stamps (PortAudio) or its messages
    (arecord), and are never longer than the time that has passed.

    Args:
        sample_rate: Wanted rate in Hz. A device without it is opened at its own rate; ALSA's
            ``plughw`` converts.
        device: Name or number of a sounddevice device, or name of an ALSA PCM (``plughw:1``); None
            for the default.
        seconds: Audio that may wait for the reader before the oldest is dropped.
        driver: ``portaudio``, ``arecord``, or ``auto``: arecord for a name as ALSA's or where there
            is no PortAudio.
        channels: Channels to open; default: as many as ``channel`` needs.
        channel: ``"mix"`` averages them; 1 is the first.

    Raises:
        AudioError: There is no way to record here, or the device does not exist, is in use, or has
            no such channel.
    """

    live = True

    def __init__(
        self,
        sample_rate: int,
        device: str | int | None = None,
        *,
        seconds: float = 10.0,
        driver: str = "auto",
        channels: int | None = None,
        channel: Channel = "mix",
    ) -> None:
        self._driver: _PortAudio | _Arecord
        rate = check_rate(sample_rate)
        if channel != "mix":
            channels = channels or max(1, int(channel))
            check_channel(channel, channels, "The microphone")
        if driver not in DRIVERS:
            raise AudioError(f"There is no driver {driver!r}.", fix=f"Use {', '.join(DRIVERS)}.")
        sounddevice = None
        arecord = driver != "portaudio" and shutil.which("arecord")
        if driver != "arecord":
            with contextlib.suppress(ImportError, OSError):  # the latter: no PortAudio library
                sounddevice = importlib.import_module("sounddevice")
        alsa = isinstance(device, str) and _ALSA_NAME.fullmatch(device)
        if arecord and (alsa or sounddevice is None):
            self._driver = _Arecord(rate, device, seconds, channels, channel)
        elif sounddevice is not None:
            self._driver = _PortAudio(sounddevice, rate, device, seconds, channels or 1, channel)
        else:
            wanted = {"auto": "neither PortAudio nor arecord is"}.get(driver, f"{driver} is not")
            raise AudioError(
                f"There is no way to record here: {wanted} installed.",
                fix="pip install 'frami-edge-runtime[mic]' and apt-get install libportaudio2, "
                "or apt-get install alsa-utils.",
            )
        self._queue = self._driver.queue
        self.sample_rate = self._queue.sample_rate
        """Rate of the captured samples in Hz."""
        self.name = self._driver.name
        self.device_note = self._driver.note
        """How the device differs from what was asked for, or an empty string."""

    def read(
        self, most: int | None = None, timeout: float = STALLED_S
    ) -> tuple[npt.NDArray[Any], int] | None:
        """Wait for up to ``most`` samples; None after `close`.

        Returns:
            (samples (N,), samples lost right before them)

        Raises:
            AudioError: No samples came within ``timeout`` seconds, or the device failed or was
                unplugged.
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
        """Counters of captured and lost samples, and of what is wrong with them."""
        counted, noticed = self._queue.stats, self._driver.monitor.stats
        return replace(
            counted,
            clipped=noticed.clipped,
            dead_s=noticed.dead_s,
            stalled_s=noticed.stalled_s,
            clock_steps=noticed.clock_steps,
        )

    def take_warnings(self) -> list[tuple[str, str]]:
        """New warnings, see `monitor.InputMonitor`."""
        return self._driver.monitor.take_warnings()

    def close(self) -> None:
        """Stop capturing; samples that wait can still be read."""
        self._driver.close()

    def __enter__(self) -> Microphone:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _bounded(stated_s: float, passed_s: float, monitor: InputMonitor) -> float:
    """Seconds lost: what a driver states by a clock that may be set, as far as time has passed."""
    if -CLOCK_SLACK_S <= stated_s <= passed_s + CLOCK_SLACK_S:
        return stated_s
    monitor.stats.clock_steps += 1
    monitor.warn(
        "clock",
        f"The clock of {monitor.name} jumped: its time stamps say that {stated_s:.1f} s were lost; "
        f"{max(0.0, passed_s):.1f} s are counted.",
    )
    return passed_s


class _PortAudio:
    """An open sounddevice stream that fills a queue."""

    def __init__(
        self,
        sounddevice: Any,
        wanted: int,
        device: str | int | None,
        seconds: float,
        channels: int,
        channel: Channel,
    ) -> None:
        self.name = "the microphone" if device is None else f"microphone {device}"
        if isinstance(device, str) and device.isdigit():
            device = int(device)
        elif alsa := re.fullmatch(r"(?:plug)?hw:(\d+)(?:,(\d+))?", str(device)):
            device = f"(hw:{alsa[1]},{alsa[2] or 0})"  # as PortAudio's names end
        if channel == 1 and channels == 1:
            # Of one channel, ALSA would give the average.
            with contextlib.suppress(sounddevice.PortAudioError, ValueError):
                described = sounddevice.query_devices(device, "input")
                channels = min(2, int(described.get("max_input_channels", 1)))
        self.note, self._sounddevice = "", sounddevice
        self._expected: float | None = None  # time stamp of the next buffer, in seconds
        self._called = time.monotonic()
        settings = {"device": device, "channels": channels, "dtype": "int16"}
        try:
            rate = self._usable_rate(sounddevice, wanted, settings)
            self.queue = SampleQueue(rate, seconds)
            self.monitor = InputMonitor(self.name, rate, channel)
            self._stream = sounddevice.InputStream(
                samplerate=rate,
                callback=self._callback,
                finished_callback=self._finished,
                **settings,
            )
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise AudioError(
                f"The microphone cannot be opened: {reason(error).rstrip('.')}.",
                fix="`python -m sounddevice` lists the devices; choose one by name or number, or "
                "use arecord: --driver arecord.",
            ) from None

    def close(self) -> None:
        """Close the stream, unless its driver hangs: a program must be able to end."""
        self.queue.close()
        closing = threading.Thread(target=self._stream.close, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():  # at its end Python would wait for the same driver
            handler: Any = getattr(self._sounddevice, "_exit_handler", None)
            atexit.unregister(handler)

    def _finished(self) -> None:
        """PortAudio's stream has ended: by `close`, which was first then, or by itself."""
        what = f"{self.name[:1].upper()}{self.name[1:]} stopped recording."
        fix = "Check that it is plugged in, and start again."
        self.queue.close(AudioError(what, fix=fix))

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

    def _callback(self, indata: Any, frames: int, clock: Any, status: Any) -> None:
        begin, now, rate = float(clock.inputBufferAdcTime), time.monotonic(), self.queue.sample_rate
        if status.input_overflow:
            # PortAudio reports that samples were lost, not how many: its time stamps jump.
            jump = 0.0 if self._expected is None or begin == 0 else begin - self._expected
            passed = now - self._called - frames / rate
            self.queue.lose(max(1, round(_bounded(jump, passed, self.monitor) * rate)))
        self._expected, self._called = begin + frames / rate, now
        self.queue.put(self.monitor.mono(indata))


class _Arecord:
    """A running arecord, and two threads that read its samples and its messages.

    Every Linux board has arecord, or apt-get does. It describes the device before it opens it, and
    then what it opened: where the device lacks the format or number of channels, it is started once
    more with one that the device has; another rate is the rate of the source.
    """

    def __init__(
        self,
        wanted: int,
        device: str | int | None,
        seconds: float,
        channels: int | None,
        channel: Channel,
    ) -> None:
        SampleQueue(wanted, seconds)  # refuses what it cannot hold, before arecord runs
        self._pcm = "default" if device is None else str(device)
        self.name = f"ALSA device {self._pcm}"
        self.note = ""
        # ALSA mixes down to one channel, and copies to two and more.
        count, encoding = channels or 1, "S16_LE"
        if channel != "mix" and count == 1:
            count = 2
        self._samples: threading.Thread | None = None
        self._arrived = time.monotonic()
        self._start(wanted, count, encoding)
        if self._rate is None and (other := self._alternative(count, encoding)):
            count, encoding = other
            with self._process:
                self._messages.join()
            if count < (channels or 1):
                raise self._has_only(count, channels)
            self._start(wanted, count, encoding)
        if self._rate is None:
            with self._process:
                raise self._stopped()
        if self._silent and (channels or 1) > min(self._silent):
            with self._process:
                self._process.kill()
                self._messages.join()
            raise self._has_only(min(self._silent), channels)
        if self._rate != wanted:
            self.note = (
                f"The microphone cannot record at {wanted} Hz; it is opened at {self._rate} Hz."
            )
        elif self._linear:
            self.note = (
                "ALSA converts the rate by linear interpolation, which distorts high frequencies: "
                "use hw:... with soxr, or apt-get install libasound2-plugins."
            )
        if channel == "mix" and count > (channels or 1):
            self.note = f"{self.note} The average of its {count} channels is used.".strip()
        self.queue = SampleQueue(self._rate, seconds)
        self._source = PcmPipe(
            self._process.stdout,
            self._rate,
            _FORMATS[encoding],
            channels=count,
            channel=channel,
            name=self.name,
        )
        self.monitor = self._source.monitor
        self._samples = threading.Thread(target=self._read_samples, daemon=True)
        self._samples.start()

    def _start(self, wanted: int, channels: int, encoding: str) -> None:
        """Run arecord until it has opened the device, or ended."""
        self._last_message = ""
        self._rate: int | None = None
        self._can: dict[str, str] = {}
        self._silent: set[int] = set()
        self._linear = False
        self._known = threading.Event()
        command = ["arecord", "-q", "-v", "--dump-hw-params", "-D", self._pcm, "-t", "raw"]
        self._process = subprocess.Popen(
            [*command, "-f", encoding, "-c", str(channels), "-r", str(wanted)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},  # its messages are parsed
            start_new_session=True,  # Ctrl-C reaches only this program, and close() ends arecord
        )
        self._messages = threading.Thread(target=self._read_messages, daemon=True)
        self._messages.start()
        if not self._known.wait(STALLED_S):
            self._process.kill()
            self._last_message = f"it did not open the device within {STALLED_S:g} s"

    def _alternative(self, channels: int, encoding: str) -> tuple[int, str] | None:
        """Channels and format that the device has, where they are others."""
        counts = [int(n) for n in re.findall(r"\d+", self._can.get("CHANNELS", ""))]
        formats = self._can.get("FORMAT", "").split()
        other = next((name for name in _FORMATS if name in formats), encoding)
        count = min(max(channels, counts[0]), counts[-1]) if counts else channels
        return (count, other) if (count, other) != (channels, encoding) else None

    def _has_only(self, count: int, channels: int | None) -> AudioError:
        return AudioError(
            f"{self.name} has {count} channels, not {channels}.",
            fix=f"Use a channel in 1..{count}.",
        )

    def _stopped(self) -> AudioError:
        self._messages.join(STALLED_S)  # its last message
        why = self._last_message or f"exit code {self._process.wait()}"
        return AudioError(
            f"arecord stopped recording: {why.rstrip('.')}.",
            fix="`arecord -L` lists the devices; choose one with --device, as plughw:1.",
        )

    def close(self) -> None:
        self.queue.close()
        with self._process:  # waits for its end and closes the pipes
            self._process.kill()
            self._messages.join()
            if self._samples is not None:
                self._samples.join()

    def _read_samples(self) -> None:
        while (block := self._source.read()) is not None:
            self._arrived = time.monotonic()
            self.queue.put(block[0])
        self.queue.close(self._stopped())

    def _read_messages(self) -> None:
        for line in self._process.stderr or ():
            text = line.decode("utf-8", "replace").strip()
            if self._samples and (overrun := _OVERRUN.search(text)):
                passed = time.monotonic() - self._arrived
                lost_s = _bounded(float(overrun[1]) / 1000, passed, self.monitor)
                self.queue.lose(max(1, round(lost_s * self.queue.sample_rate)))
            elif self._rate is None:
                if can := _CAN.match(text):
                    self._can[can[1]] = can[2]
                elif opened := _OPENED.match(text):
                    self._rate = int(opened[1])
                    self._known.set()
                elif silent := _SILENT.match(text):
                    self._silent.add(int(silent[1]))
                elif text.startswith("Converter: linear"):
                    self._linear = True
            if ": " in text and text.startswith(("arecord: ", "ALSA lib ")):
                self._last_message = text.rpartition("arecord: ")[2]
        self._known.set()


class PcmPipe:
    """Raw PCM from a pipe, as ``ffmpeg -i ... -f s16le -ac 1 -ar 16000 -`` writes it.

    A writer that is faster than the reader waits, so nothing is lost. Bytes after the last whole
    frame are ignored. An audio file of the same rate that comes through the pipe is recognised and
    decoded.

    Args:
        stream: Binary stream, for example ``sys.stdin.buffer``, or a `audio.ByteStream` of it; the
            caller closes it.
        sample_rate: Hz.
        encoding: ``s16le``, ``s32le`` or ``f32le``.
        channels: Number of interleaved channels.
        channel: ``"mix"`` averages all channels; 1 is the first.
        stall_s: Seconds without data after which `read` fails; None: never.

    Raises:
        AudioError: The rate, encoding, number of channels or channel is out of range.
    """

    device_note = ""
    live = True

    def __init__(
        self,
        stream: Any,
        sample_rate: int,
        encoding: str = "s16le",
        *,
        channels: int = 1,
        channel: Channel = "mix",
        name: str = "standard input",
        stall_s: float | None = None,
    ) -> None:
        self.name = name
        self.sample_rate = check_rate(sample_rate)
        if encoding not in PCM_FORMATS:
            raise AudioError(
                f"There is no raw format {encoding!r}.",
                fix=f"Use one of {', '.join(PCM_FORMATS)}.",
            )
        if not 1 <= channels <= MOST_CHANNELS:
            raise AudioError(
                f"Raw PCM of {channels} channels cannot be read.", fix=f"Use 1 to {MOST_CHANNELS}."
            )
        check_channel(channel, channels, self.name)
        self._stream = stream if isinstance(stream, ByteStream) else ByteStream(stream)
        self._dtype = np.dtype(PCM_FORMATS[encoding])
        self._frames = PcmFrames(self._stream, self._dtype.itemsize * channels)
        self._channels, self._channel, self._stall_s = channels, channel, stall_s
        self._file: AudioFile | None = None
        self._at_start = True
        self.monitor = InputMonitor(name, self.sample_rate, channel, stall_s)

    def read(self) -> tuple[npt.NDArray[Any], int] | None:
        """(samples that have arrived, and 0 lost samples); None at the end.

        There are no samples only where none came for a second.

        Raises:
            AudioError: Nothing came for ``stall_s``, or the stream is an audio file that cannot be
                decoded here or has another rate.
        """
        if self._at_start and self._stream.wait(POLL_S):
            self._at_start = False
            if found := self._stream.container():
                self._open_file(found)
        if self._file is not None:
            return self._file.read()
        # Samples may begin only after the format is known, however late they come.
        data = b"" if self._at_start else self._frames.read(_PIPE_FRAMES)
        if data is None:
            self.monitor.review()
            return None
        if not data:
            self.monitor.stalled(POLL_S)
        x_NC = np.frombuffer(data, self._dtype).reshape(-1, self._channels)
        if self._dtype.str == "<i4":
            x_NC = (x_NC * 2.0**-31).astype(np.float32)
        return self.monitor.mono(x_NC), 0

    def _open_file(self, found: str) -> None:
        file = AudioFile(self._stream, self._channel, name=self.name, stall_s=self._stall_s)
        if file.sample_rate != self.sample_rate:
            raise AudioError(
                f"{self.name} is no raw PCM but {found}, of {file.sample_rate} Hz and not "
                f"{self.sample_rate} Hz.",
                fix="Leave --rate out: the file states its own.",
            )
        self._file = file

    @property
    def stats(self) -> CaptureStats:
        """Counters so far."""
        return replace(self.monitor.stats) if self._file is None else self._file.stats

    def take_warnings(self) -> list[tuple[str, str]]:
        """New warnings, see `monitor.InputMonitor`."""
        return (self.monitor if self._file is None else self._file).take_warnings()

    def close(self) -> None:
        """Do nothing: the caller closes the stream."""
