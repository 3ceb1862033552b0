"""`frami-edge verify`: names and shapes, then values, of any two files of one model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import Result

from frami_edge.comparing import Batch, check_stream, compare_answers, length_batch, open_side
from frami_edge_runtime.backends import open_backend
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import FramiEdgeError, ModelFileError
from frami_edge_runtime.modelfile import METADATA_KEY

Call = Callable[..., Result]
FEW = ("--clips", "12")


@pytest.fixture
def checkpoint(student: dict[str, Any]) -> Path:
    return Path(student["run_dir"]) / "student.safetensors"


@pytest.fixture
def bank(student: dict[str, Any]) -> Path:
    return Path(student["run_dir"]) / "bank"


@pytest.fixture
def verify(call: Call) -> Callable[..., dict[str, Any]]:
    def run(*arguments: object, code: int = 0) -> dict[str, Any]:
        result = call("verify", *arguments, *FEW, "--json", code=code)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    return run


Verify = Callable[..., dict[str, Any]]


def changed(source: Path, path: Path, scale: float = 1.0, **info: Any) -> Path:
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
def test_a_checkpoint_says_what_its_export_says(
    kind: str, checkpoint: Path, exported: Path, verify: Verify
) -> None:
    found = verify(checkpoint, exported / f"student.{kind}.onnx", "--max-difference", "1e-4")
    assert found["passed"]
    assert set(found["answers"]) == {"procedural", "lengths"}
    assert found["answers"]["procedural"]["clips"] == 12
    assert found["answers"]["lengths"]["clips"] > 10
    assert all(a["max_abs_difference"] < 1e-4 for a in found["answers"].values())
    assert all(fact["same"] is not False for fact in found["facts"])
    assert [c["stream_vs_classify"] <= 1e-6 for c in found["streams"]] == [True] * (kind == "fp32")


def test_int8_is_compared_on_the_bank_and_layer_by_layer(
    exported: Path, bank: Path, verify: Verify
) -> None:
    files = (exported / "student.fp32.onnx", exported / "student.int8.cpu.onnx")
    found = verify(*files, "--bank", bank, "--layers", "--min-agreement", "0")
    assert set(found["answers"]) == {"bank", "lengths"}
    bank_answers = found["answers"]["bank"]
    assert 10 < bank_answers["sqnr_db"] < 80
    assert bank_answers["worst_clip"].split()[0] in ("inversion", "procedural", "translator")
    names = {node.name for node in onnx.load(files[0]).graph.node if node.op_type == "Conv"}
    assert {layer["layer"] for layer in found["layers"]} == names
    noisy = [layer["sqnr_db"] for layer in found["layers"] if layer["sqnr_db"] is not None]
    assert noisy
    assert min(noisy) > 5
    assert len(found["streams"]) == 2


def test_the_whole_classifier_has_the_layers_of_the_streaming_file(
    exported: Path, verify: Verify
) -> None:
    found = verify(exported / "student.fp32.onnx", exported / "student.model.onnx", "--layers")
    assert found["layers"]
    assert all(layer["sqnr_db"] is None or layer["sqnr_db"] > 90 for layer in found["layers"])


def test_real_clips_and_the_bank_in_one_run(
    teacher: Path, checkpoint: Path, bank: Path, sounds: Path, verify: Verify
) -> None:
    more = ("--bank", bank, "--data", f"folder:{sounds}", "--min-agreement", "0")
    found = verify(teacher, checkpoint, *more)
    assert set(found["answers"]) == {"bank", "real", "lengths"}
    # The fold that the teacher held out, by itself: 4 clips of each of 2 classes.
    assert found["answers"]["real"]["clips"] == 8
    assert found["a"]["kind"] == "teacher"
    assert {f["fact"]: f["same"] for f in found["facts"]}["teacher"] is True


def test_other_weights_fail_the_gate_and_the_worst_clip_is_named(
    exported: Path, call: Call, tmp_path: Path
) -> None:
    source = exported / "student.fp32.onnx"
    other = changed(source, tmp_path / "other.onnx", scale=1.5)
    result = call("verify", source, other, *FEW, "--max-difference", "1e-4", code=3)
    assert "other.onnx does not say what student.fp32.onnx says" in result.stderr
    assert "difference, procedural" in result.stderr
    assert "procedural " in result.stdout
    found = json.loads(
        call("verify", source, other, *FEW, "--max-difference", "1e-4", "--json", code=3).stdout
    )
    assert found["passed"] is False
    assert found["answers"]["procedural"]["max_abs_difference"] > 1e-4


def test_other_facts_are_said_before_the_numbers(
    exported: Path, call: Call, tmp_path: Path
) -> None:
    source = exported / "student.fp32.onnx"
    other = changed(source, tmp_path / "other.onnx", teacher_sha256="f" * 64)
    result = call("verify", source, other, *FEW)
    assert "made from different teachers" in result.stderr


def test_another_front_end_is_named_and_a_bank_refused(
    exported: Path, bank: Path, call: Call, tmp_path: Path
) -> None:
    source = exported / "student.fp32.onnx"
    info = Classifier(source).info
    mel = info.mel.replace(mean=-5.0).to_dict()
    other = changed(source, tmp_path / "other.onnx", mel=mel)
    result = call("verify", source, other, *FEW, "--min-agreement", "0")
    assert "front ends differ in mean" in result.stderr
    refused = call("verify", source, other, *FEW, "--bank", bank, code=1)
    assert "another front end" in refused.stderr


def test_other_classes_cannot_be_compared(exported: Path, call: Call, tmp_path: Path) -> None:
    source = exported / "student.fp32.onnx"
    for labels, words in ((["low", "high"], "in another order"), (["a", "high"], "a, low")):
        other = changed(source, tmp_path / "other.onnx", labels=labels)
        assert words in call("verify", source, other, code=1).stderr


def test_what_cannot_be_compared_is_said(
    exported: Path, checkpoint: Path, call: Call, tmp_path: Path
) -> None:
    source = exported / "student.fp32.onnx"
    (tmp_path / "cut.onnx").write_bytes(source.read_bytes()[:3000])
    (tmp_path / "e.engine").write_bytes(b"ftrt" + bytes(60))
    for path, words in (
        (tmp_path / "none.onnx", "There is no model"),
        (tmp_path, "is a folder"),
        (tmp_path / "cut.onnx", "no whole ONNX file"),
        (tmp_path / "e.engine", "e.engine"),
    ):
        assert words in call("verify", source, path, code=1).stderr
    assert (
        "--fold and --data-root need --data"
        in call("verify", source, source, "--fold", "1", code=1).stderr
    )
    layers = call("verify", checkpoint, source, *FEW, "--layers", code=1).stderr
    assert "--layers looks into two ONNX files" in layers
    plain = onnx.load(source)
    plain.ClearField("metadata_props")
    onnx.save(plain, tmp_path / "plain.onnx")
    assert "no description" in call("verify", source, tmp_path / "plain.onnx", code=1).stderr


def test_files_of_one_name_are_told_apart(exported: Path, call: Call, tmp_path: Path) -> None:
    source = exported / "student.fp32.onnx"
    (tmp_path / "mine").mkdir()
    other = changed(source, tmp_path / "mine" / source.name)
    result = call("verify", source, other, *FEW)
    assert f"mine/{source.name} says what" in result.stderr


def test_a_backend_without_a_limit_and_one_with_give_the_same(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frami_edge import comparing as sides

    path = exported / "student.fp32.onnx"
    side = open_side(path)
    batch = length_batch(side.spec, side.receptive_field or 1, side.stride or 1, 0)
    whole = side.answer(batch)
    monkeypatch.setattr(sides, "_RUN_FRAMES", 3)
    runs = sides._through(path, "cpu")(batch)
    assert np.abs(whole - runs).max() < 1e-5


def test_a_stream_that_differs_from_the_whole_clip_is_caught(exported: Path) -> None:
    side = open_side(exported / "student.fp32.onnx")
    batch = length_batch(side.spec, side.receptive_field or 1, side.stride or 1, 0)
    good = check_stream(side, batch, 0)
    assert good is not None
    assert good.stream_vs_classify == 0
    assert good.stream_vs_whole_run < 1e-4
    assert side.classifier is not None
    real: Any = side.classifier.stream

    def lossy(*args: Any, **options: Any) -> Any:
        stream = real(*args, **options)
        push = stream.push

        def drop(samples: Any) -> Any:
            return push(samples[1:] if len(samples) < 100 else samples)

        stream.push = drop
        return stream

    side.classifier.stream = lossy  # type: ignore[method-assign]
    bad = check_stream(side, batch, 0)
    assert bad is not None
    assert bad.stream_vs_classify > 1e-6


def test_figures_of_a_known_pair() -> None:
    a = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    b = np.array([[2.0, 0.0], [0.5, 0.0], [1.0, 0.0]])
    found = compare_answers(a, b, ["x", "y", "z"])
    assert found.agreement == pytest.approx(2 / 3)
    assert found.max_abs_difference == 1.0
    assert found.worst_clip == "y"
    assert found.disagreeing == ("y",)
    p = np.exp(1) / (1 + np.exp(1))
    q = 1 / (1 + np.exp(0.5))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert found.kl_nats == pytest.approx(kl / 3)
    assert found.sqnr_db == pytest.approx(10 * np.log10(6 / 1.25))
    assert compare_answers(a, a, ["x", "y", "z"]).sqnr_db is None


def test_answers_that_are_not_finite_or_of_another_size_are_refused() -> None:
    a = np.zeros((2, 3))
    b = a.copy()
    b[1, 2] = np.nan
    with pytest.raises(ModelFileError, match=r"second model .* on y"):
        compare_answers(a, b, ["x", "y"])
    with pytest.raises(ModelFileError, match="answers"):
        compare_answers(a, a[:, :2], ["x", "y"])


def test_log_mels_have_no_audio_behind_them(exported: Path) -> None:
    spec = open_side(exported / "student.fp32.onnx").spec
    batch = Batch("bank", ["x"], mels=[np.zeros((spec.n_mels, 9), np.float32)], spec=spec)
    with pytest.raises(FramiEdgeError, match="takes samples"):
        batch.audio_for(spec.sample_rate)


def test_an_engine_answers_through_the_runtime(
    exported: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frami_edge import comparing as sides

    source = exported / "student.fp32.onnx"
    asked: list[tuple[str, str]] = []

    def stand_in(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(path: Path, backend: str) -> Any:
            asked.append((Path(path).name, backend))
            return real(source)

        return run

    engine = tmp_path / "student.engine"
    engine.write_bytes(b"ftrt")
    reference = open_side(source)
    monkeypatch.setattr(sides, "Classifier", stand_in(Classifier))
    monkeypatch.setattr(sides, "open_backend", stand_in(open_backend))
    side = open_side(engine)
    assert side.kind == "engine"
    assert asked == [("student.engine", "auto")] * 2
    batch = length_batch(side.spec, side.receptive_field or 1, side.stride or 1, 0)
    assert np.abs(side.answer(batch) - reference.answer(batch)).max() < 1e-5
    assert check_stream(side, batch, 0) is not None


def test_a_graph_that_onnx_runtime_refuses_is_a_sentence(
    exported: Path, call: Call, tmp_path: Path
) -> None:
    model = onnx.load(exported / "student.model.onnx")
    model.graph.node[0].op_type = "Convolution"
    onnx.save(model, tmp_path / "odd.onnx")
    result = call("verify", exported / "student.fp32.onnx", tmp_path / "odd.onnx", code=1)
    assert "cannot load odd.onnx" in result.stderr
    assert "cannot load odd.onnx" in call("bench", tmp_path / "odd.onnx", code=1).stderr
