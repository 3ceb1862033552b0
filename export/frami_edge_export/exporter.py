"""One student in, files and a measured report out.

Shape legend: N samples, B batch, M mel bands, T mel frames, C channels, T' trunk frames, K classes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from frami_edge_export.benching import Bench
from frami_edge_export.calibration import prepare_calibration
from frami_edge_export.calibration_gate import calibration_gates, calibration_ranges
from frami_edge_export.errors import ExportError
from frami_edge_export.files import json_bytes, sha256, write_files
from frami_edge_export.graphs import (
    frozen_head,
    frozen_trunk,
    head_graph,
    trunk_graph,
    whole_classifier,
    whole_graph,
)
from frami_edge_export.int8_search import Int8Result, Int8Search
from frami_edge_export.metadata import described, described_classifier, model_info, serialised
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import check_parity, check_streaming, parity_inputs, parity_lengths
from frami_edge_export.protocol import ExportableStudent, StudentFacts
from frami_edge_export.quantise import Quantiser
from frami_edge_export.records import (
    calibration_record,
    calibration_table,
    int8_artifact,
    int8_info,
    quantisation_record,
)
from frami_edge_export.report import Artifact, ExportReport, Gate
from frami_edge_export.scoring import Head, with_context
from frami_edge_export.streamable import check_streamable
from frami_edge_export.verdicts import judge
from frami_edge_runtime.modelfile import HEAD_OUTPUT, TRUNK_INPUT, TRUNK_OUTPUT

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
    options: ExportOptions | None = None,
    evaluate: Callable[[str | Path], float] | None = None,
) -> ExportReport:
    """Write the student as ONNX, prove that it answers the same, and measure it.

    Writes ``{name}.fp32.onnx`` (trunk, with head and description inside), ``{name}.model.onnx``
    (mel to logits), with int8 also ``{name}.int8.cpu.onnx`` and ``calib.json``, and
    ``export_report.json``: all at once, after everything was built, compared and measured.

    Args:
        student: The torch student; not changed.
        facts: What the file must say beside the weights.
        out_dir: Made where missing; files of the same names are replaced.
        name: Prefix of the files.
        int8: Quantise too.
        calibration: (N, 1, M, T) normalised log-mels, never real audio; needed for int8 only.
        source: What the calibration samples are, for the report: ``bank``, ``procedural``.
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
    info = model_info(student, facts)
    check_streamable(student, facts.mel, options)
    sample = None
    if int8:
        sample = prepare_calibration(calibration, facts.mel, student.context, options)
    trunk, head_bytes = trunk_graph(student, facts.mel.n_mels), serialised(head_graph(student))
    whole = whole_graph(student, facts.mel.n_mels)
    weight_KD, bias_K = (t.double().numpy() for t in frozen_head(student))
    head = Head(weight_KD, bias_K, student.pool_eps)
    gates, fp32, model = _prove(student, facts, trunk, whole, head, options)
    bench = Bench(info, options)
    graphs = {"fp32": trunk, "model": whole}
    blobs = {
        "fp32": described(trunk, info, head_bytes),
        "model": described_classifier(whole, info, CLASSIFIER_KEY),
    }
    artifacts = [
        dataclasses.replace(fp32, path=f"{name}.fp32.onnx"),
        dataclasses.replace(model, path=f"{name}.model.onnx"),
    ]
    used, found, table = None, None, None
    if sample is not None:
        gates += calibration_gates(
            calibration_ranges(frozen_trunk(student), sample.ranges), options
        )
        quantiser = Quantiser(trunk, sample.ranges)
        found = Int8Search(trunk, quantiser, sample.holdout, head, bench.trunk_1s, options).run()
        used = calibration_record(sample, source)
        table = calibration_table(trunk, quantiser, used)
        graphs["int8.cpu"] = found.chosen.model
        blobs["int8.cpu"] = described(
            found.chosen.model, int8_info(info, found, used, table), head_bytes
        )
        artifacts.append(int8_artifact(found, f"{name}.int8.cpu.onnx"))
        agreement = found.chosen.comparison.agreement
        gates.append(Gate.at_least("int8 agreement with fp32", agreement, options.min_agreement))
    bench.run(graphs)
    artifacts = [
        bench.timed(dataclasses.replace(a, bytes=len(blobs[a.name]), sha256=sha256(blobs[a.name])))
        for a in artifacts
    ]
    notes = _notes(out_dir, name, int8, found, options)
    if evaluate is not None:
        artifacts = _evaluated(artifacts, blobs, evaluate)
        gates += _accuracy_gate(artifacts, options)
    judged, recommended, reason = judge(artifacts, gates)
    report = ExportReport(
        name=name,
        artifacts=judged,
        recommended=recommended,
        reason=reason,
        calibration=used,
        gates=tuple(gates),
        quantisation=None if found is None else quantisation_record(found),
        layers=() if found is None else found.layers,
        bench=bench.description(),
        options=options.to_dict(),
        versions=dict(info.versions),
        notes=notes,
    )
    files = {a.path: blobs[a.name] for a in artifacts}
    if table is not None:
        files["calib.json"] = json_bytes(table)
    write_files(out_dir, files | {"export_report.json": json_bytes(report.to_dict())})
    return report


def _check(student: ExportableStudent, facts: StudentFacts, name: str) -> None:
    if not isinstance(student, ExportableStudent):
        needed = "trunk, receptive_field, stride, context, channels, pool_eps, collapsed_head()"
        raise ExportError(
            f"{type(student).__name__} is no exportable student.", fix=f"It must have {needed}."
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


def _prove(
    student: ExportableStudent,
    facts: StudentFacts,
    trunk: onnx.ModelProto,
    whole: onnx.ModelProto,
    head: Head,
    options: ExportOptions,
) -> tuple[list[Gate], Artifact, Artifact]:
    lengths = parity_lengths(student.receptive_field, student.stride, facts.mel)
    inputs = parity_inputs(lengths, facts.mel, options.seed)
    context = student.context
    tolerance = options.parity_tolerance
    classifier = whole_classifier(student)
    frames = check_parity(
        frozen_trunk(student), trunk, [with_context(x, context) for x in inputs],
        names=(TRUNK_INPUT, TRUNK_OUTPUT), tolerance=tolerance, label="trunk",
    )  # fmt: skip
    logits = check_parity(
        classifier, whole, inputs, names=(TRUNK_INPUT, HEAD_OUTPUT),
        tolerance=tolerance, label="classifier",
    )  # fmt: skip
    streaming = check_streaming(classifier, trunk, head, inputs, tolerance, context)
    gates = [
        Gate.at_most("torch = ONNX fp32, frames", frames.scaled_difference, tolerance),
        Gate.at_most("torch = ONNX fp32, classifier", logits.scaled_difference, tolerance),
        Gate.at_most("torch = ONNX fp32, trunk and head", streaming.scaled_difference, tolerance),
    ]
    base = Artifact("fp32", "", "streaming", "fp32", 0)
    fp32 = dataclasses.replace(
        base,
        max_abs_difference=max(frames.max_abs_difference, streaming.max_abs_difference),
        agreement=streaming.agreement,
    )
    model = dataclasses.replace(
        base,
        name="model",
        kind="classifier",
        max_abs_difference=logits.max_abs_difference,
        agreement=logits.agreement,
    )
    return gates, fp32, model


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


def _accuracy_gate(artifacts: list[Artifact], options: ExportOptions) -> list[Gate]:
    known = {a.name: a.accuracy for a in artifacts if a.accuracy is not None}
    if "int8.cpu" not in known:
        return []
    lost = known["fp32"] - known["int8.cpu"]
    return [Gate.at_most("accuracy lost by int8", lost, options.max_drop)]


def _notes(
    out_dir: Path, name: str, int8: bool, found: Int8Result | None, options: ExportOptions
) -> tuple[str, ...]:
    notes = []
    stale = out_dir / f"{name}.int8.cpu.onnx"
    if not int8 and stale.exists():
        notes.append(f"{stale.name} in this folder is from an earlier export, not from this one.")
    if found is not None and found.fallback:
        names = ", ".join(found.fallback)
        notes.append(
            f"{names} went back to float to reach an agreement of {options.min_agreement:.0%}."
        )
    return tuple(notes)
