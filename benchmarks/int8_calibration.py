"""int8 calibrated on what? One student, one recipe, only the calibration set differs.

    python benchmarks/int8_calibration.py STUDENT --bank DIR --data fsdd [--seeds 0,1,2]

Every row quantises the same fp32 graph alike (static Q/DQ, per-channel weights, first convolution
float, no layer put back) from as many mels, and is judged on the real test clips, which no row but
"real clips" resembles by design: agreement with fp32, accuracy, SQNR of the logits. "gate" says
whether `frami-edge export` accepts the set, which it decides without data. Reported only: nothing
here chooses a default.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from frami_edge.calibrating import bank_mels, made_mels
from frami_edge.data import FeatureStore, data_root, load_set, resolve_fold
from frami_edge.data.features import Features
from frami_edge.distillation.feeds import ClipFeed
from frami_edge.exporting import facts_of
from frami_edge.inversion.controls import smooth_noise_mels, white_noise_mels
from frami_edge.models.checkpoint import Loaded, load_checkpoint
from frami_edge_export import ExportOptions, classify_mels
from frami_edge_export.calibration import prepare_calibration
from frami_edge_export.calibration_gate import calibration_gates, calibration_ranges
from frami_edge_export.errors import CalibrationError
from frami_edge_export.graphs import frozen_trunk, head_graph, trunk_graph
from frami_edge_export.metadata import described, model_info, serialised
from frami_edge_export.quantise import FLAVOURS, Quantiser
from frami_edge_export.scoring import sqnr_db

Mels = npt.NDArray[np.float32]
COLUMNS = ("agreement", "accuracy", "sqnr_db")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("--bank", type=Path, required=True, help="the student's own")
    parser.add_argument("--data", required=True)
    parser.add_argument("--fold", help="test fold; else the one the teacher held out")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    loaded = load_checkpoint(args.student, "student")
    data = load_set(args.data, data_root(args.data_root))
    heard = loaded.card.heard
    fold = resolve_fold(data, args.fold or (heard.test_fold if heard else None))
    store = FeatureStore(loaded.spec)
    train, test = (store.load(clips) for clips in data.split(fold))
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in map(int, args.seeds.split(",")):
        judge = Judge(loaded, test, seed)
        for name, mels in calibration_sets(loaded, args.bank, train, args.samples, seed).items():
            rows.setdefault(name, []).append(judge(mels))
            print(f"seed {seed}  {name:22s} {rows[name][-1]}", flush=True)
    show(rows, judge.fp32_accuracy, len(test))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def calibration_sets(
    student: Loaded, bank: Path, train: Features, count: int, seed: int
) -> dict[str, Mels]:
    """(N, 1, M, T) by name; "real clips" are the teacher's own training clips."""
    spec, rng = student.spec, np.random.default_rng(seed)
    own = bank_mels(bank, student, 4 * count).mels
    own = own[rng.permutation(len(own))[:count]]
    shape, frames = own.shape, own.shape[3]
    draw = torch.Generator().manual_seed(seed)
    return {
        "real clips": ClipFeed(train.mels, frames).batch(count, draw).numpy(),
        "bank": own,
        "procedural": made_mels(student, count, seed).mels,
        "smooth noise": smooth_noise_mels(spec, count, frames, seed).numpy(),
        "white noise": white_noise_mels(spec, count, frames, seed).numpy(),
        "uniform(0, 1)": rng.uniform(0, 1, shape).astype(np.float32),
    }


class Judge:
    """Quantises from a set and scores the file on real clips."""

    def __init__(self, student: Loaded, test: Features, seed: int) -> None:
        model = student.model.collapse()  # type: ignore[operator]
        self._student, self._spec, self._options = model, student.spec, ExportOptions(seed=seed)
        self._info = model_info(model, facts_of(student))
        self._trunk = trunk_graph(model, self._spec.n_mels)
        self._head = serialised(head_graph(model))
        self._mels = [mel.numpy() for mel in test.mels]
        self._labels_N = test.labels.numpy()
        fp32 = described(self._trunk, self._info, self._head)
        self._reference_NK = classify_mels(fp32, self._mels)
        self.fp32_accuracy = self._accuracy(self._reference_NK)

    def __call__(self, mels: Mels) -> dict[str, Any]:
        """One row of the table."""
        context = self._student.context
        try:
            used = prepare_calibration(mels, self._spec, context, self._options).ranges
            calibration_gates(calibration_ranges(frozen_trunk(self._student), used), self._options)
            gate = "accepted"
        except CalibrationError:
            used = np.pad(mels, ((0, 0), (0, 0), (0, 0), context))
            gate = "refused"
        quantiser = Quantiser(self._trunk, used)
        graph = quantiser.graph(FLAVOURS[0], quantiser.layers[:1])
        logits_NK = classify_mels(described(graph, self._info, self._head), self._mels)
        same = logits_NK.argmax(1) == self._reference_NK.argmax(1)
        return {
            "agreement": 100 * float(same.mean()),
            "accuracy": 100 * self._accuracy(logits_NK),
            "sqnr_db": sqnr_db(self._reference_NK, logits_NK),
            "gate": gate,
        }

    def _accuracy(self, logits_NK: Mels) -> float:
        return float((logits_NK.argmax(1) == self._labels_N).mean())


def show(rows: dict[str, list[dict[str, Any]]], fp32: float, clips: int) -> None:
    """Means and ranges over seeds, as Markdown."""
    print(f"\nfp32: {100 * fp32:.2f} % on {clips} real test clips\n")
    print("| calibrated on | agreement with fp32, % | accuracy, % | SQNR, dB | export's gate |")
    print("| --- | --- | --- | --- | --- |")
    for name, found in rows.items():
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in found]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f}-{max(values):.1f})")
        gates = ", ".join(sorted({row["gate"] for row in found}))
        print(f"| {name} | {' | '.join(cells)} | {gates} |")


if __name__ == "__main__":
    main()
