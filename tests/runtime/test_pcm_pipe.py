"""Raw samples through a pipe: in pieces of any size, of any channel, and what is refused."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.capture import PcmPipe
from frami_edge_runtime.errors import AudioError

RATE = 8000


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
        writer.write(np.arange(10, dtype=np.int16).tobytes())
        block = PcmPipe(reader, RATE).read()  # does not wait for a full buffer
        assert block is not None
        assert len(block[0]) == 10
