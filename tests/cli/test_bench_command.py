"""`frami-edge bench`: what is timed, how it is paired, and what it refuses."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from frami_edge.measuring import (
    Subject,
    graph_latency,
    measure_start,
    measure_streams,
    open_subject,
)
from frami_edge_export.bench import Latency, interleaved
from frami_edge_runtime.errors import ModelFileError

Call = Callable[..., Result]
QUICK = ("--rounds", "15", "--seconds", "0.2,0.5", "--no-start")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frami_edge.measuring.BUDGET_S", 0.05)


def test_two_models_in_turns(exported: Path, call: Call) -> None:
    files = (exported / "student.int8.cpu.onnx", "--vs", exported / "student.fp32.onnx")
    result = call("bench", *files, *QUICK, "--json")
    found = json.loads(result.stdout)
    assert list(found["models"]) == ["student.int8.cpu.onnx", "student.fp32.onnx"]
    for model in found["models"].values():
        assert list(model["graph"]) == ["0.2 s", "0.5 s", "chunk 0.1 s"]
        for times in model["graph"].values():
            assert 0 < times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"]
            assert times["rounds"] >= 15
        stream = model["stream"]
        assert stream["audio_s"] == pytest.approx(1.5)
        assert 0 < stream["core_share"] < 1
        assert stream["results"] > 0
        assert model["start"] is None
    ratio = found["ratios"]["0.5 s"]
    times = [model["graph"]["0.5 s"]["p50_ms"] for model in found["models"].values()]
    assert ratio == pytest.approx(times[1] / times[0])
    tables = call("bench", *files, *QUICK).stdout
    assert "a faster" in tables
    assert "push 0.1 s" in tables


def test_a_whole_classifier_has_no_stream(exported: Path, call: Call) -> None:
    result = call("bench", exported / "student.model.onnx", *QUICK, "--json")
    (model,) = json.loads(result.stdout)["models"].values()
    assert model["kind"] == "classifier"
    assert model["stream"] is None
    assert list(model["graph"]) == ["0.2 s", "0.5 s"]
    call("bench", exported / "student.fp32.onnx", "--vs", exported / "student.model.onnx", *QUICK)


def test_a_fresh_process_tells_its_own_start_and_memory(exported: Path) -> None:
    held = np.ones(100_000_000, np.uint8)  # a child must not be charged for its parent's memory
    names = ("student.fp32.onnx", "student.model.onnx")
    subjects = {name: open_subject(exported / name, "auto", 1) for name in names}
    starts = measure_start(subjects, repeats=1)
    for start in starts.values():
        assert start.import_ms > 0
        assert start.load_ms > 0
        assert start.first_ms > 0
        assert 20 < start.peak_mb < 250
    assert held[0] == 1


def test_a_process_that_fails_is_said(exported: Path) -> None:
    subject = open_subject(exported / "student.fp32.onnx", "auto", 1)
    subject.path = exported / "absent.onnx"
    with pytest.raises(ModelFileError, match="fresh process could not run absent"):
        measure_start({"x": subject}, repeats=1)


def test_the_chunk_is_new_frames_after_the_carried_ones(exported: Path) -> None:
    subject = open_subject(exported / "student.fp32.onnx", "auto", 1)
    info = subject.info
    x = subject.chunk_input(4 * info.frame_s)
    assert x is not None
    # What a stream holds when 4 trunk frames are due: the carry and 4 strides.
    assert x.shape[3] == (info.receptive_field - info.stride) + 4 * info.stride
    assert subject.run(x).shape == (1, info.channels, 4)  # type: ignore[attr-defined]
    whole = subject.whole_input(0.5)
    assert whole is not None
    frames = info.mel.frames(info.mel.sample_rate // 2)
    assert subject.run(whole).shape[2] == info.trunk_frames(frames)  # type: ignore[attr-defined]


def test_lengths_beyond_an_engines_profile_are_left_out(exported: Path) -> None:
    subject = open_subject(exported / "student.fp32.onnx", "auto", 1)
    subject.longest = subject.info.receptive_field + 4
    found = graph_latency({"x": subject}, [0.5], 0.01, 15)
    assert list(found) == ["chunk 0.01 s"]


def test_streams_of_two_models_hear_the_same_amount(exported: Path) -> None:
    names = ("student.fp32.onnx", "student.int8.cpu.onnx", "student.model.onnx")
    subjects: dict[str, Subject] = {n: open_subject(exported / n, "auto", 1) for n in names}
    loads = measure_streams(subjects, 0.05, 20)
    assert set(loads) == set(names[:2])
    assert {load.audio_s for load in loads.values()} == {1.0}
    assert {load.latency.rounds for load in loads.values()} == {20}
    for load in loads.values():
        # Wall clock holds the CPU's; 20 ms is the coarsest clock in use.
        assert load.core_share <= load.real_time_factor + 0.02
        assert load.results > 0


def test_calls_take_turns_and_a_slow_one_is_seen() -> None:
    order: list[str] = []

    def note(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            time.sleep(seconds)

        return run

    calls = {"slow": note("slow", 0.003), "fast": note("fast", 0.0)}
    found = interleaved(calls, budget_s=0.01, max_rounds=20)
    assert found["slow"].rounds == found["fast"].rounds >= 15
    assert found["slow"].p50_ms > 3 > found["fast"].p50_ms
    rounds = [name for i, name in enumerate(order[10:]) if i % 2]
    assert rounds[:4] == ["slow", "fast", "fast", "slow"]


def test_percentiles() -> None:
    found = Latency.of([float(i) for i in range(1, 102)])
    assert (found.p50_ms, found.p95_ms, found.p99_ms, found.rounds) == (51, 96, 100, 101)


@pytest.mark.parametrize("text", ["", "x", "1,,2", "0", "-1", "1e9", "nan"])
def test_lengths_that_make_no_sense(text: str, exported: Path, call: Call) -> None:
    result = call("bench", exported / "student.fp32.onnx", f"--seconds={text}", code=1)
    assert "list of lengths" in result.stderr


def test_what_cannot_be_timed_is_said(
    exported: Path, student: dict[str, Any], call: Call, tmp_path: Path
) -> None:
    checkpoint = Path(student["run_dir"]) / "student.safetensors"
    assert "frami-edge export" in call("bench", checkpoint, code=1).stderr
    assert "There is no model" in call("bench", tmp_path / "x.onnx", code=1).stderr
    assert "is a folder" in call("bench", tmp_path, code=1).stderr
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x0a")
    assert "no whole ONNX file" in call("bench", tmp_path / "cut.onnx", code=1).stderr
    whole = call("bench", exported / "student.model.onnx", "--backend", "cuda", code=1)
    assert "CPU alone" in whole.stderr
    unknown = call("bench", exported / "student.fp32.onnx", "--backend", "abacus", code=1)
    assert "abacus" in unknown.stderr
    call("bench", exported / "student.fp32.onnx", "--threads", "0", code=2)
