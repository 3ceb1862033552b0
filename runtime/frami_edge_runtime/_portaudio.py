"""Recording with sounddevice, an extra that needs the PortAudio library."""

from __future__ import annotations

import importlib
from typing import Any

from frami_edge_runtime._ring import Policy, SampleRing
from frami_edge_runtime.audio import check_rate
from frami_edge_runtime.errors import AudioError


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
