"""Capture: nothing is lost in silence, whatever the timing, and every failure says what to do."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime import AudioError
from frami_edge_runtime.capture import Microphone, PcmPipe, SampleRing

RATE = 8000


def ramp(start: int, count: int) -> np.ndarray:
    """Samples that say their own position on the clock."""
    return (np.arange(start, start + count) % 30_000).astype(np.int16)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 25)),
        st.tuples(st.just("lose"), st.integers(0, 9)),
        st.tuples(st.just("read"), st.integers(1, 25)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(steps=steps)
def test_the_clock_stays_true_whatever_is_lost(steps: list[tuple[str, int]]) -> None:
    ring = SampleRing(10, 1.0)  # 10 samples
    clock = heard = 0
    written = lost_all = 0

    def check(block: tuple[np.ndarray, int] | None) -> None:
        nonlocal heard, lost_all
        assert block is not None
        samples, lost = block
        heard += lost
        lost_all += lost
        np.testing.assert_array_equal(samples, ramp(heard, len(samples)))
        heard += len(samples)

    for action, n in steps:
        if action == "write":
            ring.write(ramp(clock, n))
            clock += n
            written += n
        elif action == "lose":
            ring.lose(n)
            clock += n
        else:
            check(ring.read(n, timeout=0))
    stats = ring.stats
    assert stats.samples_in == written
    ring.write(ramp(clock, 1))  # what was lost last is told with the sample after it
    clock += 1
    ring.close()
    while (block := ring.read()) is not None:
        check(block)
    assert heard == clock
    assert ring.stats.dropped == lost_all
    assert ring.stats.max_lag_s <= 1.0


def test_reads_stop_where_samples_were_lost() -> None:
    ring = SampleRing(RATE, 1.0)
    ring.write(ramp(0, 5))
    ring.lose(3)
    ring.lose(4)
    ring.write(ramp(12, 5))
    assert [(len(x), lost) for x, lost in (ring.read(), ring.read())] == [(5, 0), (5, 7)]  # type: ignore[misc]
    assert (ring.stats.dropped, ring.stats.overruns) == (7, 2)


def test_a_chunk_longer_than_the_ring_leaves_its_end() -> None:
    ring = SampleRing(10, 1.0)
    ring.write(ramp(0, 4))
    assert ring.write(ramp(4, 16)) == 10
    samples, lost = ring.read()  # type: ignore[misc]
    assert lost == 10
    np.testing.assert_array_equal(samples, ramp(10, 10))


def test_raise_leaves_the_ring_as_it_was() -> None:
    ring = SampleRing(10, 1.0, "raise")
    ring.write(ramp(0, 8))
    with pytest.raises(AudioError, match="is full"):
        ring.write(ramp(8, 3))
    assert len(ring.read()[0]) == 8  # type: ignore[index]
    assert ring.stats.dropped == 0


def test_block_waits_and_loses_nothing() -> None:
    ring = SampleRing(10, 1.0, "block")
    writer = threading.Thread(target=lambda: (ring.write(ramp(0, 1000)), ring.close()))
    writer.start()
    parts = []
    while (block := ring.read(7, timeout=5)) is not None:
        assert block[1] == 0
        parts.append(block[0])
    writer.join(5)
    np.testing.assert_array_equal(np.concatenate(parts), ramp(0, 1000))


def test_closing_frees_a_writer_that_waits() -> None:
    ring = SampleRing(10, 1.0, "block")
    writer = threading.Thread(target=ring.write, args=(ramp(0, 1000),))
    writer.start()
    ring.close()
    writer.join(5)
    assert not writer.is_alive()


def test_threads_racing_lose_count_of_nothing() -> None:
    ring = SampleRing(100, 1.0)

    def write() -> None:
        for i in range(0, 30_000, 30):
            ring.write(ramp(i, 30))
        ring.close()

    writer = threading.Thread(target=write)
    writer.start()
    heard = 0
    while (block := ring.read(17, timeout=5)) is not None:
        heard += block[1]
        np.testing.assert_array_equal(block[0], ramp(heard, len(block[0])))
        heard += len(block[0])
    writer.join(5)
    assert heard == 30_000


def test_an_error_comes_after_the_last_sample() -> None:
    ring = SampleRing(10, 1.0)
    ring.write(ramp(0, 3))
    ring.fail(AudioError("Unplugged."))
    assert len(ring.read()[0]) == 3  # type: ignore[index]
    with pytest.raises(AudioError, match="Unplugged"):
        ring.read()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e9])
def test_absurd_rings_are_refused(seconds: float) -> None:
    with pytest.raises(AudioError, match="cannot be allocated"):
        SampleRing(RATE, seconds)
    with pytest.raises(AudioError, match="no policy"):
        SampleRing(RATE, 1.0, "hope")  # type: ignore[arg-type]


def test_more_than_a_tenth_lost_in_five_minutes_is_said_once() -> None:
    ring, said = SampleRing(10, 10.0), []
    for second in range(900):
        ring.write(ramp(0, 8))
        ring.lose(2)
        ring.read()
        if text := ring.warning():
            said.append((second, text))
    assert [second // 300 for second, _ in said] == [0, 1, 2]
    assert said[0][1].startswith("20 % of the audio of the last 5 minutes")


def test_a_twentieth_lost_is_not_worth_a_warning() -> None:
    ring = SampleRing(10, 10.0)
    for _ in range(400):
        ring.write(ramp(0, 19))
        ring.lose(1)
        ring.read()
        assert ring.warning() is None


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


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), max_size=30), encoding=st.sampled_from(["s16le", "f32le"])
)
def test_pipes_may_break_samples_anywhere(sizes: list[int], encoding: str) -> None:
    dtype = "<i2" if encoding == "s16le" else "<f4"
    sent = np.arange(200).astype(dtype)
    data = sent.tobytes() + b"\0"  # half a sample at the end
    parts = [data[a:b] for a, b in zip(np.cumsum([0, *sizes]), np.cumsum(sizes), strict=False)]
    parts = [p for p in [*parts, data[sum(sizes) :]] if p] + [b""]
    pipe = PcmPipe(SimpleNamespace(read=lambda n: parts.pop(0)), RATE, encoding)  # type: ignore[arg-type]
    heard = []
    while (block := pipe.read()) is not None:
        assert block[1] == 0
        heard.append(block[0])
    np.testing.assert_array_equal(np.concatenate(heard), sent)


def test_pipes_mix_or_choose_channels() -> None:
    stereo = np.array([[100, 300], [-200, 200]], "<i2").tobytes()
    left = PcmPipe(io.BytesIO(stereo), RATE, channels=2, channel=1).read()
    mixed = PcmPipe(io.BytesIO(stereo), RATE, channels=2).read()
    assert left is not None
    assert mixed is not None
    assert left[0].tolist() == [100, -200]
    assert (mixed[0] * 32768).tolist() == [200, 0]
    wide = PcmPipe(io.BytesIO(np.array([2**30], "<i4").tobytes()), RATE, "s32le").read()
    assert wide is not None
    assert wide[0].tolist() == [0.5]


def test_pipes_refuse_what_is_not_raw() -> None:
    with pytest.raises(AudioError, match="A WAV file came through the pipe"):
        PcmPipe(io.BytesIO(b"RIFF" + bytes(100)), RATE).read()
    with pytest.raises(AudioError, match="no raw format"):
        PcmPipe(io.BytesIO(), RATE, "mp3")
    with pytest.raises(AudioError, match="no channel 3"):
        PcmPipe(io.BytesIO(), RATE, channels=2, channel=3)
    with pytest.raises(AudioError, match="sample_rate"):
        PcmPipe(io.BytesIO(), 12)


def test_a_slow_pipe_is_read_as_it_comes() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb", buffering=0) as writer:
        writer.write(ramp(0, 10).tobytes())
        block = PcmPipe(reader, RATE).read()  # does not wait for a full buffer
        assert block is not None
        assert len(block[0]) == 10
