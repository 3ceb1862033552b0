"""`frami-edge inspect` of everything that the tools write, whole and damaged."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from typer.testing import Result

from frami_edge.inspecting import Fact, describe, listed, size_text, thousands
from frami_edge.io import json_text
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.modelfile import HEAD_KEY, METADATA_KEY
from frami_edge_runtime.tensorrt import EngineCard, write_sidecar

Call = Callable[..., Result]


@pytest.fixture
def look(call: Call) -> Callable[[Path], dict[str, Any]]:
    """What `inspect --json` says; the tables are drawn too, and must name the file."""

    def run(path: Path) -> dict[str, Any]:
        shown = call("inspect", path)
        found: dict[str, Any] = json.loads(call("inspect", path, "--json").stdout)
        assert found["title"] in shown.stdout
        return found

    return run


Look = Callable[[Path], dict[str, Any]]


def plan(path: Path, size: int = 64) -> Path:
    """The header of a TensorRT 10.3.0.30 plan, and zeros."""
    path.write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 30)) + bytes(size - 28))
    return path


def sidecar(engine: Path, model: Path, **changes: Any) -> None:
    metadata = {p.key: p.value for p in onnx.load(model).metadata_props}
    info = json.loads(metadata[METADATA_KEY])
    shape = (1, 1, info["mel"]["n_mels"], info["receptive_field"] + 64)
    values: dict[str, Any] = {
        "engine_sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
        "engine_bytes": engine.stat().st_size,
        "onnx_name": model.name,
        "onnx_sha256": "0" * 64,
        "tensorrt": "10.3.0.30",
        "precision": "int8",
        "sm": "8.7",
        "gpu": "Orin",
        "driver": "540.4",
        "profile": dict.fromkeys(("min", "opt", "max"), shape),
        "model": metadata[METADATA_KEY],
        "head_onnx": metadata[HEAD_KEY],
        "jetpack": "6.2",
        "layers": {"int8": 9, "fp32": 2},
    }
    values["profile"]["min"] = (*shape[:3], info["receptive_field"])
    write_sidecar(engine, EngineCard(**(values | changes)))


def plain_onnx(path: Path, doc: str = "") -> Path:
    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product", doc_string=doc)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 3), ("y", 4))
    ]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


def test_a_streaming_file_shows_what_it_hears_and_how_late(exported: Path, look: Look) -> None:
    found = look(exported / "student.fp32.onnx")
    assert found["kind"] == "onnx-streaming"
    assert found["findings"] == []
    assert found["hears"]["classes"] == ["high", "low"]
    mel = found["hears"]["mel"]
    hop_ms = 1000 * mel["hop_length"] / mel["sample_rate"]
    right = found["hears"]["context"][1]
    half_fft_ms = 500 * mel["n_fft"] / mel["sample_rate"]
    assert found["hears"]["delay_ms"] == pytest.approx(right * hop_ms + half_fft_ms)
    assert found["graph"]["inputs"] == ["mel float (batch, 1, 16, time)"]
    assert found["graph"]["layers"]["int8"] == []
    parts = found["file"]["bytes_by_part"]
    assert sum(parts.values()) == found["file"]["bytes"]
    assert min(parts.values()) > 0


def test_parameters_are_those_of_the_student(exported: Path, student: Any, look: Look) -> None:
    graph = look(exported / "student.fp32.onnx")["graph"]
    # Folding BatchNorm turns (weight, bias, mean, variance) of a channel into one bias.
    head = look(exported / "student.model.onnx")["graph"]["parameters"] - graph["parameters"]
    assert graph["head_parameters"] == head == (2 * 12 + 1) * 2
    checkpoint = look(Path(student["run_dir"]) / "student.safetensors")
    assert graph["parameters"] < checkpoint["network"]["parameters"]


def test_int8_layers_and_their_flavour_are_found(exported: Path, look: Look) -> None:
    found = look(exported / "student.int8.cpu.onnx")
    layers = found["graph"]["layers"]
    assert layers["int8"]
    assert set(layers["flavours"]) <= {"U8S8", "S8S8"}
    assert found["graph"]["parameters_by_type"]["int8"] > 0
    report = json.loads((exported / "export_report.json").read_text())
    assert set(layers["float"]) == set(report["quantisation"]["float_layers"])
    assert found["origin"]["calibration"]["source"] == "bank"
    assert look(exported / "student.fp32.onnx")["graph"]["tensorrt_lint"] == []


def test_the_whole_classifier_is_told_from_the_streaming_file(exported: Path, look: Look) -> None:
    assert look(exported / "student.model.onnx")["kind"] == "onnx-classifier"


def test_foreign_onnx_is_described_as_far_as_possible(look: Look, tmp_path: Path) -> None:
    found = look(plain_onnx(tmp_path / "theirs.onnx"))
    assert found["kind"] == "onnx"
    assert found["graph"]["parameters"] == 12
    assert found["graph"]["operators"] == {"MatMul": 1}
    assert "hears" not in found
    assert any("no description of frami-edge" in line for line in found["findings"])


@pytest.mark.parametrize(
    "doc",
    [
        'File "/home/someone/train.py", line 3, in forward',
        "made from /tmp/run/student.safetensors",
        r"C:\Users\me\model.pt",
    ],
)
def test_paths_and_stack_traces_left_inside_are_reported(
    doc: str, look: Look, tmp_path: Path
) -> None:
    found = look(plain_onnx(tmp_path / "leaky.onnx", doc))
    assert any("node product" in line for line in found["findings"])


def test_operator_names_with_slashes_are_no_paths(look: Look, tmp_path: Path) -> None:
    found = look(plain_onnx(tmp_path / "clean.onnx", "trunk/0/conv and https://example.org/tmp"))
    assert not any("path" in line for line in found["findings"])


def test_checkpoints_name_what_stands_behind_them(
    student: dict[str, Any], teacher: Path, look: Look
) -> None:
    found = look(Path(student["run_dir"]) / "student.safetensors")
    assert found["kind"] == "student"
    assert found["hears"]["heard"] is None
    assert found["hears"]["the_teacher_heard"]["data"] == "folder:tones"
    assert found["network"]["macs_per_s"] > 0
    theirs = look(teacher)
    assert theirs["kind"] == "teacher"
    assert theirs["hears"]["heard"]["test_fold"] == "test"
    assert found["origin"]["teacher_sha256"] == theirs["file"]["sha256"]


def test_foreign_weights_are_described(look: Look, tmp_path: Path) -> None:
    save_file({"a.weight": np.zeros((2, 3), np.float32)}, tmp_path / "w.safetensors")
    found = look(tmp_path / "w.safetensors")
    assert found["kind"] == "safetensors"
    assert found["weights"]["names"] == {"a.weight": [2, 3]}
    assert found["findings"]


def test_a_bank_shows_sources_and_health(student: dict[str, Any], look: Look) -> None:
    bank = Path(student["run_dir"]) / "bank"
    found = look(bank)
    assert found["kind"] == "bank"
    assert found["clips"]["sources"] == {"inversion": 32, "procedural": 40, "translator": 32}
    assert found["clips"]["clips"] == 104
    assert found["clips"]["bytes"] == sum(p.stat().st_size for p in bank.glob("*.safetensors"))
    assert set(found["health"]) == set(found["clips"]["sources"])
    assert look(bank / "bank.json")["clips"] == found["clips"]


def test_an_export_is_held_against_its_files(exported: Path, look: Look, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    report = json.loads((folder / "export_report.json").read_text())
    before = look(folder)
    assert before["export"]["recommended"] == (report["recommended"] or None)
    assert set(before["files"]) == {a["name"] for a in report["artifacts"]}
    assert not any("hash" in line or "missing" in line for line in before["findings"])
    (folder / "student.fp32.onnx").unlink()
    with (folder / "student.model.onnx").open("ab") as file:
        file.write(b"x")
    after = "\n".join(look(folder)["findings"])
    assert "student.fp32.onnx is missing" in after
    assert "student.model.onnx is not the file" in after


def test_an_engine_is_read_without_tensorrt(
    exported: Path, look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frami_edge.inspecting.find_spec", lambda name: None)
    engine = plan(tmp_path / "student.int8.engine")
    bare = look(engine)
    assert bare["file"]["tensorrt"] == "10.3.0.30"
    assert bare["here"]["loads"] is False
    assert "student.int8.engine.json" in bare["here"]["reason"]
    sidecar(engine, exported / "student.int8.cpu.onnx")
    full = look(engine)
    assert full["built"]["gpu"] == "Orin"
    assert full["hears"]["classes"] == ["high", "low"]
    assert full["findings"] == []
    assert "not installed" in full["here"]["reason"]
    with engine.open("ab") as file:
        file.write(b"more")
    assert "another engine" in look(engine)["here"]["reason"]
    sidecar(engine, exported / "student.int8.cpu.onnx", tensorrt="10.3.0.26")
    assert "10.3.0.26" in look(engine)["here"]["reason"]


def test_what_the_engine_says_when_it_cannot_be_loaded_is_the_reason(
    exported: Path, look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frami_edge_runtime.errors import ModelFileError

    def refuse(*_: object, **__: object) -> None:
        raise ModelFileError("Built for SM 8.7.", fix="Rebuild it here.")

    monkeypatch.setattr("frami_edge.inspecting.find_spec", lambda name: object())
    monkeypatch.setattr("frami_edge_runtime.Classifier", refuse)
    engine = plan(tmp_path / "student.int8.engine")
    sidecar(engine, exported / "student.int8.cpu.onnx")
    assert look(engine)["here"] == {
        "loads": False,
        "reason": "Built for SM 8.7. Rebuild it here.",
    }


def refused(call: Call, path: Path) -> str:
    result = call("inspect", path, "--json", code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "fix: " in result.stderr
    return str(result.stderr)


def test_damaged_and_foreign_files_get_a_sentence(
    exported: Path, student: dict[str, Any], call: Call, tmp_path: Path
) -> None:
    whole = (exported / "student.fp32.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "short.engine").write_bytes(b"ftrt")
    (tmp_path / "other.engine").write_bytes(b"something else altogether....")
    (tmp_path / "weights.pt").write_bytes(b"PK")
    (tmp_path / "notes.txt").write_text("hello")
    for name in ("cut.onnx", "empty.onnx", "text.onnx"):
        assert "no whole ONNX file" in refused(call, tmp_path / name)
    assert "not a whole safetensors file" in refused(call, tmp_path / "cut.safetensors")
    assert "cut off after 4 bytes" in refused(call, tmp_path / "short.engine")
    assert "no TensorRT engine" in refused(call, tmp_path / "other.engine")
    assert "pickle" in refused(call, tmp_path / "weights.pt")
    assert "no known kind" in refused(call, tmp_path / "notes.txt")
    assert "There is no file" in refused(call, tmp_path / "absent.onnx")
    assert "neither a bank nor an export" in refused(call, tmp_path)
    assert "student.safetensors" in refused(call, Path(student["run_dir"]))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "export_report.json").write_text('{"schema": 1}')
    assert "damaged or of another version" in refused(call, tmp_path / "broken")


def test_a_damaged_description_is_a_finding_and_the_graph_is_still_shown(
    exported: Path, look: Look, tmp_path: Path
) -> None:
    model = onnx.load(exported / "student.fp32.onnx")
    for entry in model.metadata_props:
        entry.value = "{}" if entry.key == METADATA_KEY else base64.b64encode(b"x").decode()
    onnx.save(model, tmp_path / "odd.onnx")
    found = look(tmp_path / "odd.onnx")
    assert found["graph"]["operators"]
    assert any("description cannot be read" in line for line in found["findings"])


def test_values_are_shown_for_people() -> None:
    assert thousands(1234567) == "1 234 567"
    assert [size_text(n) for n in (999, 51_430, 2_500_000)] == ["999 bytes", "51.4 kB", "2.5 MB"]
    assert listed(["a", "b", "c"], most=2) == "a, b and 1 more"
    assert Fact("x", "f" * 64).shown() == "f" * 16 + "..."
    assert Fact("delay_ms", 3.14159).label == "delay"
    assert [Fact("x", v).shown() for v in (None, True, 3.14159, [1, 2])] == [
        "-", "yes", "3.142", "1, 2",
    ]  # fmt: skip


def test_no_mutation_gets_past_the_known_errors(exported: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    (tmp_path / "x").mkdir()
    names = ("student.fp32.onnx", "student.int8.cpu.onnx", "export_report.json")
    whole = {name: (exported / name).read_bytes() for name in names}
    read, refused = 0, []
    for _ in range(300):
        name = rng.choice(names)
        data = bytearray(whole[name])
        for _ in range(rng.choice((1, 1, 4))):
            data[rng.randrange(min(len(data), 8000))] = rng.randrange(256)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        path = tmp_path / "x" / name
        path.write_bytes(data)
        try:
            json_text(describe(path).to_dict())
            read += 1
        except FramiEdgeError as error:
            refused.append(error.fix)
    assert read > 20
    assert len(refused) > 20
    assert all(refused)
