"""Engines end to end: built by a fake TensorRT, run on the CPU in place of a GPU.

A fake "engine" holds its ONNX file behind a plan's header; the loader checks header, sidecar and
hash as the real backend does, then runs it in ONNX Runtime: all but NVIDIA's code is real.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_kit import TinyStudent
from fake_tensorrt import HEADER_BYTES, FakeTensorRT

from frami_edge_export import tensorrt as __main__
from frami_edge_export import tensorrt as engines
from frami_edge_export import tensorrt as trials
from frami_edge_export.errors import ExportError
from frami_edge_export.graph import (
    StudentFacts,
    described,
    head_graph,
    model_info,
    serialised,
    sha256,
)
from frami_edge_export.half import half_graph
from frami_edge_export.tensorrt import (
    BuildError,
    EngineOptions,
    EngineSource,
    TensorRTUnavailable,
    build_engines,
    read_bundle,
    read_source,
    rebuild,
)
from frami_edge_runtime.backends import open_backend
from frami_edge_runtime.errors import BackendError, EngineError, ModelFileError
from frami_edge_runtime.tensorrt import (
    check_content,
    check_loadable,
    read_plan_version,
    read_sidecar,
)

OPTIONS = EngineOptions(bench_s=0.02)
SM = "8.7"


class Engine:
    """What a `Backend` is, with the profile's limit enforced."""

    def __init__(self, path: Path, spoil: float) -> None:
        card, plan = read_sidecar(path), path.read_bytes()
        check_content(card, plan)
        check_loadable(card, read_plan_version(path), "10.3.0", SM)
        self._model, self._spoil = open_backend(plan[HEADER_BYTES:], "cpu"), spoil
        self.name, self.info, self.sha256 = path.name, card.info, card.engine_sha256
        self.max_batch, _, _, self.max_mel_frames = card.profile["max"]
        self.closed = False

    def frames(self, mel_BMT: np.ndarray) -> np.ndarray:
        assert mel_BMT.shape[3] <= self.max_mel_frames
        return self._model.frames(mel_BMT) * np.float32(1 + self._spoil)

    def logits(self, pooled_BD: np.ndarray) -> np.ndarray:
        return self._model.logits(pooled_BD)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Engines by file name; ``spoil`` and ``broken`` make one answer wrongly, or not load."""
    seen: dict[str, Any] = {"spoil": {}, "broken": set()}

    def open_any(source: Any, backend: str) -> Any:
        if backend == "cpu":
            return open_backend(source, "cpu")
        if source.name in seen["broken"]:
            raise EngineError(f"{source.name} does not load.")
        seen[source.name] = Engine(source, seen["spoil"].get(source.name, 0.0))
        return seen[source.name]

    monkeypatch.setattr(trials, "open_backend", open_any)
    monkeypatch.setattr(engines.measure, "CLIPS", 24)
    monkeypatch.setattr(engines.Cudart, "__init__", lambda self: None)
    monkeypatch.setattr(engines.Cudart, "sm", lambda self: SM)
    return seen


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, opened: dict[str, Any]) -> FakeTensorRT:
    fake = FakeTensorRT("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture(scope="session")
def blobs(student: TinyStudent, trunk: onnx.ModelProto) -> dict[str, bytes]:
    from export_kit import MEL

    facts = StudentFacts(mel=MEL, labels=tuple(f"class{k}" for k in range(6)))
    info, head = model_info(student, facts), serialised(head_graph(student))
    return {
        "fp32": described(trunk, info, head),
        "fp16": described(half_graph(trunk), info, head),
        "int8.trt": described(trunk, info.replace(precision="int8"), head),
    }


@pytest.fixture
def bundle(tmp_path: Path, blobs: dict[str, bytes]) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    artifacts = []
    for name, data in blobs.items():
        (folder / f"s.{name}.onnx").write_bytes(data)
        artifacts.append({"name": name, "path": f"s.{name}.onnx", "sha256": sha256(data)})
    report = {"schema": 1, "name": "s", "artifacts": artifacts}
    (folder / "export_report.json").write_text(json.dumps(report))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_rebuild_writes_engines_that_the_runtime_would_load(
    bundle: Path, trt: FakeTensorRT, opened: dict[str, Any], blobs: dict[str, bytes]
) -> None:
    before = names(bundle)
    said: list[str] = []
    report = rebuild(bundle, options=OPTIONS, say=said.append)
    assert names(bundle) - before == {
        *(f"s.{p}.engine" for p in ("fp32", "fp16", "int8")),
        *(f"s.{p}.engine.json" for p in ("fp32", "fp16", "int8")),
        "engine_report.json",
        "timing-10.3.0-sm87.cache",
    }
    assert report.ok
    assert [e.precision for e in report.engines] == ["fp32", "fp16", "int8"]
    for engine, source in zip(report.engines, blobs, strict=True):
        card = read_sidecar(bundle / engine.path)
        plan = (bundle / engine.path).read_bytes()
        check_content(card, plan)
        assert card == engine.card
        assert plan[HEADER_BYTES:] == blobs[source]
        assert card.onnx_name == f"s.{source}.onnx"
        assert card.onnx_sha256 == sha256(blobs[source])
        assert (card.sm, card.tensorrt, card.precision) == (SM, "10.3.0.0", engine.precision)
        assert card.layers is not None
        assert card.layers["int8_convolutions"] == card.layers["convolutions"] == 1
        assert engine.agreement == 1.0
        assert engine.p50_ms > 0
        assert engine.p95_ms >= engine.p50_ms
        assert opened[engine.path].closed
    assert report.engines[0].max_abs_difference == 0.0
    assert [e.timing_cache for e in report.engines] == ["new", "reused", "reused"]
    written = json.loads((bundle / "engine_report.json").read_text())
    assert written["recommended"] == report.recommended != ""
    assert written["engines"][2]["layers"]["int8"] == 1
    assert len(said) == 4


def test_fp16_is_compared_with_fp32_too(bundle: Path, trt: FakeTensorRT) -> None:
    half = rebuild(bundle, options=OPTIONS).engines[1]
    assert half.max_abs_difference == 0.0  # against its own ONNX file
    assert half.agreement_fp32 is not None
    assert half.agreement_fp32 >= 0.98
    assert half.speedup is not None


def test_an_engine_that_answers_wrongly_is_never_recommended(
    bundle: Path, trt: FakeTensorRT, opened: dict[str, Any]
) -> None:
    opened["spoil"] = {"s.fp16.engine": 0.5, "s.fp32.engine": 0.01}
    report = rebuild(bundle, options=OPTIONS)
    assert [e.passed for e in report.engines] == [False, False, True]
    opened["spoil"]["s.int8.engine"] = 0.02  # other roundings, the same classes
    assert [e.passed for e in rebuild(bundle, options=OPTIONS).engines] == [False, False, True]
    assert not report.ok
    assert report.recommended == "s.int8.engine"
    assert "does not answer" in report.engines[1].verdict
    opened["spoil"] = dict.fromkeys(("s.fp16.engine", "s.fp32.engine", "s.int8.engine"), np.nan)
    report = rebuild(bundle, options=OPTIONS)
    assert report.recommended == ""
    json.dumps(report.to_dict(), allow_nan=False)


def test_one_failure_does_not_stop_the_others(
    bundle: Path, trt: FakeTensorRT, opened: dict[str, Any]
) -> None:
    opened["broken"] = {"s.int8.engine"}
    report = rebuild(bundle, options=OPTIONS)
    assert [e.precision for e in report.engines] == ["fp32", "fp16"]
    assert report.failures == {"int8": "s.int8.engine does not load."}
    assert not report.ok
    assert not (bundle / "s.int8.engine").exists()


def test_the_next_file_is_tried_where_the_best_cannot_be_built(
    bundle: Path, trt: FakeTensorRT, blobs: dict[str, bytes]
) -> None:
    best = blobs["int8.trt"] + b"\x1a\x00"  # the same graph, other bytes
    (bundle / "s.int8.trt.fp16.onnx").write_bytes(best)
    report = json.loads((bundle / "export_report.json").read_text())
    report["artifacts"].append({"name": "int8.trt.fp16", "path": "s.int8.trt.fp16.onnx"})
    (bundle / "export_report.json").write_text(json.dumps(report))
    assert rebuild(bundle, options=OPTIONS).engines[2].card.onnx_name == "s.int8.trt.fp16.onnx"
    trt.refused = {best}
    found = rebuild(bundle, options=OPTIONS)
    assert found.ok
    assert found.engines[2].card.onnx_name == "s.int8.trt.onnx"
    assert "Built from s.int8.trt.onnx, because" in found.engines[2].notes[0]
    trt.refused = {best, blobs["int8.trt"]}
    found = rebuild(bundle, options=OPTIONS)
    assert not found.ok
    assert "s.int8.trt.onnx" in found.failures["int8"]


def test_nothing_is_half_written(
    bundle: Path, trt: FakeTensorRT, opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(bundle)
    trt.builds = {"strong": False, "weak": False}
    with pytest.raises(BuildError, match="conv_3"):
        rebuild(bundle, options=OPTIONS)
    trt.builds = {"strong": True, "weak": True}
    opened["broken"] = {"s.fp32.engine", "s.fp16.engine", "s.int8.engine"}
    with pytest.raises(BuildError, match="No engine could be loaded"):
        rebuild(bundle, options=OPTIONS)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engines, "write_sidecar", full)
    with pytest.raises(ExportError, match="No space left"):
        rebuild(bundle, options=OPTIONS)
    assert names(bundle) - before == {"timing-10.3.0-sm87.cache"}


def test_out_dir_that_is_a_file(bundle: Path, trt: FakeTensorRT, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="Cannot write the engines"):
        rebuild(bundle, out_dir=tmp_path / "file", options=OPTIONS)


def test_long_mels_are_run_in_calls_that_the_profile_allows(
    blobs: dict[str, bytes], trt: FakeTensorRT, tmp_path: Path
) -> None:
    source = read_source("s.fp32.onnx", blobs["fp32"])
    rng = np.random.default_rng(0)
    mels = rng.standard_normal((3, 1, 32, 400)).astype(np.float32)
    report = build_engines([source], tmp_path, options=OPTIONS, mels=mels)
    assert report.engines[0].card.profile["max"][3] < 400
    assert report.engines[0].max_abs_difference < 1e-5
    assert report.engines[0].passed


def test_without_cuda_the_message_says_what_to_run(
    bundle: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: Any) -> None:
        raise BackendError("No usable CUDA runtime: libcudart.so: not found.", fix="Install CUDA.")

    before = names(bundle)
    monkeypatch.setattr(engines.Cudart, "__init__", none)
    with pytest.raises(TensorRTUnavailable, match="CUDA is not usable") as caught:
        rebuild(bundle, options=OPTIONS)
    assert "python -m frami_edge_export.tensorrt" in caught.value.fix
    assert names(bundle) == before


def test_bundle_prefers_the_tensorrt_graph_and_names_what_is_missing(
    bundle: Path, blobs: dict[str, bytes]
) -> None:
    report = json.loads((bundle / "export_report.json").read_text())
    report["artifacts"] = [a for a in report["artifacts"] if a["name"] != "fp16"]
    report["artifacts"].append({"name": "int8.cpu", "path": "s.int8.cpu.onnx"})
    (bundle / "export_report.json").write_text(json.dumps(report))
    name, sources, missing = read_bundle(bundle)
    assert name == "s"
    assert [(s.precision, s.name) for s in sources] == [
        ("fp32", "s.fp32.onnx"),
        ("int8", "s.int8.trt.onnx"),
    ]
    assert missing == ("The export has no fp16 file, so no fp16 engine is built.",)
    with pytest.raises(ExportError, match="nothing to build from"):
        read_bundle(bundle, ("fp16",))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "s.fp16.onnx").write_bytes(b"other"), "sha256 differs"),
        (lambda f: (f / "s.fp16.onnx").unlink(), "Cannot read"),
        (lambda f: (f / "export_report.json").unlink(), "Cannot read"),
        (lambda f: (f / "export_report.json").write_text("{"), "no report"),
        (
            lambda f: (f / "export_report.json").write_text('{"name": "../x", "artifacts": []}'),
            "no",
        ),
        (lambda f: (f / "export_report.json").write_text('{"name": "s", "artifacts": 3}'), "no"),
    ],
)
def test_a_damaged_bundle_is_a_sentence(bundle: Path, spoil: Any, message: str) -> None:
    spoil(bundle)
    with pytest.raises(ExportError, match=message):
        read_bundle(bundle)


def test_sources_that_are_no_streaming_files(blobs: dict[str, bytes], trunk: Any) -> None:
    with pytest.raises(ExportError, match="no ONNX file"):
        read_source("x.onnx", blobs["fp32"][:100])
    with pytest.raises(ModelFileError):
        read_source("x.onnx", serialised(trunk))
    source = read_source("x.onnx", blobs["int8.trt"])
    assert isinstance(source, EngineSource)
    assert source.precision == "int8"


def test_the_module_runs_as_a_command(
    bundle: Path, trt: FakeTensorRT, opened: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main([str(bundle), "--precision", "fp16", "--seconds", "0:1:4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["engines"][0]["precision"] == "fp16"
    assert "Building fp16" in err
    assert __main__.main([str(bundle), "--precision", "fp16", "--precision", "int8"]) == 0
    assert "1/1" in capsys.readouterr().out
    opened["spoil"] = {"s.fp16.engine": 9.0}
    assert __main__.main([str(bundle), "--precision", "fp16"]) == 3
    assert __main__.main([str(bundle), "--seconds", "1:2"]) == 1
    assert __main__.main([str(bundle), "--batch", "many"]) == 2
    assert __main__.main([str(bundle / "none")]) == 1
