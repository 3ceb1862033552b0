"""`frami-edge bench`: how fast a model is here, alone or against another in the same minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frami_edge.cli._app import Json, Quiet, command_app, examples
from frami_edge.cli._output import Output

if TYPE_CHECKING:
    from frami_edge.measuring import Start, StreamLoad
    from frami_edge_export.bench import Latency

app = command_app()


@app.command(
    epilog=examples(
        "frami-edge bench student.int8.cpu.onnx",
        "frami-edge bench student.int8.cpu.onnx --vs student.fp32.onnx",
        "frami-edge bench student.fp32.onnx --seconds 1,10 --chunk 0.2 --threads 2 --json",
        "frami-edge bench student.int8.engine --vs student.fp32.onnx",
    )
)
def bench(
    model: Annotated[
        Path, typer.Argument(help="An .onnx file of `frami-edge export`, or an .engine.")
    ],
    vs: Annotated[
        Path | None, typer.Option("--vs", help="Time this one too, in turns with the first.")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, max=256, help="CPU threads of a run.")
    ] = 1,
    seconds: Annotated[
        str, typer.Option("--seconds", help="Lengths of audio to run at once, after commas.")
    ] = "1,5",
    chunk: Annotated[
        float, typer.Option("--chunk", min=0.001, max=60, help="Seconds of a streaming chunk.")
    ] = 0.1,
    backend: Annotated[
        str,
        typer.Option(
            "--backend", help="auto, cpu, cuda, tensorrt-ep or tensorrt; for files that stream."
        ),
    ] = "auto",
    rounds: Annotated[int, typer.Option("--rounds", min=15, help="At most so many of each.")] = 300,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Load time and memory of fresh processes.")
    ] = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Latency of a model's graph and of its whole stream, its share of a core, start and memory.

    With --vs both models take turns within each round, so that a busy machine slows both alike:
    trust the ratio more than the milliseconds.
    """
    from frami_edge.measuring import graph_latency, measure_start, measure_streams, open_subject
    from frami_edge_export.bench import cpu_name

    output = Output(json=json, quiet=quiet)
    lengths = _lengths(seconds)
    names = _names(model, vs)
    paths = [model] if vs is None else [model, vs]
    subjects = {n: open_subject(p, backend, threads) for n, p in zip(names, paths, strict=True)}
    output.note(f"Timing {' and '.join(names)}; this takes some seconds.")
    graphs = graph_latency(subjects, lengths, chunk, rounds)
    streams = measure_streams(subjects, chunk, rounds)
    starts = measure_start(subjects) if start else {}
    output.result(
        {
            "models": {
                name: {
                    "path": str(s.path),
                    "kind": s.kind,
                    "backend": s.backend,
                    "bytes": s.path.stat().st_size,
                    "graph": {what: asdict(found[name]) for what, found in graphs.items()
                              if name in found},
                    "stream": asdict(streams[name]) if name in streams else None,
                    "start": asdict(starts[name]) if name in starts else None,
                }
                for name, s in subjects.items()
            },
            "ratios": _ratios(graphs, streams, names),
            "threads": threads,
            "chunk_s": chunk,
            "cpu": cpu_name(),
        }
    )  # fmt: skip
    for name, subject in subjects.items():
        output.note(f"{name}: {subject.kind} on {subject.backend}.")
    timed = dict(graphs)
    if streams:
        timed[f"push {chunk:g} s"] = {name: load.latency for name, load in streams.items()}
    _show_latency(timed, names, threads, output)
    _show_rest(names, streams, starts, output)


def _show_latency(
    timed: Mapping[str, Mapping[str, Latency]],
    names: tuple[str, ...],
    threads: int,
    output: Output,
) -> None:
    from frami_edge_export.bench import cpu_name

    percentiles = ("p50", "p95", "p99")
    sides = ("",) if len(names) == 1 else (" a", " b")
    heading = ["", *(f"{p}{side}" for p in percentiles for side in sides)]
    if len(names) > 1:
        heading.append("a faster")
    rows: list[list[object]] = []
    for what, found in timed.items():
        times = [found.get(name) for name in names]
        row: list[object] = [what]
        for p in percentiles:
            row += [None if t is None else f"{getattr(t, f'{p}_ms'):.3f}" for t in times]
        if len(names) > 1:
            a, b = times
            row.append(None if a is None or b is None else f"{b.p50_ms / a.p50_ms:.2f}x")
        rows.append(row)
    title = names[0] if len(names) == 1 else f"a {names[0]}, b {names[1]}"
    output.table(
        title, heading, rows,
        caption=f"Milliseconds, {threads} thread{'s' if threads > 1 else ''}, {cpu_name()}. A push "
        "is mel, trunk, pooling and head; all else the graph alone.",
    )  # fmt: skip


def _show_rest(
    names: tuple[str, ...],
    streams: Mapping[str, StreamLoad],
    starts: Mapping[str, Start],
    output: Output,
) -> None:
    if streams:
        output.table(
            "Whole stream",
            ("model", "of one core", "real-time factor", "audio s", "results"),
            [(n, f"{100 * s.core_share:.2f} %", f"{s.real_time_factor:.5f}", f"{s.audio_s:.1f}",
              s.results) for n, s in streams.items()],
        )  # fmt: skip
    if starts:
        output.table(
            "In a fresh process",
            ("model", "import ms", "load ms", "first answer ms", "peak MB"),
            [(n, f"{s.import_ms:.0f}", f"{s.load_ms:.0f}", f"{s.first_ms:.1f}", f"{s.peak_mb:.0f}")
             for n, s in starts.items()],
        )  # fmt: skip


def _ratios(
    graphs: Mapping[str, Mapping[str, Latency]],
    streams: Mapping[str, StreamLoad],
    names: tuple[str, ...],
) -> dict[str, float]:
    """How many times faster the first model is, by median."""
    if len(names) < 2:
        return {}
    timed = {what: dict(found) for what, found in graphs.items()}
    timed["stream"] = {name: load.latency for name, load in streams.items()}
    return {
        what: found[names[1]].p50_ms / found[names[0]].p50_ms
        for what, found in timed.items()
        if len(found) == len(names)
    }


def _lengths(text: str) -> list[float]:
    """`1,5` to [1.0, 5.0].

    Raises:
        ConfigError: Not of this form.
    """
    from frami_edge.errors import ConfigError

    try:
        lengths = [float(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or not all(0.001 <= length <= 600 for length in lengths):
        raise ConfigError(
            f"--seconds {text!r} is not a list of lengths between 0.001 and 600.",
            fix="Write it like --seconds 1,5.",
        )
    return list(dict.fromkeys(lengths))


def _names(model: Path, vs: Path | None) -> tuple[str, ...]:
    """As short as tells them apart."""
    if vs is None:
        return (model.name,)
    if model.name != vs.name:
        return model.name, vs.name
    if model.parent.name != vs.parent.name:
        return f"{model.parent.name}/{model.name}", f"{vs.parent.name}/{vs.name}"
    return ("first", "second") if model == vs else (str(model), str(vs))
