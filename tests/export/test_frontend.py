"""The waveform graph: its log-mel and its logits are the runtime's, at every length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchaudio
from export_kit import MEL, TinyStudent
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_export.errors import ParityError
from frami_edge_export.frontend import (
    WAVEFORM,
    WAVEFORM_KEY,
    check_waveform,
    described_waveform,
    frontend_graph,
    parity_clips,
    waveform_graph,
)
from frami_edge_export.graph import MAX_IR, OPSET, StudentFacts, frozen_head, model_info
from frami_edge_export.parity import Head, cpu_session
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import ModelInfo

SPECS: dict[str, dict[str, Any]] = {
    "default": {},
    "magnitude": {"power": 1.0, "log": "log10"},
    "slaney": {"mel_scale": "slaney", "norm": "slaney", "center": True},
    "db": {"log": "db", "log_floor": "clamp", "log_eps": 1e-10, "n_mels": 40},
    "odd": {"n_fft": 501, "win_length": 399, "hop_length": 157, "center": True, "log": "log2"},
    "full window": {"win_length": 512, "hop_length": 256, "f_min": 60.0, "f_max": 7000.0},
    "per band": {"mean": tuple(range(-64, 0)), "std": tuple(1 + i / 64 for i in range(64))},
}


def spec_of(name: str) -> MelSpec:
    fields: dict[str, Any] = {"mean": -5.0, "std": 3.0, **SPECS[name]}
    return MelSpec(**fields)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(0, 0.1, samples), -1, 1).astype(np.float32)


def by_torchaudio(x: np.ndarray, spec: MelSpec) -> np.ndarray:
    transform = torchaudio.transforms.MelSpectrogram(
        sample_rate=spec.sample_rate,
        n_fft=spec.n_fft,
        win_length=spec.win_length,
        hop_length=spec.hop_length,
        f_min=spec.f_min,
        f_max=spec.f_high,
        n_mels=spec.n_mels,
        power=spec.power,
        norm=None if spec.norm == "none" else spec.norm,
        mel_scale=spec.mel_scale,
        center=spec.center,
    )
    return spec.compress(transform(torch.from_numpy(x)).numpy().T).T


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
@pytest.mark.parametrize("name", SPECS)
def test_log_mel_is_torchaudios_and_the_runtimes(name: str) -> None:
    spec = spec_of(name)
    session = cpu_session(frontend_graph(spec))
    for samples in (spec.min_samples, spec.min_samples + 1, 5000, 16_000):
        x = noise(samples, samples)
        found_MT = session.run(None, {WAVEFORM: x[None]})[0][0, 0]
        assert found_MT.shape == (spec.n_mels, spec.frames(samples))
        np.testing.assert_allclose(found_MT, by_torchaudio(x, spec), atol=1e-4, rtol=0)
        np.testing.assert_allclose(found_MT, log_mel(x, spec).T, atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_spec_and_length_gives_the_runtimes_frames(data: st.DataObject) -> None:
    n_fft = data.draw(st.integers(8, 300))
    win = data.draw(st.integers(4, n_fft))
    hop = data.draw(st.integers(1, win))
    spec = MelSpec(
        sample_rate=8000,
        n_fft=n_fft,
        win_length=win,
        hop_length=hop,
        n_mels=data.draw(st.integers(1, 24)),
        power=data.draw(st.sampled_from([1.0, 2.0])),
        center=data.draw(st.booleans()),
        log_eps=1e-4,
    )
    x = noise(data.draw(st.integers(1, 700)), n_fft)
    found_MT = cpu_session(frontend_graph(spec)).run(None, {WAVEFORM: x[None]})[0][0, 0]
    # A few repeated samples are a line spectrum over silence: float32 rounds the silence.
    np.testing.assert_allclose(found_MT, log_mel(x, spec).T, atol=1e-3, rtol=0)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("samples", [1, 3, 255, 257])
def test_short_clips_are_repeated_as_the_runtime_repeats_them(samples: int, center: bool) -> None:
    spec = MelSpec(center=center)
    x = noise(samples, samples)
    found_MT = cpu_session(frontend_graph(spec)).run(None, {WAVEFORM: x[None]})[0][0, 0]
    # One repeated sample is a line spectrum over silence: float32 rounds the silence.
    np.testing.assert_allclose(found_MT, log_mel(x, spec).T, atol=1e-3, rtol=0)


def test_an_empty_clip_is_an_error_not_a_crash() -> None:
    session = cpu_session(frontend_graph(MelSpec()))
    with pytest.raises(Exception, match=r"(?i)conv|shape|dim"):
        session.run(None, {WAVEFORM: np.zeros((1, 0), np.float32)})


def test_the_kernels_are_computed_on_load_and_not_stored() -> None:
    model = frontend_graph(MelSpec())
    assert len(model.SerializeToString()) < 30_000
    assert {node.op_type for node in model.graph.node}.isdisjoint(
        {"STFT", "DFT", "MelWeightMatrix"}
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(model.SerializeToString(), options)
    x = noise(16_000)[None]
    folded = cpu_session(model).run(None, {WAVEFORM: x})[0]
    np.testing.assert_allclose(plain.run(None, {WAVEFORM: x})[0], folded, atol=1e-4)


@pytest.fixture(scope="module")
def head(student: TinyStudent) -> Head:
    weight_KD, bias_K = (t.double().numpy() for t in frozen_head(student))
    return Head(weight_KD, bias_K, student.pool_eps)


@pytest.fixture
def info(student: TinyStudent, facts: StudentFacts) -> ModelInfo:
    return model_info(student, facts)


@pytest.fixture
def wave(trunk: onnx.ModelProto, head: Head, info: ModelInfo) -> onnx.ModelProto:
    return waveform_graph(trunk, head, info)


def test_logits_are_the_runtimes_at_every_length(
    wave: onnx.ModelProto, trunk: onnx.ModelProto, head: Head, info: ModelInfo
) -> None:
    clips = parity_clips(MEL, seed=0)
    assert len(clips) == 12
    assert max(clip.shape[1] for clip in clips) == 30 * MEL.sample_rate
    before = trunk.SerializeToString(deterministic=True)
    parity = check_waveform(described_waveform(wave, info), trunk, head, info, clips)
    assert trunk.SerializeToString(deterministic=True) == before
    assert parity
    assert parity.max_abs_difference <= 1e-4
    assert parity.agreement == 1.0


def test_the_check_sees_a_wrong_front_end(
    trunk: onnx.ModelProto, head: Head, info: ModelInfo
) -> None:
    other = info.replace(mel=MEL.replace(log_floor="clamp", log_eps=1e-4))
    parity = check_waveform(
        waveform_graph(trunk, head, other), trunk, head, info, parity_clips(MEL, 0, longest_s=2)
    )
    assert not parity
    with pytest.raises(ParityError, match="must map waveform to logits"):
        check_waveform(trunk, trunk, head, info, parity_clips(MEL, 0, longest_s=2))


def test_the_file_says_how_to_feed_it(wave: onnx.ModelProto, info: ModelInfo) -> None:
    model = onnx.load_from_string(described_waveform(wave, info))
    entries = {p.key: p.value for p in model.metadata_props}
    assert set(entries) == {WAVEFORM_KEY}
    about = json.loads(entries[WAVEFORM_KEY])
    assert about["input"]["name"] == model.graph.input[0].name == WAVEFORM
    assert about["input"]["sample_rate"] == MEL.sample_rate
    assert about["input"]["shorter_than"] == MEL.min_samples
    assert about["output"]["name"] == model.graph.output[0].name
    assert ModelInfo.from_json(json.dumps(about["model"])) == info
    assert model.ir_version <= MAX_IR
    assert {o.domain: o.version for o in model.opset_import} == {"": OPSET}
    checkout = str(Path(__file__).resolve().parents[2]).encode()
    assert checkout not in model.SerializeToString()
