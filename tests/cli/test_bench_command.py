"""`frami-edge bench`: what is timed, how two models are paired, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from frami_edge.comparing import graph_input
from frami_edge.opening import open_model
from frami_edge_runtime import backends

Call = Callable[..., Result]
QUICK = ("--rounds", "15", "--seconds", "0.2", "--seconds", "0.5")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frami_edge.comparing.BUDGET_S", 0.05)
    monkeypatch.setattr("frami_edge.comparing.QUIET_S", 10.0)


def test_two_models_take_turns(exported: Path, call: Call) -> None:
    files = (exported / "student.int8.cpu.onnx", "--vs", exported / "student.fp32.onnx")
    found = json.loads(call("bench", *files, *QUICK, "--json").stdout)
    for model in found["models"]:
        assert list(model["latency"]) == ["0.2 s", "0.5 s", "chunk 0.1 s", "push"]
        for times in model["latency"].values():
            assert 0 < times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"]
            assert times["rounds"] >= 15
        assert 0 < model["core_share"] < 1
        assert model["gate_saves_with_sounds"] < model["gate_saves"] < 1
        assert model["gate_saves"] > 0
        push_s = model["latency"]["push"]["p50_ms"] / 1000
        assert model["real_time_factor"] == pytest.approx(push_s / 0.1)
    first, second = (model["latency"]["0.5 s"]["p50_ms"] for model in found["models"])
    assert found["speedups"]["0.5 s"] == pytest.approx(second / first)
    assert "student.int8.cpu.onnx over student.fp32.onnx" in call("bench", *files, *QUICK).stdout


def test_the_timed_inputs_are_those_of_a_device(
    exported: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(exported / "student.fp32.onnx")
    info = model.info
    assert info is not None
    chunk, whole = graph_input(model, 4 * info.frame_s, chunk=True), graph_input(model, 0.5)
    assert chunk is not None
    assert whole is not None
    assert chunk.shape[3] == (info.receptive_field - info.stride) + 4 * info.stride
    assert model.graph(chunk).shape == (1, info.channels, 4)
    frames = info.mel.frames(info.mel.sample_rate // 2)
    assert model.graph(whole).shape[2] == info.trunk_frames(frames)
    # What an engine's profile does not allow is left out; a whole classifier has no stream.
    monkeypatch.setattr(backends, "UNBOUNDED", info.receptive_field + 4)
    for name, timed in (("fp32", ["chunk 0.01 s", "push"]), ("model", ["0.2 s", "0.5 s"])):
        files = (exported / f"student.{name}.onnx", "--chunk", "0.01", *QUICK)
        (row,) = json.loads(call("bench", *files, "--json").stdout)["models"]
        assert list(row["latency"]) == timed


def test_what_cannot_be_timed_is_refused(
    exported: Path, student: dict[str, Any], call: Call
) -> None:
    checkpoint = Path(student["run_dir"]) / "student.safetensors"
    assert "frami-edge export" in call("bench", checkpoint, code=1).stderr
    whole = call("bench", exported / "student.model.onnx", "--backend", "cuda", code=1)
    assert "CPU only" in whole.stderr
