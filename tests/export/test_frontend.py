"""The waveform graph: its log-mel and its logits are the runtime's, at every length."""

import json

import numpy as np
import onnx
import pytest
from export_kit import MEL

from frami_edge_export.errors import ParityError
from frami_edge_export.frontend import (
    WAVEFORM,
    check_waveform,
    described_waveform,
    frontend_graph,
    parity_clips,
    waveform_graph,
)
from frami_edge_export.parity import cpu_session
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import WAVEFORM_KEY, ModelInfo

SPECS = {
    "default": {},
    "magnitude": {"power": 1.0, "log": "log10"},
    "slaney": {"mel_scale": "slaney", "norm": "slaney", "center": True},
    "db": {"log": "db", "log_floor": "clamp", "log_eps": 1e-10, "n_mels": 40},
    "odd": {"n_fft": 501, "win_length": 399, "hop_length": 157, "center": True, "log": "log2"},
    "full window": {"win_length": 512, "hop_length": 256, "f_min": 60.0, "f_max": 7000.0},
    "per band": {"mean": tuple(range(-64, 0)), "std": tuple(1 + i / 64 for i in range(64))},
    "tiny": {"n_fft": 8, "win_length": 5, "hop_length": 3, "n_mels": 1},
    "pre-emphasis": {"pre_emphasis": 0.97, "window": "hann_symmetric"},
    "pre-emphasis, centred": {"pre_emphasis": 0.97, "center": True, "mel_scale": "kaldi"},
    "kaldi": {"framing": "window", "remove_dc": True, "pre_emphasis": 0.97, "window": "povey"},
    "tensorflow": {"framing": "window", "power": 1.0, "log_eps": 1e-3},
    "no direct current": {"framing": "window", "remove_dc": True},
}


def noise(samples, seed=0):
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(0, 0.1, samples), -1, 1).astype(np.float32)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
@pytest.mark.parametrize("name", SPECS)
def test_the_log_mel_is_the_runtimes(name):
    spec = MelSpec(**{"mean": -5.0, "std": 3.0, **SPECS[name]})
    session = cpu_session(frontend_graph(spec))
    for samples in (1, 3, spec.min_samples - 1, spec.min_samples, spec.min_samples + 1, 16_000):
        x = noise(max(1, samples), samples)
        found_MT = session.run(None, {WAVEFORM: x[None]})[0][0, 0]
        assert found_MT.shape == (spec.n_mels, spec.frames(max(len(x), spec.min_samples)))
        # A few repeated samples are a line spectrum over silence: float32 rounds the silence, and
        # only a high floor hides it.
        atol = 1e-4 if samples >= spec.min_samples else 1e-3
        if samples >= spec.min_samples or name in ("default", "slaney"):
            np.testing.assert_allclose(found_MT, log_mel(x, spec).T, atol=atol, rtol=0)
    with pytest.raises(Exception, match=r"(?i)conv|shape|dim"):
        session.run(None, {WAVEFORM: np.zeros((1, 0), np.float32)})


def test_logits_are_the_runtimes_at_every_length_and_the_file_says_how_to_feed_it(made):
    trunk, head, info = made.trunk, made.head, made.info
    before = trunk.SerializeToString(deterministic=True)
    data = described_waveform(waveform_graph(trunk, head, info), info)
    assert trunk.SerializeToString(deterministic=True) == before
    clips = parity_clips(MEL, seed=0)
    assert len(clips) == 12
    assert max(clip.shape[1] for clip in clips) == 30 * MEL.sample_rate
    parity = check_waveform(data, trunk, head, info, clips)
    assert parity
    assert parity.max_abs_difference <= 1e-4
    assert parity.agreement == 1.0
    model = onnx.load_from_string(data)
    entries = {p.key: p.value for p in model.metadata_props}
    assert set(entries) == {WAVEFORM_KEY}
    about = json.loads(entries[WAVEFORM_KEY])
    assert about["input"]["name"] == model.graph.input[0].name == WAVEFORM
    assert about["input"]["sample_rate"] == MEL.sample_rate
    assert about["input"]["shorter_than"] == MEL.min_samples
    assert about["output"]["name"] == model.graph.output[0].name
    assert ModelInfo.from_json(json.dumps(about["model"])) == info


def test_the_check_sees_a_wrong_front_end(made):
    trunk, head, info = made.trunk, made.head, made.info
    other = info.replace(mel=MEL.replace(log_floor="clamp", log_eps=1e-4))
    clips = parity_clips(MEL, 0, longest_s=2)
    assert not check_waveform(waveform_graph(trunk, head, other), trunk, head, info, clips)
    with pytest.raises(ParityError, match="must map waveform to logits"):
        check_waveform(trunk, trunk, head, info, clips)
