"""`frami-edge bench`: how fast a model is on this machine, alone or compared with another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import command, command_app
from frami_edge.cli._output import Output

app = command_app()


@command(
    app,
    "frami-edge bench student.int8.cpu.onnx",
    "frami-edge bench student.int8.cpu.onnx --vs student.fp32.onnx",
    "frami-edge bench student.fp32.onnx --seconds 10 --chunk 0.2 --threads 2 --json",
    "frami-edge bench student.int8.engine --vs student.fp32.onnx",
)
def bench(
    output: Output,
    model: Annotated[
        Path, typer.Argument(help="An .onnx file of `frami-edge export`, or an .engine.")
    ],
    vs: Annotated[
        Path | None, typer.Option("--vs", help="A second model, timed in turns with the first.")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, max=256, help="CPU threads of one run.")
    ] = 1,
    seconds: Annotated[
        list[float] | None,
        typer.Option(
            "--seconds",
            min=0.001,
            max=600,
            help="Length of audio to run at once; repeatable.",
            show_default="1 and 5",
        ),
    ] = None,
    chunk: Annotated[
        float, typer.Option("--chunk", min=0.001, max=60, help="Seconds of a streaming chunk.")
    ] = 0.1,
    backend: opt.Backend = "auto",
    rounds: Annotated[
        int, typer.Option("--rounds", min=15, help="Largest number of rounds for each input.")
    ] = 300,
) -> None:
    """Time a model's graph and its whole stream.

    With --vs both models take turns within each round, so that a busy machine slows both alike:
    trust the ratio more than the milliseconds.
    """
    from frami_edge.measuring import measure
    from frami_edge.opening import open_model
    from frami_edge_export.bench import cpu_name

    models = [open_model(path, backend=backend, threads=threads) for path in (model, vs) if path]
    output.note("Timing takes some seconds.")
    timings = measure(models, seconds=seconds or (1.0, 5.0), chunk_s=chunk, rounds=rounds)
    speedups = {}
    if vs:
        first, second = (timing.latency for timing in timings)
        speedups = {n: second[n].p50_ms / first[n].p50_ms for n in first if n in second}
    described = [
        {"path": str(m.path), "kind": m.kind, **asdict(timing)}
        for m, timing in zip(models, timings, strict=True)
    ]
    output.result(
        {"models": described, "speedups": speedups, "threads": threads, "cpu": cpu_name()}
    )
    timed = [(m.path.name, timing) for m, timing in zip(models, timings, strict=True)]
    output.table(
        "Latency",
        ("model", "input", "p50 ms", "p95 ms", "p99 ms"),
        [
            (name, what, f"{t.p50_ms:.3f}", f"{t.p95_ms:.3f}", f"{t.p99_ms:.3f}")
            for name, timing in timed
            for what, t in timing.latency.items()
        ],
        caption=f"{threads} thread(s), {cpu_name()}. push: log-mel, trunk, pooling and head; all "
        "other inputs: the graph alone.",
    )
    if vs:
        output.table(
            "Speedup by median",
            ("input", f"{model.name} over {vs.name}"),
            [(what, f"{ratio:.2f}x") for what, ratio in speedups.items()],
        )
    streaming = [(name, timing) for name, timing in timed if timing.core_share is not None]
    if streaming:
        output.table(
            "Whole stream",
            ("model", "share of one core", "real-time factor"),
            [(name, timing.core_share, timing.real_time_factor) for name, timing in streaming],
        )
