"""The opener of model files: every kind gives the same facts and the same answers."""

from pathlib import Path

import onnx
import pytest
import torch

from frami_edge.errors import CheckpointError
from frami_edge.opening import open_model
from frami_edge.sources.procedural import ProceduralAudio
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.logmel import log_mel


@pytest.fixture
def files(exported, student):
    """A student's checkpoint and its export with all three forms of ONNX files."""
    found = {path.name.split(".")[1]: path for path in exported.glob("*.onnx")}
    return found | {"student": Path(student["student"])}


def clips():
    sounds = ProceduralAudio(8000, 1.5).clips(4, seed=1)
    return [(sound[: 2000 + 2500 * i], 8000) for i, sound in enumerate(sounds)]


@pytest.mark.parametrize("name", ["fp32", "model", "wave"])
def test_every_form_answers_like_the_checkpoint(name, files):
    student, other = open_model(files["student"]), open_model(files[name])
    kinds = {"fp32": "streaming", "model": "classifier", "wave": "waveform"}
    assert (student.kind, other.kind) == ("student", kinds[name])
    facts = [(m.labels, m.mel, m.teacher_sha256) for m in (student, other)]
    assert facts[0] == facts[1]
    assert student.labels == ("high", "low")
    expected = student.logits_of_audio(clips())
    assert expected.shape == (4, 2)
    torch.testing.assert_close(other.logits_of_audio(clips()), expected, atol=1e-4, rtol=1e-4)
    mels = [log_mel(x, student.mel).T for x, _ in clips()]
    torch.testing.assert_close(student.logits(mels), expected)
    if name == "wave":
        with pytest.raises(ModelFileError, match="takes audio samples"):
            other.logits(mels)
    else:
        torch.testing.assert_close(other.logits(mels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["model", "wave"])
def test_the_runtime_names_the_files_that_it_can_stream(name, files):
    with pytest.raises(ModelFileError, match="answers for whole clips") as caught:
        Classifier(files[name])
    assert ".fp32.onnx" in caught.value.fix


def test_what_is_not_a_model_is_refused(files, tmp_path):
    plain = onnx.load(files["fp32"])
    plain.ClearField("metadata_props")
    onnx.save(plain, tmp_path / "plain.onnx")
    odd = onnx.load(files["model"])
    odd.graph.node[0].op_type = "Convolution"
    onnx.save(odd, tmp_path / "odd.onnx")
    (tmp_path / "text.safetensors").write_text("not a model")
    for name, error, words in (
        ("absent.onnx", CheckpointError, "There is no model"),
        ("plain.onnx", ModelFileError, "no description of frami-edge"),
        ("odd.onnx", ModelFileError, "cannot load odd.onnx"),
        ("text.safetensors", CheckpointError, "not a whole safetensors file"),
    ):
        with pytest.raises(error, match=words):
            open_model(tmp_path / name)
    with pytest.raises(ModelFileError, match="is a checkpoint, which does not run on a device"):
        Classifier(files["student"])
    folder = files["student"].parent
    with pytest.raises(CheckpointError, match="is a folder") as caught:
        open_model(folder)
    assert str(files["student"]) in caught.value.fix


def test_a_teacher_of_the_package_is_opened_by_its_name():
    """`distill --teacher digits-teacher` prints `evaluate --teacher digits-teacher` as next."""
    assert open_model(Path("digits-teacher")).labels == tuple("0123456789")
