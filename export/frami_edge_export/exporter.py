"""One student in, files and a measured report out."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_export.bench import BenchInputs, bench_drafts
from frami_edge_export.calibration import calibration_gates, calibration_ranges, prepare_calibration
from frami_edge_export.errors import ExportError
from frami_edge_export.frontend import waveform_draft
from frami_edge_export.graph import (
    ExportableStudent,
    OnnxStudent,
    StudentFacts,
    WholeClassifier,
    classifier_graph,
    frozen_head,
    frozen_trunk,
    head_graph,
    missing_parts,
    model_info,
    serialised,
    sha256,
    trunk_graph,
    with_entries,
)
from frami_edge_export.half import half_drafts
from frami_edge_export.int8 import int8_files
from frami_edge_export.lint import lint_tensorrt
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import (
    Head,
    check_fp32,
    check_streamable,
    parity_inputs,
    parity_lengths,
    with_context,
)
from frami_edge_export.report import Artifact, Draft, ExportReport, Gate, judge
from frami_edge_export.tensorrt import plausible_mels
from frami_edge_export.thresholds import ThresholdClips, find_thresholds
from frami_edge_runtime.modelfile import CLASSIFIER_KEY

REPORT: Final = "export_report.json"
Evaluate = Callable[[str | Path], float]


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
    evaluate: Evaluate | None = None,
    clips: ThresholdClips | None = None,
) -> ExportReport:
    """Write the student as ONNX, compare every file with it, and measure them.

    Writes ``{name}.fp32.onnx`` (trunk, with head and description inside), ``{name}.model.onnx``
    (mel to logits), with int8 also ``{name}.int8.cpu.onnx``, ``{name}.int8.trt.onnx`` and
    ``calib.json``, and ``export_report.json``: all at once, after everything was built, compared
    and measured.

    Args:
        student: The torch student; not changed.
        facts: Facts for the model files that the module does not hold.
        out_dir: Made where missing; files of the same names are replaced.
        name: Prefix of the files.
        int8: Quantise too.
        calibration: (N, 1, M, T) normalised log-mels, never real audio; needed for int8 only.
        source: Origin of the calibration samples, for the report: ``bank``, ``procedural``.
        portable: With int8, also ``{name}.int8.portable.onnx``: one graph for both runtimes.
        half: Also ``{name}.fp16.onnx``, and with int8 ``{name}.int8.trt.fp16.onnx``: the sources
            of TensorRT's fp16 and int8 engines. The target ``jetson-gpu`` gets them anyway.
        waveform: Also ``{name}.wave.onnx``: samples to logits, with the front end in the graph.
        options: Gates and budgets.
        evaluate: Accuracy (0 to 1) of a streaming model file on real data; reported, never used to
            choose layers or flavours.
        clips: What the thresholds of events are set from; without them the files carry none.

    Raises:
        ExportError: The student, its facts or the folder do not fit.
        CalibrationError: The calibration set is missing or implausible.
        GraphError: The graph cannot be loaded by devices.
        ParityError: Names or shapes differ from torch, or values are not finite.
        ModelFileError: A fact is of the wrong type or out of range.
    """
    options = options or ExportOptions()
    _check(student, facts, name)
    if portable and not int8:
        raise ExportError("A portable file is an int8 file, and int8 is off.", fix="Add int8.")
    info, mel, context = model_info(student, facts), facts.mel, student.context
    torch_trunk, field, stride = frozen_trunk(student), student.receptive_field, student.stride
    check_streamable(torch_trunk, field, stride, student.channels, mel, options.seed)
    sample = prepare_calibration(calibration, mel, context, options) if int8 else None

    trunk = trunk_graph(student, mel.n_mels)
    weight_KD, bias_K = (t.double().numpy() for t in frozen_head(student))
    head = Head(weight_KD, bias_K, student.pool_eps)
    whole = classifier_graph(trunk, head, info)
    made = OnnxStudent(name, trunk, head, serialised(head_graph(student)), info)
    thresholds, notes = None, list[str]()
    if clips is not None:
        target = options.false_alarms_per_hour
        thresholds, notes = find_thresholds(made.described(trunk, info), clips, target)
        info = info.replace(thresholds=thresholds.to_dict())
        made = dataclasses.replace(made, info=info)
    inputs = parity_inputs(parity_lengths(field, stride, mel), mel, options.seed)
    tolerance, classifier = options.parity_tolerance, WholeClassifier(student)
    parity = check_fp32(torch_trunk, classifier, trunk, whole, head, inputs, context, tolerance)
    gates = [
        Gate.at_most(f"torch = ONNX fp32, {form}", found.scaled_difference, tolerance)
        for form, found in parity.items()
    ]
    fp32 = Artifact(
        "fp32",
        f"{name}.fp32.onnx",
        "streaming",
        "fp32",
        max_abs_difference=max(
            parity[form].max_abs_difference for form in ("frames", "trunk and head")
        ),
        agreement=parity["trunk and head"].agreement,
    )
    model = Artifact(
        "model",
        f"{name}.model.onnx",
        "classifier",
        "fp32",
        max_abs_difference=parity["classifier"].max_abs_difference,
        agreement=parity["classifier"].agreement,
    )
    answered = made.answered(trunk, info)
    drafts = [
        Draft(fp32, made.described(trunk, info), trunk),
        Draft(model, with_entries(whole, {CLASSIFIER_KEY: answered.to_json()}), whole),
    ]

    bench_inputs = BenchInputs.of(info, options)
    quantised, files = None, dict[str, bytes]()
    if sample is not None:
        gates += calibration_gates(calibration_ranges(torch_trunk, sample.ranges), options)
        quantised = int8_files(made, sample, source, portable, options)
        drafts += quantised.drafts
        notes += quantised.notes
        files["calib.json"] = json_bytes(quantised.table)
    if half or options.target == "jetson-gpu":
        tensorrt = next((d for d in drafts if d.artifact.name == "int8.trt"), None)
        mels = with_context(plausible_mels(mel), context) if sample is None else sample.holdout
        more, left_out = half_drafts(made, tensorrt, mels, options)
        drafts += more
        notes += left_out
    if waveform:
        drafts.append(waveform_draft(made, options))

    gates += [gate for draft in drafts for gate in draft.gates]
    drafts = [_linted(draft) for draft in drafts]
    artifacts, bench = bench_drafts(drafts, bench_inputs, options)
    if evaluate is not None:
        artifacts = _evaluated(artifacts, drafts, evaluate)
        gates += _accuracy_gates(artifacts, options)
    files |= {draft.artifact.path: draft.data for draft in drafts}
    present = sorted(out_dir.glob(f"{glob.escape(name)}.*")) if out_dir.is_dir() else []
    stale = [p.name for p in present if p.suffix in (".onnx", ".engine") and p.name not in files]
    notes += [
        f"{file} in this folder is from an earlier export, not from this one." for file in stale
    ]
    elsewhere = options.target if options.target != bench["target"] else ""
    judged, recommended, reason = judge(artifacts, gates, elsewhere)
    report = ExportReport(
        name=name,
        artifacts=judged,
        recommended=recommended,
        reason=reason,
        calibration=None if quantised is None else quantised.calibration,
        gates=tuple(gates),
        quantisation=None if quantised is None else quantised.quantisation,
        layers=() if quantised is None else quantised.layers,
        bench=bench,
        options=options.to_dict(),
        versions=dict(info.versions),
        labels=tuple(info.labels),
        thresholds=None if thresholds is None else thresholds.to_dict(),
        notes=tuple(notes),
        stale=tuple(stale),
    )
    write_files(out_dir, files | {REPORT: json_bytes(report.to_dict())})
    return report


def _check(student: ExportableStudent, facts: StudentFacts, name: str) -> None:
    if missing := missing_parts(student):
        raise ExportError(
            f"{type(student).__name__} is not an exportable student: it lacks "
            f"{', '.join(missing)}.",
            fix="See ExportableStudent for what they are.",
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


def _linted(draft: Draft) -> Draft:
    """The draft with size, hash and the findings of the TensorRT lint in its artefact."""
    found = lint_tensorrt(draft.graph)
    artifact = dataclasses.replace(
        draft.artifact,
        bytes=len(draft.data),
        sha256=sha256(draft.data),
        lint=f"{len(found)} finding{'s' if len(found) > 1 else ''}" if found else "clean",
        findings=tuple(dataclasses.asdict(f) for f in found),
    )
    return dataclasses.replace(draft, artifact=artifact)


def _evaluated(
    artifacts: Sequence[Artifact], drafts: Sequence[Draft], evaluate: Evaluate
) -> list[Artifact]:
    """Score the streaming files in a temporary folder: a failure leaves the user's untouched."""
    scored = list(artifacts)
    with tempfile.TemporaryDirectory(prefix="frami-export-") as folder:
        for i, draft in enumerate(drafts):
            if scored[i].kind != "streaming":
                continue
            path = Path(folder, scored[i].path)
            path.write_bytes(draft.data)
            accuracy = float(evaluate(path))
            if not 0.0 <= accuracy <= 1.0:
                raise ExportError(
                    f"evaluate gave {accuracy} for {path.name}.",
                    fix="It must return the share of right answers, from 0 to 1.",
                )
            scored[i] = dataclasses.replace(scored[i], accuracy=accuracy)
    return scored


def _accuracy_gates(artifacts: Sequence[Artifact], options: ExportOptions) -> list[Gate]:
    """One gate per int8 file whose accuracy is known."""
    fp32 = next(a.accuracy for a in artifacts if a.name == "fp32") or 0.0
    return [
        Gate.at_most(f"accuracy lost by {a.name}", fp32 - a.accuracy, options.max_drop, a.name)
        for a in artifacts
        if a.precision == "int8" and a.accuracy is not None
    ]


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """One JSON object with a final newline; never NaN."""
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write every file in a hidden folder, then move them all into place, the report last.

    The old report goes first: a process killed in between leaves none that names other files.

    Raises:
        ExportError: The folder cannot be written to, or the disk is full: no file was replaced.
    """
    stage: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".export-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        stage = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
        for name, data in files.items():
            with (stage / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if REPORT in files:
            (folder / REPORT).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == REPORT):
            os.replace(stage / name, folder / name)
    except OSError as error:
        raise ExportError(
            f"Cannot write the export to {folder}: {error.strerror or error}.",
            fix="Choose a folder that you may write to, with room for the files.",
        ) from None
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
