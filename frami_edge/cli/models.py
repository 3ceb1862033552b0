"""`frami-edge evaluate`, `verify`, `inspect`, `bench`, `tune`, `listen`: what models are for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Annotated, Any

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import Output, command, command_app
from frami_edge.errors import ConfigError, GateFailed
from frami_edge.tables import percent, show

app = command_app()


@command(
    app,
    "frami-edge evaluate runs/student/student.safetensors --data esc10",
    "frami-edge evaluate student.safetensors --data fsdd --teacher teacher.safetensors",
    "frami-edge evaluate student.int8.cpu.onnx --data fsdd --teacher t.safetensors --json",
    "frami-edge evaluate student.int8.cpu.onnx --stream day.wav --labels sounds.csv --out runs/day",
    "frami-edge evaluate student.safetensors --data esc50 --fold all --label-map map.csv",
    "frami-edge evaluate student.safetensors --data esc10 --teacher t.safetensors "
    "--controls all-synthetic,inversion,unrelated=esc40 --bank runs/student/bank --out runs/c",
    shared=[*opt.options(resume=(opt.Resume, False)), *opt.COMPUTE],
)
def evaluate(
    output: Output,
    given: dict[str, Any],
    model: Annotated[
        Path, typer.Argument(help="Checkpoint (.safetensors) or exported model (.onnx, .engine).")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Data set (see `frami-edge data`), or folder:PATH."),
    ] = None,
    stream: Annotated[
        list[Path] | None,
        typer.Option(
            "--stream",
            help="Instead of --data: a long recording, or a folder of them; repeatable. Scores "
            "events: false alarms per hour, hit rate, latency.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="Sounds in the recordings: csv with the header file,onset,offset,label; seconds.",
        ),
    ] = None,
    fold: opt.Fold = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Also compare with this teacher, clip by clip.")
    ] = None,
    data_root: opt.DataRoot = None,
    allow_partial: opt.AllowPartial = False,
    label_map: Annotated[
        Path | None,
        typer.Option(
            "--label-map",
            help="csv with a class of the data set and a label of the model per line, where their "
            "names differ.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder for pictures and figures.")
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            "--controls",
            metavar="NAMES",
            help="Add control rows: the student's network, distilled again with its seed and steps "
            "on other clips. Names: white_noise, smooth_noise, procedural (or all-synthetic for "
            "these three), real, scratch, unrelated=SET, and sources of --bank such as inversion. "
            "smooth_noise is always included.",
        ),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Bank of the student, for controls on one of its sources."),
    ] = None,
) -> None:
    """Score a model on real clips, by class, and compare it with its teacher.

    Clips that the teacher was trained on are refused or left out. With --stream the events in long
    recordings are scored; --out then holds a picture of missed sounds over false alarms.
    """
    from frami_edge import api
    from frami_edge.data.sets import part_name
    from frami_edge.event_scores import evaluate_stream
    from frami_edge.runs import read_manifest

    of_clips = any((fold, data_root, allow_partial, label_map, controls, bank))
    if (data is None) == (stream is None) or (of_clips if stream else labels):
        raise ConfigError(
            "These options do not say whether clips or long recordings are scored.",
            fix="Give --data and its options, or --stream with --labels, --teacher and --out.",
        )
    if stream is not None:
        picture = None if out is None else out / "detection_error.png"
        with output.live() as progress:
            heard = evaluate_stream(
                model, stream, labels=labels, teacher=teacher, picture=picture, progress=progress
            )
        output.result(heard.to_dict())
        output.tables(heard.tables())
        return
    assert data is not None
    if allow_partial:
        data = part_name(data)

    with output.live() as progress:
        found = api.evaluate(
            model,
            data=data,
            fold=fold,
            teacher=teacher,
            data_root=data_root,
            label_map=label_map,
            controls=None if controls is None else controls.split(","),
            bank=bank,
            out=out,
            progress=progress,
            **given,
        )
    plots = {} if out is None else {"plots": read_manifest(out)["plots"]}
    output.result(found.to_dict() | plots)
    output.tables(found.tables())
    if out:
        output.note(f"Pictures and figures: {out}")


@command(
    app,
    "frami-edge verify student.safetensors student.fp32.onnx --max-difference 1e-4",
    "frami-edge verify student.fp32.onnx student.int8.cpu.onnx --bank runs/student/bank",
    "frami-edge verify teacher.safetensors student.int8.cpu.onnx --data esc10 --min-agreement 0.9",
    "frami-edge verify student.fp32.onnx student.int8.engine --json",
)
def verify(
    output: Output,
    a: Annotated[Path, typer.Argument(help="Reference model: a checkpoint, ONNX file or engine.")],
    b: Annotated[Path, typer.Argument(help="Model to compare with the reference.")],
    bank: Annotated[
        Path | None, typer.Option("--bank", help="Compare on clips of this bank.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Compare on real clips of this data set, or folder:PATH."),
    ] = None,
    fold: opt.Fold = None,
    data_root: opt.DataRoot = None,
    clips: Annotated[
        int, typer.Option("--clips", min=1, help="Largest number of clips of each kind.")
    ] = 256,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            min=0,
            max=1,
            help="Gate: share of clips with the same predicted class.",
        ),
    ] = 0.98,
    max_difference: Annotated[
        float | None,
        typer.Option("--max-difference", min=0, help="Gate: largest difference of a logit."),
    ] = None,
    backend: opt.Backend = "auto",
    seed: opt.Seed = 0,
) -> None:
    """Compare two model files: first their facts, then their answers to the same clips.

    The clips come from a bank, from a data set, or from both; otherwise they are procedural. Clips
    of many lengths are always added, and every streaming file is compared with its own answer to
    the whole clip. Exit code 3 when a gate fails.
    """
    from frami_edge.comparing import bank_clips, compare, procedural_clips, real_clips
    from frami_edge.opening import open_model

    if data is None and (fold or data_root):
        raise ConfigError("--fold and --data-root need --data.", fix="Add --data NAME.")
    first, second = open_model(a, backend=backend), open_model(b, backend=backend)
    clip_sets = []
    if bank:
        clip_sets.append(bank_clips(bank, clips))
    if data:
        trained_on = first.trained_on or second.trained_on
        clip_sets.append(real_clips(data, data_root, fold, trained_on, clips))
    if not clip_sets:
        clip_sets.append(procedural_clips(first.mel, clips, seed))
    found = compare(
        first,
        second,
        clip_sets,
        min_agreement=min_agreement,
        max_difference=max_difference,
        seed=seed,
    )
    models = {
        key: {"path": str(model.path), "kind": model.kind, "sha256": model.sha256}
        for key, model in (("a", first), ("b", second))
    }
    output.result({**models, **asdict(found), "passed": bool(found)})
    for fact in found.facts:
        if fact.same is False:
            output.warn(f"{fact.fact} differs: {fact.a} and {fact.b}.")
    output.table(
        f"a: {a}, b: {b}", ("fact", "a", "b", "same"), [astuple(fact) for fact in found.facts]
    )
    output.table(
        "Answers of b compared with a",
        ("clips", "number", "agreement", "max. difference", "KL, nats", "SQNR, dB", "worst clip"),
        [(name, *astuple(difference)) for name, difference in found.answers.items()],
    )
    if found.streams:
        output.table(
            "Stream in random chunks compared with the whole clip",
            ("file", "clips", "chunks", "classify()", "one run"),
            [astuple(stream) for stream in found.streams],
            caption="Largest difference of a logit.",
        )
    limits = {
        g: f"{'at most' if g.better == 'lower' else 'at least'} {g.limit:.4g}" for g in found.gates
    }
    output.table(
        "Gates",
        ("gate", "value", "limit", "passed"),
        [(g.name, g.value, limit, g.passed) for g, limit in limits.items()],
    )
    if not found:
        failed = (
            f"{g.name} is {g.value:.4g}, not {limit}" for g, limit in limits.items() if not g.passed
        )
        raise GateFailed(
            f"{b} does not answer like {a}: {'; '.join(failed)}.",
            fix="Check that both files come from the same student, and look at the worst clips.",
        )
    output.note(f"{b} answers like {a}: {len(limits)} gates passed.")


_MOST_ITEMS, _LONG_LINE = 12, 90


@command(
    app,
    "frami-edge inspect runs/export/student.int8.cpu.onnx",
    "frami-edge inspect student.int8.engine",
    "frami-edge inspect runs/student/bank",
    "frami-edge inspect runs/export --json",
    "frami-edge inspect my_teacher.yaml",
    "frami-edge inspect my_package.nets:KeywordNet --weights kws.pt --mel mel/log-mel-16k-64 "
    "--labels labels.txt",
    "frami-edge inspect hf:MIT/ast-finetuned-audioset-10-10-0.4593",
    shared=opt.CODE,
)
def inspect(
    output: Output,
    given: dict[str, Any],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|MODULE:CALLABLE|hf:NAME",
            help="An ONNX file, TensorRT engine or checkpoint; the folder of a bank, an export or "
            "a run; a teacher in Python code, in ONNX (add --labels), or of Hugging Face (a folder "
            "or OWNER/NAME).",
        ),
    ],
) -> None:
    """Describe a file or folder: shapes, weights, front end, classes, origin and problems.

    Files are only read, never executed. A teacher in Python code is built and run.
    """
    from frami_edge.inspecting import describe, describe_teacher
    from frami_edge.teachers.hugging_face import PREFIX
    from frami_edge.teachers.opening import describe_code, is_hugging_face

    words = opt.code_words(given)
    code = {name: value for name, value in opt.code_arguments(given).items() if value is not None}
    description = describe_code(file, code)
    found = describe_teacher(description) if description else describe(Path(file))
    output.result({"file": file, **found.to_dict()})
    title = found.title
    for name, facts in found.sections.items():
        rows = [(key.replace("_", " "), text(value)) for key, value in facts.items()]
        output.table(title, (name.replace("_", " "), ""), rows)
        title = ""
    for note in found.notes:
        output.note(note)
    for finding in found.findings:
        output.warn(finding)
    if found.kind == "teacher" or found.sections.get("hidden_states", {}).get("found"):
        teacher = f"{PREFIX}{file}" if is_hugging_face(Path(file)) else file
        words = ["frami-edge", "distill", "--teacher", teacher, *words]
        output.hint(shlex.join([*words, "--out", "runs/student"]))


def text(value: Any, *, nested: bool = False) -> str:
    """A value for a table cell; long values are shortened, JSON has all of them."""
    if isinstance(value, Mapping):
        shown = [f"{key}: {text(item, nested=True)}" for key, item in value.items()]
        if nested and len(shown) > _MOST_ITEMS:
            return f"{len(shown)} entries"
        line = "; ".join(shown) or "none"
        return line if nested or len(line) < _LONG_LINE else "\n".join(shown)
    if isinstance(value, list | tuple):
        more = f" and {len(value) - _MOST_ITEMS} more" if len(value) > _MOST_ITEMS else ""
        return (", ".join(text(item) for item in value[:_MOST_ITEMS]) or "none") + more
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ")
    return show(value)


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
    from frami_edge.comparing import measure
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
            ("model", "share of one core", "real-time factor", "a gate saves", "with sounds"),
            [
                (
                    name, t.core_share, t.real_time_factor, percent(t.gate_saves, 0),
                    percent(t.gate_saves_with_sounds, 0),
                )
                for name, t in streaming
            ],
            "A gate, see --gate of frami-edge listen, saves CPU time in a quiet room, and in one "
            "with 5 s of sound in 100 s.",
        )  # fmt: skip


@command(
    app,
    "frami-edge tune student.int8.cpu.onnx --audio recordings/kitchen --out kitchen.onnx",
    "frami-edge tune student.int8.cpu.onnx --audio day.wav --false-alarms-per-hour 1 "
    "--out kitchen.onnx",
)
def tune(
    output: Output,
    model: Annotated[Path, typer.Argument(help="Streaming .onnx file of `frami-edge export`.")],
    audio: Annotated[
        list[Path],
        typer.Option(
            "--audio",
            help="Recording of the place without your sounds, or a folder of them; repeatable.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The model with the new thresholds.")],
    false_alarms: Annotated[
        float | None,
        typer.Option(
            "--false-alarms-per-hour",
            min=1e-6,
            max=1e4,
            help="Target.",
            show_default="the model's",
        ),
    ] = None,
) -> None:
    """Adapt the thresholds of a model to the background of a place, without labels.

    On a device without this program: `frami-edge-listen MODEL --tune SECONDS --out FILE`.
    """
    from frami_edge.event_scores import tune as tune_to
    from frami_edge_runtime.classifier import Classifier

    found, left_out = tune_to(model, audio, out, false_alarms_per_hour=false_alarms)
    output.result({"out": str(out), **found.to_dict(), "left_out": left_out})
    caption = f"{found}." + f" {len(left_out)} recordings were left out." * bool(left_out)
    rows = zip(Classifier(out).labels, found.on, found.off, strict=True)
    output.table(f"Thresholds in {out}", ("label", "on", "off"), list(rows), caption=caption)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],  # --help, too, is answered by the runtime's program
    }
)
def listen(context: typer.Context) -> None:
    """Listen to a microphone, a file or a pipe: level, top classes and events."""
    from frami_edge_runtime.listen import main

    raise typer.Exit(main(context.args, prog="frami-edge listen"))
