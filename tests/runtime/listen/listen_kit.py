"""The listening program as the tests start it, and the files it is given."""

from __future__ import annotations

import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE = 8000
PROGRAM = [sys.executable, "-m", "frami_edge_runtime.listen"]
EASY = ["--window", "0.4", "--hop", "0.1", "--on", "0.25", "--off", "0.2", "--min-on", "0.1"]

Lines = list[dict[str, Any]]
Listen = Callable[..., Lines]


def write_wav(path: Path, clip: np.ndarray, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(as_int16(clip).tobytes())


def as_int16(clip: np.ndarray) -> np.ndarray:
    return (clip * 32767).clip(-32768, 32767).astype("<i2")


def of(records: Lines, kind: str) -> Lines:
    return [{k: v for k, v in r.items() if k != "type"} for r in records if r["type"] == kind]
