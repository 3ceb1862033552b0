"""Thresholds for a rate of false alarms, and what never starts an event."""

import json
import math

import numpy as np
import pytest

from frami_edge_runtime import Classifier, ModelFileError, StreamError
from frami_edge_runtime.events import EventDetector, EventSpec
from frami_edge_runtime.listen import main
from frami_edge_runtime.thresholds import (
    Thresholds,
    choose,
    decision_scores,
    hit_deciles,
    log_odds,
    peaks,
    tuned,
    with_thresholds,
)

K = 5


def logistic(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def background():
    """10 h of results whose log-odds have exponential tails; label 0 answers most often."""
    rng = np.random.default_rng(0)
    return logistic(rng.exponential([1.2, 0.6, 0.6, 0.6, 0.6], (10 * 3600 * 4, K)) - 3)


@pytest.fixture
def hits():
    rng = np.random.default_rng(1)
    return hit_deciles([rng.normal(4, 1.5, 500) for _ in range(K)])


def rate(scores_NK, found):
    """Events per hour that a detector starts."""
    over = peaks(scores_NK) >= log_odds(np.array(found.on))
    return float(over.sum() / (len(scores_NK) / 4 / 3600))


@pytest.mark.parametrize("target", [0.5, 5.0])
def test_the_rate_on_other_background_is_the_one_that_was_asked_for(background, hits, target):
    half = len(background) // 5  # 2 h set the thresholds: a rate below 0.5 is extrapolated
    found = choose(peaks(background[:half]), 2.0, target=target, least=[0.0] * K, hits=hits)
    assert found.false_alarms_per_hour == pytest.approx(target, rel=0.25)
    assert target / 3 < rate(background[half:], found) < target * 3
    assert found.hit_rate is not None
    assert found.hit_rate > 0.5
    assert found.on[0] > max(found.on[1:])  # the budget goes where it finds most
    assert all(0 < off < on for on, off in zip(found.on, found.off, strict=True))


def test_a_target_that_would_miss_most_sounds_gives_way(background):
    weak = hit_deciles([np.linspace(-2, 1, 50)] * K)
    found = choose(peaks(background), 10.0, target=0.001, least=[0.0] * K, hits=weak)
    assert found.hit_rate == pytest.approx(0.33, abs=0.03)  # at the least threshold, 0.5
    assert found.false_alarms_per_hour > 0.001


def test_steady_noise_sets_a_floor_and_an_unknown_hit_rate_a_ceiling(background):
    least = [0.0, 0.0, 2.5, 0.0, 0.0]
    found = choose(peaks(background), 10.0, target=1e6, least=least)
    assert found.on == pytest.approx((0.5, 0.5, logistic(np.array(2.5)), 0.5, 0.5), abs=0.01)
    assert found.hit_rate is None
    assert max(choose(peaks(background), 10.0, target=1e-9, least=least).on) <= 0.951


def test_events_take_the_thresholds_of_the_file_unless_told_otherwise(build_model):
    values = Thresholds(on=(0.9, 0.8, 0.7, 0.6, 0.5), off=(0.5,) * K, reject=1.5).to_dict()
    info = Classifier(build_model(thresholds=values).data).info
    spec = EventSpec.for_model(info, min_on_s=0.3, overrides={"rain": {"on": 0.55}})
    rules = spec.rules(info.labels)
    assert [rules[x].on for x in info.labels] == [0.9, 0.55, 0.7, 0.6, 0.5]
    assert [rules[x].threshold_off for x in info.labels] == [0.5, pytest.approx(0.4), 0.5, 0.5, 0.5]
    assert (spec.reject, spec.min_on_s) == (1.5, 0.3)
    rules = EventSpec.for_model(info, on_at_most=0.75).rules(info.labels)
    assert [rules[x].on for x in info.labels] == [0.75, 0.75, 0.7, 0.6, 0.5]
    assert [rules[x].threshold_off for x in info.labels] == [0.6, 0.6, 0.5, 0.5, 0.5]
    with pytest.raises(StreamError, match="on_at_most lowers thresholds of the model file"):
        EventSpec.for_model(info, on=0.4, on_at_most=0.75)
    assert EventSpec.for_model(info, on=0.4) == EventSpec(on=0.4)
    assert EventSpec.for_model(Classifier(build_model().data).info) == EventSpec()


def test_a_sound_of_low_energy_is_none_of_the_labels(classifier):
    noise = np.random.default_rng(0).standard_normal(16_000) * 0.1
    stream = classifier.stream(window_s=0.5)
    results = stream.push(noise)
    energies = [math.log(np.exp(r.logits.astype(float)).sum()) for r in results]
    for margin, starts in ((-10.0, True), (10.0, False)):
        reject = float(np.mean(energies)) + margin
        scores = decision_scores(results[0].scores, results[0].logits, reject)
        expected = results[0].scores / (1 + math.exp(reject - energies[0]))
        assert scores == pytest.approx(expected)
        detector = EventDetector(EventSpec(on=0.3, reject=reject), classifier.labels)
        assert any(detector.push(r) for r in results) is starts


def test_tuning_writes_a_model_that_only_its_thresholds_tell_apart(build_model, tmp_path, capsys):
    from stream_kit import write_wav

    first = Thresholds(on=(0.9,) * K, off=(0.75,) * K, least=(0.0, 3.0, 0.0, 0.0, 0.0))
    model, room, out = (tmp_path / name for name in ("a.onnx", "room.wav", "b.onnx"))
    model.write_bytes(build_model(thresholds=first.to_dict()).data)
    rng = np.random.default_rng(0)
    write_wav(room, (0.1 * rng.standard_normal(8000 * 60)).astype(np.float32))
    assert main([str(model), "nothing.wav", "--tune", "60", "--out", str(tmp_path)]) == 1
    assert "cannot be written: it is a folder" in capsys.readouterr().err  # before it listens
    given = [str(model), str(room), "--tune", "60", "--false-alarms", "30", "--json"]
    assert main([*given, "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    before, after = Classifier(model), Classifier(out)
    found = Thresholds.of(after.info)
    assert said["on"] == list(found.on) != [0.9] * K
    assert found.on[1] == pytest.approx(1 / (1 + math.exp(-2.94)), abs=0.01)  # blind: at most .95
    assert found.target == 30
    assert " h of the user's background" in found.background
    assert after.info.replace(thresholds=None) == before.info.replace(thresholds=None)
    # Again: the entry is replaced, and the events of the same room are few.
    again = with_thresholds(out.read_bytes(), first)
    assert Thresholds.of(Classifier(again).info) == first
    assert len(again) < len(out.read_bytes()) + 500
    assert main([str(out), str(room), "--json", "--quiet"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(records[-1]["events"].values()) <= 2
    with pytest.raises(ModelFileError, match="too little"):
        tuned(first, [np.zeros((3, K))], K)


def test_damaged_thresholds_are_refused(build_model):
    for values in (
        {},
        {"on": [0.5], "off": [0.4]},
        {"on": [2] * K, "off": [0.4] * K},
        {"on": 3, "off": 2},
    ):
        info = Classifier(build_model(thresholds=values).data).info
        with pytest.raises(ModelFileError, match="thresholds of the model are damaged"):
            EventSpec.for_model(info)
