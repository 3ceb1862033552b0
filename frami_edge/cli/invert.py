"""`frami-edge invert`: a teacher in, a bank of synthetic log-mels out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli._app import (
    Deterministic,
    Device,
    Json,
    Overrides,
    Precision,
    Quiet,
    command_app,
    examples,
)
from frami_edge.cli._options import (
    Frames,
    Labels,
    Layout,
    Mel,
    Pooled,
    Resume,
    Sources,
    TeacherArgs,
    TeacherOption,
    Weights,
    describe_in,
    journey_config,
    journey_device,
    on_every_rank,
    resume_command,
    say_doubts,
    teacher_file,
    teacher_source,
)
from frami_edge.cli._output import Output

app = command_app()


@app.command(
    epilog=examples(
        "frami-edge invert esc10-student --teacher t.safetensors --out runs/bank",
        "frami-edge invert my.yaml --teacher t.safetensors --out runs/bank --sources inversion",
        "frami-edge invert my.yaml --teacher t.safetensors --out runs/bank --listen runs/wav",
    )
)
@on_every_rank
def invert(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a preset.")],
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder; the bank lies in OUT/bank.")],
    sources: Sources = None,
    listen: Annotated[
        Path | None,
        typer.Option("--listen", help="Also write one clip a class of each source as WAV here."),
    ] = None,
    overrides: Overrides = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Replaces the config's.")
    ] = None,
    weights: Weights = None,
    mel: Mel = None,
    labels: Labels = None,
    teacher_args: TeacherArgs = None,
    frames: Frames = None,
    pooled: Pooled = None,
    layout: Layout = None,
    resume: Resume = False,
    deterministic: Deterministic = False,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Invert a teacher into a bank of synthetic log-mels. No audio goes in."""
    from frami_edge import inversion
    from frami_edge.cli._options import shared_run
    from frami_edge.device import set_seed
    from frami_edge.distributed import world
    from frami_edge.errors import ConfigError
    from frami_edge.runs import record_compute
    from frami_edge.teachers.opening import open_teacher

    output = Output(json=json, quiet=quiet)
    if listen and listen.exists() and not listen.is_dir():
        raise ConfigError(f"--listen {listen} is a file.", fix="Give a folder.")
    settings = journey_config(config, overrides, sources, seed)
    compute = journey_device(device, precision)
    if deterministic and compute.device.type == "cuda":
        set_seed(settings.seed, deterministic=True)
    code = (weights, mel, labels, teacher_args, frames, pooled, layout)
    named_teacher = teacher_source(teacher, *code)
    loaded = inversion.ready(open_teacher(named_teacher), compute)
    say_doubts(loaded, output)
    context = inversion.context_of(loaded, settings.bank, compute, settings.seed)
    output.note(f"Device: {compute.reason}")
    with shared_run(
        out,
        command="invert",
        config=settings,
        resume=resume,
        inputs={"teacher": teacher_file(named_teacher)},
        seeds={"seed": settings.seed},
        device=compute.reason,
    ) as run:
        run.resume_hint = resume_command()
        record_compute(run, compute, deterministic=deterministic)
        named = describe_in(run, named_teacher) if world().main else ""
        bank = inversion.invert(
            run, run.path("bank"), context, loaded.card.labels, loaded.sha256, output
        )
        if not world().main:
            return
        pictures = inversion.report(run, bank, output)
        wavs = [
            str(path)
            for source in (bank.sources if listen else {})
            for path in inversion.listen(bank, source, listen or out)
        ]
        output.result(
            {
                "bank": str(run.path("bank")),
                "clips": bank.sources,
                "health": bank.index.health,
                "seconds": run.manifest["seconds"],
                "plots": {name: str(run.path(path)) for name, path in pictures.items()},
                "wavs": wavs,
                "run_dir": str(out),
            }
        )
    output.note(f"Pictures: {', '.join(str(out / p) for p in pictures.values())}")
    mix = f" --sources {sources}" if sources else ""
    output.hint(
        f"frami-edge distill {config} --teacher {named} --bank {out}/bank{mix} --out runs/student"
    )
