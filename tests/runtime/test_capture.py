"""Live audio: no sample is lost silently, and what is asked of sounddevice and arecord."""

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_kit import ARECORD_OPENS

from frami_edge_runtime.audio import AudioFile
from frami_edge_runtime.capture import Microphone, PcmPipe, SampleQueue
from frami_edge_runtime.errors import AudioError

RATE = 8000
PCM = "def pcm(a, b): return struct.pack(f'<{b - a}h', *range(a, b))"


def ramp(start, count):
    """Samples that state their own position on the clock."""
    return (np.arange(start, start + count) % 30_000).astype(np.int16)


actions = st.tuples(st.sampled_from(["put", "lose", "get"]), st.integers(0, 8))


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(actions, max_size=60))
def test_every_sample_is_read_or_counted_as_lost(steps):
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

    def __init__(self, *rates):
        self.rates = rates
        self.opened = {}

    def check_input_settings(self, *, samplerate, device, **others):
        if device == "nowhere":
            raise ValueError("No input device matching 'nowhere'")
        if samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def query_devices(self, device, kind):
        if not self.rates:
            raise self.PortAudioError("Error querying device -1")
        return {"default_samplerate": float(self.rates[0])}

    def InputStream(self, **settings):  # noqa: N802
        self.opened = settings
        return self

    def start(self):
        pass

    close = start

    def feed(self, samples, at, overflow=False):
        clock, status = SimpleNamespace(inputBufferAdcTime=at), SimpleNamespace()
        status.input_overflow = overflow
        self.opened["callback"](samples[:, None], len(samples), clock, status)


PortAudio = Callable[..., FakeSoundDevice]


@pytest.fixture
def portaudio(monkeypatch):
    """`portaudio(*rates)`: a device with these rates, or none."""

    def make(*rates):
        fake = FakeSoundDevice(*rates)
        monkeypatch.setitem(sys.modules, "sounddevice", fake)
        return fake

    return make


def test_portaudio_s_buffers_are_copied_and_its_losses_estimated(portaudio):
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
        np.testing.assert_array_equal(block[0], ramp(0, 800))
        assert block[1] == lost
    assert mic.read() is None
    assert mic.stats.overruns == 2


def test_a_device_is_opened_at_its_own_rate(portaudio):
    device = portaudio(48_000)
    with Microphone(RATE) as mic:
        assert mic.sample_rate == device.opened["samplerate"] == 48_000
        assert "cannot record at 8000 Hz" in mic.device_note


@pytest.fixture
def arecord(fake_arecord, monkeypatch):
    """`arecord(script)`: the only way to record in this process."""

    def make(script):
        monkeypatch.setenv("PATH", fake_arecord(f"{PCM}\n{script}")["PATH"])
        monkeypatch.setitem(sys.modules, "sounddevice", None)

    return make


def test_arecord_is_used_without_sounddevice_and_its_overruns_are_counted(tmp_path, arecord):
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
def test_complaints_of_arecord_become_errors(tmp_path, arecord, monkeypatch, script, message):
    arecord(script or "")
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match=message) as error, Microphone(RATE) as mic:
        mic.read()
    assert error.value.fix


@pytest.fixture
def alsa(tmp_path, monkeypatch):
    """`alsa(text)`: PCMs for the real arecord, fed from files of the test's folder."""
    if not shutil.which("arecord"):
        pytest.skip("no arecord (apt-get install alsa-utils): THE REAL RECORDER IS NOT TESTED HERE")
    monkeypatch.chdir(tmp_path)

    def make(text):
        path = tmp_path / "asound.conf"
        path.write_text(f"</usr/share/alsa/alsa.conf>\n{text}\n")
        monkeypatch.setenv("ALSA_CONFIG_PATH", str(path))

    return make


SIX = """
pcm.six { type file slave.pcm null file /dev/null infile six.raw format raw }
pcm.plugsix { type plug slave { pcm six channels 6 } }
pcm.only48k { type share slave { pcm null rate 48000 channels 1 format S32_LE } bindings.0 0 }
pcm.only6 { type share slave { pcm null rate 48000 channels 6 format S16_LE }
            bindings { 0 0 1 1 2 2 3 3 4 4 5 5 } }
"""


def test_the_fake_arecord_prints_what_the_real_one_prints(alsa):
    command = ["arecord", "-q", "-v", "--dump-hw-params", "-D", "null", "-t", "raw"]
    for rate, channels in (("8000", "1"), ("44100", "2")):
        done = subprocess.run(
            [*command, "-f", "S16_LE", "-c", channels, "-r", rate, "-d", "1"],
            env={**os.environ, "LC_ALL": "C"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        real = iter(done.stderr.splitlines())
        fake = ARECORD_OPENS.format(device="null", format="S16_LE", channels=channels, rate=rate)
        assert all(line in real for line in fake.splitlines())  # in this order


def test_arecord_opens_the_rate_format_and_channels_that_a_device_has(alsa):
    alsa(SIX)
    with Microphone(16_000, "only48k", driver="arecord") as mic:
        assert mic.sample_rate == 48_000
        assert "cannot record at 16000 Hz; it is opened at 48000 Hz" in mic.device_note
    with Microphone(48_000, "only6", driver="arecord", channel=2) as mic:
        assert mic.device_note == ""
    with Microphone(48_000, "only6", driver="arecord") as mic:
        assert mic.device_note == "The average of its 6 channels is used."
    with pytest.raises(AudioError, match="has 6 channels, not 7"):
        Microphone(48_000, "only6", driver="arecord", channel=7)
    with pytest.raises(AudioError, match="No such file or directory"):
        Microphone(48_000, "nowhere", driver="arecord")


@pytest.mark.parametrize("channel", [1, 3, 6])
def test_one_channel_of_an_array_is_recorded(alsa, tmp_path, channel):
    frames = np.arange(1, 7) * 1000 + np.arange(RATE)[:, None] % 7
    frames.astype("<i2").tofile(tmp_path / "six.raw")
    alsa(SIX)
    with Microphone(RATE, "plugsix", driver="arecord", channel=channel) as mic:
        block = mic.read(100)
    assert set(block[0] // 1000) == {channel}
    for wrong in ({"channel": 7}, {"channels": 8}):  # ALSA would add silent ones
        with pytest.raises(AudioError, match=r"plugsix has 6 channels, not [78]"):
            Microphone(RATE, "plugsix", driver="arecord", **wrong)


def test_the_file_of_a_killed_recorder_is_read_to_its_end(alsa, tmp_path):
    path = tmp_path / "killed.wav"
    recorder = subprocess.Popen(
        ["arecord", "-q", "-D", "null", "-f", "S16_LE", "-c", "1", "-r", "8000", path]
    )
    while not path.exists() or path.stat().st_size < 10_000:
        assert recorder.poll() is None
        time.sleep(0.01)
    recorder.kill()
    recorder.wait()
    with AudioFile(path) as file:
        assert sum(map(len, file.blocks())) == (path.stat().st_size - 44) // 2
        ((kind, message),) = file.take_warnings()
    assert kind == "header"
    assert "the recorder was interrupted" in message


SERVER = """
pcm.!default { type pulse server "unix:pulse.sock" }
pcm.server { type pulse server "unix:pulse.sock" }
"""


@pytest.mark.parametrize("driver", ["arecord", "portaudio"])
def test_a_device_that_goes_away_ends_the_program_with_an_error(
    alsa, tmp_path, model_path, monkeypatch, driver
):
    """The real drivers on a real sound server, which is killed."""
    alsa(SERVER.replace("pulse.sock", f"{tmp_path}/pulse.sock"))
    plugins = [*Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")]
    if not shutil.which("pulseaudio") or not plugins:
        pytest.skip("no pulseaudio and libasound2-plugins: AN UNPLUGGED DEVICE IS NOT TESTED HERE")
    code = "import sounddevice"
    if driver == "portaudio" and subprocess.run([sys.executable, "-c", code]).returncode:
        pytest.skip("no PortAudio (sounddevice and libportaudio2): IT IS NOT TESTED HERE")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    socket = tmp_path / "pulse.sock"
    module = f"module-native-protocol-unix socket={socket} auth-anonymous=1"
    options = ["-n", "--exit-idle-time=-1", "--daemonize=no", "--use-pid-file=no"]
    server = subprocess.Popen(
        ["pulseaudio", *options, "-L", module, "-L", "module-sine-source"],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not socket.exists():
            assert server.poll() is None
            time.sleep(0.05)
        device = ["--device", "server"] if driver == "arecord" else []
        command = [sys.executable, "-m", "frami_edge_runtime.listen", str(model_path)]
        listener = subprocess.Popen(
            [*command, "--driver", driver, *device, "--plain", "--stall-timeout", "4"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert " dB [" in listener.stdout.readline()  # it hears the tone
        server.kill()
        _, err = listener.communicate(timeout=30)
        # ALSA's plug-in for this server sometimes hangs, as drivers do: then the stall is noticed.
        assert re.search("error: .*(stopped recording|No audio came from)", err), err
        assert listener.returncode == 1
    finally:
        server.kill()
        server.wait()


def test_a_portaudio_stream_that_ends_by_itself_is_an_error(portaudio):
    device = portaudio(RATE)
    mic = Microphone(RATE)
    device.feed(ramp(0, 800), 1.0)
    device.opened["finished_callback"]()
    assert mic.read() is not None  # what came before
    with pytest.raises(AudioError, match="The microphone stopped recording"):
        mic.read()


def test_a_driver_that_hangs_keeps_no_program_from_ending(portaudio, monkeypatch):
    device, ended = portaudio(RATE), threading.Event()
    device.close, device._exit_handler = ended.wait, ended.wait
    monkeypatch.setattr("frami_edge_runtime.capture.CLOSE_S", 0.1)
    unregistered = []
    monkeypatch.setattr("atexit.unregister", unregistered.append)
    with Microphone(RATE):
        pass
    assert unregistered == [ended.wait]
    ended.set()


def test_a_clock_that_is_set_loses_no_hours(portaudio):
    device = portaudio(RATE)
    with Microphone(RATE) as mic:
        for at in (1.0, 7201.0, 3.0):
            device.feed(ramp(0, 800), at, overflow=True)
        lost = [block[1] for block in (mic.read(), mic.read(), mic.read()) if block]
    assert max(lost) < RATE
    assert mic.stats.clock_steps == 2
    ((kind, message),) = mic.take_warnings()  # one of a kind in ten minutes
    assert kind == "clock"
    assert "say that 7199.9 s were lost" in message


@pytest.mark.parametrize(
    ("device", "driver", "found"),
    [
        ("plughw:1", "auto", "arecord -D plughw:1"),
        ("plughw:1", "portaudio", "(hw:1,0)"),
        ("hw:2,3", "portaudio", "(hw:2,3)"),
        ("USB Audio: - (hw:1,0)", "auto", "USB Audio: - (hw:1,0)"),
        (None, "auto", None),
        (None, "arecord", "arecord -D default"),
    ],
)
def test_the_documented_device_names_work_with_both_drivers(
    portaudio, fake_arecord, monkeypatch, device, driver, found
):
    monkeypatch.setenv("PATH", fake_arecord("time.sleep(30)")["PATH"])
    fake = portaudio(RATE)
    with Microphone(RATE, device, driver=driver) as mic:
        used = fake.opened["device"] if fake.opened else f"arecord -D {mic.name.split()[-1]}"
    assert used == found


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), max_size=30), encoding=st.sampled_from(["<i2", "<f4"]))
def test_pipes_may_break_samples_anywhere(sizes, encoding):
    sent = np.arange(200).astype(encoding)
    data = sent.tobytes() + b"\0"  # half a sample at the end
    parts = [data[a:b] for a, b in zip(np.cumsum([0, *sizes]), np.cumsum(sizes), strict=False)]
    parts = [p for p in [*parts, data[sum(sizes) :]] if p] + [b""]
    stream = SimpleNamespace(read1=lambda n: parts.pop(0))
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
def test_pipes_have_formats_and_channels(data, arguments, expected):
    block = PcmPipe(io.BytesIO(data.tobytes()), RATE, **arguments).read()
    assert block[0].tolist() == expected


@pytest.mark.parametrize("name", ["flac", "mp3", "aiff", "au", "caf", "w64", "rf64", "wav", "rifx"])
def test_audio_files_in_a_pipe_are_never_taken_for_samples(tmp_path, name, monkeypatch):
    soundfile = pytest.importorskip("soundfile")
    tone = 0.3 * np.sin(np.arange(2 * RATE) * 0.3)
    settings = {"mp3": "MPEG_LAYER_III"}.get(name, "PCM_16")
    kind = {"rifx": "WAV"}.get(name, name.upper())
    endian = "BIG" if name == "rifx" else "FILE"
    soundfile.write(tmp_path / "a", tone, RATE, settings, format=kind, endian=endian)
    with (
        open(tmp_path / "a", "rb") as file,
        subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat,
    ):
        pipe = PcmPipe(cat.stdout, RATE)
        samples = np.concatenate([block[0] for block in iter(pipe.read, None)])
    scaled = samples / 32768 if samples.dtype == np.int16 else samples
    if name == "mp3":
        assert abs(np.sqrt(np.mean(scaled[2000:14000] ** 2)) - 0.3 / np.sqrt(2)) < 0.01
    else:
        assert np.abs(scaled - tone).max() < 1e-4
    data = (tmp_path / "a").read_bytes()
    with pytest.raises(AudioError, match=r"8000 Hz and not 16000 Hz") as error:
        PcmPipe(io.BytesIO(data), 2 * RATE).read()
    assert "Leave --rate out" in error.value.fix
    monkeypatch.setitem(sys.modules, "soundfile", None)
    if name not in ("wav", "rf64"):
        with pytest.raises(AudioError, match="soundfile, which reads the rest"):
            PcmPipe(io.BytesIO(data), RATE).read()


def test_samples_that_begin_like_an_mp3_frame_are_samples():
    rng = np.random.default_rng(0)
    for first in (b"\xff\xfb", b"\xff\xf3", b"\xff\xf1"):
        data = first + rng.normal(0, 300, 20_000).astype("<i2").tobytes()
        pipe = PcmPipe(io.BytesIO(data), RATE)
        assert sum(len(block[0]) for block in iter(pipe.read, None)) == 20_001


def test_a_pipe_that_stalls_is_reported_and_can_be_an_error(monkeypatch):
    monkeypatch.setattr("frami_edge_runtime.audio.POLL_S", 0.02)
    monkeypatch.setattr("frami_edge_runtime.capture.POLL_S", 2.0)
    reader, writer = os.pipe()
    with open(reader, "rb") as stream, open(writer, "wb", buffering=0) as feed:
        pipe = PcmPipe(stream, RATE, stall_s=20)
        feed.write(bytes(1000))
        found = [pipe.read() for _ in range(5)]
        assert [len(block[0]) for block in found if block] == [6, 494, 0, 0, 0]
        assert pipe.take_warnings() == [("stalled", "No audio came from standard input for 6 s.")]
        with pytest.raises(AudioError, match="for 20 s"):
            all(pipe.read() for _ in range(20))
        assert pipe.stats.stalled_s == 20
