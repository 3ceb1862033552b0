"""Tiny models in the contract's format, built with the onnx helpers: the exporter is elsewhere."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from stream_kit import ARECORD_OPENS, write_wav

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import Context, ModelInfo, model_metadata

LABELS = ("dog", "rain", "siren", "glass breaking", "silence")


@dataclass(frozen=True)
class TinyModel:
    """The file, and the weights that it was made of, for references in NumPy."""

    data: bytes
    info: ModelInfo
    weights: dict[str, np.ndarray]
    head: tuple[np.ndarray, np.ndarray]


def make_spec(**changes):
    base = {"sample_rate": 8000, "n_fft": 256, "win_length": 200, "hop_length": 80, "n_mels": 16}
    return MelSpec(**{**base, "mean": -6.0, "std": 3.0, **changes})


def build(
    spec=None,
    *,
    channels=12,
    stride=2,
    seed=0,
    labels=LABELS,
    pad_time=False,
    metadata=None,
    **info_changes,
):
    """Two valid convolutions, ReLU between and after: (M, 5) with a stride, then (1, 3)."""
    onnx = pytest.importorskip("onnx")
    spec = spec or make_spec()
    rng = np.random.default_rng(seed)
    first = rng.normal(0, 0.3, (channels, 1, spec.n_mels, 5)).astype(np.float32)
    second = rng.normal(0, 0.3, (channels, channels, 1, 3)).astype(np.float32)
    bias = rng.normal(0, 0.1, channels).astype(np.float32)
    weight = rng.normal(0, 0.5, (2 * channels, len(labels))).astype(np.float32)
    offset = rng.normal(0, 0.5, len(labels)).astype(np.float32)

    def graph(text, **tensors):
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
        for name, tensor in tensors.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(tensor, name))
        return model

    pad = 2 if pad_time else 0
    trunk = graph(
        f"""trunk (float[B,1,{spec.n_mels},T] mel) => (float[B,{channels},T_out] frames) {{
            h1 = Conv <strides = [1,{stride}], pads = [0,{pad},0,{pad}]> (mel, w1, b1)
            r1 = Relu (h1)
            h2 = Conv (r1, w2)
            r2 = Relu (h2)
            frames = Squeeze (r2, axes)
        }}""",
        w1=first,
        b1=bias,
        w2=second,
        axes=np.array([2], np.int64),
    )
    head = graph(
        f"""head (float[B,{2 * channels}] pooled) => (float[B,{len(labels)}] logits) {{
            logits = Gemm (pooled, w, b)
        }}""",
        w=weight,
        b=offset,
    )
    values = {
        "mel": spec, "labels": labels, "receptive_field": 5 + 2 * stride, "stride": stride,
        "channels": channels, "versions": {"frami-edge-export": "0.1.0"}, "licence": "Apache-2.0",
        "created": "2026-11-22T00:00:00Z",
    }  # fmt: skip
    info = ModelInfo(**{**values, **info_changes})
    entries = model_metadata(info, head.SerializeToString())
    onnx.helper.set_model_props(trunk, entries if metadata is None else {**entries, **metadata})
    return TinyModel(
        trunk.SerializeToString(), info, {"w1": first, "b1": bias, "w2": second}, (weight, offset)
    )


@pytest.fixture
def fake_arecord(tmp_path):
    """`fake_arecord(script)`: an environment whose only microphone is an arecord that runs it.

    It opens any device, unless the script begins with ``# fails``.
    """

    def make(script):
        path = tmp_path / "bin" / "arecord"
        path.parent.mkdir(exist_ok=True)
        head = "import random, struct, sys, time\nout = sys.stdout.buffer\nrandom.seed(0)\n"
        if not script.startswith("# fails"):
            head += (
                "a = dict(zip(sys.argv, sys.argv[1:]))\n"
                f"print({ARECORD_OPENS!r}.format(device=a['-D'], format=a['-f'], channels=a['-c'], "
                "rate=a['-r']), file=sys.stderr, end='', flush=True)\n"
            )
        path.write_text(f"#!{sys.executable}\n{head}{script}\n")
        path.chmod(0o755)
        (path.parent / "sounddevice.py").write_text("raise ImportError")
        paths = os.pathsep.join(filter(None, [str(path.parent), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PATH": str(path.parent), "PYTHONPATH": paths}

    return make


@pytest.fixture(scope="session")
def build_model():
    return build


@pytest.fixture(scope="session")
def tiny():
    return build()


@pytest.fixture(scope="session")
def causal():
    """All context before the start, and of another value: no look-ahead."""
    return build(context=Context(8, 0, -0.5))


@pytest.fixture(scope="session")
def classifier(tiny):
    return Classifier(tiny.data)


@pytest.fixture(scope="session")
def clip():
    """3.75 s at 8 kHz, (30001,) float32."""
    return noise(30_001)


@pytest.fixture
def model_path(tiny, tmp_path):
    path = tmp_path / "student.onnx"
    path.write_bytes(tiny.data)
    return path


@pytest.fixture
def wav_path(clip, tmp_path):
    return write_wav(tmp_path / "street.wav", clip)


def noise(samples, seed=0):
    """Noise whose loudness and pitch wander, so that frames differ."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 8000
    tone = np.sin(2 * np.pi * (300 + 200 * np.sin(t)) * t)
    loud = 0.05 + 0.2 * (1 + np.sin(1.7 * t + seed))
    return (loud * (tone + rng.standard_normal(samples)) * 0.4).astype(np.float32)


@pytest.fixture(scope="session")
def build_quantised():
    """The tiny model, statically quantised to int8 with QDQ nodes as the exporter does."""

    def quantise():
        return _quantised(build())

    return quantise


def _quantised(model):
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    rng = np.random.default_rng(0)
    mels = [{"mel": rng.standard_normal((1, 1, 16, 40)).astype(np.float32)} for _ in range(4)]

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return mels.pop() if mels else None

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model.data)
        quantization.quantize_static(
            source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            weight_type=quantization.QuantType.QInt8, activation_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        quantised = onnx.load(target)
    entries = {p.key: p.value for p in onnx.load_from_string(model.data).metadata_props}
    onnx.helper.set_model_props(quantised, entries)
    data = quantised.SerializeToString()
    return data
