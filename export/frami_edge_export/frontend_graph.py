"""The log-mel front end as an ONNX graph of standard operators: samples in, normalised log-mel out.

A frame's spectrum is one strided convolution with the windowed cosines and sines. Stored, those
kernels would be larger than the student (0.8 MB for 512 points); so the file holds one period of
the cosine and the graph looks every value up by ``k n mod n_fft``, in exact integers. ONNX Runtime
computes that once, when it loads the file, as it does the sparse filter bank.

Source of the definition: `frami_edge_runtime.melspec.MelSpec`; the STFT operator is avoided because
it is slower and TensorRT has none.
Shape legend: B batch, N samples, L samples with padding, F frequency bins that the filter bank
uses, W window, M mel bands, T frames.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from frami_edge_export.node_list import NodeList
from frami_edge_runtime.melspec import MelSpec

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
