"""`frami-edge distill`: from a teacher to a compact student, without data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import command, command_app
from frami_edge.cli._output import Output
from frami_edge.tables import percent

app = command_app()


@command(
    app,
    "frami-edge distill esc10-student --teacher runs/teacher/teacher.safetensors --out runs/s",
    "frami-edge distill my.yaml --teacher t.safetensors --bank runs/bank/bank --out runs/s",
    "frami-edge distill my.yaml --teacher t.safetensors --out runs/s --resume",
    shared=[*opt.RUN, *opt.CODE],
)
def distill(
    output: Output,
    given: dict[str, Any],
    config: opt.Config,
    teacher: opt.TeacherOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")],
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Bank to use.", show_default="one that is made in OUT/bank"),
    ] = None,
    sources: opt.Sources = None,
    overrides: opt.Overrides = None,
    seed: opt.NewSeed = None,
) -> None:
    """Distil a teacher into a compact student on synthetic log-mels. No audio is needed."""
    from frami_edge import api
    from frami_edge.config import JourneyConfig, load_config
    from frami_edge.runs import read_manifest

    mix = opt.parse_sources(sources)
    settings = load_config(JourneyConfig, config, overrides or ())
    opened = opt.open_teacher(teacher, given)
    with output.live() as progress:
        api.distill(
            opened,
            bank,
            config=settings,
            seed=seed,
            sources=mix,
            out=out,
            progress=progress,
            **given,
        )
    manifest, file = read_manifest(out), out / "student.safetensors"
    found, seconds = manifest["student"], manifest["seconds"]
    output.result(
        {
            "student": str(file),
            **found,
            "seconds": seconds,
            "plots": {name: str(out / path) for name, path in manifest["plots"].items()},
            "run_dir": str(out),
        }
    )
    output.table(
        "Student (last step)",
        ("parameters", "MMAC per s of audio", "agreement on held-out synthetic clips", "seconds"),
        [
            (
                found["parameters"],
                f"{found['macs_per_second'] / 1e6:.1f}",
                percent(found["synthetic_agreement"], 1),
                sum(seconds.get(phase, 0.0) for phase in ("invert", "distill")),
            )
        ],
    )
    output.note(f"Model card and pictures: {out / 'README.md'}")
    named = out / "teacher.yaml" if (out / "teacher.yaml").exists() else teacher
    known = opened.card.trained_on
    output.hint(
        f"frami-edge evaluate {file} --teacher {named} --data {known.data if known else 'NAME'}"
    )
