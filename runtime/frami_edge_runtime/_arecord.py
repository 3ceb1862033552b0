"""Recording with ALSA's arecord as a subprocess: every Linux board has it, or apt does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections import deque
from typing import Final

import numpy as np

from frami_edge_runtime._ring import Policy, SampleRing
from frami_edge_runtime.errors import AudioError

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
