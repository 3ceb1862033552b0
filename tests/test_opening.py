"""The opener of model files: every kind gives the same facts and the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from frami_edge.checkpoint import Card, save_checkpoint
from frami_edge.config import StudentArch
from frami_edge.errors import CheckpointError
from frami_edge.models import StudentNet
from frami_edge.opening import OpenedModel, open_model
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_export.exporter import export_student
from frami_edge_export.graph import StudentFacts
from frami_edge_export.options import ExportOptions
from frami_edge_runtime import backends
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import METADATA_KEY

MEL = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
)
LABELS = ("high", "low", "other")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student's checkpoint and its export with all three forms of ONNX files."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    arch = StudentArch(channels=(8, 8), time_kernels=(3, 3), out_channels=12)
    student = StudentNet(arch, MEL.n_mels, len(LABELS)).eval()
    card = Card(
        kind="student",
        arch=arch.model_dump(),
        mel=MEL.to_dict(),
        labels=LABELS,
        teacher_sha256="a" * 64,
    )
    checkpoint = folder / "student.safetensors"
    save_checkpoint(checkpoint, student, card)
    export_student(
        student,
        StudentFacts(mel=MEL, labels=LABELS, teacher_sha256="a" * 64),
        folder,
        int8=False,
        calibration=None,
        source="none",
        options=ExportOptions(bench_budget_s=0.01, bench_rounds=15),
        waveform=True,
    )
    found = {"student": checkpoint}
    found |= {path.name.split(".")[1]: path for path in folder.glob("*.onnx")}
    return found


def clips() -> list[tuple[np.ndarray, int]]:
    sounds = ProceduralAudio(8000, 1.5).clips(4, seed=1)
    return [(sound[: 2000 + 2500 * i], 8000) for i, sound in enumerate(sounds)]


@pytest.mark.parametrize("name", ["fp32", "model", "wave"])
def test_every_form_answers_like_the_checkpoint(name: str, files: dict[str, Path]) -> None:
    student, other = open_model(files["student"]), open_model(files[name])
    kinds = {"fp32": "streaming", "model": "classifier", "wave": "waveform"}
    assert (student.kind, other.kind) == ("student", kinds[name])
    for model in (student, other):
        assert (model.labels, model.mel, model.teacher_sha256) == (LABELS, MEL, "a" * 64)
    expected = student.logits_of_audio(clips())
    assert expected.shape == (4, 3)
    torch.testing.assert_close(other.logits_of_audio(clips()), expected, atol=1e-4, rtol=1e-4)
    mels = [log_mel(x, MEL).T for x, _ in clips()]
    torch.testing.assert_close(student.logits(mels), expected)
    if name == "wave":
        with pytest.raises(ModelFileError, match="takes audio samples"):
            other.logits(mels)
    else:
        torch.testing.assert_close(other.logits(mels), expected, atol=1e-4, rtol=1e-4)


def test_runs_of_limited_length_give_the_same_answer(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mels = [log_mel(x, MEL).T for x, _ in clips()]
    whole = open_model(files["fp32"]).logits(mels)
    # As an engine's profile limits them.
    monkeypatch.setattr(backends, "UNBOUNDED", 20)
    limited = open_model(files["fp32"]).logits(mels)
    torch.testing.assert_close(limited, whole, atol=1e-5, rtol=1e-5)


def test_other_sample_rates_are_resampled(files: dict[str, Path]) -> None:
    model: OpenedModel = open_model(files["fp32"])
    tone = np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000).astype(np.float32)
    twice = model.logits_of_audio([(tone, 16_000), (tone[::2].copy(), 8000)])
    torch.testing.assert_close(twice[0], twice[1], atol=0.05, rtol=0.05)


def test_what_is_not_a_model_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    whole = files["fp32"].read_bytes()
    plain = onnx.load(files["fp32"])
    plain.ClearField("metadata_props")
    onnx.save(plain, tmp_path / "plain.onnx")
    odd = onnx.load(files["model"])
    odd.graph.node[0].op_type = "Convolution"
    onnx.save(odd, tmp_path / "odd.onnx")
    damaged = onnx.load(files["fp32"])
    next(e for e in damaged.metadata_props if e.key == METADATA_KEY).value = "{}"
    onnx.save(damaged, tmp_path / "damaged.onnx")
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("not a model")
    for name, error, words in (
        ("absent.onnx", CheckpointError, "There is no model"),
        ("cut.onnx", ModelFileError, "not a whole ONNX file"),
        ("plain.onnx", ModelFileError, "no description of frami-edge"),
        ("odd.onnx", ModelFileError, "cannot load odd.onnx"),
        ("damaged.onnx", ModelFileError, "schema"),
        ("text.safetensors", CheckpointError, "not a whole safetensors file"),
    ):
        with pytest.raises(error, match=words):
            open_model(tmp_path / name)
