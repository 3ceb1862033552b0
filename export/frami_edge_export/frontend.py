"""A classifier of samples: front end, context, trunk, pooling and head in one ONNX graph.

For C++, Java, Rust or Swift, with ONNX Runtime and nothing else. The streaming file remains the
better one where audio never ends: this graph answers for a whole clip.

A frame's spectrum is one strided convolution with the windowed cosines and sines. Stored, those
kernels would be larger than the student (0.8 MB for 512 points); so the file holds one period of
the cosine and the graph looks every value up by ``k n mod n_fft``, in exact integers. ONNX Runtime
computes that once, when it loads the file, as it does the sparse filter bank. The STFT operator
is slower, and TensorRT has none.

Shape legend: B batch, N samples, F frequency bins that the filter bank uses, W window, M mel bands,
T mel frames, C channels, T' trunk frames, D = 2C, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import compose

from frami_edge_export.graph import (
    OnnxStudent,
    check_loadable,
    classifier_graph,
    parsed,
    strip,
    with_entries,
)
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import (
    Array,
    Head,
    Parity,
    check_names,
    compare_outputs,
    cpu_session,
    run_trunk,
    with_context,
)
from frami_edge_export.report import Artifact, Draft, Gate
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import (
    HEAD_OUTPUT,
    TRUNK_INPUT,
    WAVEFORM_KEY,
    ModelInfo,
)

WAVEFORM: Final = "waveform"
"""Input: (B, N) float32 samples, full scale 1."""
MEL: Final = "frontend_mel"
"""Output of the front end: (B, 1, M, T) normalised log-mel."""
TOLERANCE: Final = 1e-4
"""Allowed difference of the logits from the runtime's, whose FFT is more exact than float32."""


def frontend_graph(mel: MelSpec) -> onnx.ModelProto:
    """Waveform (B, N) -> normalised log-mel (B, 1, M, T), N >= 1 and B dynamic.

    T is ``mel.frames(max(N, mel.min_samples))``: shorter clips are repeated up to that, as the
    runtime does. Every `MelSpec` is supported. Samples are not checked: non-finite ones give
    non-finite answers.
    """
    # With framing "fft" the window is in the middle of n_fft: what it leaves out at both ends is
    # cut off, or not padded in the first place.
    unused = mel.n_fft - mel.win_length if mel.framing == "fft" else 0
    left = unused // 2
    right = unused - left
    used_F = np.flatnonzero(mel.filterbank.any(axis=1))
    used_F = used_F if len(used_F) else np.array([0])  # no product may be empty
    bank_MF = mel.filterbank[used_F].T
    places = np.flatnonzero(bank_MF)
    angle_N = 2 * np.pi * np.arange(mel.n_fft) / mel.n_fft
    std = np.asarray(mel.std, np.float64)
    source, prepare = "tiled", ""
    if mel.warm_up:
        source = "emphasised"
        prepare = """
            before_last = Sub (needed, one)
            later = Slice (tiled, one, needed, one)
            earlier = Slice (tiled, zero, before_last, one)
            predicted = Mul (earlier, emphasis)
            emphasised = Sub (later, predicted)
        """
    elif mel.center:
        source, prepare = "covered", "covered = Slice (tiled, zero, needed, one)"
    if mel.center:
        cut = f'framed = Pad <mode = "reflect"> ({source}, reflected)'
    else:
        cut = f"""
            last = Sub (needed, after_window)
            framed = Slice ({source}, before_window, last, one)
        """
    # Kaldi's steps inside a frame are linear, so they are part of the kernel.
    correct, kernel = "", "tapered"
    if mel.pre_emphasis and not mel.warm_up:
        correct += """
            ahead = Pad (tapered, by_one)
            echo = Mul (ahead, emphasis)
            sharpened = Sub (tapered, echo)
        """
        kernel = "sharpened"
    if mel.remove_dc:
        correct += f"""
            offset = ReduceMean <keepdims = 1> ({kernel}, one)
            level = Sub ({kernel}, offset)
        """
        kernel = "level"
    body = f"""
        given = Shape <start = 1, end = 2> ({WAVEFORM})
        needed = Max (given, min_samples)
        some = Max (given, one)
        padded_up = Add (needed, some)
        rounded_up = Sub (padded_up, one)
        repeats = Div (rounded_up, some)
        tiling = Concat <axis = 0> (one, repeats)
        tiled = Tile ({WAVEFORM}, tiling)
        {prepare}
        {cut}
        x = Unsqueeze (framed, one)

        turns = Mul (bins, sample_numbers)
        phase = Mod (turns, n_fft)
        cosines = Gather (cosine, phase)
        sines = Gather (sine, phase)
        waves = Concat <axis = 0> (cosines, sines)
        tapered = Mul (waves, window)
        {correct}
        kernel = Unsqueeze ({kernel}, one)
        z = Conv <strides = [{mel.hop_length}]> (x, kernel)
        squares = Mul (z, z)
        re, im = Split <axis = 1, num_outputs = 2> (squares)
        energy = Add (re, im)
        {"" if mel.power == 2 else "magnitude = Sqrt (energy)"}

        zeros = ConstantOfShape (bank_size)
        flat_bank = ScatterElements <axis = 0> (zeros, bank_places, bank_values)
        bank = Reshape (flat_bank, bank_shape)
        bands = MatMul (bank, {"energy" if mel.power == 2 else "magnitude"})
        floored = {"Add" if mel.log_floor == "add" else "Max"} (bands, log_eps)
        logs = Log (floored)
        scaled = Mul (logs, scale)
        shifted = Add (scaled, shift)
        {MEL} = Unsqueeze (shifted, one)
    """
    return parsed(
        "frontend",
        f"(float[batch, samples] {WAVEFORM}) => (float[batch, 1, {mel.n_mels}, time] {MEL})",
        body,
        {
            "zero": np.array([0], np.int64),
            "one": np.array([1], np.int64),
            "min_samples": np.array([mel.min_samples], np.int64),
            "reflected": np.array([0, mel.pad - left, 0, mel.pad - right], np.int64),
            "before_window": np.array([left], np.int64),
            "after_window": np.array([right + mel.warm_up], np.int64),
            "emphasis": np.array(mel.pre_emphasis, np.float32),
            "by_one": np.array([0, -1, 0, 1], np.int64),
            "bins": used_F.astype(np.int64)[:, None],
            "sample_numbers": np.arange(mel.win_length, dtype=np.int64),
            "n_fft": np.array(mel.n_fft, np.int64),
            "cosine": np.cos(angle_N).astype(np.float32),
            "sine": np.sin(angle_N).astype(np.float32),
            "window": mel.taper.astype(np.float32),
            "bank_size": np.array([bank_MF.size], np.int64),
            "bank_places": places.astype(np.int32),
            "bank_values": bank_MF.reshape(-1)[places].astype(np.float32),
            "bank_shape": np.array(bank_MF.shape, np.int64),
            "log_eps": np.array(mel.log_eps, np.float32),
            "scale": np.reshape(mel.log_scale / std, (-1, 1)).astype(np.float32),
            "shift": np.reshape(-np.asarray(mel.mean, np.float64) / std, (-1, 1)).astype(
                np.float32
            ),
        },
    )


def waveform_graph(trunk: onnx.ModelProto, head: Head, info: ModelInfo) -> onnx.ModelProto:
    """Waveform (B, N) -> logits (B, K), N >= 1 and B dynamic; see `classifier_graph`.

    Raises:
        GraphError: The result cannot be loaded by a device.
    """
    classifier = classifier_graph(trunk, head, info)
    model = compose.merge_models(frontend_graph(info.mel), classifier, io_map=[(MEL, TRUNK_INPUT)])
    strip(model)
    model.graph.name = "frami_waveform"
    check_loadable(model)
    return model


def described_waveform(model: onnx.ModelProto, info: ModelInfo) -> bytes:
    """The bytes of ``{name}.wave.onnx``: the graph, how to feed it and the `ModelInfo`, as JSON."""
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
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return with_entries(model, {WAVEFORM_KEY: text})


def check_waveform(
    model: onnx.ModelProto | bytes | str,
    trunk: onnx.ModelProto | bytes | str,
    head: Head,
    info: ModelInfo,
    clips: Sequence[Array],
) -> Parity:
    """Compare the waveform graph with the runtime's log-mel, trunk, float64 pooling and head.

    ``trunk`` is fp32: an int8 one may round the other way where the mel differs in its last bit.
    Clips are (1, N) float32 at the model's rate; `parity_clips` makes some.

    Raises:
        ParityError: Names or shapes differ, or a value is not finite.
    """
    session, inner = cpu_session(model), cpu_session(trunk)
    check_names(session, (WAVEFORM, HEAD_OUTPUT), "waveform graph")
    context = (info.context.left, info.context.right)

    def by_the_runtime(clip_1N: Array) -> npt.NDArray[np.floating]:
        mel_11MT = log_mel(clip_1N[0], info.mel).T[None, None]
        return head(run_trunk(inner, with_context(mel_11MT, context)))

    return compare_outputs(
        by_the_runtime,
        lambda clip_1N: session.run([HEAD_OUTPUT], {WAVEFORM: clip_1N})[0],
        clips,
        TOLERANCE,
        "waveform graph",
    )


def parity_clips(mel: MelSpec, seed: int, longest_s: float = 30.0) -> list[Array]:
    """(1, N) clips of twelve lengths up to ``longest_s``: noise, a gliding tone, clicks."""
    rng = np.random.default_rng(seed)
    rate, least, hop = mel.sample_rate, mel.min_samples, mel.hop_length
    near = [1, 2, hop, least - 1, least, least + 1, least + hop, rate]
    far = np.geomspace(2 * rate, longest_s * rate, 4)
    clips = []
    for i, n in enumerate(sorted({max(1, n) for n in near} | {int(n) for n in far})):
        x = rng.normal(0, 0.05, n)
        if i % 3 == 1:
            time_s = np.arange(n) / rate
            x = 0.2 * x + 0.4 * np.sin(2 * np.pi * (0.05 * rate * time_s + 0.01 * rate * time_s**2))
        elif i % 3 == 2:
            x = 0.1 * x
            x[:: max(1, rate // 7)] += 0.8
        clips.append(np.clip(x, -1, 1).astype(np.float32)[None])
    return clips


def waveform_draft(student: OnnxStudent, options: ExportOptions) -> Draft:
    """``wave``, samples in and logits out, from the fp32 trunk, compared with the runtime.

    Raises:
        GraphError: The graph cannot be loaded by a device.
        ParityError: It gives non-finite values.
    """
    trunk, head, info = student.trunk, student.head, student.info
    graph = waveform_graph(trunk, head, info)
    found = check_waveform(graph, trunk, head, info, parity_clips(info.mel, options.seed))
    artifact = Artifact(
        name="wave",
        path=f"{student.name}.wave.onnx",
        kind="waveform",
        precision="fp32",
        max_abs_difference=found.max_abs_difference,
        agreement=found.agreement,
    )
    gate = Gate.at_most(
        "waveform = runtime, logits", found.scaled_difference, found.tolerance, "wave"
    )
    return Draft(artifact, described_waveform(graph, student.answered(trunk, info)), graph, (gate,))
