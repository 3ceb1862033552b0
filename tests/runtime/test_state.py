"""A saved stream continues with the same bits, at every rate, across gaps and across a restart."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_kit import MODES, NO_SOXR, ended, listen, same

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import StreamError


@pytest.mark.parametrize("rate", [8000, 48_000])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    lost=st.integers(0, 100_000),
    keep=st.booleans(),
)
def test_a_restarted_stream_continues_with_the_same_bits(classifier, mode, rate, cuts, lost, keep):
    if rate != 8000:
        pytest.importorskip("soxr", reason=NO_SOXR)
    x = np.random.default_rng(2).uniform(-0.5, 0.5, int(2.7 * rate)).astype(np.float32)
    pieces = np.split(x, sorted(int(cut * len(x)) for cut in cuts))
    streams = [classifier.stream(rate, **MODES[mode]) for _ in range(2)]
    found = [[], []]
    for k, piece in enumerate(pieces):
        for i in range(2):
            found[i] += streams[i].push(piece)
            if k == 1:
                found[i] += streams[i].gap(lost, keep_pooling=keep)
        other = classifier.stream(rate, **MODES[mode])
        other.push(np.full(999, 0.1, np.float32))
        other.load_state(pickle.loads(pickle.dumps(streams[1].state())))
        streams[1] = other
    for i in range(2):
        found[i] += ended(streams[i])
    assert same(*found)


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_a_state_survives_a_file(classifier, clip, tmp_path, rate):
    if rate != 8000:
        pytest.importorskip("soxr", reason=NO_SOXR)
    stream, other = (classifier.stream(rate, window_s=0.5) for _ in range(2))
    stream.push(clip[:20_000])
    stream.gap(12_345)
    stream.push(clip[:9_000])
    path = tmp_path / "stream.state"
    path.write_bytes(b"an older one")
    stream.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["stream.state"]
    other.load(path)
    assert same(listen(stream, clip, []), listen(other, clip, []))


def test_damaged_files_are_refused_and_change_nothing(classifier, clip, tmp_path):
    stream = classifier.stream(forget_s=0.5)
    before = stream.push(clip[:9000])
    path = tmp_path / "state"
    stream.save(path)
    good = path.read_bytes()
    np.savez(tmp_path / "clash.npz", **{"mel": np.zeros(2), "mel.samples": np.zeros(2)})
    bad = [b"", b"frami-edge", good[: len(good) // 2], (tmp_path / "clash.npz").read_bytes()]
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(good)
        for position in rng.integers(0, len(data), 8):
            data[position] = rng.integers(256)
        bad.append(bytes(data))
    refused = 0
    expected = classifier.stream(forget_s=0.5).push(clip[:12_000])
    for data in bad:
        path.write_bytes(data)
        other = classifier.stream(forget_s=0.5)
        try:
            other.load(path)
        except StreamError:
            refused += 1
        else:  # zip checks all bytes but some of its own: then what was loaded is what was saved
            assert same(before + other.push(clip[9000:12_000]), expected)
    assert refused > len(bad) // 2
    with pytest.raises(StreamError, match="No such file"):
        stream.load(tmp_path / "nothing")
    with pytest.raises(StreamError, match="Cannot write"):
        stream.save(tmp_path / "no folder" / "state")
    assert same(before + stream.push(clip[9000:]), classifier.stream(forget_s=0.5).push(clip))


def test_states_that_do_not_fit_are_refused_and_change_nothing(classifier, build_model, clip):
    options = {"window_s": 0.5, "hop_s": 0.1}
    stream = classifier.stream(**options)
    before = stream.push(clip[:9000])
    good = stream.state()
    stranger = Classifier(build_model(seed=1).data).stream(**options)
    carry = good["trunk"]["mel"]
    bad = [
        (None, "it"),
        ({**good, "extra": 1}, "it"),
        (stranger.state(), "model"),
        (classifier.stream(window_s=0.5, hop_s=0.2).state(), "hop"),
        (classifier.stream(forget_s=0.5, hop_s=0.1).state(), "pool"),
        ({**good, "trunk": {**good["trunk"], "mel": np.zeros((16, 10_000), np.float32)}}, "trunk"),
        ({**good, "trunk": {**good["trunk"], "mel": carry.astype(np.float64)}}, "mel"),
        ({**good, "mel": {**good["mel"], "samples": np.zeros(10**6, np.float32)}}, "samples"),
        ({**good, "pool": {**good["pool"], "ring": good["pool"]["ring"][1:]}}, "ring"),
    ]
    for state, words in bad:
        with pytest.raises(StreamError, match=f"loaded: .*{words}.* does not fit"):
            stream.load_state(state)
    rest = listen(stream, clip[9000:], [])
    assert same(before + rest, listen(classifier.stream(**options), clip, []))
