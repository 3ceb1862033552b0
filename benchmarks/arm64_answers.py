"""What one model file answers on this machine; with --compare, how far two such records differ.

Used by benchmarks/arm64.py, which runs it here and under emulation: NumPy and the runtime only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from frami_edge_runtime.backends import OrtModel
from frami_edge_runtime.classifier import Classifier

FP32_TOLERANCE = 1e-4
SECONDS = (0.3, 1.0, 4.0)


def record(model: Path, out: Path) -> None:
    """Frames of seeded mels, and results of seeded audio, whole and streamed."""
    rng = np.random.default_rng(0)
    trunk, classifier = OrtModel(model), Classifier(model)
    spec = classifier.info.mel
    mels = rng.uniform(-2, 3, (4, 1, spec.n_mels, classifier.info.receptive_field + 96))
    answers = {"frames": trunk.frames(mels.astype(np.float32))}
    for seconds in SECONDS:
        t = np.arange(int(seconds * spec.sample_rate)) / spec.sample_rate
        x = 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.05 * rng.standard_normal(len(t))
        answers[f"logits_{seconds}"] = classifier.classify(x.astype(np.float32)).logits
        stream = classifier.stream(window_s=0.25)
        parts = np.array_split(x.astype(np.float32), 7)
        answers[f"stream_{seconds}"] = np.stack(
            [r.logits for part in parts for r in stream.push(part)]
            or [np.zeros(len(classifier.labels), np.float32)]
        )
    answers["int8"] = np.array(classifier.info.precision == "int8")
    np.savez(out, **answers)


def compare(here: Path, there: Path) -> dict[str, object]:
    """int8 frames must be the same bits: their mels are the same; the rest within rounding."""
    with np.load(here) as a, np.load(there) as b:
        int8 = bool(a["int8"])
        names = [name for name in a.files if name != "int8"]
        differences = {
            name: float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in names
        }
    identical = differences["frames"] == 0.0
    # Mels differ in the last bit, and int8 may round such a bit to the next step.
    close = all(d <= FP32_TOLERANCE for d in differences.values())
    return {
        "precision": "int8" if int8 else "fp32",
        "frames_identical": identical,
        "max_difference": differences,
        "passed": identical if int8 else close,
    }


if __name__ == "__main__":
    if sys.argv[1] == "--compare":
        print(json.dumps(compare(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        record(Path(sys.argv[1]), Path(sys.argv[2]))
