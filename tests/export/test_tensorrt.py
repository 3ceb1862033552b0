"""What the engine builder decides without a GPU: profiles, sources, verdicts, refusals."""

import base64
import json
import subprocess
import sys
from types import ModuleType

import pytest
from export_kit import MEL

from frami_edge_export.engine import (
    EngineOptions,
    Seconds,
    TensorRTUnavailable,
    load_tensorrt,
    profile_for,
    read_bundle,
)
from frami_edge_export.errors import ExportError
from frami_edge_export.graph import sha256
from frami_edge_export.tensorrt import EngineArtifact, judge, main, rebuild
from frami_edge_runtime.modelfile import ModelInfo
from frami_edge_runtime.tensorrt import Cudart, EngineCard

INFO = ModelInfo(mel=MEL, labels=("a", "b"), receptive_field=11, stride=2, channels=4)
LIGHT = """
import sys
import frami_edge_export.tensorrt
print(sorted({"torch", "onnx", "onnxscript"} & set(sys.modules)))
sys.modules["torch"] = None
from frami_edge_export import export_student
"""


def test_the_device_half_needs_neither_torch_nor_onnx():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    assert "needs torch: pip install 'frami-edge-export[torch]'" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [
        (None, (11, 107, 137)),  # to the runtime's longest run of 64 trunk frames, made for 1 s
        ("0:1:10", (11, 107, 1007)),
        ("0.5", (11, 57, 57)),
        ("0.001", (11, 11, 13)),  # two trunk frames, which the runtime probes
    ],
)
def test_a_profile_holds_every_call_of_a_stream(seconds, frames):
    options = EngineOptions(seconds=Seconds.parse(seconds) if seconds else None)
    profile = profile_for(INFO, options)
    assert tuple(shape[3] for shape in profile.values()) == frames
    assert [shape[:3] for shape in profile.values()] == [(1, 1, 32), (1, 1, 32), (8, 1, 32)]


@pytest.fixture
def folder(made, tmp_path):
    """An export with an fp32 and an int8.trt file, as far as the builder reads it."""
    artifacts = []
    for name in ("fp32", "int8.trt", "int8.cpu"):
        data = made.described(made.trunk, made.info)
        (tmp_path / f"s.{name}.onnx").write_bytes(data)
        artifacts.append({"name": name, "path": f"s.{name}.onnx", "sha256": sha256(data)})
    report = json.dumps({"name": "s", "artifacts": artifacts})
    (tmp_path / "export_report.json").write_text(report)
    return tmp_path


def test_a_bundle_offers_what_tensorrt_can_read(folder):
    name, sources, notes = read_bundle(folder)
    assert name == "s"
    found = [(s.precision, s.name) for s in sources]
    assert found == [("fp32", "s.fp32.onnx"), ("int8", "s.int8.trt.onnx")]
    assert sources[0].info.mel == MEL
    assert base64.b64decode(sources[0].head_onnx)
    assert notes == ["The export has no fp16 file, so no fp16 engine is built."]


def test_a_folder_that_is_no_export_is_refused(folder, tmp_path):
    report = folder / "export_report.json"
    with pytest.raises(ExportError, match=r"holds nothing to build from.*no fp16"):
        read_bundle(folder, ["fp16"])
    (folder / "s.fp32.onnx").write_bytes(b"another")
    with pytest.raises(ExportError, match=r"s.fp32.onnx: it is not the file that"):
        read_bundle(folder)
    values = json.loads(report.read_text())
    values["artifacts"][0]["sha256"] = sha256(b"another")
    report.write_text(json.dumps(values))
    with pytest.raises(ExportError, match=r"Cannot use .*s.fp32.onnx"):
        read_bundle(folder)
    for text in ("[]", "{}", "no JSON", '{"name": "s", "artifacts": [{}]}'):
        report.write_text(text)
        with pytest.raises(ExportError, match="is no report"):
            read_bundle(folder)
    with pytest.raises(ExportError, match="Cannot read"):
        read_bundle(folder / "nowhere")


def test_without_tensorrt_the_onnx_files_remain(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    before = sorted(folder.iterdir())
    with pytest.raises(TensorRTUnavailable, match="cannot be imported") as caught:
        rebuild(folder)
    assert "--system-site-packages" in caught.value.fix
    assert "python -m frami_edge_export.tensorrt" in caught.value.fix
    assert main([str(folder), "--seconds", "0:1:10"]) == 1
    assert "cannot be imported" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_a_tensorrt_without_strong_typing_is_too_old(monkeypatch):
    module = ModuleType("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(Cudart, "__init__", lambda self: None)
    monkeypatch.setattr(Cudart, "sm", lambda self: "8.7")
    for version, refused in (("8.6.2", True), ("10.2.9", True), ("10.3.0", False), ("11.4", False)):
        module.__version__ = version
        if refused:
            with pytest.raises(TensorRTUnavailable, match=f"{version} is too old"):
                load_tensorrt()
        else:
            assert load_tensorrt() == (module, "8.7")


def engine(precision, p50_ms, passed=True):
    card = EngineCard(
        engine_sha256="0" * 64, engine_bytes=1000, onnx_name="s.onnx", onnx_sha256="0" * 64,
        tensorrt="10.3.0.30", precision=precision, sm="8.7", gpu="Orin", driver="",
        profile=profile_for(INFO, EngineOptions()), model=INFO.to_json(),
        head_onnx=base64.b64encode(b"head").decode(),
    )  # fmt: skip
    return EngineArtifact(
        f"s.{precision}.engine", precision, card, 1.0, "new", p50_ms=p50_ms, passed=passed
    )


def test_the_fastest_engine_that_passes_is_recommended_and_a_tie_goes_to_precision():
    engines, best, _ = judge([engine("fp32", 1.0), engine("fp16", 0.5), engine("int8", 0.49)])
    assert best == "s.fp16.engine"
    assert [e.verdict for e in engines] == [
        "2.00x the time of s.fp16.engine",
        "recommended",
        "as fast as s.fp16.engine, and less precise",
    ]
    engines, best, _ = judge([engine("fp32", 1.0), engine("int8", 0.4, passed=False)])
    assert best == "s.fp32.engine"
    assert engines[1].verdict.startswith("not recommended")
    _, best, reason = judge([engine("int8", 0.4, passed=False)])
    assert (best, reason) == ("", "No engine answers as its ONNX file does: use the ONNX files.")
