"""Engines on trial: each loaded, asked the same questions as its ONNX file, and timed in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from frami_edge_export.tensorrt import measure
from frami_edge_export.tensorrt.bundle import EngineSource
from frami_edge_export.tensorrt.errors import BuildError
from frami_edge_export.tensorrt.options import EngineOptions
from frami_edge_export.tensorrt.report import EngineArtifact
from frami_edge_runtime.backends.choose import open_backend
from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.errors import FramiEdgeError


def measure_all(
    built: list[EngineArtifact],
    failures: dict[str, str],
    sources: Sequence[EngineSource],
    stage: Path,
    options: EngineOptions,
    mels: measure.Array | None,
) -> list[EngineArtifact]:
    """Every engine loaded as the runtime loads it, compared and timed against the others.

    Args:
        built: Engines in the stage, not measured yet.
        failures: Gets what could not be loaded, by precision.
        sources: The ONNX files that they were built from, and fp32 where there is one.
        stage: Folder of engines and sidecars.
        options: Gates and measuring time.
        mels: (N, 1, M, T) to compare on; None: made up.

    Raises:
        BuildError: None of them can be loaded.
    """
    if mels is None:
        mels = measure.plausible_mels(sources[0].info.mel)
    used = {engine.card.onnx_name for engine in built}
    truth: dict[str, measure.Array64] = {}
    for source in sources:
        if source.name in used or source.precision == "fp32":
            reference = open_backend(source.data, "cpu")
            truth[source.precision] = measure.logits(reference, mels)
            reference.close()
    loaded: dict[str, Backend] = {}
    try:
        for engine in built:
            try:
                loaded[engine.precision] = open_backend(stage / engine.path, "tensorrt")
            except FramiEdgeError as error:
                failures[engine.precision] = error.message
        if not loaded:
            raise BuildError(
                f"No engine could be loaded after the build: "
                f"{' '.join(dict.fromkeys(failures.values()))}",
                fix="See to that and build again; the ONNX files run in ONNX Runtime as they are.",
            )
        second = measure.latencies(loaded, 1.0, options.bench_s / 2)
        chunk = measure.latencies(loaded, None, options.bench_s / 2)
        return [
            _measured(
                engine,
                measure.logits(loaded[engine.precision], mels),
                truth,
                (second, chunk),
                options,
            )
            for engine in built
            if engine.precision in loaded
        ]
    finally:
        for backend in loaded.values():
            backend.close()


def _measured(
    engine: EngineArtifact,
    found_NK: measure.Array64,
    truth: dict[str, measure.Array64],
    times: tuple[measure.Times, measure.Times],
    options: EngineOptions,
) -> EngineArtifact:
    own = measure.compare(truth[engine.precision], found_NK)
    largest = float(abs(truth[engine.precision]).max())
    fp32 = measure.compare(truth["fp32"], found_NK) if "fp32" in truth else None
    second, chunk = times
    p50, p95 = second[engine.precision]
    return dataclasses.replace(
        engine,
        p50_ms=p50,
        p95_ms=p95,
        chunk_p50_ms=chunk[engine.precision][0],
        speedup=second["fp32"][0] / p50 if "fp32" in second else None,
        max_abs_difference=own.max_abs_difference,
        agreement=own.agreement,
        sqnr_db=own.sqnr_db,
        passed=measure.within(engine.precision, own, largest, options.min_agreement),
        agreement_fp32=None if fp32 is None else fp32.agreement,
    )
