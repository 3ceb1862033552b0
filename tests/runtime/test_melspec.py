"""The mel front end's definition: bounds, round trip, and the limits that inversion relies on."""

import json

import numpy as np
import pytest

from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec, hz_to_mel, mel_to_hz


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_rate": 16000.0}, "integer"),
        ({"n_fft": 1 << 17}, "1..65536"),
        ({"win_length": 600}, "win_length <= n_fft"),
        ({"hop_length": 401}, "hop_length <= win_length"),
        ({"f_max": 9000.0}, "sample_rate / 2"),
        ({"f_min": float("nan")}, "finite"),
        ({"log_eps": 0.0}, "log_eps"),
        ({"mel_scale": "bark"}, "htk, slaney, kaldi"),
        ({"window": "hamming"}, "hann, hann_symmetric, povey"),
        ({"pre_emphasis": 1.0}, "below 1"),
        ({"framing": "window", "center": True}, "exclude each other"),
        ({"remove_dc": True}, "framing"),
        ({"mel_scale": "kaldi", "norm": "slaney"}, "norm"),
        ({"center": 1}, "center"),
        ({"mean": "per_clip"}, "cannot stream"),
        ({"mean": [0.0] * 3}, "3 values for 64 bands"),
        ({"std": [1.0] * 63 + [-1.0]}, "positive"),
        ({"hop": 10}, "no key hop"),
    ],
)
def test_fields_out_of_range_are_named(changes, words):
    with pytest.raises(MelSpecError, match=words):
        MelSpec.from_dict({**MelSpec().to_dict(), **changes})


def test_round_trip_through_json_keeps_everything():
    spec = MelSpec(
        sample_rate=np.int64(8000), n_mels=3, mean=np.array([1.0, 2.0, 3.0]), std=[1, 2, 3]
    )
    again = MelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.digest == spec.digest != spec.replace(n_mels=4, mean=0.0, std=1.0).digest
    assert hash(again) == hash(spec)


def test_front_ends_without_the_later_fields_keep_their_digest():
    assert MelSpec().digest.startswith("2e929085cb4e")  # of 0.1
    kaldi = MelSpec(
        window="povey", framing="window", remove_dc=True, pre_emphasis=0.97, mel_scale="kaldi"
    )
    assert len({MelSpec().digest, kaldi.digest, kaldi.replace(remove_dc=False).digest}) == 3
    assert MelSpec.from_dict(json.loads(json.dumps(kaldi.to_dict()))) == kaldi


@pytest.mark.parametrize("scale", ["htk", "slaney", "kaldi"])
def test_mel_scales_are_inverted_exactly(scale):
    hz = np.array([0.0, 100.0, 999.0, 1000.0, 1001.0, 8000.0, 22_050.0])
    assert np.allclose(mel_to_hz(hz_to_mel(hz, scale), scale), hz, rtol=1e-12, atol=1e-9)
    # Published anchors: 1000 mel is 1000 Hz for HTK and Kaldi; 15 mel is 1000 Hz for Slaney.
    assert hz_to_mel(1000.0, scale) == pytest.approx(15.0 if scale == "slaney" else 1000, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"power": 1.0, "log": "db"},
        {"norm": "slaney"},
        {"window": "hann_symmetric", "pre_emphasis": 0.97, "center": True},
        {"window": "povey", "pre_emphasis": 0.97, "framing": "window", "remove_dc": True},
    ],
)
def test_tones_stay_between_floor_and_ceiling(changes):
    spec = MelSpec(n_mels=24, mean=-4.0, std=2.0).replace(**changes)
    highest = np.full(24, -np.inf)
    for hz in np.linspace(40, 7900, 60):
        tone = np.sin(2 * np.pi * hz * np.arange(3000) / spec.sample_rate)
        mel = log_mel(tone, spec)
        assert (mel >= spec.floor - 1e-4).all()
        highest = np.maximum(highest, mel.max(axis=0))
    assert (highest <= spec.ceiling + 0.3).all()
    assert (highest[4:] >= spec.ceiling[4:] - 1.5).all()
    assert np.allclose(log_mel(np.zeros(4000, np.int16), spec), spec.floor, atol=1e-5)
