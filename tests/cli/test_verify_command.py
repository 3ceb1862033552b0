"""`frami-edge verify`: facts, answers and streams of any two files of one model."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from frami_edge.comparing import compare_logits, compare_stream, length_clips
from frami_edge.opening import open_model
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError
from frami_edge_runtime.modelfile import METADATA_KEY

FEW = ("--clips", "12")


@pytest.fixture
def checkpoint(student):
    return Path(student["run_dir"]) / "student.safetensors"


@pytest.fixture
def bank(student):
    return Path(student["run_dir"]) / "bank"


def verified(call, *arguments, code=0):
    found = json.loads(call("verify", *arguments, *FEW, "--json", code=code).stdout)
    return found


def changed(source, path, scale=1.0, **info):
    """The same model with scaled weights of its first convolution, or with other facts."""
    model = onnx.load(source)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    for tensor in model.graph.initializer:
        if tensor.name == first.input[1]:
            array = numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = json.dumps(json.loads(entry.value) | info)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", ["fp32", "model"])
def test_an_export_answers_like_its_checkpoint(kind, checkpoint, exported, call):
    other = exported / f"student.{kind}.onnx"
    found = verified(call, checkpoint, other, "--max-difference", "1e-4")
    assert found["passed"]
    assert set(found["answers"]) == {"procedural", "lengths"}
    assert found["answers"]["procedural"]["clips"] == 12
    assert found["answers"]["lengths"]["clips"] > 10
    assert all(fact["same"] is not False for fact in found["facts"])
    streams = found["streams"]
    assert len(streams) == (1 if kind == "fp32" else 0)
    assert all(stream["from_classify"] == 0 for stream in streams)
    assert all(stream["from_one_run"] < 1e-4 for stream in streams)


def test_a_bank_and_real_clips_in_one_run(teacher, checkpoint, exported, bank, sounds, call):
    more = ("--bank", bank, "--data", f"folder:{sounds}", "--min-agreement", "0")
    found = verified(call, teacher, checkpoint, *more)
    assert set(found["answers"]) == {"bank", "real", "lengths"}
    # The fold that the teacher held out has 4 clips of each of 2 classes.
    assert found["answers"]["real"]["clips"] == 8
    assert {fact["fact"]: fact["same"] for fact in found["facts"]}["teacher"] is True
    files = (exported / "student.fp32.onnx", exported / "student.int8.cpu.onnx")
    found = verified(call, *files, "--bank", bank, "--min-agreement", "0")
    assert [stream["from_classify"] for stream in found["streams"]] == [0, 0], "fp32 and int8"
    int8 = found["answers"]["bank"]
    assert 10 < int8["sqnr_db"] < 80
    assert int8["worst_clip"].split()[0] in ("inversion", "procedural", "translator")


def test_other_weights_fail_the_gate(exported, call, tmp_path):
    source = exported / "student.fp32.onnx"
    other = changed(source, tmp_path / "other.onnx", scale=1.5)
    result = call("verify", source, other, *FEW, "--max-difference", "1e-4", code=3)
    assert "difference, procedural" in result.stderr
    found = verified(call, source, other, "--max-difference", "1e-4", code=3)
    assert found["passed"] is False
    assert found["answers"]["procedural"]["max_abs_difference"] > 1e-4


def test_other_facts_are_warned_about(exported, bank, call, tmp_path):
    source = exported / "student.fp32.onnx"
    mel = Classifier(source).info.mel.replace(mean=-5.0).to_dict()
    other = changed(source, tmp_path / "other.onnx", mel=mel, teacher_sha256="f" * 64)
    warned = call("verify", source, other, *FEW, "--min-agreement", "0").stderr
    assert "mel mean differs" in warned
    assert "teacher differs" in warned
    compared = call("verify", source, other, *FEW, "--bank", bank, "--min-agreement", "0")
    assert "log-mels are converted to the front end of other.onnx" in compared.stderr
    mel = Classifier(source).info.mel.replace(hop_length=70).to_dict()
    other = changed(source, tmp_path / "other.onnx", mel=mel)
    refused = call("verify", source, other, *FEW, "--bank", bank, code=1)
    assert "another front end" in refused.stderr


def test_what_cannot_be_compared_is_refused(exported, call, tmp_path):
    source = exported / "student.fp32.onnx"
    other = changed(source, tmp_path / "other.onnx", labels=["low", "high"])
    assert "different classes" in call("verify", source, other, code=1).stderr
    lonely = call("verify", source, source, "--fold", "1", code=1)
    assert "--fold and --data-root need --data" in lonely.stderr
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "1.wav").write_text("no audio")
    damaged = call("verify", source, source, "--data", f"folder:{tmp_path / 'set'}", code=1)
    assert "a/1.wav is left out: not decodable" in damaged.stderr
    assert "None of 2 clips" in damaged.stderr


def test_a_stream_that_loses_samples_is_caught(exported):
    model = open_model(exported / "student.fp32.onnx")
    assert model.classifier is not None
    clips = length_clips(model.mel, 0)
    real = model.classifier.stream

    def lossy(*args, **options):
        stream = real(*args, **options)
        push = stream.push
        stream.push = lambda samples: push(samples[1:] if len(samples) < 100 else samples)
        return stream

    model.classifier.stream = lossy
    assert compare_stream(model, clips, 0).from_classify > 1e-6


def test_figures_of_a_known_pair():
    a = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    b = torch.tensor([[2.0, 0.0], [0.5, 0.0], [1.0, 0.0]])
    found = compare_logits(a, b, ["x", "y", "z"])
    assert found.agreement == pytest.approx(2 / 3)
    assert (found.max_abs_difference, found.worst_clip) == (1.0, "y")
    p = np.exp(1) / (1 + np.exp(1))
    q = 1 / (1 + np.exp(0.5))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert found.kl_nats == pytest.approx(kl / 3)
    assert found.sqnr_db == pytest.approx(10 * np.log10(6 / 1.25))
    assert compare_logits(a, a, ["x", "y", "z"]).sqnr_db is None
    with pytest.raises(ModelFileError, match="not finite on y"):
        compare_logits(a, torch.where(b == 0.5, torch.nan, b), ["x", "y", "z"])
