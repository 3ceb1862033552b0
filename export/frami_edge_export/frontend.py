"""The waveform classifier of one export: built, compared with the runtime, judged."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import compose, helper

from frami_edge_export.drafts import Bundle, Draft
from frami_edge_export.errors import ParityError
from frami_edge_export.graph import NodeList, check_loadable, serialised, strip
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Head, cpu_session, run_trunk, with_context
from frami_edge_export.report import Artifact, Gate
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import HEAD_OUTPUT, TRUNK_INPUT, TRUNK_OUTPUT, ModelInfo

# --- The log-mel front end as an ONNX graph of standard operators: samples in, normalised log-me
# A frame's spectrum is one strided convolution with the windowed cosines and sines. Stored, those
# kernels would be larger than the student (0.8 MB for 512 points); so the file holds one period of
# the cosine and the graph looks every value up by ``k n mod n_fft``, in exact integers. ONNX Runtime
# computes that once, when it loads the file, as it does the sparse filter bank.
#
# Source of the definition: `frami_edge_runtime.melspec.MelSpec`; the STFT operator is avoided because
# it is slower and TensorRT has none.
# Shape legend: B batch, N samples, L samples with padding, F frequency bins that the filter bank
# uses, W window, M mel bands, T frames.

WAVEFORM: Final = "waveform"
"""Input: (B, N) float32 samples, full scale 1."""
MEL: Final = "frontend.mel"
"""Output: (B, 1, M, T) normalised log-mel."""


def frontend_graph(mel: MelSpec) -> onnx.ModelProto:
    """Waveform (B, N) -> normalised log-mel (B, 1, M, T), N >= 1 and B dynamic.

    T is ``mel.frames(max(N, mel.min_samples))``: shorter clips are repeated up to that, as the
    runtime does. Every `MelSpec` is supported. Samples are not checked: what is not finite gives
    answers that are not finite.
    """
    g = NodeList("frontend")
    power_BFT = _power(g, _framed(g, mel), mel)
    mel_BMT = g.node("MatMul", _filter_bank(g, mel), power_BFT)
    _compressed(g, mel_BMT, mel)
    return g.model(
        "frami_frontend",
        {WAVEFORM: ["batch", "samples"]},
        {MEL: ["batch", 1, mel.n_mels, "time"]},
    )


def _framed(g: NodeList, mel: MelSpec) -> str:
    """(B, 1, L): the samples under the windows, from the first one's start to the last one's end.

    The window lies in the middle of ``n_fft``, so what it leaves out at both ends is cut off, or
    not padded in the first place.
    """
    left = (mel.n_fft - mel.win_length) // 2
    right = mel.n_fft - mel.win_length - left
    axis = g.constant("time_axis", [1], np.int64)
    one = g.constant("one", [1], np.int64)
    given_1 = g.node("Shape", WAVEFORM, start=1, end=2)
    needed_1 = g.node("Max", given_1, g.constant("min_samples", [mel.min_samples], np.int64))
    # An empty clip must fail in the convolution, not divide by zero here.
    some_1 = g.node("Max", given_1, one)
    repeats_1 = g.node("Div", g.node("Sub", g.node("Add", needed_1, some_1), one), some_1)
    x_BL = g.node("Tile", WAVEFORM, g.node("Concat", one, repeats_1, axis=0))
    if mel.center:
        first, last_1 = 0, needed_1
    else:
        first = left
        last_1 = g.node("Sub", needed_1, g.constant("after_window", [right], np.int64))
    x_BL = g.node("Slice", x_BL, g.constant("first_sample", [first], np.int64), last_1, axis)
    if mel.center:
        half = mel.n_fft // 2
        pads = g.constant("reflected", [0, half - left, 0, half - right], np.int64)
        x_BL = g.node("Pad", x_BL, pads, mode="reflect")
    return g.node("Unsqueeze", x_BL, axis)


def _power(g: NodeList, x_B1L: str, mel: MelSpec) -> str:
    """(B, F, T): energy, or magnitude, of the bins that the filter bank uses."""
    angle_N = 2 * np.pi * np.arange(mel.n_fft) / mel.n_fft
    phase_FW = g.node(
        "Mod",
        g.node(
            "Mul",
            g.constant("bins", _used(mel)[:, None], np.int64),
            g.constant("sample_numbers", np.arange(mel.win_length), np.int64),
        ),
        g.constant("n_fft", mel.n_fft, np.int64),
    )
    cos_FW = g.node("Gather", g.constant("cosine", np.cos(angle_N), np.float32), phase_FW)
    sin_FW = g.node("Gather", g.constant("sine", np.sin(angle_N), np.float32), phase_FW)
    kernel = g.node(
        "Mul",
        g.node("Concat", cos_FW, sin_FW, axis=0),
        g.constant("window", mel.window, np.float32),
    )
    kernel = g.node("Unsqueeze", kernel, g.constant("channel_axis", [1], np.int64))
    z = g.node("Conv", x_B1L, kernel, strides=[mel.hop_length])
    squares = g.node("Mul", z, z)
    re, im = g.nodes("Split", squares, outputs=(None, None), axis=1, num_outputs=2)
    energy = g.node("Add", re, im)
    return energy if mel.power == 2 else g.node("Sqrt", energy)


def _filter_bank(g: NodeList, mel: MelSpec) -> str:
    """(M, F), from its few values that are not zero."""
    bank_MF = mel.filterbank[_used(mel)].T
    places = np.flatnonzero(bank_MF)
    zeros = g.node("ConstantOfShape", g.constant("bank_size", [bank_MF.size], np.int64))
    flat = g.node(
        "ScatterElements",
        zeros,
        g.constant("bank_places", places, np.int32),
        g.constant("bank_values", bank_MF.reshape(-1)[places], np.float32),
        axis=0,
    )
    return g.node("Reshape", flat, g.constant("bank_shape", bank_MF.shape, np.int64))


def _compressed(g: NodeList, mel_BMT: str, mel: MelSpec) -> None:
    """Log and normalise, in the order and precision of the runtime."""
    std = np.asarray(mel.std, np.float64)
    scale = np.reshape(mel.log_scale / std, (-1, 1))
    shift = np.reshape(-np.asarray(mel.mean, np.float64) / std, (-1, 1))
    floor = g.constant("log_eps", mel.log_eps, np.float32)
    y = g.node("Log", g.node("Add" if mel.log_floor == "add" else "Max", mel_BMT, floor))
    y = g.node("Mul", y, g.constant("scale", scale, np.float32))
    y = g.node("Add", y, g.constant("shift", shift, np.float32))
    g.node("Unsqueeze", y, g.constant("mel_axis", [1], np.int64), output=MEL)


def _used(mel: MelSpec) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(F,) bins with weight in any band; one at least, so that no product is empty."""
    used = np.flatnonzero(mel.filterbank.any(axis=1))
    return used if len(used) else np.array([0])


# --- A classifier that takes samples: front end, context, trunk, pooling and head in one graph
# For C++, Java, Rust or Swift: ONNX Runtime and nothing else. The streaming file remains the better
# one where audio never ends: this graph answers for a whole clip.
#
# Shape legend: B batch, N samples, M mel bands, T mel frames, C channels, T' trunk frames, D = 2C,
# K classes.

WAVEFORM_KEY: Final = "frami.waveform"
"""Metadata key of the waveform model: no other file of an export can be taken for it."""
TOLERANCE: Final = 1e-4
"""Of the logits against the runtime's: the convolution rounds to float32, the FFT does not."""
_PADDED: Final = "classifier.padded"

Array = npt.NDArray[np.float32]


def waveform_graph(trunk: onnx.ModelProto, head: Head, info: ModelInfo) -> onnx.ModelProto:
    """Waveform (B, N) -> logits (B, K), N >= 1 and B dynamic.

    Args:
        trunk: fp32 or int8, as in the streaming file; not changed.
        head: Pooling and head; computed in float32, the variance in two passes.
        info: With the front end and the context.

    Raises:
        GraphError: The result is not what devices load.
    """
    before = _joined(frontend_graph(info.mel), _context(info), MEL)
    model = _joined(before, trunk, _PADDED, TRUNK_INPUT)
    model = _joined(model, _pooling_and_head(head, info), TRUNK_OUTPUT)
    strip(model)
    model.graph.name = "frami_waveform"
    check_loadable(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def described_waveform(model: onnx.ModelProto, info: ModelInfo) -> bytes:
    """The bytes of ``{name}.wave.onnx``: how to feed it, and what `ModelInfo` says, as JSON."""
    mel = info.mel
    about = {
        "schema": 1,
        "input": {
            "name": WAVEFORM,
            "shape": ["batch", "samples"],
            "dtype": "float32",
            "sample_rate": mel.sample_rate,
            "channels": "mono",
            "full_scale": 1.0,
            "shorter_than": mel.min_samples,
            "is": "repeated up to it",
        },
        "output": {"name": HEAD_OUTPUT, "shape": ["batch", len(info.labels)], "is": "logits"},
        "model": json.loads(info.to_json()),
    }
    model = copy.deepcopy(model)
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False)
    helper.set_model_props(model, {WAVEFORM_KEY: text})
    model.producer_name = "frami-edge-export"
    model.producer_version = info.versions.get("frami-edge-export", "")
    onnx.checker.check_model(model)
    return serialised(model)


@dataclass(frozen=True)
class WaveformParity:
    """The waveform graph against the runtime's log-mel, trunk, float64 pooling and head."""

    lengths: tuple[int, ...]
    """Samples compared."""
    max_abs_difference: float
    """Of the logits."""
    scaled_difference: float
    """The same over max(1, largest |logit|) of each clip."""
    agreement: float
    """Share of clips whose strongest class is the runtime's."""
    tolerance: float

    def __bool__(self) -> bool:
        """Within the tolerance."""
        return self.scaled_difference <= self.tolerance


def check_waveform(
    model: onnx.ModelProto | bytes | str,
    trunk: onnx.ModelProto | bytes | str,
    head: Head,
    info: ModelInfo,
    clips: Sequence[Array],
    tolerance: float = TOLERANCE,
) -> WaveformParity:
    """Compare logits clip by clip.

    Args:
        model: Of `waveform_graph`.
        trunk: The graph inside it.
        head: Likewise.
        info: Likewise.
        clips: (N,) float32 each, at the model's rate; `parity_clips` makes some.
        tolerance: Of `WaveformParity.scaled_difference`; an int8 trunk may round the other way
            where the mel differs in its last bit, so it has no meaning there.

    Raises:
        ParityError: Names or shapes differ, or a value is not finite.
    """
    session, trunk_session = cpu_session(model), cpu_session(trunk)
    names = ([i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()])
    if names != ([WAVEFORM], [HEAD_OUTPUT]):
        raise ParityError(
            f"The waveform graph must map {WAVEFORM} to {HEAD_OUTPUT}, but maps {names[0]} to "
            f"{names[1]}.",
            fix="Export the student again.",
        )
    context = (info.context.left, info.context.right)
    worst, scaled, same = 0.0, 0.0, []
    for clip in clips:
        mel_1T = log_mel(clip, info.mel).T[None, None]
        expected_1K = head(run_trunk(trunk_session, with_context(mel_1T, context)))
        found_1K = session.run([HEAD_OUTPUT], {WAVEFORM: clip[None]})[0]
        if found_1K.shape != expected_1K.shape or not np.isfinite(found_1K).all():
            raise ParityError(
                f"The waveform graph gives {found_1K.shape} for {len(clip)} samples, not finite "
                f"values of shape {expected_1K.shape}.",
                fix="Distil the student again: its weights overflow, or its MelSpec is damaged.",
            )
        difference = float(np.abs(found_1K - expected_1K).max())
        worst = max(worst, difference)
        scaled = max(scaled, difference / max(1.0, float(np.abs(expected_1K).max())))
        same.append(int(found_1K.argmax()) == int(expected_1K.argmax()))
    lengths = tuple(len(clip) for clip in clips)
    return WaveformParity(lengths, worst, scaled, float(np.mean(same)), tolerance)


def parity_clips(mel: MelSpec, seed: int, longest_s: float = 30.0) -> list[Array]:
    """Noise, a gliding tone in noise, clicks: twelve lengths from one sample to ``longest_s``."""
    rng = np.random.default_rng(seed)
    least, hop = mel.min_samples, mel.hop_length
    near = [1, 2, hop, least - 1, least, least + 1, least + hop, mel.sample_rate]
    far = np.geomspace(2 * mel.sample_rate, longest_s * mel.sample_rate, 4)
    lengths = sorted({max(1, n) for n in near} | {int(n) for n in far})
    return [_clip(n, i % 3, mel.sample_rate, rng) for i, n in enumerate(lengths)]


def _clip(samples: int, kind: int, rate: int, rng: np.random.Generator) -> Array:
    x = rng.normal(0, 0.05, samples)
    if kind == 1:
        time_s = np.arange(samples) / rate
        x = 0.2 * x + 0.4 * np.sin(2 * np.pi * (0.05 * rate * time_s + 0.01 * rate * time_s**2))
    elif kind == 2:
        x = 0.1 * x
        x[:: max(1, rate // 7)] += 0.8
    return np.clip(x, -1, 1).astype(np.float32)


def _joined(
    first: onnx.ModelProto, second: onnx.ModelProto, output: str, into: str | None = None
) -> onnx.ModelProto:
    second = copy.deepcopy(second)
    # merge_models wants equal versions; strip() of both was done where they were made.
    second.ir_version = first.ir_version
    second.ClearField("metadata_props")
    return compose.merge_models(first, second, io_map=[(output, into or output)])


def _context(info: ModelInfo) -> onnx.ModelProto:
    """Mel frames of one value before the start and after the end."""
    g = NodeList("context")
    context, mel = info.context, info.mel
    pads = g.constant("frames", [0, 0, 0, context.left, 0, 0, 0, context.right], np.int64)
    g.node("Pad", MEL, pads, g.constant("value", context.value, np.float32), output=_PADDED)
    return g.model(
        "context",
        {MEL: ["batch", 1, mel.n_mels, "time"]},
        {_PADDED: ["batch", 1, mel.n_mels, "padded"]},
    )


def _pooling_and_head(head: Head, info: ModelInfo) -> onnx.ModelProto:
    """[mean; sqrt(max(var, 0) + eps)] over time, then the affine head."""
    g = NodeList("head")
    k = len(head.bias)
    axis = g.constant("time_axis", [2], np.int64)
    mean_BC1 = g.node("ReduceMean", TRUNK_OUTPUT, axis, keepdims=1)
    centred = g.node("Sub", TRUNK_OUTPUT, mean_BC1)
    var_BC = g.node("ReduceMean", g.node("Mul", centred, centred), axis, keepdims=0)
    std_BC = g.node("Sqrt", g.node("Add", var_BC, g.constant("eps", head.eps, np.float32)))
    pooled_BD = g.node("Concat", g.node("Squeeze", mean_BC1, axis), std_BC, axis=1)
    weight = g.constant("weight", head.weight, np.float32)
    bias = g.constant("bias", head.bias, np.float32)
    g.node("Gemm", pooled_BD, weight, bias, transB=1, output=HEAD_OUTPUT)
    return g.model(
        "head",
        {TRUNK_OUTPUT: ["batch", info.channels, "frames"]},
        {HEAD_OUTPUT: ["batch", k]},
    )


# --- The waveform classifier of one export: built, compared with the runtime, judged


def add_waveform(
    bundle: Bundle,
    trunk: onnx.ModelProto,
    head: Head,
    info: ModelInfo,
    *,
    name: str,
    options: ExportOptions,
) -> None:
    """Add ``wave``, samples in and logits out, from the fp32 trunk.

    Args:
        bundle: Gets the file and its gate.
        trunk: The fp32 graph.
        head: Pooling and head.
        info: Of the fp32 file.
        name: Prefix of the file.
        options: The seed of the clips that are compared.
    """
    graph = waveform_graph(trunk, head, info)
    found = check_waveform(graph, trunk, head, info, parity_clips(info.mel, options.seed))
    artifact = Artifact(
        name="wave",
        path=f"{name}.wave.onnx",
        kind="waveform",
        precision="fp32",
        bytes=0,
        max_abs_difference=found.max_abs_difference,
        agreement=found.agreement,
    )
    gate = Gate.at_most("waveform = runtime, logits", found.scaled_difference, found.tolerance)
    draft = Draft.of(artifact, described_waveform(graph, info), graph)
    bundle.add(draft, dataclasses.replace(gate, artifact="wave"))
