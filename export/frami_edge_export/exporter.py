"""One student in, files and a measured report out.

Shape legend: N samples, B batch, M mel bands, T mel frames, C channels, T' trunk frames, K classes.
"""

from __future__ import annotations

import dataclasses
import glob
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from frami_edge_export.bench import Bench
from frami_edge_export.calibration import calibration_gates, calibration_ranges, prepare_calibration
from frami_edge_export.drafts import Bundle, Draft
from frami_edge_export.errors import ExportError
from frami_edge_export.frontend import add_waveform
from frami_edge_export.graph import (
    ExportableStudent,
    StudentFacts,
    described,
    described_classifier,
    frozen_head,
    frozen_trunk,
    head_graph,
    json_bytes,
    missing_parts,
    model_info,
    serialised,
    trunk_graph,
    whole_graph,
    write_files,
)
from frami_edge_export.half import add_half
from frami_edge_export.int8 import Int8Files, add_int8, quantisation_record
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import Head, check_streamable, prove_fp32, with_context
from frami_edge_export.report import Artifact, ExportReport, Gate, judge
from frami_edge_export.tensorrt import plausible_mels

REPORT = "export_report.json"
CLASSIFIER_KEY = "frami.classifier"
"""Metadata key of ``model.onnx``: not the streaming file's, so that they cannot be mixed up."""


def export_student(
    student: ExportableStudent,
    facts: StudentFacts,
    out_dir: Path,
    *,
    name: str = "student",
    int8: bool,
    calibration: npt.NDArray[np.floating[Any]] | None,
    source: str,
    portable: bool = False,
    half: bool = False,
    waveform: bool = False,
    options: ExportOptions | None = None,
    evaluate: Callable[[str | Path], float] | None = None,
) -> ExportReport:
    """Write the student as ONNX, prove that it answers the same, and measure it.

    Writes ``{name}.fp32.onnx`` (trunk, with head and description inside), ``{name}.model.onnx``
    (mel to logits), with int8 also ``{name}.int8.cpu.onnx``, ``{name}.int8.trt.onnx`` and
    ``calib.json``, and ``export_report.json``: all at once, after everything was built, compared
    and measured.

    Args:
        student: The torch student; not changed.
        facts: What the file must say beside the weights.
        out_dir: Made where missing; files of the same names are replaced.
        name: Prefix of the files.
        int8: Quantise too.
        calibration: (N, 1, M, T) normalised log-mels, never real audio; needed for int8 only.
        source: What the calibration samples are, for the report: ``bank``, ``procedural``.
        portable: With int8, also ``{name}.int8.portable.onnx``: one graph for both runtimes.
        half: Also ``{name}.fp16.onnx``, and with int8 ``{name}.int8.trt.fp16.onnx``: what
            TensorRT builds its fp16 and int8 engines from.
        waveform: Also ``{name}.wave.onnx``: samples to logits, with the front end in the graph.
        options: Gates and budgets.
        evaluate: Accuracy (0 to 1) of a streaming model file on real data; reported, never used to
            choose layers or flavours.

    Raises:
        ExportError: The student, its facts or the folder do not fit.
        CalibrationError: The calibration set cannot be right.
        GraphError: The graph is not one that devices load.
        ParityError: Names or shapes differ from torch, or values are not finite.
        ModelFileError: A fact is of the wrong type or out of range.
    """
    options = options or ExportOptions()
    _check(student, facts, name)
    if portable and not int8:
        raise ExportError("A portable file is an int8 file, and int8 is off.", fix="Add int8.")
    info = model_info(student, facts)
    check_streamable(student, facts.mel, options)
    sample = None
    if int8:
        sample = prepare_calibration(calibration, facts.mel, student.context, options)
    trunk, head_bytes = trunk_graph(student, facts.mel.n_mels), serialised(head_graph(student))
    whole = whole_graph(student, facts.mel.n_mels)
    weight_KD, bias_K = (t.double().numpy() for t in frozen_head(student))
    head = Head(weight_KD, bias_K, student.pool_eps)
    gates, fp32, model = prove_fp32(student, facts, trunk, whole, head, options)
    bench = Bench(info, options)
    bundle = Bundle(gates=gates)
    fp32 = dataclasses.replace(fp32, path=f"{name}.fp32.onnx")
    bundle.add(Draft.of(fp32, described(trunk, info, head_bytes), trunk))
    model = dataclasses.replace(model, path=f"{name}.model.onnx")
    bundle.add(Draft.of(model, described_classifier(whole, info, CLASSIFIER_KEY), whole))
    made: Int8Files | None = None
    if sample is not None:
        ranges = calibration_ranges(frozen_trunk(student), sample.ranges)
        bundle.gates += calibration_gates(ranges, options)
        made = add_int8(
            bundle, trunk, head_bytes, head, info, sample, source,
            trunk_1s=bench.trunk_1s, name=name, portable=portable, options=options,
        )  # fmt: skip
    if half:
        mels = with_context(plausible_mels(facts.mel), student.context)
        heard = mels if sample is None else sample.holdout
        add_half(bundle, trunk, head_bytes, head, info, heard, name=name, options=options)
    if waveform:
        add_waveform(bundle, trunk, head, info, name=name, options=options)
    bench.run(bundle.graphs)
    artifacts = [bench.timed(a) for a in bundle.artifacts]
    if evaluate is not None:
        artifacts = _evaluated(artifacts, bundle.blobs, evaluate)
        bundle.gates += _accuracy_gates(artifacts, options)
    stale = _stale(out_dir, name, bundle)
    bundle.notes += [
        f"{file} in this folder is from an earlier export, not from this one." for file in stale
    ]
    judged, recommended, reason = judge(artifacts, bundle.gates)
    report = ExportReport(
        name=name,
        artifacts=judged,
        recommended=recommended,
        reason=reason,
        calibration=None if made is None else made.calibration,
        gates=tuple(bundle.gates),
        quantisation=None
        if made is None
        else quantisation_record(made.found, made.levels, options.level_db),
        layers=() if made is None else made.found.layers,
        bench=bench.description(),
        options=options.to_dict(),
        versions=dict(info.versions),
        notes=tuple(bundle.notes),
        stale=tuple(stale),
    )
    files = bundle.contents([(REPORT, json_bytes(report.to_dict()))])
    write_files(out_dir, files, seal=REPORT)
    return report


def _check(student: ExportableStudent, facts: StudentFacts, name: str) -> None:
    if missing := missing_parts(student):
        raise ExportError(
            f"{type(student).__name__} is no exportable student.",
            fix=f"It lacks {', '.join(missing)}; ExportableStudent says what they are.",
        )
    if not name or Path(name).name != name:
        raise ExportError(
            f"name {name!r} cannot prefix a file.", fix="Use a plain word, without a folder."
        )
    left, right = student.context
    if min(left, right) < 0 or left + right != student.receptive_field - 1:
        raise ExportError(
            f"A context of {left} + {right} mel frames does not fit a receptive field of "
            f"{student.receptive_field}.",
            fix=f"It must be {student.receptive_field - 1} frames in all, so that one mel frame "
            "gives one trunk frame.",
        )
    weight_KD, bias_K = student.collapsed_head()
    expected = (len(facts.labels), 2 * student.channels)
    if tuple(weight_KD.shape) != expected or tuple(bias_K.shape) != expected[:1]:
        raise ExportError(
            f"The head maps {tuple(weight_KD.shape)[::-1]} values, but {expected[0]} labels over "
            f"2 x {student.channels} statistics need {expected[::-1]}.",
            fix="Pass the labels of this student, in the order of its logits.",
        )


def _evaluated(
    artifacts: list[Artifact],
    blobs: dict[str, bytes],
    evaluate: Callable[[str | Path], float],
) -> list[Artifact]:
    """Score streaming files before they reach the user's folder: a failure leaves no trace."""
    with tempfile.TemporaryDirectory(prefix="frami-export-") as folder:
        scored = []
        for a in artifacts:
            if a.kind == "streaming":
                path = Path(folder, a.path)
                path.write_bytes(blobs[a.name])
                accuracy = float(evaluate(path))
                if not 0.0 <= accuracy <= 1.0:
                    raise ExportError(
                        f"evaluate gave {accuracy} for {a.path}.",
                        fix="It must return the share of right answers, from 0 to 1.",
                    )
                a = dataclasses.replace(a, accuracy=accuracy)
            scored.append(a)
    return scored


def _accuracy_gates(artifacts: list[Artifact], options: ExportOptions) -> list[Gate]:
    """One for each int8 file whose accuracy is known."""
    fp32 = next(a.accuracy for a in artifacts if a.name == "fp32")
    gates = []
    for a in artifacts:
        if a.precision == "int8" and a.accuracy is not None and fp32 is not None:
            gate = Gate.at_most(f"accuracy lost by {a.name}", fp32 - a.accuracy, options.max_drop)
            gates.append(dataclasses.replace(gate, artifact=a.name))
    return gates


def _stale(out_dir: Path, name: str, bundle: Bundle) -> list[str]:
    made = {a.path for a in bundle.artifacts}
    found = sorted(out_dir.glob(f"{glob.escape(name)}.*")) if out_dir.is_dir() else []
    return [
        path.name for path in found if path.suffix in (".onnx", ".engine") and path.name not in made
    ]
