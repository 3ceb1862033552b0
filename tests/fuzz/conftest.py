"""The fuzzer of `benchmarks/`, and the intact files that it damages."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def fuzz() -> Iterator[Any]:
    """The module `fuzz`."""
    if not SCRIPTS.is_dir():
        pytest.skip("benchmarks/ is in the repository only")
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("fuzz")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="session")
def material(fuzz: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tiny teacher, student, bank, export, clips and configs."""
    root = tmp_path_factory.mktemp("material")
    before = os.environ.get("FRAMI_EDGE_CACHE")
    os.environ["FRAMI_EDGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    made = importlib.import_module("fuzzing.material").Material.make(root)
    if before is None:
        del os.environ["FRAMI_EDGE_CACHE"]
    else:
        os.environ["FRAMI_EDGE_CACHE"] = before
    sys.path.append(str(root))  # the foreign teacher's module
    yield made
    sys.path.remove(str(root))


@pytest.fixture
def sandbox(material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder of folders for cases; home, cache and current folder are put back afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "TMPDIR", "FRAMI_EDGE_CACHE", "FRAMI_EDGE_DATA", "COLUMNS"):
        monkeypatch.setenv(name, os.environ.get(name, str(tmp_path)))
    return importlib.import_module("fuzzing.case").Sandbox(tmp_path / "sandbox", material)
