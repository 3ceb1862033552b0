"""Many streams in one group answer as each would alone, in phase or out of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_kit import MODES, ended, same

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError, ModelFileError, StreamError
from frami_edge_runtime.stream import CPU_BATCH, StreamGroup

N = 5
STEPS = st.lists(
    st.one_of(
        st.lists(st.none() | st.integers(0, 4000), min_size=N, max_size=N),  # push
        st.tuples(st.integers(0, N - 1), st.sampled_from(["flush", "reset", "gap", "drop"])),
    ),
    max_size=12,
)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def classifier(request, build_quantised):
    return Classifier(
        build_quantised() if request.param == "int8" else request.getfixturevalue("tiny").data
    )


def alike(one, two):
    return same(one, two, tolerance=1e-5)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=8, deadline=None)
@given(steps=STEPS)
def test_a_group_answers_as_streams_of_their_own(classifier, clip, mode, steps):
    group = classifier.streams(N, **MODES[mode])
    alone = [classifier.stream(**MODES[mode]) for _ in range(N)]
    at = np.arange(N) * 3000
    for step in steps:
        if isinstance(step, list):
            chunks = [
                None if n is None else np.take(clip, range(at[i], at[i] + n), mode="wrap")
                for i, n in enumerate(step)
            ]
            at += [n or 0 for n in step]
            expected = [[] if c is None else s.push(c) for s, c in zip(alone, chunks, strict=True)]
            found = group.push(chunks)
            assert all(alike(a, b) for a, b in zip(found, expected, strict=True))
            continue
        i, what = step
        if what == "flush":
            assert alike(ended(group[i]), ended(alone[i]))
        elif what == "reset":
            group[i].reset()
            alone[i].reset()
        else:
            one, two = (s.gap(700, keep_pooling=what == "gap") for s in (group[i], alone[i]))
            assert alike(one, two)
    for last, stream in zip(group.flush_all(), alone, strict=True):
        assert alike([last] if last else [], ended(stream))


class Watched:
    """A model that notes the batches of its trunk, and gives NaN once it is ``broken``."""

    def __init__(self, model):
        self.model, self.batches, self.broken = model, set[int](), False

    def __getattr__(self, name):
        return getattr(self.model, name)

    def frames(self, mel_BMT):
        self.batches.add(len(mel_BMT))
        return self.model.frames(mel_BMT)

    def logits(self, pooled_BD):
        return self.model.logits(pooled_BD) * np.float32(np.nan if self.broken else 1)


@pytest.mark.parametrize(("n", "batches"), [(9, {9}), (CPU_BATCH + 7, {CPU_BATCH, 7})])
def test_runs_due_together_are_one_call(tiny, clip, n, batches):
    model = Watched(Classifier(tiny.data)._model)
    group = StreamGroup(model, n, hop_s=0.2)
    for start in range(0, 8000, 400):
        group.push([clip[start : start + 400]] * n)
    assert model.batches == batches
    assert len(group) == n
    assert group.stats.frames == n * group[0].stats.frames > 0


def test_bad_chunks_change_no_stream(classifier, clip):
    group = classifier.streams(2)
    group.push([clip[:5000], None])
    for bad in ([clip], [clip] * 3):
        with pytest.raises(StreamError):
            group.push(bad)
    with pytest.raises(AudioError, match="Stream 1: Samples"):
        group.push([clip, np.full(9, np.nan)])
    group.push([clip[5000:], None])
    last, nothing = group.flush_all()
    assert nothing is None
    assert last is not None
    assert alike([last], [classifier.classify(clip)])


def test_a_model_that_fails_leaves_streams_reset(tiny, clip):
    classifier = Classifier(tiny.data)
    model = Watched(classifier._model)
    group = StreamGroup(model, 2, hop_s=0.2)
    group.push([clip[:3000], clip[:100]])
    model.broken = True
    with pytest.raises(ModelFileError, match="not finite"):
        group.push([clip[3000:6000], None])
    model.broken = False
    expected = classifier.stream(hop_s=0.2).push(clip)
    assert all(alike(found, expected) for found in group.push([clip, clip]))
