"""The trained student, exported and run as on a device: torch, ONNX and stream agree."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from frami_edge.config import StudentArch
from frami_edge.frontend import LogMel, tile_to_window
from frami_edge.models import StudentNet
from frami_edge_export.exporter import export_student
from frami_edge_export.graph import StudentFacts
from frami_edge_export.options import ExportOptions
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import Context

Array = npt.NDArray[np.float32]
SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=40, mean=-6.0, std=3.0
)
FRAMES = (1, 2, 14, 30, 31, 32, 97, 333)


def smooth_mels(count: int, frames: int, seed: int) -> Array:
    """(N, 1, M, T) random log-mels that change slowly over time and frequency."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 1, SPEC.n_mels + 4, frames + 8))
    x = np.lib.stride_tricks.sliding_window_view(x, (5, 9), axis=(2, 3)).mean((-1, -2)) * 5
    floor, ceiling = (v[None, None, :, None] for v in (SPEC.floor, SPEC.ceiling))
    return np.clip(x, floor, ceiling).astype(np.float32)


@pytest.fixture(scope="module")
def student() -> StudentNet:
    """Random weights, BatchNorm statistics of smooth mels, a reused head made one matrix."""
    torch.manual_seed(0)
    student = StudentNet(StudentArch(), SPEC.n_mels, 10, teacher_head=nn.Linear(128, 10))
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        for seed in range(3):
            student(torch.from_numpy(smooth_mels(32, 60, seed)))
    return student.eval().collapse().requires_grad_(False)


@pytest.fixture(scope="module")
def exported(student: StudentNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    report = export_student(
        student, StudentFacts(SPEC, tuple(f"class {k}" for k in range(10))), folder,
        int8=True, calibration=smooth_mels(96, 60, seed=9), source="smooth noise",
        options=ExportOptions(bench_budget_s=0.05, bench_rounds=15, max_holdout=64),
    )  # fmt: skip
    proven = [gate.passed for gate in report.gates if gate.name.startswith("torch = ONNX")]
    assert proven == [True] * 3
    return folder


def clip(frames: int) -> Array:
    """Samples that give so many mel frames, and half a hop more."""
    n = SPEC.n_fft + (frames - 1) * SPEC.hop_length + SPEC.hop_length // 2
    t = np.arange(n) / SPEC.sample_rate
    noise = np.random.default_rng(frames).standard_normal(n)
    return (0.2 * np.sin(2 * np.pi * (400 + 900 * t) * t) + 0.03 * noise).astype(np.float32)


def torch_logits(student: StudentNet, mel_MT: torch.Tensor) -> Array:
    logits_K: Array = student(mel_MT[None, None])[0].numpy()
    return logits_K


def test_the_file_describes_the_student(student: StudentNet, exported: Path) -> None:
    info = Classifier(exported / "student.fp32.onnx").info
    assert (info.receptive_field, info.stride) == (student.receptive_field, student.stride)
    assert info.context == Context(*student.context)
    for frames in FRAMES:
        hidden = student.hidden(torch.zeros(1, 1, SPEC.n_mels, frames))
        assert hidden.frames_BCT.shape[2] == info.trunk_frames(frames)


def test_the_device_predicts_what_torch_predicts(student: StudentNet, exported: Path) -> None:
    classifier = Classifier(exported / "student.fp32.onnx")
    for frames in FRAMES:
        mel_MT = LogMel(SPEC)(torch.from_numpy(clip(frames)))
        assert mel_MT.shape[1] == frames
        result = classifier.classify(clip(frames))
        assert np.abs(result.logits - torch_logits(student, mel_MT)).max() <= 1e-3, frames
    short = clip(1)[:90]
    mel_MT = LogMel(SPEC)(tile_to_window(torch.from_numpy(short), SPEC))
    result = classifier.classify(short)
    assert np.abs(result.logits - torch_logits(student, mel_MT)).max() <= 1e-3


@pytest.mark.parametrize("name", ["student.fp32.onnx", "student.int8.cpu.onnx"])
def test_a_stream_is_the_clip(exported: Path, name: str) -> None:
    classifier, samples = Classifier(exported / name), clip(150)
    expected = classifier.classify(samples)
    for size in (37, 160, 4097):
        stream = classifier.stream()
        for start in range(0, len(samples), size):
            stream.push(samples[start : start + size])
        last = stream.flush()
        assert last is not None
        assert np.array_equal(last.logits, expected.logits)
