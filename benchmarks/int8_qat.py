"""What `--qat` is worth, and what the front end costs in a graph: one student, one bank, no audio.

    python benchmarks/int8_qat.py STUDENT.safetensors BANK --steps 200

Prints int8 of plain calibration beside int8 after fine-tuning, each against fp32 on clips of the
bank that neither saw; then sizes, and the median time of a second of audio through the waveform
graph beside NumPy's log-mel and the classifier graph, interleaved.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from frami_edge.calibrating import bank_mels
from frami_edge.exporting import facts_of
from frami_edge.models.checkpoint import load_checkpoint
from frami_edge.models.student import Student
from frami_edge_export.calibration import prepare_calibration
from frami_edge_export.frontend_graph import WAVEFORM
from frami_edge_export.graphs import frozen_head, trunk_graph, whole_graph
from frami_edge_export.metadata import model_info
from frami_edge_export.options import ExportOptions
from frami_edge_export.qat import QatOptions, Target, qat_finetune
from frami_edge_export.quantise import FLAVOURS, TENSORRT, Quantiser
from frami_edge_export.scoring import Comparison, Head, run_trunk
from frami_edge_export.sessions import cpu_session
from frami_edge_export.waveform import described_waveform, waveform_graph
from frami_edge_runtime.logmel import log_mel
from frami_edge_runtime.modelfile import TRUNK_INPUT

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("student", type=Path)
parser.add_argument("bank", type=Path)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--clips", type=int, default=256, help="clips that are trained on")
args = parser.parse_args()
torch.set_num_threads(1)

loaded = load_checkpoint(args.student, "student")
assert isinstance(loaded.model, Student)
student, facts = loaded.model.collapse(), facts_of(loaded)
trunk = trunk_graph(student, facts.mel.n_mels)
weight_KD, bias_K = (t.double().numpy() for t in frozen_head(student))
head = Head(weight_KD, bias_K, student.pool_eps)
mels = bank_mels(args.bank, loaded, 1024).mels
sample = prepare_calibration(
    mels, facts.mel, student.context, ExportOptions(max_calibration=args.clips)
)
quantiser = Quantiser(trunk, sample.ranges)
first = frozenset(quantiser.layers[:1])
reference_BK = head(run_trunk(cpu_session(trunk), sample.holdout))


def show(label: str, source: Quantiser, target: Target) -> None:
    model = source.graph(target.flavour, target.float_layers)
    found = Comparison.of(reference_BK, head(run_trunk(cpu_session(model), sample.holdout)))
    kept = "first layer float" if target.float_layers else "all layers int8"
    print(
        f"{label:12s} {target.flavour.name:14s} {kept:18s} agreement {found.agreement:7.2%}  "
        f"SQNR {found.sqnr_db or float('inf'):5.1f} dB  largest {found.max_abs_difference:.2f}"
    )


for float_layers in (first, frozenset[str]()):
    targets = [Target(flavour, float_layers) for flavour in (FLAVOURS[0], TENSORRT)]
    options = QatOptions(steps=args.steps)
    tuned = qat_finetune(trunk, quantiser, head, sample.ranges, targets, options)
    for target in targets:
        show("calibrated", quantiser, target)
        show("fine-tuned", tuned.quantiser, target)
    print(f"{args.steps} steps took {tuned.seconds:.1f} s on one thread\n")

info = model_info(student, facts)
wave = described_waveform(waveform_graph(trunk, head, info), info)
whole = whole_graph(student, facts.mel.n_mels)
size = len(whole.SerializeToString())
print(f"waveform graph {len(wave) / 1000:.1f} kB, classifier graph {size / 1000:.1f} kB")
noise = np.random.default_rng(0).normal(0, 0.1, facts.mel.sample_rate).astype(np.float32)
by_wave, by_mel = cpu_session(wave), cpu_session(whole)
times: dict[str, list[float]] = {"waveform graph": [], "NumPy mel + classifier graph": []}
for _ in range(300):
    started = time.perf_counter()
    by_wave.run(None, {WAVEFORM: noise[None]})
    between = time.perf_counter()
    by_mel.run(None, {TRUNK_INPUT: log_mel(noise, facts.mel).T[None, None].copy()})
    times["waveform graph"].append(between - started)
    times["NumPy mel + classifier graph"].append(time.perf_counter() - between)
for name, seconds in times.items():
    print(f"{name}: {1000 * statistics.median(seconds):.3f} ms for 1 s of audio")
