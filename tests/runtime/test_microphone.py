"""PortAudio and arecord, played by fakes: what is heard, lost and refused."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from frami_edge_runtime.capture import Microphone
from frami_edge_runtime.errors import AudioError

RATE = 8000


def ramp(start: int, count: int) -> np.ndarray:
    """Samples that say their own position on the clock."""
    return np.arange(start, start + count).astype(np.int16)


class FakeSoundDevice:
    """As much of sounddevice as is used; `feed` is PortAudio's thread."""

    class PortAudioError(Exception):
        pass

    def __init__(self, rates: tuple[int, ...] = (RATE,)) -> None:
        self.rates = rates
        self.opened: dict[str, Any] = {}
        self.closed = False

    def check_input_settings(self, *, samplerate: int, device: Any, **others: Any) -> None:
        if device == "nowhere":
            raise ValueError("No input device matching 'nowhere'")
        if samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def query_devices(self, device: Any, kind: str) -> dict[str, Any]:
        assert kind == "input"
        if not self.rates:
            raise self.PortAudioError("Error querying device -1")
        return {"default_samplerate": float(self.rates[0])}

    def InputStream(self, **settings: Any) -> FakeSoundDevice:  # noqa: N802
        self.opened = settings
        return self

    def start(self) -> None:
        assert self.opened

    def close(self) -> None:
        self.closed = True

    def feed(self, samples: np.ndarray, at: float, overflow: bool = False) -> None:
        self.opened["callback"](
            samples[:, None], len(samples), SimpleNamespace(inputBufferAdcTime=at),
            SimpleNamespace(input_overflow=overflow),
        )  # fmt: skip


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakeSoundDevice:
    fake = FakeSoundDevice()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    return fake


def test_portaudio_fills_the_ring(portaudio: FakeSoundDevice) -> None:
    with Microphone(RATE, "3") as mic:
        assert (mic.sample_rate, mic.device_note) == (RATE, "")
        assert portaudio.opened["device"] == 3
        assert (portaudio.opened["channels"], portaudio.opened["dtype"]) == (1, "int16")
        buffer = ramp(0, 800)
        portaudio.feed(buffer, 1.0)
        buffer[:] = -1  # PortAudio uses its buffer again
        portaudio.feed(ramp(800, 800), 1.1)
        samples, lost = mic.read()  # type: ignore[misc]
        assert lost == 0
        np.testing.assert_array_equal(samples, ramp(0, 1600))
    assert portaudio.closed
    assert mic.read() is None


def test_what_portaudio_loses_is_estimated_from_its_clock(portaudio: FakeSoundDevice) -> None:
    with Microphone(RATE) as mic:
        portaudio.feed(ramp(0, 800), 1.0)
        portaudio.feed(ramp(0, 800), 1.35, overflow=True)
        portaudio.feed(ramp(0, 800), 0.0, overflow=True)  # a host without time stamps
        blocks = [mic.read(), mic.read(), mic.read()]
        assert [lost for _, lost in blocks] == [0, 2000, 1]  # type: ignore[misc]
        assert mic.stats.overruns == 2


def test_a_device_of_another_rate_is_opened_at_its_own(
    portaudio: FakeSoundDevice,
) -> None:
    portaudio.rates = (48_000,)
    with Microphone(RATE) as mic:
        assert mic.sample_rate == portaudio.opened["samplerate"] == 48_000
        assert "cannot record at 8000 Hz" in mic.device_note


def test_devices_that_fail_are_explained(portaudio: FakeSoundDevice) -> None:
    with pytest.raises(AudioError, match="No input device matching") as error:
        Microphone(RATE, "nowhere")
    portaudio.rates = ()
    with pytest.raises(AudioError, match="there is no default input device"):
        Microphone(RATE)
    portaudio.rates = (RATE,)
    assert "lists the devices" in error.value.fix
    with Microphone(RATE) as mic, pytest.raises(AudioError, match=r"No audio came .* for 0.01 s"):
        mic.read(timeout=0.01)
    with Microphone(RATE, seconds=0.01, policy="raise") as mic:
        portaudio.feed(ramp(0, 800), 0.0)  # must not raise into PortAudio's thread
        with pytest.raises(AudioError, match="is full"):
            mic.read()


def fake_arecord(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arecord on the PATH, which has nothing else but the interpreter that runs it."""
    path = folder / "bin" / "arecord"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nimport sys, time\nout = sys.stdout.buffer\n{script}")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # type: ignore[arg-type]


PCM = "import struct\ndef pcm(a, b): return struct.pack(f'<{b-a}h', *range(a, b))\n"


def test_arecord_is_used_where_there_is_no_sounddevice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = tmp_path / "arguments"
    fake_arecord(
        tmp_path,
        PCM + f"open({str(arguments)!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        "data = pcm(0, 500)\nout.write(data[:333]); out.flush(); time.sleep(0.05)\n"
        "out.write(data[333:]); out.flush(); time.sleep(30)",
        monkeypatch,
    )
    with Microphone(RATE, "plughw:1") as mic:
        heard = np.concatenate([mic.read(100)[0] for _ in range(5)])  # type: ignore[index]
        while len(heard) < 500:
            heard = np.concatenate([heard, mic.read()[0]])  # type: ignore[index]
        begun = time.monotonic()
    assert time.monotonic() - begun < 2  # it is ended, not waited for
    np.testing.assert_array_equal(heard, np.arange(500))
    said = arguments.read_text()
    assert said == "-q -D plughw:1 -t raw -f S16_LE -c 1 -r 8000"


def test_arecord_s_overruns_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_arecord(
        tmp_path,
        PCM + "out.write(pcm(0, 100)); out.flush(); time.sleep(0.2)\n"
        "print('overrun!!! (at least 12.500 ms long)', file=sys.stderr, flush=True)\n"
        "time.sleep(0.2); out.write(pcm(200, 300)); out.flush(); time.sleep(30)",
        monkeypatch,
    )
    with Microphone(RATE) as mic:
        first, second = mic.read(), mic.read()
        assert first is not None
        assert second is not None
        assert (len(first[0]), first[1], second[1]) == (100, 0, 100)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sys.exit('arecord: main:831: audio open error: No such file or directory')",
         "audio open error: No such file"),
        ("sys.exit(3)", "exit code 3"),
        ("print('Warning: rate is not accurate (requested = 8000Hz, got = 48000Hz)',"
         "file=sys.stderr, flush=True); time.sleep(30)", "records at 48000 Hz only"),
    ],
)  # fmt: skip
def test_what_arecord_complains_about_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    fake_arecord(tmp_path, script, monkeypatch)
    with Microphone(RATE) as mic, pytest.raises(AudioError, match=said) as error:
        mic.read()
    assert error.value.fix


def test_without_any_way_to_record_both_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="no way to record here") as error:
        Microphone(RATE)
    assert "[mic]" in error.value.fix
    assert "alsa-utils" in error.value.fix
