from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_kit import MEL, TinyStudent

from frami_edge_export import calibration as mels
from frami_edge_export.calibration import classify_mels
from frami_edge_export.errors import ExportError
from frami_edge_export.graph import StudentFacts, described, head_graph, model_info, serialised
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.logmel import log_mel


@pytest.fixture(scope="module")
def model(student: TinyStudent, trunk: onnx.ModelProto) -> bytes:
    info = model_info(student, StudentFacts(MEL, tuple("abcdef")))
    return described(trunk, info, serialised(head_graph(student)))


def test_many_lengths_answer_as_torch_and_in_order(
    student: TinyStudent, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mels, "BATCH_FRAMES", 60)  # several runs of one length
    rng = np.random.default_rng(0)
    lengths = [1, 40, 2, 9, 40, 11, 9, 40, 1, 300, 9, 9, 9, 9]
    clips = [rng.standard_normal((MEL.n_mels, t)) for t in lengths]
    found = classify_mels(model, clips)
    assert found.dtype == np.float32
    for logits, clip in zip(found, clips, strict=True):
        with torch.inference_mode():
            expected = student(torch.from_numpy(clip.astype(np.float32))[None, None])[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_it_is_the_runtimes_answer(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(model)
    samples = 0.1 * np.random.default_rng(1).standard_normal(3000).astype(np.float32)
    expected = Classifier(path).classify(samples).logits
    found = classify_mels(path, [log_mel(samples, MEL).T])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_clips_give_no_logits(model: bytes) -> None:
    assert classify_mels(model, []).shape == (0, 6)


@pytest.mark.parametrize(
    ("mel", "said"),
    [
        (np.zeros((MEL.n_mels, 0)), "T >= 1"),
        (np.zeros((31, 5)), r"shape \(31, 5\)"),
        (np.zeros((1, MEL.n_mels, 5)), "shape"),
        (np.full((MEL.n_mels, 5), np.nan), "Mel 1 holds values that are not finite"),
    ],
)
def test_what_is_no_mel_is_refused(model: bytes, mel: np.ndarray, said: str) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        classify_mels(model, [np.zeros((MEL.n_mels, 5)), mel])
    assert caught.value.fix


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelFileError):
        classify_mels(b"junk", [])
