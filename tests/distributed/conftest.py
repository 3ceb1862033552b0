from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from frami_edge.checkpoint import Card, TrainedOn, save_checkpoint

Pair = Callable[..., "list[subprocess.Popen[str]]"]
CONFIG = """
student: {channels: [8, 8, 8], time_kernels: [3, 3, 3], out_channels: 12}
bank:
  frames: 24
  procedural_clips: 40
  sources: {inversion: 1, procedural: 1}
  inversion: {steps: 4, burn_in: 1, batch_size: 8, latent: 8, width: 8, contrastive_memory: 20}
distill: {steps: 6, batch_size: 8, crop_min: 16, crop_max: 24, checkpoint_steps: 2, warmup: 0.5}
seed: 3
"""


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """The cases, to run them in this process alone."""
    return _load(Path(__file__).with_name("two_processes.py"))


@pytest.fixture(scope="session")
def pair() -> Pair:
    """`pair("-m", "frami_edge", ...)` starts two processes as torchrun would.

    Without torchrun itself, which would import torch a third time.
    """

    def start(*arguments: object) -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        names |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        pipe = subprocess.PIPE
        return [
            subprocess.Popen(
                [sys.executable, *map(str, arguments)], stdout=pipe, stderr=pipe, text=True,
                env={**os.environ, **names, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]  # fmt: skip

    return start


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes leave their banks."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="session")
def two(cases: ModuleType, pair: Pair, folder: Path) -> dict[str, Any]:
    """What two processes found."""
    torch.save(cases.half(), folder / "half-by-one.pt")
    cases.bank(folder / "begun-by-one", kill=("inversion", 4))
    for process in pair(cases.__file__, folder):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    return found


@pytest.fixture
def command(cases: ModuleType, tmp_path: Path) -> Callable[..., list[object]]:
    """The words of a run in ``tmp_path / name``."""
    teacher = cases.teacher()
    card = Card(
        kind="teacher", arch=teacher.arch.model_dump(mode="json"), mel=cases.SPEC.to_dict(),
        labels=cases.LABELS, licence="CC0-1.0",
        trained_on=TrainedOn(data="folder:x", test_fold="test", clips=8, sha256="0" * 64),
    )  # fmt: skip
    save_checkpoint(tmp_path / "teacher.safetensors", teacher, card)
    (tmp_path / "tiny.yaml").write_text(CONFIG)

    def words(name: str, *more: object) -> list[object]:
        named = ["--teacher", tmp_path / "teacher.safetensors", "--out", tmp_path / name]
        cpu = ["--device", "cpu", "--precision", "fp32", "--json"]
        return ["-m", "frami_edge", "distill", tmp_path / "tiny.yaml", *named, *cpu, *more]

    return words
