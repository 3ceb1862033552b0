"""Live audio: no sample is lost silently, and what is asked of sounddevice and arecord."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.capture import Microphone, PcmPipe, SampleQueue
from frami_edge_runtime.errors import AudioError

RATE = 8000
PCM = "def pcm(a, b): return struct.pack(f'<{b - a}h', *range(a, b))"


def ramp(start: int, count: int) -> np.ndarray:
    """Samples that state their own position on the clock."""
    return (np.arange(start, start + count) % 30_000).astype(np.int16)


actions = st.tuples(st.sampled_from(["put", "lose", "get"]), st.integers(0, 8))


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(actions, max_size=60))
def test_every_sample_is_read_or_counted_as_lost(steps: list[tuple[str, int]]) -> None:
    queue = SampleQueue(1000, 0.01)  # 10 samples
    clock, blocks = 0, []
    for action, n in steps:
        if action == "get":
            blocks.append(queue.get(n or None, timeout=0))
        elif action == "put":
            queue.put(ramp(clock, n))
        else:
            queue.lose(n)
        clock += 0 if action == "get" else n
    queue.put(ramp(clock, 1))  # a loss at the end is reported with the sample after it
    queue.close()
    blocks += iter(queue.get, None)
    read = lost_all = 0
    for samples, lost in filter(None, blocks):
        read += lost
        lost_all += lost
        np.testing.assert_array_equal(samples, ramp(read, len(samples)))
        read += len(samples)
    assert read == clock + 1
    assert queue.stats.dropped == lost_all
    assert queue.stats.max_lag_s <= 0.01


class FakeSoundDevice:
    """As much of sounddevice as is used; `feed` is PortAudio's thread."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, *rates: int) -> None:
        self.rates = rates
        self.opened: dict[str, Any] = {}

    def check_input_settings(self, *, samplerate: int, device: Any, **others: Any) -> None:
        if device == "nowhere":
            raise ValueError("No input device matching 'nowhere'")
        if samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def query_devices(self, device: Any, kind: str) -> dict[str, Any]:
        if not self.rates:
            raise self.PortAudioError("Error querying device -1")
        return {"default_samplerate": float(self.rates[0])}

    def InputStream(self, **settings: Any) -> FakeSoundDevice:  # noqa: N802
        self.opened = settings
        return self

    def start(self) -> None:
        pass

    close = start

    def feed(self, samples: np.ndarray, at: float, overflow: bool = False) -> None:
        clock, status = SimpleNamespace(inputBufferAdcTime=at), SimpleNamespace()
        status.input_overflow = overflow
        self.opened["callback"](samples[:, None], len(samples), clock, status)


PortAudio = Callable[..., FakeSoundDevice]


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> PortAudio:
    """`portaudio(*rates)`: a device with these rates, or none."""

    def make(*rates: int) -> FakeSoundDevice:
        fake = FakeSoundDevice(*rates)
        monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
        return fake

    return make


def test_portaudio_s_buffers_are_copied_and_its_losses_estimated(
    portaudio: PortAudio,
) -> None:
    device = portaudio(RATE)
    with Microphone(RATE, "3") as mic:
        assert (device.opened["device"], device.opened["dtype"]) == (3, "int16")
        buffer = ramp(0, 800)
        device.feed(buffer, 1.0)
        buffer[:] = -1  # PortAudio reuses its buffer
        device.feed(ramp(0, 800), 1.35, overflow=True)
        device.feed(ramp(0, 800), 0.0, overflow=True)  # a host without time stamps
    for lost in (0, 2000, 1):
        block = mic.read()
        assert block is not None
        np.testing.assert_array_equal(block[0], ramp(0, 800))
        assert block[1] == lost
    assert mic.read() is None
    assert mic.stats.overruns == 2


def test_a_device_is_opened_at_its_own_rate(portaudio: PortAudio) -> None:
    device = portaudio(48_000)
    with Microphone(RATE) as mic:
        assert mic.sample_rate == device.opened["samplerate"] == 48_000
        assert "cannot record at 8000 Hz" in mic.device_note


@pytest.mark.parametrize(
    ("rates", "name", "message"),
    [
        ((RATE,), "nowhere", "No input device matching"),
        ((RATE,), None, "No audio came .* for 0.01 s"),
        ((), None, "cannot be opened"),
    ],
)
def test_a_device_that_fails_is_explained(
    portaudio: PortAudio, rates: tuple[int, ...], name: str | None, message: str
) -> None:
    portaudio(*rates)
    with pytest.raises(AudioError, match=message) as error, Microphone(RATE, name) as mic:
        mic.read(timeout=0.01)
    assert error.value.fix


@pytest.fixture
def arecord(
    fake_arecord: Callable[[str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """`arecord(script)`: the only way to record in this process."""

    def make(script: str) -> None:
        monkeypatch.setenv("PATH", fake_arecord(f"{PCM}\n{script}")["PATH"])
        monkeypatch.setitem(sys.modules, "sounddevice", None)  # type: ignore[arg-type]

    return make


def test_arecord_is_used_without_sounddevice_and_its_overruns_are_counted(
    tmp_path: Path, arecord: Callable[[str], None]
) -> None:
    arguments = tmp_path / "arguments"
    arecord(
        f"open({str(arguments)!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        "data = pcm(0, 500)\nout.write(data[:333]); out.flush(); time.sleep(0.05)\n"
        "out.write(data[333:]); out.flush(); time.sleep(0.2)\n"
        "print('overrun!!! (at least 12.500 ms long)', file=sys.stderr, flush=True)\n"
        "time.sleep(0.2); out.write(pcm(600, 700)); out.flush(); time.sleep(30)"
    )
    samples, losses = np.empty(0, np.int16), []
    with Microphone(RATE, "plughw:1") as mic:
        while len(samples) < 600:
            block = mic.read()
            assert block is not None
            samples = np.append(samples, block[0])
            losses.append(block[1])
        closing = time.monotonic()
    assert time.monotonic() - closing < 2  # it is terminated, not waited for
    np.testing.assert_array_equal(samples, np.r_[0:500, 600:700])
    assert (losses[-1], sum(losses)) == (100, 100)
    flags = "-q -v --dump-hw-params -D plughw:1 -t raw -f S16_LE -c 1 -r 8000"
    assert arguments.read_text() == flags


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "# fails\nsys.exit('arecord: main:831: audio open error: No such file')",
            "audio open error: No",
        ),
        ("# fails\nsys.exit(3)", "exit code 3"),
        ("sys.exit('arecord: pcm_read:2221: read error: No such device')", "No such device"),
        (None, "no way to record here"),  # neither is installed
    ],
)
def test_complaints_of_arecord_become_errors(
    tmp_path: Path,
    arecord: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    script: str | None,
    message: str,
) -> None:
    arecord(script or "")
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match=message) as error, Microphone(RATE) as mic:
        mic.read()
    assert error.value.fix


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), max_size=30), encoding=st.sampled_from(["<i2", "<f4"]))
def test_pipes_may_break_samples_anywhere(sizes: list[int], encoding: str) -> None:
    sent = np.arange(200).astype(encoding)
    data = sent.tobytes() + b"\0"  # half a sample at the end
    parts = [data[a:b] for a, b in zip(np.cumsum([0, *sizes]), np.cumsum(sizes), strict=False)]
    parts = [p for p in [*parts, data[sum(sizes) :]] if p] + [b""]
    stream: Any = SimpleNamespace(read1=lambda n: parts.pop(0))
    pipe = PcmPipe(stream, RATE, "s16le" if encoding == "<i2" else "f32le")
    blocks = [block[0] for block in iter(pipe.read, None)]
    np.testing.assert_array_equal(np.concatenate(blocks), sent)


STEREO = np.array([[100, 300], [-200, 200]], "<i2")


@pytest.mark.parametrize(
    ("data", "arguments", "expected"),
    [
        (STEREO, {"channels": 2, "channel": 1}, [100, -200]),
        (STEREO, {"channels": 2}, [200 / 32768, 0]),
        (np.array([2**30], "<i4"), {"encoding": "s32le"}, [0.5]),
    ],
)
def test_pipes_have_formats_and_channels(data: np.ndarray, arguments: Any, expected: Any) -> None:
    block = PcmPipe(io.BytesIO(data.tobytes()), RATE, **arguments).read()
    assert block is not None
    assert block[0].tolist() == expected
