"""The fp16 files of one export, for TensorRT: strongly typed engines compute as the graph says."""

from __future__ import annotations

import dataclasses
from typing import Final

import onnx

from frami_edge_export.drafts import Bundle, Draft
from frami_edge_export.errors import GraphError
from frami_edge_export.half import half_graph
from frami_edge_export.metadata import described
from frami_edge_export.options import ExportOptions
from frami_edge_export.report import Artifact, Gate
from frami_edge_export.scoring import Array, Comparison, Head, run_trunk
from frami_edge_export.sessions import cpu_session
from frami_edge_runtime.modelfile import METADATA_KEY, ModelInfo

MAX_DIFFERENCE: Final = 2e-2
"""Of the logits, per unit of the largest and absolute below 1; seen: 2e-4 to 2e-3."""


def add_half(
    bundle: Bundle,
    trunk: onnx.ModelProto,
    head_bytes: bytes,
    head: Head,
    info: ModelInfo,
    mels_N1MT: Array,
    *,
    name: str,
    options: ExportOptions,
) -> None:
    """Add ``fp16``, and ``int8.trt.fp16`` where the bundle holds an ``int8.trt``.

    A graph that fp16 cannot hold is left out with a note: the float32 ones do without it.

    Args:
        bundle: Gets the files, their gates and notes; call it after `add_int8`.
        trunk: The fp32 graph.
        head_bytes: The head's ONNX file, as every streaming file carries it.
        head: Pooling and head, to judge by logits.
        info: Of the fp32 file.
        mels_N1MT: Held-out mels with their context; parity inputs where there is no calibration.
        name: Prefix of the files.
        options: ``min_agreement``.
    """
    fp32_NK = head(run_trunk(cpu_session(trunk), mels_N1MT))
    int8 = next((d for d in bundle.drafts if d.artifact.name == "int8.trt"), None)
    graphs = {"fp16": (trunk, info.replace(precision="fp16"))}
    if int8 is not None and int8.graph is not None:
        graphs["int8.trt.fp16"] = (int8.graph, _description(int8.data))
    for which, (graph, described_as) in graphs.items():
        try:
            half = half_graph(graph)
        except GraphError as error:
            bundle.notes.append(f"There is no {which} file: {error.message}")
            continue
        own_NK = fp32_NK if graph is trunk else head(run_trunk(cpu_session(graph), mels_N1MT))
        found_NK = head(run_trunk(cpu_session(half), mels_N1MT))
        found = Comparison.of(fp32_NK, found_NK)
        artifact = Artifact(
            name=which,
            path=f"{name}.{which}.onnx",
            kind="streaming",
            precision=described_as.precision,
            bytes=0,
            max_abs_difference=found.max_abs_difference,
            agreement=found.agreement,
            sqnr_db=found.sqnr_db,
            purpose="TensorRT",
        )
        agreement = Comparison.of(own_NK, found_NK).agreement
        gates = [
            Gate.at_least(f"{which} agreement with fp32", found.agreement, options.min_agreement),
            Gate.at_least(
                f"{which} agreement with its float32 graph", agreement, options.min_agreement
            ),
        ]
        if which == "fp16":
            scaled = found.max_abs_difference / max(1.0, float(abs(fp32_NK).max()))
            gates[1] = Gate.at_most("fp16 difference from fp32", scaled, MAX_DIFFERENCE)
        data = described(half, described_as, head_bytes)
        # Linted but not timed: a CPU without fp16 kernels casts back, up to 14 times slower, and
        # would spend the others' measuring time.
        draft = dataclasses.replace(Draft.of(artifact, data, half), graph=None)
        bundle.add(
            draft,
            *(dataclasses.replace(gate, artifact=which) for gate in gates),
        )


def _description(data: bytes) -> ModelInfo:
    """What a file in the bundle says about itself."""
    model = onnx.load_model_from_string(data)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    return ModelInfo.from_json(entries[METADATA_KEY])
