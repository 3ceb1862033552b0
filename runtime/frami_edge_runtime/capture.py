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

import importlib
import os
import re
import shutil
import subprocess
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import HIGHEST_RATE, Channel, check_channel, check_rate, to_mono
from frami_edge_runtime.errors import AudioError

# --- A bounded ring of samples between a capture callback and a slower reader

Policy = Literal["drop_oldest", "block", "raise"]
POLICIES: Final = ("drop_oldest", "block", "raise")
LONGEST_RING_S: Final = 600.0

WARN_SHARE: Final = 0.1
WARN_OVER_S: Final = 300.0
"""More than a tenth lost over five minutes is worth a warning: BirdNET-Go's rule."""
_BUCKETS: Final = 30


@dataclass(frozen=True)
class CaptureStats:
    """Counters since the capture was opened, in samples at its rate."""

    samples_in: int = 0
    """Captured, also those that were dropped later."""
    dropped: int = 0
    """Lost: overwritten before they were read, or reported lost by the device."""
    overruns: int = 0
    """How many times samples were lost."""
    lag_s: float = 0.0
    """Audio that waits to be read."""
    max_lag_s: float = 0.0
    """The most that ever waited."""


class SampleRing:
    """Takes samples from one thread and gives them to another, in order; counts what is lost.

    All memory is allocated here. Where samples were lost, a read stops before the place, and the
    next one says how many: hand that number to `Stream.gap`.

    Args:
        sample_rate: Hz.
        seconds: Capacity.
        policy: When it is full, ``drop_oldest`` forgets the oldest samples (live), ``block`` lets
            the writer wait (files), ``raise`` raises in the writer (tests).
        dtype: Of the samples, int16 or float32.

    Raises:
        AudioError: The rate, capacity, policy or dtype is not one.
    """

    def __init__(
        self,
        sample_rate: int,
        seconds: float = 10.0,
        policy: Policy = "drop_oldest",
        dtype: npt.DTypeLike = np.int16,
    ) -> None:
        """Allocate."""
        rated = isinstance(sample_rate, (int, np.integer)) and 1 <= sample_rate <= HIGHEST_RATE
        if not rated or isinstance(sample_rate, bool):
            raise AudioError(
                f"A ring cannot run at {str(sample_rate)[:40]} Hz.",
                fix=f"Use a whole number in 1..{HIGHEST_RATE}.",
            )
        known = isinstance(seconds, (int, float)) and 0 < seconds <= LONGEST_RING_S
        if not known or int(seconds * sample_rate) < 1:
            raise AudioError(
                f"A ring of {str(seconds)[:40]} s cannot be allocated.",
                fix=f"Use more than 0 s and at most {LONGEST_RING_S:g} s.",
            )
        if policy not in POLICIES:
            raise AudioError(
                f"There is no policy {policy!r}.", fix=f"Use one of {', '.join(POLICIES)}."
            )
        try:
            self._dtype = np.dtype(dtype)
        except (TypeError, ValueError):
            self._dtype = np.dtype("V")
        if self._dtype not in (np.int16, np.float32):
            raise AudioError(
                f"A ring holds int16 or float32, not {str(dtype)[:40]}.", fix="Use one of them."
            )
        self.sample_rate = sample_rate
        self.capacity = int(seconds * sample_rate)
        self.policy = policy
        self._buffer: npt.NDArray[Any] = np.zeros(self.capacity, self._dtype)
        self._changed = threading.Condition()
        self._written = self._read = 0  # positions; the buffer holds what lies between
        self._in = 0
        self._gaps: deque[tuple[int, int]] = deque()  # (position, samples lost before it)
        self._lost = 0  # before `_read`, not yet told
        self._dropped = self._overruns = self._most = 0
        self._closed = False
        self._error: BaseException | None = None
        self._buckets: deque[tuple[int, int]] = deque(maxlen=_BUCKETS)  # (in and lost, lost)
        self._bucket_in = self._bucket_lost = 0
        self._since_warning = 0

    def write(self, samples: npt.NDArray[Any]) -> int:
        """Copy (N,) samples in; for the callback: it only copies, and waits only if told to.

        Returns:
            Samples that were overwritten for it.

        Raises:
            AudioError: The ring is full, and its policy is to raise; or these are no (N,) samples
                of the ring's dtype. Nothing was written.
        """
        # NumPy would cast: float samples would all become 0.
        if getattr(samples, "dtype", None) != self._dtype or samples.ndim != 1:
            raise AudioError(
                f"The ring takes (N,) {self._dtype} samples only.",
                fix="Open it with the dtype of the samples, and write one channel.",
            )
        with self._changed:
            if self.policy == "raise" and len(samples) > self.capacity - self._fill:
                raise AudioError(
                    f"The ring of {self.capacity / self.sample_rate:g} s is full.",
                    fix="Read faster, or make it longer.",
                )
            done = dropped = 0
            if self.policy == "drop_oldest":
                # Of a chunk longer than the ring, only the end will be left.
                done = max(0, len(samples) - self.capacity)
                dropped = self._forget(self._fill + len(samples) - done - self.capacity) + done
                self._lost += done
            while done < len(samples) and not self._closed:
                room = self.capacity - self._fill
                if room == 0:
                    self._changed.wait()
                    continue
                self._copy_in(samples[done : done + room])
                done += min(room, len(samples) - done)
                self._changed.notify_all()
            self._count(len(samples), dropped)
            return dropped

    def lose(self, samples: int) -> None:
        """The device itself lost samples after those written so far."""
        with self._changed:
            if samples <= 0:
                return
            if self._gaps and self._gaps[-1][0] == self._written:
                samples_before = self._gaps.pop()[1]
                self._gaps.append((self._written, samples_before + samples))
            else:
                self._gaps.append((self._written, samples))
            self._count(0, samples)

    def read(
        self, most: int | None = None, timeout: float | None = None
    ) -> tuple[npt.NDArray[Any], int] | None:
        """Wait for samples and take them.

        Args:
            most: Take at most so many.
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            (samples (N,), samples lost right before them); N is 0 after a timeout; None at the end.

        Raises:
            AudioError: ``most`` is below 1.
            BaseException: What `fail` was given, once everything written before it has been read.
        """
        if most is not None and most < 1:
            raise AudioError(f"A read takes at least 1 sample, not {most}.", fix="Use 1 or more.")
        with self._changed:
            self._changed.wait_for(lambda: self._fill > 0 or self._closed, timeout)
            if self._fill == 0:
                if self._error is not None:
                    raise self._error
                return None if self._closed else (self._buffer[:0].copy(), 0)
            self._pass_gaps()
            count = self._fill if most is None else min(most, self._fill)
            if self._gaps:
                count = min(count, self._gaps[0][0] - self._read)
            at = self._read % self.capacity
            samples = np.concatenate(
                [self._buffer[at : at + count], self._buffer[: max(0, at + count - self.capacity)]]
            )
            lost, self._lost = self._lost, 0
            self._read += count
            self._changed.notify_all()
            return samples, lost

    def close(self) -> None:
        """No more samples will come: writers stop waiting, readers get the rest, then None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Close, and raise this in the reader after the last sample."""
        self._error = error
        self.close()

    @property
    def stats(self) -> CaptureStats:
        """The counters now."""
        with self._changed:
            return CaptureStats(
                samples_in=self._in,
                dropped=self._dropped,
                overruns=self._overruns,
                lag_s=self._fill / self.sample_rate,
                max_lag_s=self._most / self.sample_rate,
            )

    def warning(self) -> str | None:
        """One sentence if more than 10 % was lost over the last 5 minutes; once in 5 minutes."""
        with self._changed:
            total = sum(n for n, _ in self._buckets)
            lost = sum(n for _, n in self._buckets)
            full = len(self._buckets) == _BUCKETS
            if not full or self._since_warning < _BUCKETS or lost <= WARN_SHARE * total:
                return None
            self._since_warning = 0
            return (
                f"{100 * lost / total:.0f} % of the audio of the last {WARN_OVER_S / 60:g} minutes "
                "was lost: this machine does not keep up."
            )

    @property
    def _fill(self) -> int:
        return self._written - self._read

    def _forget(self, samples: int) -> int:
        """Drop so many of the oldest, if any need be."""
        over = max(0, samples)
        self._read += over
        self._lost += over
        self._pass_gaps()
        return over

    def _pass_gaps(self) -> None:
        while self._gaps and self._gaps[0][0] <= self._read:
            self._lost += self._gaps.popleft()[1]

    def _copy_in(self, samples: npt.NDArray[Any]) -> None:
        at = self._written % self.capacity
        first = min(len(samples), self.capacity - at)
        self._buffer[at : at + first] = samples[:first]
        self._buffer[: len(samples) - first] = samples[first:]
        self._written += len(samples)
        self._most = max(self._most, self._fill)

    def _count(self, samples: int, lost: int) -> None:
        self._in += samples
        if lost:
            self._dropped += lost
            self._overruns += 1
        self._bucket_in += samples + (0 if samples else lost)
        self._bucket_lost += lost
        if self._bucket_in >= WARN_OVER_S / _BUCKETS * self.sample_rate:
            self._buckets.append((self._bucket_in, self._bucket_lost))
            self._bucket_in = self._bucket_lost = 0
            self._since_warning += 1


# --- Recording with ALSA's arecord as a subprocess: every Linux board has it, or apt does

_OVERRUN: Final = re.compile(r"overrun.*?([\d.]+) ms")
_OTHER_RATE: Final = re.compile(r"rate is not accurate.*?got = (\d+)", re.IGNORECASE)
_READ_BYTES: Final = 8192


class Arecord:
    """A running arecord, and two threads that carry its samples and messages.

    Args:
        wanted: Hz; the ALSA device converts where the hardware cannot.
        device: ALSA PCM name, None for ``default``.
        seconds: Capacity of the ring.
        policy: Of the ring.

    Raises:
        AudioError: arecord cannot be started. What it complains about later is raised by the ring.
    """

    note = ""

    def __init__(
        self, wanted: int, device: str | int | None, seconds: float, policy: Policy
    ) -> None:
        """Start."""
        program = shutil.which("arecord") or "arecord"
        pcm = "default" if device is None else str(device)
        self.name = f"ALSA device {pcm}"
        self.ring = SampleRing(wanted, seconds, policy)
        self._messages: deque[str] = deque(maxlen=5)
        self._closing = False
        command = [program, "-q", "-D", pcm, "-t", "raw", "-f", "S16_LE", "-c", "1"]
        environment = {**os.environ, "LC_ALL": "C"}  # its messages are read
        try:
            self._process = subprocess.Popen(
                [*command, "-r", str(wanted)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us; we end it
            )
        except OSError as error:
            raise AudioError(
                f"{program} cannot be started: {error.strerror}.",
                fix="apt-get install alsa-utils, or pip install 'frami-edge-runtime[mic]'.",
            ) from None
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._listen, self._carry)
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def found() -> bool:
        """Whether there is an arecord."""
        return shutil.which("arecord") is not None

    def close(self) -> None:
        """End it, and let the reader have the rest."""
        self._closing = True
        self.ring.close()
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(2)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _carry(self) -> None:
        assert self._process.stdout is not None
        odd = b""
        while data := os.read(self._process.stdout.fileno(), _READ_BYTES):
            data = odd + data
            whole = len(data) - len(data) % 2
            odd = data[whole:]
            try:
                self.ring.write(np.frombuffer(data[:whole], "<i2"))
            except AudioError as error:
                self.ring.fail(error)
                return
        self._process.wait()
        self._threads[0].join(2)  # its last words
        if self._closing:
            self.ring.close()
            return
        why = self._messages[-1] if self._messages else f"exit code {self._process.returncode}"
        self.ring.fail(
            AudioError(
                f"arecord stopped recording: {why.rstrip('.')}.",
                fix="`arecord -L` lists the devices; choose one with the device option.",
            )
        )

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode("utf-8", "replace").strip()
            if overrun := _OVERRUN.search(text):
                self.ring.lose(max(1, round(float(overrun[1]) / 1000 * self.ring.sample_rate)))
            elif other := _OTHER_RATE.search(text):
                self.ring.fail(
                    AudioError(
                        f"{self.name} records at {other[1]} Hz only, not at "
                        f"{self.ring.sample_rate} Hz.",
                        fix="Use a device that converts (plughw:...), or that rate.",
                    )
                )
            elif text:
                self._messages.append(text.rpartition("arecord: ")[2])


# --- Recording with sounddevice, an extra that needs the PortAudio library


def find_sounddevice() -> tuple[Any, str]:
    """The module, or None and why not."""
    try:
        return importlib.import_module("sounddevice"), ""
    except ImportError:
        return None, "sounddevice is not installed"
    except OSError:  # it loads the library when it is imported
        return None, "sounddevice does not find the PortAudio library"


class PortAudio:
    """An open input stream that fills a ring.

    Args:
        sounddevice: The module.
        wanted: Hz; the device's own rate is taken where it cannot do that.
        device: Name or number; None for the default.
        seconds: Capacity of the ring.
        policy: Of the ring.

    Raises:
        AudioError: The device does not exist, is in use, or cannot record.
    """

    def __init__(
        self,
        sounddevice: Any,
        wanted: int,
        device: str | int | None,
        seconds: float,
        policy: Policy,
    ) -> None:
        """Open and start."""
        if isinstance(device, str) and device.isdigit():
            device = int(device)
        self.note = ""
        settings = {"device": device, "channels": 1, "dtype": "int16"}
        try:
            rate = self._usable_rate(sounddevice, wanted, settings)
            self.ring = SampleRing(rate, seconds, policy)
            self._expected: float | None = None
            self._stream = sounddevice.InputStream(
                samplerate=rate, callback=self._callback, finished_callback=self._end, **settings
            )
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            first = (str(error).splitlines() or ["no reason given"])[0]
            if "querying device -1" in first:  # PortAudio's number for "there is none"
                first = "there is no default input device"
            raise AudioError(
                f"The microphone cannot be opened: {first.rstrip('.')}.",
                fix="`python -m sounddevice` lists the devices; choose one by name or number.",
            ) from None
        self.name = "the microphone" if device is None else f"microphone {device}"

    def close(self) -> None:
        """Stop, and let the reader have the rest."""
        self._stream.close()
        self.ring.close()

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
            # PortAudio says that samples were lost, not how many: its time stamps jump.
            jump = 0.0 if self._expected is None else begin - self._expected
            self.ring.lose(max(1, round(jump * self.ring.sample_rate)))
        self._expected = begin + frames / self.ring.sample_rate
        try:
            self.ring.write(indata[:, 0])
        except AudioError as error:
            self.ring.fail(error)

    def _end(self) -> None:
        self.ring.close()


# --- Live audio: a microphone behind a bounded ring, or raw PCM from a pipe

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
