"""Files: every PCM width exactly, bounded memory, and no damage that is not explained."""

from __future__ import annotations

import struct
import sys
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frami_edge_runtime.audio import AudioFile
from frami_edge_runtime.errors import AudioError

WAVE = np.sin(np.arange(1000) * 0.1) * 0.7


def write_wav(
    path: Path, data: bytes, *, width: int = 2, channels: int = 1, rate: int = 8000
) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def read_all(path: Path, channel: int | str = "mix") -> np.ndarray:
    with AudioFile(path, channel) as file:  # type: ignore[arg-type]
        return np.concatenate([*file.blocks(), np.empty(0, np.int16)])


def pcm(x: np.ndarray, width: int) -> bytes:
    full = 2 ** (8 * width - 1)
    values = np.round(x * full).clip(-full, full - 1).astype(np.int64)
    if width == 1:
        return (values + 128).astype(np.uint8).tobytes()
    return b"".join(int(v).to_bytes(width, "little", signed=True) for v in values)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_pcm_width_without_soundfile(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)  # type: ignore[arg-type]
    path = write_wav(tmp_path / "a.wav", pcm(WAVE, width), width=width)
    heard = read_all(path)
    assert heard.dtype == (np.int16 if width < 3 else np.float32)
    scaled = heard / 32768 if width < 3 else heard
    assert np.abs(scaled - WAVE).max() <= 2.0 ** -(8 * width - 1) + 1e-7


def test_24_bit_is_exact(tmp_path: Path) -> None:
    values = [0, 1, -1, 2**23 - 1, -(2**23), 12345, -54321]
    data = b"".join(v.to_bytes(3, "little", signed=True) for v in values)
    heard = read_all(write_wav(tmp_path / "a.wav", data, width=3))
    assert (heard.astype(np.float64) * 2**23).tolist() == values


@pytest.mark.parametrize("junk", [b"", b"JUNK\x05\0\0\0hello\0"])
def test_the_extensible_header_of_24_bit_files_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, junk: bytes
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)  # type: ignore[arg-type]
    data = pcm(WAVE, 3)
    guid = b"\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    fmt = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 8000, 24_000, 3, 24, 22, 24, 4) + guid
    body = b"WAVE" + junk + b"fmt " + struct.pack("<I", 40) + fmt
    body += b"data" + struct.pack("<I", len(data)) + data
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    heard = read_all(path)
    assert len(heard) == 1000
    assert np.abs(heard - WAVE).max() < 1e-6
    path.write_bytes(path.read_bytes().replace(guid, b"\x03" + guid[1:]))  # float inside
    with pytest.raises(AudioError, match="soundfile"):
        AudioFile(path)


def test_channels_are_mixed_or_chosen(tmp_path: Path) -> None:
    stereo = np.array([[1000, 3000], [-500, 500]], "<i2").tobytes()
    path = write_wav(tmp_path / "a.wav", stereo, channels=2)
    assert (read_all(path) * 32768).tolist() == [2000, 0]
    assert read_all(path, 1).tolist() == [1000, -500]
    assert read_all(path, 2).tolist() == [3000, 500]
    for channel in (0, 3, -1, "left", True):
        with pytest.raises(AudioError, match="has no channel") as error:
            AudioFile(path, channel)  # type: ignore[arg-type]
        assert "1..2" in error.value.fix


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("flac", "PCM_16"), ("wav", "FLOAT"), ("ogg", "VORBIS"), ("aiff", "PCM_24")],
)
def test_the_rest_is_read_by_soundfile(tmp_path: Path, suffix: str, subtype: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, WAVE, 16_000, subtype=subtype)
    with AudioFile(path) as file:
        assert file.sample_rate == 16_000
        heard = np.concatenate(list(file.blocks()))
    assert heard.dtype == np.float32
    assert np.abs(heard[:1000] - WAVE).max() < (0.1 if suffix == "ogg" else 1e-4)


def test_without_soundfile_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)  # type: ignore[arg-type]
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(100))
    with pytest.raises(AudioError, match="is no PCM WAV, and soundfile") as error:
        AudioFile(tmp_path / "a.flac")
    assert "frami-edge-runtime[audio]" in error.value.fix


def test_what_is_no_file_or_no_audio(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello, this is not audio at all")
    for name, said in (
        ("none.wav", "does not exist"), ("", "cannot be read"), ("empty.wav", "is empty"),
        ("text.wav", "is no audio file"),
    ):  # fmt: skip
        with pytest.raises(AudioError, match=said) as error:
            AudioFile(tmp_path / name)
        assert error.value.fix


def test_a_file_that_was_cut_is_read_to_its_end(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", pcm(WAVE, 2))
    path.write_bytes(path.read_bytes()[: 44 + 501])
    assert len(read_all(path)) == 250


def test_absurd_rates_are_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", pcm(WAVE, 2), rate=7)
    with pytest.raises(AudioError, match="sample_rate must be"):
        AudioFile(path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", bytes(40_000_000), channels=2)
    with AudioFile(path) as file:
        tracemalloc.start()
        samples = sum(len(block) for block in file.blocks())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert samples == file.frames == 10_000_000
    assert peak < 2_000_000


def header(channels: int, rate: int, bits: int, fmt: int, data_size: int, riff_size: int) -> bytes:
    block = channels * bits // 8
    body = struct.pack(
        "<HHIIHH", fmt, channels, rate, (rate * block) & 0xFFFFFFFF, block & 0xFFFF, bits
    )
    return (
        b"RIFF" + struct.pack("<I", riff_size) + b"WAVEfmt " + struct.pack("<I", 16) + body
        + b"data" + struct.pack("<I", data_size)
    )  # fmt: skip


def read_or_refuse(path: Path) -> None:
    """No other error than the documented one, no endless read, no memory beyond a few blocks."""
    tracemalloc.start()
    try:
        with AudioFile(path) as file:
            total = 0
            for block in file.blocks():
                assert block.ndim == 1
                total += len(block)
                assert total <= 1_000_000
    except AudioError as error:
        if not error.message or not error.fix:
            raise
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4_000_000


u32 = st.one_of(st.sampled_from([0, 1, 44, 2**31 - 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))
u16 = st.one_of(st.sampled_from([0, 1, 2, 8, 255, 65535]), st.integers(0, 2**16 - 1))
fuzz = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(
    channels=u16, rate=u32, bits=st.sampled_from([0, 1, 7, 8, 12, 16, 24, 32, 64, 65535]),
    fmt=st.sampled_from([0, 1, 2, 3, 6, 7, 0xFFFE]), data_size=u32, riff_size=u32,
    body=st.binary(max_size=200),
)  # fmt: skip
def test_any_header_is_read_or_refused(
    tmp_path: Path, channels: int, rate: int, bits: int, fmt: int, data_size: int, riff_size: int,
    body: bytes,
) -> None:  # fmt: skip
    path = tmp_path / "a.wav"
    path.write_bytes(header(channels, rate, bits, fmt, data_size, riff_size) + body)
    read_or_refuse(path)


@fuzz
@given(
    edits=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.integers(0, 244), width=st.sampled_from([1, 2, 3, 4]),
)  # fmt: skip
def test_any_damage_is_read_or_refused(
    tmp_path: Path, edits: list[tuple[int, int]], keep: int, width: int
) -> None:
    path = write_wav(tmp_path / "a.wav", bytes(range(200)), width=width)
    data = bytearray(path.read_bytes())
    for at, value in edits:
        data[at % len(data)] = value
    path.write_bytes(bytes(data[:keep]))
    read_or_refuse(path)
