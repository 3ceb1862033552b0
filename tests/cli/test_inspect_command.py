"""`frami-edge inspect` of everything that the commands write, whole and damaged."""

import base64
import hashlib
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import save_file

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.modelfile import HEAD_KEY, METADATA_KEY
from frami_edge_runtime.tensorrt import EngineCard, write_sidecar


@pytest.fixture
def look(call):
    """What `inspect --json` prints; the tables are drawn too."""

    def run(path):
        shown = call("inspect", path)
        found = json.loads(call("inspect", path, "--json").stdout)
        assert found["title"].split()[0] in shown.stdout
        return found

    return run


def sidecar(engine, model):
    entries = {p.key: p.value for p in onnx.load(model).metadata_props}
    info = json.loads(entries[METADATA_KEY])
    shape = (1, 1, info["mel"]["n_mels"], info["receptive_field"])
    card = EngineCard(
        engine_sha256=hashlib.sha256(engine.read_bytes()).hexdigest(),
        engine_bytes=engine.stat().st_size, onnx_name=model.name, onnx_sha256="0" * 64,
        tensorrt="10.3.0.30", precision="int8", sm="8.7", gpu="Orin", driver="540.4",
        profile=dict.fromkeys(("min", "opt", "max"), shape), model=entries[METADATA_KEY],
        head_onnx=entries[HEAD_KEY],
    )  # fmt: skip
    write_sidecar(engine, card)


def test_exported_files(exported, look):
    found = look(exported / "student.fp32.onnx")
    assert found["kind"] == "streaming"
    assert found["findings"] == []
    model, graph = found["model"], found["graph"]
    assert model["labels"] == ["high", "low"]
    mel = model["mel"]
    hop_ms = 1000 * mel["hop_length"] / mel["sample_rate"]
    half_fft_ms = 500 * mel["n_fft"] / mel["sample_rate"]
    assert model["delay_ms"] == pytest.approx(model["context"]["right"] * hop_ms + half_fft_ms)
    assert graph["inputs"] == ["mel float (batch, 1, 16, time)"]
    assert graph["tensorrt_lint"] == {}
    whole = look(exported / "student.model.onnx")
    assert whole["kind"] == "classifier"
    head = whole["graph"]["parameters"] - graph["parameters"]
    assert model["head_parameters"] == head == (2 * 12 + 1) * 2
    int8 = look(exported / "student.int8.cpu.onnx")
    report = json.loads((exported / "export_report.json").read_text())
    assert int8["model"]["quantisation"]["float_layers"] == report["quantisation"]["float_layers"]
    assert int8["graph"]["parameters_by_type"]["int8"] > 0
    assert int8["model"]["calibration"]["source"] == "bank"


def test_a_teacher_comes_with_the_command_that_distils_it(call, teacher, tagger):
    shown = call("inspect", teacher).stderr
    assert f"next: frami-edge distill --teacher {teacher} --out runs/student" in shown
    words = [str(word) for word in tagger]
    shown = call("inspect", *words).stderr
    assert f"next: {shlex.join(['frami-edge', 'distill', '--teacher', *words])} --out" in shown
    assert "as other people's networks do" in shown
    assert json.loads(call("inspect", *words, "--json").stdout)["kind"] == "foreign-teacher"


def test_a_file_in_the_format_of_onnx_runtime(exported, look, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "student.ort")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    model = exported / "student.int8.cpu.onnx"
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert Classifier(tmp_path / "student.ort").selftest()
    found, whole = look(tmp_path / "student.ort"), look(model)
    assert (found["kind"], found["model"]) == ("streaming", whole["model"])
    assert found["graph"]["inputs"] == ["mel tensor(float) (batch, 1, 16, time)"]


def test_foreign_files_are_described_as_far_as_possible(look, tmp_path):
    head = '<ir_version: 10, opset_import: ["": 20]> g (float[N,3] x) => (float[N,4] y)'
    theirs = onnx.parser.parse_model(f"{head} {{ y = MatMul (x, w) }}")
    theirs.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 4), np.float32), "w"))
    onnx.save(theirs, tmp_path / "theirs.onnx")
    found = look(tmp_path / "theirs.onnx")
    assert (found["kind"], found["graph"]["parameters"]) == ("onnx", 12)
    assert "no description of frami-edge" in found["findings"][0]
    save_file({"a.weight": np.zeros((2, 3), np.float32)}, tmp_path / "w.safetensors")
    found = look(tmp_path / "w.safetensors")
    assert (found["kind"], found["weights"]["shapes"]) == ("safetensors", {"a.weight": [2, 3]})
    assert found["findings"]


def test_checkpoints_and_their_run(student, teacher, look):
    run = Path(student["run_dir"])
    found, theirs = look(run / "student.safetensors"), look(teacher)
    assert (found["kind"], theirs["kind"]) == ("student", "teacher")
    assert found["card"]["trained_on"] is None
    assert found["card"]["teacher_trained_on"]["data"] == "folder:tones"
    assert found["card"]["teacher_sha256"] == theirs["file"]["sha256"]
    assert found["network"]["macs_per_second"] > 0
    described = look(run)
    assert described["kind"] == "run"
    assert described["run"]["contains"] == ["bank", "student.safetensors"]


def test_a_bank(student, look):
    bank = Path(student["run_dir"]) / "bank"
    found = look(bank)
    assert found["kind"] == "bank"
    assert found["clips"]["clips_by_source"] == {
        "inversion": 32,
        "procedural": 40,
        "translator": 32,
    }
    assert found["clips"]["bytes"] == sum(p.stat().st_size for p in bank.glob("shard-*"))
    assert set(found["health"]) == set(found["clips"]["clips_by_source"])
    assert look(bank / "bank.json")["clips"] == found["clips"]


def test_an_export_is_compared_with_its_files(exported, look, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    before = look(folder)
    report = json.loads((folder / "export_report.json").read_text())
    assert set(before["files"]) == {a["name"] for a in report["artifacts"]}
    assert not any("hash" in line or "missing" in line for line in before["findings"])
    (folder / "student.fp32.onnx").unlink()
    with (folder / "student.model.onnx").open("ab") as file:
        file.write(b"x")
    after = "\n".join(look(folder)["findings"])
    assert "student.fp32.onnx is missing" in after
    assert "student.model.onnx is not the file" in after


def test_an_engine_is_read_without_tensorrt(exported, look, tmp_path):
    engine = tmp_path / "student.int8.engine"
    engine.write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 30)) + bytes(36))
    bare = look(engine)
    assert bare["file"]["tensorrt"] == "10.3.0.30"
    assert "student.int8.engine.json" in bare["this_machine"]["reason"]
    sidecar(engine, exported / "student.int8.cpu.onnx")
    full = look(engine)
    assert (full["built"]["gpu"], full["model"]["labels"]) == ("Orin", ["high", "low"])
    assert full["findings"] == []
    assert full["this_machine"]["loads"] is False
    with engine.open("ab") as file:
        file.write(b"more")
    damaged = look(engine)["this_machine"]["reason"]
    assert damaged != full["this_machine"]["reason"]
    assert engine.name in damaged


def test_damaged_and_unknown_files_are_refused(exported, call, look, tmp_path):
    whole = (exported / "student.fp32.onnx").read_bytes()
    for name, data, words in (
        ("cut.onnx", whole[: len(whole) // 2], "not a whole ONNX file"),
        ("cut.safetensors", b"\xff" * 40, "not a whole safetensors file"),
        ("cut.ort", b"\x1c\0\0\0ORTM", "cannot load cut.ort"),
        ("short.engine", b"ftrt", "no TensorRT engine"),
        ("other.engine", b"something else altogether....", "no TensorRT engine"),
        ("weights.pt", b"PK", "weights and not their network"),
        ("net.tflite", b"TFL3", "a network of TensorFlow"),
        ("notes.txt", b"hello", "no known kind"),
        ("absent.onnx", None, "There is no file"),
        ("export_report.json", b'{"schema": 1}', "damaged or of another version"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        result = call("inspect", tmp_path / name, code=1)
        assert words in result.stderr
        assert "fix: " in result.stderr
    # A graph with a damaged description is still shown.
    model = onnx.load(exported / "student.fp32.onnx")
    for entry in model.metadata_props:
        entry.value = "{}" if entry.key == METADATA_KEY else base64.b64encode(b"x").decode()
    onnx.save(model, tmp_path / "odd.onnx")
    found = look(tmp_path / "odd.onnx")
    assert found["graph"]["operators"]
    assert "cannot run it" in found["findings"][0]
