"""`frami-edge distill`: a teacher in, a compact student out, no data in between."""

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
        "frami-edge distill esc10-student --teacher runs/teacher/teacher.safetensors --out runs/s",
        "frami-edge distill my.yaml --teacher t.safetensors --bank runs/bank/bank --out runs/s",
        "frami-edge distill my.yaml --teacher t.safetensors --out runs/s --resume",
    )
)
@on_every_rank
def distill(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a preset.")],
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")],
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Use this bank; without it one is made in OUT/bank."),
    ] = None,
    sources: Sources = None,
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
    """Distil a teacher into a compact student on synthetic log-mels. No audio goes in."""
    from frami_edge import distillation, inversion
    from frami_edge.bank import Bank, BankFeed, check_bank
    from frami_edge.checkpoint import parameters
    from frami_edge.cli._options import shared_run
    from frami_edge.device import set_seed
    from frami_edge.distributed import world
    from frami_edge.errors import BankError
    from frami_edge.models import macs_per_second
    from frami_edge.runs import record_compute
    from frami_edge.teachers.opening import open_teacher

    output = Output(json=json, quiet=quiet)
    settings = journey_config(config, overrides, sources, seed)
    compute = journey_device(device, precision)
    if deterministic and compute.device.type == "cuda":
        set_seed(settings.seed, deterministic=True)
    code = (weights, mel, labels, teacher_args, frames, pooled, layout)
    named_teacher = teacher_source(teacher, *code)
    loaded = inversion.ready(open_teacher(named_teacher), compute)
    say_doubts(loaded, output)
    given = Bank.open(bank) if bank else None
    if given:
        check_bank(given, loaded.spec, loaded.card.labels, loaded.sha256)
        if given.index.frames != settings.bank.frames:
            raise BankError(
                f"The clips in {bank} have {given.index.frames} mel frames, bank.frames is "
                f"{settings.bank.frames}.",
                fix=f"Add --set bank.frames={given.index.frames}, or make another bank.",
            )
        # Refuses a bank that lacks a source, before a run begins.
        BankFeed(given, settings.bank.shares)
    else:
        context = inversion.context_of(loaded, settings.bank, compute, settings.seed)
    output.note(f"Device: {compute.reason}")
    with shared_run(
        out,
        command="distill",
        config=settings,
        resume=resume,
        inputs={"teacher": teacher_file(named_teacher)}
        | ({"bank": bank / "bank.json"} if bank else {}),
        seeds={"seed": settings.seed},
        device=compute.reason,
    ) as run:
        run.resume_hint = resume_command()
        record_compute(run, compute, deterministic=deterministic)
        named = describe_in(run, named_teacher) if world().main else ""
        if given:
            source, pictures = given, {}
        else:
            source = inversion.invert(
                run, run.path("bank"), context, loaded.card.labels, loaded.sha256, output
            )
            pictures = inversion.report(run, source, output) if world().main else {}
        feed = BankFeed(source, settings.bank.shares)
        student = distillation.distill(
            run, loaded, settings.student, settings.distill, feed, compute, settings.seed, output
        )
        if not world().main:
            return
        agreement = distillation.held_out_agreement(loaded, student, settings, compute)
        cost = macs_per_second(student, loaded.spec)
        metrics = {"synthetic_agreement": agreement, "steps": settings.distill.steps}
        card, sha256 = distillation.save_student(run, student, loaded, settings, metrics)
        pictures |= distillation.draw(run)
        distillation.write_readme(run, card, student, source, pictures)
        file = run.path("student.safetensors")
        run.record(student={"sha256": sha256, "parameters": parameters(student), **metrics})
        output.table(
            "Student (last step)",
            (
                "parameters",
                "MMAC per s of audio",
                "agreement on held-out synthetic clips",
                "seconds",
            ),
            [
                (
                    parameters(student),
                    f"{cost / 1e6:.1f}",
                    f"{100 * agreement:.1f} %",
                    sum(run.manifest["seconds"].get(k, 0.0) for k in ("invert", "distill")),
                )
            ],
        )
        output.result(
            {
                "student": str(file),
                "sha256": sha256,
                "parameters": parameters(student),
                "macs_per_second": cost,
                "synthetic_agreement": agreement,
                "seconds": run.manifest["seconds"],
                "plots": {name: str(run.path(path)) for name, path in pictures.items()},
                "run_dir": str(out),
            }
        )
    output.note(f"Pictures: {', '.join(str(out / p) for p in pictures.values())}")
    heard = loaded.card.trained_on
    data = f" --data {heard.data}" if heard else " --data NAME"
    output.hint(f"frami-edge evaluate {file} --teacher {named}{data}")
