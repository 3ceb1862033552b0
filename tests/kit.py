"""What several rooms share: a small front end, tones on disk, a settled network, quick exports."""

import copy
import functools

import numpy as np
import soundfile
import torch
from torch import nn

from frami_edge import api, filling, journey, plots, readiness
from frami_edge.io import sha256_tensors
from frami_edge.sources.procedural import procedural_mels
from frami_edge_export import exporter, options
from frami_edge_export.graph import trunk_graph
from frami_edge_export.options import ExportOptions
from frami_edge_runtime.melspec import MelSpec

SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
)
LABELS = ("high", "low")
CPU = ("--device", "cpu", "--precision", "fp32")
QUICK = functools.partial(ExportOptions, bench_budget_s=0.02, bench_rounds=15)
UNGATED = functools.partial(QUICK, min_agreement=0, max_range_ratio=1e9, max_range_shift=1e9)
"""A few steps leave BatchNorm statistics that int8 rightly refuses."""


def no_pictures(setattr=setattr):
    """Drawing takes half of a small run."""
    for name in ("mel_grid", "curves", "diversity", "confusion", "accuracy_bars"):
        setattr(plots, name, lambda path, *_, **__: path.write_bytes(b"\x89PNG"))


def few_clips():
    """Fewer clips for verdicts and thresholds than users get."""
    filling.HELD_OUT = readiness.CLIPS = 80
    journey.BACKGROUND_CLIPS = 40


def quick_exports():
    """Seconds of timing per export are milliseconds."""
    options.ExportOptions = api.ExportOptions = QUICK


def trace_once():
    """torch's exporter takes seconds: the same student is traced once."""
    made = {}

    def once(student, n_mels):
        weights = sha256_tensors(student.trunk.state_dict())
        key = n_mels, weights, repr(student.trunk), student.context, student.stride
        if key not in made:
            made[key] = trunk_graph(student, n_mels)
        return copy.deepcopy(made[key])

    exporter.trunk_graph = once


def tones(root, train=6, test=4, seed=0):
    """A folder of noisy tones of two classes and several lengths, in train and test."""
    rng = np.random.default_rng(seed)
    for side, n in (("train", train), ("test", test)):
        for label, hz in zip(LABELS, (2000, 300), strict=True):
            (root / side / label).mkdir(parents=True)
            for i in range(n):
                t = np.arange(2400 + 400 * i) / 8000
                wave = 0.3 * np.sin(2 * np.pi * hz * t) + 0.02 * rng.standard_normal(len(t))
                soundfile.write(root / side / label / f"{i}.wav", wave, 8000)
    return root


def tone(seconds, rate, hz=440.0, level=0.3):
    times = np.arange(int(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def wav(path, samples, rate=16_000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def settled(model, spec=SPEC):
    """Random weights, BatchNorm statistics of procedural clips, as after a training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        model(procedural_mels(spec, 64, 40, seed=5))
    return model.eval()


def same(a, b):
    """Whether two states are equal, to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)
