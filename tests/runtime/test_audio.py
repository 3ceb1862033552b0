"""Samples and files: every PCM width exactly, bounded memory, no damage left unexplained."""

import contextlib
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_kit import write_wav

from frami_edge_runtime.audio import AudioFile, ByteStream, check_rate, check_samples
from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.monitor import InputMonitor

WAVE = np.sin(np.arange(1000) * 0.1) * 0.7
GUID = b"\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((100, 2), np.int16), "mono"),
        (np.zeros(100, np.uint8), "not uint8"),
        (np.array([0.0, np.nan], np.float32), "reach nan"),
        (np.array([0.0, -20_000.0], np.float32), "reach 20000"),
        (np.concatenate([np.zeros(5000), [17.0]]), "reach 17"),
        ([1, 2, 3], "int16"),
        (None, "int16"),
        ([[1.0], [1.0, 2.0]], "array of numbers"),
    ],
)
def test_what_is_no_audio_is_refused(samples, words):
    with pytest.raises(AudioError) as caught:
        check_samples(samples)
    assert words in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("rate", [0, 8000.5, 10**12, float("nan"), "8000", None])
def test_absurd_rates_are_refused(rate):
    with pytest.raises(AudioError, match=r"1000\.\.768000"):
        check_rate(rate)
    assert check_rate(8000.0) == check_rate(np.int32(8000)) == 8000


def read_all(path, channel="mix"):
    with AudioFile(path, channel) as file:
        return np.concatenate([*file.blocks(), np.empty(0, np.int16)])


def pcm(x, width):
    full = 2 ** (8 * width - 1)
    values = np.round(x * full).clip(-full, full - 1).astype(np.int64)
    if width == 1:
        return (values + 128).astype(np.uint8).tobytes()
    return b"".join(int(v).to_bytes(width, "little", signed=True) for v in values)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_pcm_width_without_soundfile(tmp_path, width, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    path = write_wav(tmp_path / "a.wav", pcm(WAVE, width), width=width)
    read = read_all(path)
    assert read.dtype == (np.int16 if width < 3 else np.float32)
    scaled = read / 32768 if width < 3 else read
    assert np.abs(scaled - WAVE).max() <= 2.0 ** -(8 * width - 1) + 1e-7
    with AudioFile(path) as file:
        assert file.sample_rate == 8000


def test_the_extensible_header_of_24_bit_files_is_understood(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    data = pcm(WAVE, 3)
    fmt = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 8000, 24_000, 3, 24, 22, 24, 4) + GUID
    body = b"WAVEJUNK\x05\0\0\0hello\0fmt " + struct.pack("<I", 40) + fmt
    body += b"data" + struct.pack("<I", len(data)) + data + b"LIST\x04\0\0\0junk"
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert np.abs(read_all(path) - WAVE).max() < 1e-6
    path.write_bytes(path.read_bytes().replace(GUID, b"\x03" + GUID[1:]))  # float inside
    with pytest.raises(AudioError, match="is no PCM WAV, and soundfile") as error:
        AudioFile(path)
    assert "frami-edge-runtime[audio]" in error.value.fix


def test_channels_are_mixed_or_chosen(tmp_path):
    stereo = np.array([[1000, 3000], [-500, 500]], "<i2").tobytes()
    path = write_wav(tmp_path / "a.wav", stereo, channels=2)
    assert (read_all(path) * 32768).tolist() == [2000, 0]
    assert read_all(path, 1).tolist() == [1000, -500]
    assert read_all(path, 2).tolist() == [3000, 500]
    for channel in (0, 3, "left"):
        with pytest.raises(AudioError, match="has no channel") as error:
            AudioFile(path, channel)
        assert "1..2" in error.value.fix


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("flac", "PCM_16"), ("wav", "FLOAT"), ("ogg", "VORBIS"), ("aiff", "PCM_24")],
)
def test_the_rest_is_read_by_soundfile(tmp_path, suffix, subtype):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, WAVE, 16_000, subtype=subtype)
    with AudioFile(path) as file:
        assert file.sample_rate == 16_000
        read = np.concatenate(list(file.blocks()))
    assert read.dtype == np.float32
    assert np.abs(read[:1000] - WAVE).max() < (0.1 if suffix == "ogg" else 1e-4)


def test_what_is_no_file_or_no_audio(tmp_path):
    pytest.importorskip("soundfile")
    (tmp_path / "text.wav").write_text("hello, this is not audio at all")
    write_wav(tmp_path / "slow.wav", pcm(WAVE, 2), rate=7)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "slow.wav").read_bytes()[:30])
    for name, words in (
        ("cut.wav", "header ends too early"),
        ("none.wav", "does not exist"),
        ("", "cannot be read"),
        ("text.wav", "is no audio file"),
        ("slow.wav", "sample_rate must be"),
    ):
        with pytest.raises(AudioError, match=words) as error:
            AudioFile(tmp_path / name)
        assert error.value.fix


def wav_bytes(samples, riff, data, tail=b""):
    """A mono 16-bit WAV file whose header states these sizes."""
    fmt = struct.pack("<HHIIHH", 1, 1, 8000, 16_000, 2, 16)
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
    return head + b"data" + struct.pack("<I", data) + pcm(np.resize(WAVE, samples), 2) + tail


LIST = b"LIST\x04\0\0\0junk"


@pytest.mark.parametrize(
    ("data", "samples", "warned"),
    [
        (wav_bytes(1000, 2036, 2000), 1000, False),
        (wav_bytes(1000, 2048, 2000, LIST), 1000, False),
        (wav_bytes(0, 48, 0, LIST), 0, False),  # empty, and nothing wrong with it
        (wav_bytes(1000, 0, 0), 1000, True),  # a recorder that was killed at once
        (wav_bytes(1000, 0, 400), 1000, True),  # or after it had written its header again
        (wav_bytes(1000, 0x7FFFFFFF, 0x7FFFFFFF), 1000, True),
        (wav_bytes(1000, 0x80000024, 0x80000000), 1000, True),  # arecord, killed
        (wav_bytes(1000, 0xFFFFFFFF, 0xFFFFFFFF), 1000, True),
        (wav_bytes(250, 2036, 2000), 250, True),  # cut off
    ],
)
def test_a_wav_file_is_read_to_its_end_whatever_its_header_states(tmp_path, data, samples, warned):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with AudioFile(path) as file:
        read = np.concatenate([*file.blocks(), np.empty(0, np.int16)])
        warnings = file.take_warnings()
    np.testing.assert_array_equal(read, np.frombuffer(pcm(np.resize(WAVE, samples), 2), "<i2"))
    assert [kind for kind, _ in warnings] == ["header"] * warned
    if warned:
        assert f"{samples / 8000:.1f} s were found and read" in warnings[0][1]


class LongFile:
    """A head, this many zeros, and a tail, without the time that a disk takes for 4 GiB."""

    def __init__(self, head, zeros, tail):
        self._parts, self._zeros = [head, tail], zeros
        self._block = bytes(1 << 26)

    def read1(self, most):
        if not self._parts[0] and self._zeros:
            data = self._block[: min(most, self._zeros)]
            self._zeros -= len(data)
            return data
        if not self._parts[0]:
            self._parts[0], self._parts[1] = self._parts[1], b""
        data, self._parts[0] = self._parts[0][:most], self._parts[0][most:]
        return data


@pytest.mark.parametrize("rf64", [False, True])
def test_a_wav_file_beyond_4_gib_is_read_to_its_end(rf64):
    """The length has wrapped around in the header, or is in RF64's own chunk."""
    size = (1 << 32) + 40_000  # bytes of samples
    head = wav_bytes(0, 0, 0)[12:-4]
    if rf64:
        ds64 = b"ds64" + struct.pack("<IQQQI", 28, size + 72, size, size // 2, 0)
        head = b"RF64\xff\xff\xff\xffWAVE" + ds64 + head + b"\xff" * 4
    else:
        head = b"RIFF\0\0\0\0WAVE" + head + struct.pack("<I", size - (1 << 32))
    file = AudioFile(ByteStream(LongFile(head, size - 4, b"\x39\x30\x39\x30" + LIST)))
    take = file._decoder._take  # bytes: decoding takes a minute
    found, last = 0, b""
    while data := take(1 << 26):
        found, last = found + len(data), data
    assert found == size
    assert last[-4:] == b"\x39\x30\x39\x30"  # and not the chunk after it


@pytest.mark.parametrize("way", ["fifo", "substitution", "stdin"])
def test_wav_files_are_streamed_from_whatever_cannot_seek(tmp_path, way):
    path = write_wav(tmp_path / "a.wav", pcm(WAVE, 2))
    code = (
        "import sys, numpy as np; from frami_edge_runtime.audio import AudioFile; "
        "print(sum(len(b) for b in AudioFile(sys.argv[1]).blocks()))"
    )
    program = f"{sys.executable} -c '{code}'"
    command = {
        "fifo": f"mkfifo f; cat {path} > f & {program} f",
        "substitution": f"{program} <(cat {path})",
        "stdin": f"cat {path} | {program} /dev/stdin",
    }[way]
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("1000\n", "")


def kinds(monitor, x_NC, block=1600):
    for start in range(0, len(x_NC), block):
        monitor.mono(x_NC[start : start + block])
    monitor.review()
    return {kind for kind, _ in monitor.take_warnings()}


def test_input_that_no_model_can_answer_about_is_noticed():
    rng = np.random.default_rng(0)
    noise = (rng.normal(0, 3000, (8000 * 70, 1))).astype(np.int16)
    zeros = np.zeros_like(noise)
    tone = (32767 * np.sin(np.arange(8000) * 2 * np.pi * 50 / 8000)).astype(np.int16)[:, None]

    def monitor():
        return InputMonitor("a", 8000, "mix")

    assert kinds(monitor(), noise) == set()
    assert kinds(monitor(), zeros[: 8000 * 50]) == set()
    assert kinds(dead := monitor(), zeros) == {"dead"}
    assert dead.stats.dead_s == pytest.approx(70)
    assert kinds(monitor(), zeros + 77) == {"dead"}  # a constant offset and nothing else
    assert kinds(monitor(), tone) == set()  # full scale, and not clipped
    assert kinds(clipped := monitor(), np.clip(tone * 1.5, -32768, 32767).astype(np.int16)) == {
        "clipping"
    }
    assert 3000 < clipped.stats.clipped < 4500
    floats = np.clip(noise[:8000] / 8192, -1, 1).astype(np.float32)
    assert kinds(monitor(), np.where(np.abs(floats) > 0.3, np.sign(floats), floats)) == {"clipping"}
    pair = noise[:16_000]
    assert kinds(monitor(), np.hstack([pair, -pair])) == {"cancelling"}
    assert kinds(monitor(), np.hstack([pair, -pair + 3000])) == {"cancelling"}
    assert kinds(InputMonitor("a", 8000, 1), np.hstack([pair, -pair])) == set()
    many = rng.normal(0, 3000, (16_000, 16)).astype(np.int16)
    assert kinds(monitor(), many) == set()  # independent channels: 12 dB


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = write_wav(tmp_path / "a.wav", bytes(40_000_000), channels=2)
    with AudioFile(path) as file:
        tracemalloc.start()
        samples = sum(len(block) for block in file.blocks())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert samples == 10_000_000
    assert peak < 2_000_000


EDITS = st.tuples(st.integers(0, 60), st.sampled_from([0, 1, 2, 3, 127, 128, 254, 255]))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(EDITS, min_size=1, max_size=6),
    keep=st.integers(0, 244),
    width=st.sampled_from([1, 2, 3, 4]),
)
def test_any_damage_is_read_or_refused(tmp_path, edits, keep, width):
    """Nothing but the documented error, and no endless read."""
    path = write_wav(tmp_path / "a.wav", bytes(range(200)), width=width)
    data = bytearray(path.read_bytes())
    for at, value in edits:
        data[at % len(data)] = value
    path.write_bytes(bytes(data[:keep]))
    with contextlib.suppress(AudioError):
        assert len(read_all(path)) <= 200
