"""Thresholds that an export sets from synthetic clips alone."""

import numpy as np
import pytest
from export_kit import MEL, synthetic_mels

from frami_edge_export.thresholds import (
    ThresholdClips,
    find_thresholds,
    steady_sounds,
    window_logits,
)
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.events import EventDetector, EventSpec
from frami_edge_runtime.thresholds import HOP_S, MIN_ON_S, WINDOW_S

RATE = MEL.sample_rate


@pytest.fixture(scope="module")
def clips():
    """Five minutes of noise bursts and tones, and clips of the six classes."""
    rng = np.random.default_rng(3)
    t = np.arange(5 * RATE) / RATE
    sounds = [
        rng.uniform(0, 0.3) * np.sin(2 * np.pi * rng.uniform(100, RATE / 2) * t)
        + rng.uniform(0, 0.3) * rng.standard_normal(len(t)) * (np.sin(2 * np.pi * t) > 0)
        for _ in range(60)
    ]
    mels, labels = synthetic_mels(300, 100, seed=11)  # as long as a window
    return ThresholdClips(
        np.stack(sounds).astype(np.float32), mels.numpy(), np.eye(6, dtype=bool)[labels.numpy()]
    )


@pytest.fixture(scope="module")
def judged(made, clips):
    found, notes = find_thresholds(made.described(made.trunk, made.info), clips, 0.5)
    assert any(note.startswith("b: clipped sine scores 1.0000, and no sound") for note in notes)
    info = made.info.replace(thresholds=found.to_dict())
    return made.described(made.trunk, info), found


def test_every_label_has_thresholds_and_an_expected_cost(judged, clips, made):
    _, found = judged
    assert len(found.on) == 6
    assert found.target == 0.5
    assert found.hit_rate is not None
    assert 0.3 < found.hit_rate < 1  # class b gives way to a clipped tone
    assert "synthetic background" in found.background
    blind, _ = find_thresholds(
        made.described(made.trunk, made.info), ThresholdClips(clips.sounds), 0.5
    )
    assert blind.hit_rate is None
    assert blind.reject is None


def test_silence_noise_hum_dc_and_clipping_start_no_event(judged):
    model, found = judged
    classifier = Classifier(model)
    spec = EventSpec.for_model(classifier.info, min_on_s=MIN_ON_S)
    events = {}
    for name, samples in steady_sounds(RATE, 20.0, seed=99):  # other noise than the export's
        stream = classifier.stream(window_s=WINDOW_S, hop_s=HOP_S)
        detector = EventDetector(spec, classifier.labels)
        results = [*stream.push(samples), stream.flush()]
        events[name] = sum(len(detector.push(r)) for r in results) + len(detector.finish())
    assert not any(events.values())
    # This network is as certain as float32 can be that a clipped tone is class b.
    assert found.on[1] == 1
    assert found.hit_rates[1] == 0
    assert max(found.on[:1] + found.on[2:]) < 1


def test_windows_are_those_of_a_stream(made):
    classifier = Classifier(made.described(made.trunk, made.info))
    samples = np.random.default_rng(0).normal(0, 0.1, 10 * RATE).astype(np.float32)
    expected = [r.logits for r in classifier.stream(window_s=WINDOW_S, hop_s=HOP_S).push(samples)]
    found = window_logits(classifier.model, samples)
    first = round(WINDOW_S / HOP_S) - 1  # a stream answers before its first window is full
    assert len(found) >= 30
    np.testing.assert_allclose(found[: len(expected) - first], expected[first:], atol=1e-4)
    filling = window_logits(classifier.model, samples, filling=True)
    np.testing.assert_allclose(filling[: len(expected)], expected, atol=1e-4)
