"""A clip in a file, and the program in this process; what they share is in `listen_kit`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from frami_edge_runtime.listen import main

# pytest's importlib mode puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

from listen_kit import Lines, Listen, write_wav


@pytest.fixture
def wav_path(clip: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "street.wav"
    write_wav(path, clip)
    return path


@pytest.fixture
def listen(model_path: Path, capsys: pytest.CaptureFixture[str]) -> Listen:
    """`listen(path, "--once", code=0)` gives the records of --json."""

    def run(*arguments: object, code: int = 0) -> Lines:
        assert main([str(model_path), *map(str, arguments), "--json"]) == code
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run
