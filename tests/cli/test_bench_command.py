"""`frami-edge bench`: what is timed, how two models are paired, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from frami_edge.measuring import chunk_input, measure, whole_input
from frami_edge.opening import open_model

Call = Callable[..., Result]
QUICK = ("--rounds", "15", "--seconds", "0.2", "--seconds", "0.5")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frami_edge.measuring.BUDGET_S", 0.05)


def test_two_models_take_turns(exported: Path, call: Call) -> None:
    files = (exported / "student.int8.cpu.onnx", "--vs", exported / "student.fp32.onnx")
    found = json.loads(call("bench", *files, *QUICK, "--json").stdout)
    for model in found["models"]:
        assert list(model["latency"]) == ["0.2 s", "0.5 s", "chunk 0.1 s", "push"]
        for times in model["latency"].values():
            assert 0 < times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"]
            assert times["rounds"] >= 15
        assert 0 < model["core_share"] < 1
        assert model["real_time_factor"] == pytest.approx(
            model["latency"]["push"]["p50_ms"] / 1000 / 0.1
        )
    first, second = (model["latency"]["0.5 s"]["p50_ms"] for model in found["models"])
    assert found["speedups"]["0.5 s"] == pytest.approx(second / first)
    shown = call("bench", *files, *QUICK).stdout
    assert "student.int8.cpu.onnx over student.fp32.onnx" in shown
    assert "Whole stream" in shown


def test_a_whole_classifier_has_no_stream(exported: Path, call: Call) -> None:
    (model,) = json.loads(call("bench", exported / "student.model.onnx", *QUICK, "--json").stdout)[
        "models"
    ]
    assert model["kind"] == "classifier"
    assert list(model["latency"]) == ["0.2 s", "0.5 s"]
    assert model["core_share"] is None


def test_the_timed_inputs_are_those_of_a_device(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(exported / "student.fp32.onnx")
    info = model.info
    assert info is not None
    chunk, whole = chunk_input(model, 4 * info.frame_s), whole_input(model, 0.5)
    assert chunk is not None
    assert whole is not None
    assert chunk.shape[3] == (info.receptive_field - info.stride) + 4 * info.stride
    assert model.graph(chunk).shape == (1, info.channels, 4)
    frames = info.mel.frames(info.mel.sample_rate // 2)
    assert model.graph(whole).shape[2] == info.trunk_frames(frames)
    # What an engine's profile does not allow is left out.
    monkeypatch.setattr(type(model), "max_mel_frames", info.receptive_field + 4)
    (timing,) = measure([model], seconds=[0.5], chunk_s=0.01, rounds=15)
    assert list(timing.latency) == ["chunk 0.01 s", "push"]
    assert np.isfinite(timing.latency["push"].p50_ms)


def test_what_cannot_be_timed_is_refused(
    exported: Path, student: dict[str, Any], call: Call, tmp_path: Path
) -> None:
    checkpoint = Path(student["run_dir"]) / "student.safetensors"
    assert "frami-edge export" in call("bench", checkpoint, code=1).stderr
    assert "There is no model" in call("bench", tmp_path / "x.onnx", code=1).stderr
    whole = call("bench", exported / "student.model.onnx", "--backend", "cuda", code=1)
    assert "CPU only" in whole.stderr
    call("bench", exported / "student.fp32.onnx", "--seconds", "0", code=2)
