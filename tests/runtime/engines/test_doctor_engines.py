"""Does an engine fit this machine: by its sidecar, the machine's TensorRT and its GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import Shape, save_engine

from frami_edge_runtime.doctor import Answer, Machine, engines

MakeMachine = Callable[[str, str], Machine]


@pytest.fixture
def machine(tmp_path: Path) -> MakeMachine:
    """`machine(tensorrt, sm)`; empty for what is not there."""

    def make(tensorrt: str, sm: str) -> Machine:
        def run(command: Sequence[str], limit_s: float) -> Answer:
            if command[0] == "nvidia-smi" and sm:
                return Answer(0, f"Some GPU, 580.1, {sm}, 8192, 0\n")
            if command[0] == sys.executable and tensorrt:
                told = {"version": tensorrt, "file": "/usr/lib/python3/dist-packages/tensorrt/x.py"}
                return Answer(0, f"frami-doctor: {json.dumps(told)}\n")
            return Answer(None, trouble=f"{command[0]}: not found")

        return Machine(root=tmp_path / "none", run=run, versions=lambda name: None, environ={})

    return make


@pytest.mark.parametrize(
    ("tensorrt", "sm", "status", "words"),
    [
        ("10.3.0", "8.7", "ok", "fits this machine (TensorRT 10.3.0.30, compute capability 8.7)"),
        ("10.16.1", "8.7", "fail", "this machine runs TensorRT 10.16.1 on SM 8.7"),
        ("10.3.0", "8.9", "fail", "this machine runs TensorRT 10.3.0 on SM 8.9"),
        ("", "8.7", "absent", "there is no TensorRT here to load it"),
        ("10.3.0", "", "absent", "no GPU is known here"),
    ],
)
def test_an_engine_of_an_orin(
    machine: MakeMachine,
    tiny: Any,
    shapes: list[Shape],
    tmp_path: Path,
    tensorrt: str,
    sm: str,
    status: str,
    words: str,
) -> None:
    save_engine(tmp_path, tiny, shapes)
    (line,) = engines(machine(tensorrt, sm), [tmp_path])
    assert (line.name, line.status) == ("student.fp32.engine", status)
    assert words in line.found
    assert line.blocks is (status == "fail")
    if status == "fail":
        assert "frami-edge export --tensorrt" in line.fix


def test_a_damaged_engine(
    machine: MakeMachine, tiny: Any, shapes: list[Shape], tmp_path: Path
) -> None:
    path = save_engine(tmp_path, tiny, shapes)
    path.write_bytes(path.read_bytes()[:-1])
    (line,) = engines(machine("10.3.0", "8.7"), [path])
    assert line.status == "fail"
    assert "cut off or replaced" in line.found
