"""Audio files: formats, and files that cannot be used."""

import struct

import numpy as np
import pytest
from kit import tone, wav

from frami_edge.data.decoding import read_audio
from frami_edge.errors import UnusableClipError


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("wav", {"subtype": "PCM_16"}, 1e-4),
        ("wav", {"subtype": "PCM_24"}, 1e-6),
        ("wav", {"subtype": "FLOAT"}, 1e-7),
        ("flac", {}, 1e-4),
        ("ogg", {"subtype": "VORBIS"}, 0.1),
        ("mp3", {}, 0.1),
        ("aiff", {}, 1e-4),
    ],
)
def test_every_format_is_read(tmp_path, suffix, options, tolerance):
    rate = 44_100
    samples = tone(1.0, rate)
    got, got_rate = read_audio(wav(tmp_path / f"a.{suffix}", samples, rate, **options))
    assert got_rate == rate
    assert got.dtype == np.float32
    assert got.shape == samples.shape
    assert np.abs(got - samples)[1000:-1000].max() < tolerance


def test_channels_are_averaged(tmp_path):
    left, right = tone(0.2, 16_000, 300), tone(0.2, 16_000, 900)
    both = np.stack([left, right], axis=1)
    got, _ = read_audio(wav(tmp_path / "a.wav", both, subtype="FLOAT"))
    np.testing.assert_allclose(got, (left + right) / 2, atol=1e-7)


def _refused(path):
    with pytest.raises(UnusableClipError) as caught:
        read_audio(path)
    return caught.value.message


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
@pytest.mark.parametrize("share", [0.9, 0.02])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    path = wav(tmp_path / f"a.{suffix}", noise)
    assert len(read_audio(path)[0]) == 32_000
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated" in _refused(path)


def test_a_streamed_wav_of_unknown_size_is_read(tmp_path):
    path = wav(tmp_path / "a.wav", tone(0.5, 16_000))
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[at + 4 : at + 8] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert len(read_audio(path)[0]) == 8_000


def test_unusable_files_say_why(tmp_path):
    x = tone(0.5, 16_000)
    assert _refused(tmp_path / "none.wav") == "missing"
    (tmp_path / "empty.wav").write_bytes(b"")
    assert _refused(tmp_path / "empty.wav") == "empty file"
    (tmp_path / "text.wav").write_text("no sound here at all" * 10)
    assert "not decodable" in _refused(tmp_path / "text.wav")
    assert "cannot be read" in _refused(tmp_path)
    assert "no samples" in _refused(wav(tmp_path / "zero.wav", x[:0]))
    assert "silent" in _refused(wav(tmp_path / "silent.wav", x * 0))
    assert "silent" in _refused(wav(tmp_path / "faint.wav", x * 3e-4, subtype="FLOAT"))
    opposite = np.stack([x, -x], axis=1)
    said = _refused(wav(tmp_path / "opposite.wav", opposite, subtype="FLOAT"))
    assert "opposite phase" in said
    residual = opposite + np.float32(1e-3) * np.stack([x, x], axis=1)
    assert "opposite phase" in _refused(wav(tmp_path / "r.wav", residual, subtype="FLOAT"))
    loud = wav(tmp_path / "loud.wav", x * 32_768, subtype="FLOAT")
    assert "not scaled" in _refused(loud)
    for bad in (np.nan, np.inf):
        broken = x.copy()
        broken[100] = bad
        assert "not finite" in _refused(wav(tmp_path / "bad.wav", broken, subtype="FLOAT"))
    assert "longer than" in _refused(wav(tmp_path / "long.wav", np.ones(601_000), 1_000))
