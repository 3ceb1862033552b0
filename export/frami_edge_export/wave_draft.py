"""The waveform classifier of one export: built, compared with the runtime, judged."""

from __future__ import annotations

import dataclasses

import onnx

from frami_edge_export.drafts import Bundle, Draft
from frami_edge_export.options import ExportOptions
from frami_edge_export.report import Artifact, Gate
from frami_edge_export.scoring import Head
from frami_edge_export.waveform import (
    check_waveform,
    described_waveform,
    parity_clips,
    waveform_graph,
)
from frami_edge_runtime.modelfile import ModelInfo


def add_waveform(
    bundle: Bundle,
    trunk: onnx.ModelProto,
    head: Head,
    info: ModelInfo,
    *,
    name: str,
    options: ExportOptions,
) -> None:
    """Add ``wave``, samples in and logits out, from the fp32 trunk.

    Args:
        bundle: Gets the file and its gate.
        trunk: The fp32 graph.
        head: Pooling and head.
        info: Of the fp32 file.
        name: Prefix of the file.
        options: The seed of the clips that are compared.
    """
    graph = waveform_graph(trunk, head, info)
    found = check_waveform(graph, trunk, head, info, parity_clips(info.mel, options.seed))
    artifact = Artifact(
        name="wave",
        path=f"{name}.wave.onnx",
        kind="waveform",
        precision="fp32",
        bytes=0,
        max_abs_difference=found.max_abs_difference,
        agreement=found.agreement,
    )
    gate = Gate.at_most("waveform = runtime, logits", found.scaled_difference, found.tolerance)
    draft = Draft.of(artifact, described_waveform(graph, info), graph)
    bundle.add(draft, dataclasses.replace(gate, artifact="wave"))
