"""`frami-edge bench`: what is timed, how two models are paired, and what is refused."""

import json
from pathlib import Path

import pytest

QUICK = ("--rounds", "15", "--seconds", "0.2", "--seconds", "0.5")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("frami_edge.comparing.BUDGET_S", 0.05)
    monkeypatch.setattr("frami_edge.comparing.QUIET_S", 10.0)


@pytest.mark.slow
def test_two_models_take_turns(exported, call):
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


def test_what_cannot_be_timed_is_refused(exported, student, call):
    checkpoint = Path(student["run_dir"]) / "student.safetensors"
    assert "frami-edge export" in call("bench", checkpoint, code=1).stderr
    whole = call("bench", exported / "student.model.onnx", "--backend", "cuda", code=1)
    assert "CPU only" in whole.stderr
