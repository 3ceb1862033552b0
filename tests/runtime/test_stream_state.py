"""A saved stream goes on with the same bits, at every rate, across gaps and across a restart."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError, StreamError
from frami_edge_runtime.resample import Resampler
from frami_edge_runtime.stream import Result, Stream

RATES = (8000, 22_050, 44_100, 48_000)
MODES: dict[str, dict[str, Any]] = {
    "whole clip": {},
    "window": {"window_s": 0.6, "hop_s": 0.2},
    "forget": {"forget_s": 0.5, "hop_s": 0.1},
}


def same(one: list[Result], two: list[Result]) -> bool:
    return len(one) == len(two) and all(
        np.array_equal(a.logits, b.logits) and (a.t0, a.t1, a.gap) == (b.t0, b.t1, b.gap)
        for a, b in zip(one, two, strict=True)
    )


def ended(stream: Stream) -> list[Result]:
    try:
        last = stream.flush()
    except AudioError:  # not one sample is left at the model's rate
        return []
    return [] if last is None else [last]


def restarted(stream: Stream, classifier: Classifier, **options: Any) -> Stream:
    other = classifier.stream(stream.sample_rate, **options)
    other.push(np.full(999, 0.1, np.float32))
    other.load_state(pickle.loads(pickle.dumps(stream.state())))
    return other


@pytest.mark.parametrize("rate", [r for r in (1000, 6000, 11_025, 44_101, *RATES) if r != 8000])
@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(0, 60_000), max_size=5), seconds=st.floats(0.01, 3.5))
def test_resampled_samples_go_on_with_the_same_bits(
    rate: int, cuts: list[int], seconds: float
) -> None:
    pytest.importorskip("soxr", reason="soxr, the runtime's extra 'resample', is not installed")
    x = np.random.default_rng(1).uniform(-1, 1, int(seconds * rate)).astype(np.float32)
    whole = Resampler(rate, 8000)
    expected = np.concatenate([whole.push(x), whole.flush()])
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


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    lost=st.integers(0, 100_000),
    keep=st.booleans(),
)
def test_every_stream_goes_on_with_the_same_bits(
    classifier: Classifier, mode: str, rate: int, cuts: list[float], lost: int, keep: bool
) -> None:
    pytest.importorskip("soxr", reason="soxr, the runtime's extra 'resample', is not installed")
    x = np.random.default_rng(2).uniform(-0.5, 0.5, int(2.7 * rate)).astype(np.float32)
    pieces = np.split(x, sorted(int(cut * len(x)) for cut in cuts))
    streams = [classifier.stream(rate, **MODES[mode]) for _ in range(2)]
    found: list[list[Result]] = [[], []]
    for k, piece in enumerate(pieces):
        for i in range(2):
            found[i] += streams[i].push(piece)
            if k == 1:
                found[i] += streams[i].gap(lost, keep_pooling=keep)
        streams[1] = restarted(streams[1], classifier, **MODES[mode])
    for i in range(2):
        found[i] += ended(streams[i])
    assert same(*found)


@pytest.mark.parametrize("rate", RATES)
def test_a_state_survives_a_file(
    classifier: Classifier, clip: np.ndarray, tmp_path: Path, rate: int
) -> None:
    pytest.importorskip("soxr", reason="soxr, the runtime's extra 'resample', is not installed")
    stream, other = (classifier.stream(rate, window_s=0.5) for _ in range(2))
    stream.push(clip[:20_000])
    stream.gap(12_345)
    stream.push(clip[:9_000])
    path = tmp_path / "stream.state"
    path.write_bytes(b"an older one")
    stream.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["stream.state"]
    other.load(path)
    one, two = ([*s.push(clip), s.flush()] for s in (stream, other))
    assert one[-1] is not None
    assert same([r for r in one if r], [r for r in two if r])


def test_damaged_files_are_refused_and_change_nothing(
    classifier: Classifier, clip: np.ndarray, tmp_path: Path
) -> None:
    stream = classifier.stream(forget_s=0.5)
    before = stream.push(clip[:9000])
    path = tmp_path / "state"
    stream.save(path)
    good = path.read_bytes()
    np.savez(tmp_path / "pickled.npz", model=np.array([{}], dtype=object))
    np.savez(tmp_path / "clash.npz", **{"mel": np.zeros(2), "mel.samples": np.zeros(2)})
    bad = {
        "empty": b"",
        "text": b"frami-edge",
        "half": good[: len(good) // 2],
        "pickled": (tmp_path / "pickled.npz").read_bytes(),
        "clash": (tmp_path / "clash.npz").read_bytes(),
    }
    rng = np.random.default_rng(0)
    for i in range(60):
        data = bytearray(good)
        for position in rng.integers(0, len(data), 8):
            data[position] = rng.integers(256)
        bad[f"mutated {i}"] = bytes(data)
    refused = 0
    expected = classifier.stream(forget_s=0.5).push(clip[:12_000])
    for name, data in bad.items():
        path.write_bytes(data)
        other = classifier.stream(forget_s=0.5)
        try:
            other.load(path)
        except StreamError:
            refused += 1
        else:  # zip checks all bytes but some of its own: then what was loaded is what was saved
            assert same(before + other.push(clip[9000:12_000]), expected), name
    assert refused > len(bad) // 2
    with pytest.raises(StreamError, match="No such file"):
        stream.load(tmp_path / "nothing")
    with pytest.raises(StreamError, match="Cannot write"):
        stream.save(tmp_path / "no folder" / "state")
    fresh = classifier.stream(forget_s=0.5)
    assert same(before + stream.push(clip[9000:]), fresh.push(clip))


def test_a_state_of_another_rate_or_model_is_refused(
    classifier: Classifier, build_model: Any, clip: np.ndarray
) -> None:
    pytest.importorskip("soxr", reason="soxr, the runtime's extra 'resample', is not installed")
    stream = classifier.stream(16_000)
    stream.push(clip[:20_000])
    good = stream.state()
    again = classifier.stream(16_000)
    again.push(clip[:12_000])
    resampler = good["resampler"]
    bad: dict[str, Any] = {
        "rate": classifier.stream(48_000).state(),
        "model": Classifier(build_model(seed=3).data).stream(16_000).state(),
        "missing": {k: v for k, v in good.items() if k != "resampler"},
        "resampler": {**good, "resampler": again.state()["resampler"]},
        "history": {**good, "resampler": {**resampler, "history": resampler["history"][:-1]}},
        "mel": {**good, "resampler": {**resampler, "given": resampler["given"] + 5}},
        "given": {**good, "resampler": {**resampler, "given": 1 << 40}},
        "segment": {**good, "time": {**good["time"], "end": 5}},
        "phase": {**good, "trunk": {**good["trunk"], "phase": 1}},
    }
    for key, state in bad.items():
        with pytest.raises(StreamError, match=key):
            stream.load_state(state)
    with pytest.raises(StreamError, match="unknown keys: resampler"):
        classifier.stream().load_state({**good, "rate": 8000})
    stream.push(clip[20_000:])
    last = stream.flush()
    assert last is not None
    assert np.array_equal(last.logits, classifier.classify(clip, 16_000).logits)
