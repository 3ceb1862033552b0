"""torch = ONNX fp32, over many lengths and all forms of the graph."""

from __future__ import annotations

import dataclasses

import onnx

from frami_edge_export.graphs import frozen_trunk, whole_classifier
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import check_parity, check_streaming, parity_inputs, parity_lengths
from frami_edge_export.protocol import ExportableStudent, StudentFacts
from frami_edge_export.report import Artifact, Gate
from frami_edge_export.scoring import Head, with_context
from frami_edge_runtime.modelfile import HEAD_OUTPUT, TRUNK_INPUT, TRUNK_OUTPUT


def prove_fp32(
    student: ExportableStudent,
    facts: StudentFacts,
    trunk: onnx.ModelProto,
    whole: onnx.ModelProto,
    head: Head,
    options: ExportOptions,
) -> tuple[list[Gate], Artifact, Artifact]:
    """Compare the trunk and the whole classifier with the torch student.

    Returns:
        The parity gates, and the artefacts ``fp32`` and ``model`` without path and size.

    Raises:
        ParityError: Names or shapes differ, or values are not finite.
    """
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
