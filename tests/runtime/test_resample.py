"""Other microphone rates: exact with soxr, one helpful sentence without it."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_kit import NO_SOXR, listen, same

from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.resample import Resampler

RATES = (1000, 6000, 22_050, 44_101, 192_000)


def test_without_soxr_the_error_names_rate_and_command(classifier, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(AudioError, match="the model wants 8000 Hz") as caught:
        classifier.classify(clip, sample_rate=44_100)
    assert "pip install 'frami-edge-runtime[resample]'" in caught.value.fix
    assert classifier.classify(clip, sample_rate=8000).t1 == len(clip) / 8000


def test_a_clip_of_another_rate(classifier, clip):
    pytest.importorskip("soxr", reason=NO_SOXR)
    expected = classifier.classify(clip, 22_050)
    assert expected.t1 == len(clip) / 22_050
    assert same(listen(classifier.stream(22_050), clip, [1] * 50 + [7, 0, 20_000]), [expected])


@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 60_000), max_size=5), seconds=st.floats(0.01, 3.5))
def test_a_restored_resampler_continues_with_the_same_bits(rate, cuts, seconds):
    """Bits do not depend on saving or chunking, and one endless soxr differs by rounding only."""
    soxr = pytest.importorskip("soxr", reason=NO_SOXR)
    x = np.random.default_rng(1).uniform(-1, 1, int(seconds * rate)).astype(np.float32)
    whole = Resampler(rate, 8000)
    expected = np.concatenate([whole.push(x), whole.flush()])
    endless = soxr.resample(x, rate, 8000)
    assert expected.shape == endless.shape
    assert np.abs(expected - endless).max(initial=0.0) <= 1e-6
    resampler, found = Resampler(rate, 8000), []
    for piece in np.split(x, sorted(min(cut, len(x)) for cut in cuts)):
        found.append(resampler.push(piece))
        state = resampler.state()
        assert len(state["history"]) <= rate + 2 * whole.reach
        resampler = Resampler(rate, 8000)
        resampler.push(x[:777])
        resampler.load_state(state)
    found.append(resampler.flush())
    assert np.array_equal(np.concatenate(found), expected)
