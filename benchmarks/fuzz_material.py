"""What all cases of `fuzz_runtime` share: intact material, damage, and what no answer may be."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from frami_edge_runtime import Classifier

Rng = np.random.Generator
ODD: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 1, 3, 1 << 20, 1 << 31, 1 << 63, 10**40, 0.5, -1e-9, 1e29, 1e308, "", "x",
    "1", "\x1b[2J", "\u202e", "\ud800", [], [None], [[]], {}, {"a": 1}, [1e-30] * 16, "NaN" * 99,
)  # fmt: skip
LARGEST_INT: Final = 64


class WrongAnswerError(Exception):
    """An answer that cannot be right."""


class Material:
    """What all cases start from.

    Args:
        models: Bytes of intact ONNX model files, of at least two.
        folder: For the damaged files.
    """

    def __init__(self, models: list[bytes], folder: Path) -> None:
        """Load the models; the first one serves the cases that damage something else."""
        self.models, self.folder = models, folder
        self.classifier = Classifier(models[0])
        self.rate = self.classifier.info.mel.sample_rate
        t = np.arange(2 * self.rate) / self.rate
        noise = np.random.default_rng(1).standard_normal(len(t))
        self.clip = (0.3 * np.sin(700 * t) + 0.1 * noise * (t % 0.5)).clip(-1, 1).astype(np.float32)

    def write(self, name: str, data: bytes) -> Path:
        """The file of the case at hand."""
        path = self.folder / name
        path.write_bytes(data)
        return path


def damage(rng: Rng, data: bytes, others: list[bytes], *, head: int = 0) -> bytes:
    """Flip, cut, splice, repeat or overwrite bytes; half of the time within the first ``head``."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        most = head if head and rng.random() < 0.5 else len(out)
        at = int(rng.integers(0, max(1, min(most, len(out)))))
        size = int(rng.integers(1, 65))
        way = rng.integers(0, 7)
        if way == 0:
            out[at : at + 1] = bytes([int(rng.integers(0, 256))])
        elif way == 1:
            out = out[:at]
        elif way == 2:
            other = others[int(rng.integers(0, len(others)))]
            out[at:] = other[int(rng.integers(0, len(other) + 1)) :]
        elif way == 3:
            out[at:at] = out[at : at + size]
        elif way == 4:
            del out[at : at + size]
        elif way == 5:
            out[at : at + size] = bytes([int(rng.choice([0, 1, 127, 128, 255]))]) * size
        else:
            out[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 2**31, 2**32 - 1, 65536])))
    return bytes(out)


def check_scores(result: Any, classes: int) -> None:
    """Raise `WrongAnswerError` unless these are scores."""
    s = result.scores
    if s.shape != (classes,) or not np.isfinite(s).all() or abs(float(s.sum()) - 1) > 1e-4:
        raise WrongAnswerError(f"scores {s}")
    if not 0 <= result.t0 <= result.t1:
        raise WrongAnswerError(f"times {result.t0}, {result.t1}")


def opened(rng: Rng, material: Material) -> tuple[Any, dict[str, str]]:
    """One of the models as a protobuf, with its metadata."""
    model = onnx.load_from_string(material.models[int(rng.integers(0, len(material.models)))])
    return model, {p.key: p.value for p in model.metadata_props}


def change(rng: Rng, values: dict[str, Any]) -> None:
    """Drop, add or change one value of a JSON object, at any depth."""
    key = str(rng.choice(sorted(values)))
    inner = values[key]
    if isinstance(inner, dict) and inner and rng.random() < 0.8:
        return change(rng, inner)
    way = rng.integers(0, 6)
    if way == 0:
        del values[key]
    elif way == 1:
        values[str(rng.choice(["x", "", "\ud800"]))] = inner
    elif way == 2 and isinstance(inner, int) and not isinstance(inner, bool):
        values[key] = int(inner + rng.integers(-LARGEST_INT, LARGEST_INT))
    elif way == 3 and isinstance(inner, list) and inner:
        odd = [*inner, inner[0]], inner[:-1], [f"{i:x}" for i in range(60_000)], inner[::-1]
        values[key] = odd[int(rng.integers(0, 4))]
    else:
        values[key] = ODD[int(rng.integers(0, len(ODD)))]
    return None
