"""Engine files: sidecar and header, exact and strict, and the refusals of what does not fit."""

import base64
import hashlib
import sys

import pytest

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import BackendError, EngineError, ModelFileError
from frami_edge_runtime.tensorrt import (
    EngineCard,
    check_content,
    check_loadable,
    read_plan_version,
    read_sidecar,
    write_sidecar,
)

PLAN = b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + b"the rest"


def make_card(tiny, plan=PLAN, **changes):
    bands, field = tiny.info.mel.n_mels, tiny.info.receptive_field
    values = {
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "engine_bytes": len(plan),
        "onnx_name": "student.int8.trt.onnx",
        "onnx_sha256": "0" * 64,
        "tensorrt": "10.3.0.30",
        "precision": "int8",
        "sm": "8.7",
        "gpu": "Orin",
        "driver": "540.4.0",
        "jetpack": "L4T 36.4.3",
        "profile": {
            "min": [1, 1, bands, field],
            "opt": [1, 1, bands, 60],
            "max": [8, 1, bands, 200],
        },
        "layers": {"int8": 9, "float": 2},
        "created": "2026-11-22T00:00:00Z",
        "model": tiny.info.to_json(),
        "head_onnx": base64.b64encode(b"head").decode(),
    }
    return EngineCard(**{**values, **changes})


def test_a_sidecar_survives_the_disk(tiny, tmp_path):
    card = make_card(tiny)
    path = write_sidecar(tmp_path / "student.int8.engine", card)
    assert path.name == "student.int8.engine.json"
    again = read_sidecar(tmp_path / "student.int8.engine")
    assert again == card
    assert again.to_json() == card.to_json()
    assert again.info == tiny.info
    assert again.head == b"head"
    assert again.profile["max"] == (8, 1, 16, 200)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "a scratch file was left"
    with pytest.raises(EngineError, match="Cannot write"):
        write_sidecar(tmp_path / "no" / "folder" / "a.engine", card)


def test_the_plan_holds_its_version(tmp_path):
    path = tmp_path / "a.engine"
    path.write_bytes(b"ftrt" + bytes(20) + bytes([11, 4, 0, 106]))
    assert read_plan_version(path) == read_plan_version(str(path)) == (11, 4, 0, 106)
    assert read_plan_version(PLAN) == (10, 3, 0, 30)
    for data in (b"", b"ft", PLAN[:27], b"\x08\x07pytorch" + bytes(40), b"ftrt\x01" + bytes(40)):
        path.write_bytes(data)
        for source in (path, data):
            with pytest.raises(EngineError, match="is no TensorRT engine"):
                read_plan_version(source)
    with pytest.raises(EngineError, match="Cannot read"):
        read_plan_version(tmp_path / "none.engine")


def test_another_engine_than_the_sidecars_is_refused(tiny):
    card = make_card(tiny)
    check_content(card, PLAN)
    for plan in (PLAN[:-1], PLAN[:-1] + b"!"):
        with pytest.raises(EngineError, match="cut off or replaced"):
            check_content(card, plan, "a.engine")


def test_engines_of_another_version_or_gpu_are_refused_with_both_named(tiny):
    card, plan = make_card(tiny), (10, 3, 0, 30)
    check_loadable(card, plan, "10.3.0.30", "8.7")
    check_loadable(card, plan, "10.3.0", "8.7")  # the version in JetPack's bindings
    with pytest.raises(EngineError) as caught:
        check_loadable(card, plan, "11.4.0.106", "8.7", "student.int8.engine")
    assert caught.value.message == (
        "student.int8.engine was built with TensorRT 10.3.0.30 for SM 8.7 (Orin); this machine "
        "runs TensorRT 11.4.0.106 on SM 8.7: engines do not carry over."
    )
    assert "student.int8.trt.onnx" in caught.value.fix
    for version, sm in (("10.3.1", "8.7"), ("10.3.0", "11.0"), ("10.13.0", "8.7"), ("", "8.7")):
        with pytest.raises(EngineError, match="do not carry over"):
            check_loadable(card, plan, version, sm)
    with pytest.raises(EngineError, match="not of one build"):
        check_loadable(card, (10, 3, 0, 26), "10.3.0", "8.7")
    assert issubclass(EngineError, ModelFileError)


def test_an_engine_is_checked_before_tensorrt_is_imported(tiny, tmp_path, monkeypatch):
    path = tmp_path / "student.int8.engine"
    path.write_bytes(PLAN)
    with pytest.raises(EngineError, match="beside it"):
        Classifier(path)
    write_sidecar(path, make_card(tiny))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="cannot be imported") as caught:
        Classifier(path)
    assert "--system-site-packages" in caught.value.fix
    path.write_bytes(PLAN[:-1])
    with pytest.raises(EngineError, match="cut off or replaced"):
        Classifier(path)
    with pytest.raises(EngineError, match="cannot be given as bytes"):
        Classifier(PLAN)
