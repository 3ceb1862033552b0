"""`frami-edge train-teacher`, `invert` and `distill`: what makes a teacher, a bank, a student."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import Output, command, command_app
from frami_edge.tables import percent

app = command_app()


@command(
    app,
    "frami-edge train-teacher fsdd-teacher",
    "frami-edge train-teacher esc10-teacher --set data.fold=1 --out runs/esc10-fold1",
    "frami-edge train-teacher my.yaml --data-root ~/sounds --out runs/my --resume",
    shared=opt.RUN,
)
def train_teacher(
    output: Output,
    given: dict[str, Any],
    config: opt.Config,
    overrides: opt.Overrides = None,
    data_root: opt.DataRoot = None,
    allow_partial: opt.AllowPartial = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder.", show_default="runs/CONFIG")
    ] = None,
) -> None:
    """Train a teacher on real audio with one fold held out, and score it on that fold once."""
    from frami_edge import api
    from frami_edge.config import TeacherConfig
    from frami_edge.data.sets import part_name
    from frami_edge.runs import read_manifest
    from frami_edge.yaml_config import load_config, presets

    settings = load_config(TeacherConfig, config, overrides or ())
    if allow_partial:
        update = {"name": part_name(settings.data.name)}
        settings = settings.model_copy(update={"data": settings.data.model_copy(update=update)})
    name = Path(config).stem
    folder = out or Path("runs") / name
    with output.live() as progress:
        teacher = api.train_teacher(
            settings, data_root=data_root, out=folder, progress=progress, **given
        )
    manifest, known = read_manifest(folder), teacher.card.trained_on
    assert known is not None
    file, metrics = folder / "teacher.safetensors", teacher.card.metrics
    seconds = manifest["seconds"]["train"]
    output.result(
        {
            "teacher": str(file),
            "sha256": teacher.sha256,
            "data": known.data,
            "test_fold": known.test_fold,
            "train_clips": known.clips,
            "test_clips": metrics["test_clips"],
            "training_clips": manifest["data"]["test"]["training_clips"],
            "notes": manifest["data"]["notes"],
            "accuracy": metrics["accuracy"],
            "recall": manifest["recall"],
            "parameters": manifest["parameters"],
            "train_seconds": seconds,
            "seed": settings.seed,
            "run_dir": str(folder),
        }
    )
    output.table(
        f"Fold {known.test_fold} of {known.data} by class",
        ("class", "recall"),
        [(label, percent(share, 1)) for label, share in manifest["recall"].items()],
    )
    output.table(
        "Teacher (last epoch)",
        ("accuracy", "test clips", "training clips", "parameters", "seconds of training"),
        [
            (
                percent(metrics["accuracy"]),
                metrics["test_clips"],
                known.clips,
                f"{manifest['parameters']:,}",
                f"{seconds:.1f}",
            )
        ],
        caption=" ".join(manifest["data"]["notes"]),
    )
    output.note(f"Model card and pictures: {folder / 'README.md'}")
    student = name.removesuffix("-teacher") + "-student"
    words = ["frami-edge", "distill", *([student] if student in presets() else [])]
    output.hint(shlex.join([*words, "--teacher", str(file), "--out", f"runs/{student}"]))


def _real_audio(recordings: int) -> str:
    return f"; real audio: {recordings} recordings of the user" if recordings else ""


def _teacher_file(run: Path, teacher: str) -> str:
    """The description that the run wrote of a teacher in code, or the teacher as given."""
    return str(run / "teacher.yaml") if (run / "teacher.yaml").exists() else teacher


def _worst_class(health: dict[str, Any], labels: Sequence[str]) -> str | None:
    rates = zip(health["hit_rate_per_class"], labels, strict=True)
    known = [(rate, label) for rate, label in rates if rate is not None]
    return "{1} {0:.0%}".format(*min(known)) if known else None


HEALTH = ("batch_norm_error", "entropy", "embedding_variance", "cosine", "loudness_spread")


@command(
    app,
    "frami-edge invert esc10-student --teacher t.safetensors --out runs/bank",
    "frami-edge invert my.yaml --teacher t.safetensors --out runs/bank --sources inversion",
    "frami-edge invert my.yaml --teacher t.safetensors --out runs/bank --listen runs/wav",
    shared=[*opt.RUN, *opt.TEACHER],
)
def invert(
    output: Output,
    given: dict[str, Any],
    teacher: opt.TeacherOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder; the bank is in OUT/bank.")],
    config: opt.Recipe = None,
    sources: opt.Sources = None,
    recordings: opt.Recordings = None,
    listen: Annotated[
        Path | None,
        typer.Option("--listen", help="Also write clips of every source as WAV files here."),
    ] = None,
    overrides: opt.Overrides = None,
    seed: opt.NewSeed = None,
) -> None:
    """Invert a teacher into a bank of synthetic clips. No audio is needed."""
    from frami_edge import api
    from frami_edge.journey import write_examples
    from frami_edge.runs import read_manifest
    from frami_edge_runtime.state import check_place

    if listen:
        check_place(listen, folder=True)
    mix, folder = opt.parse_sources(sources, recordings)
    settings, changes = opt.read_recipe(config, overrides)
    opened = opt.open_teacher(teacher, given)
    with output.live() as progress:
        bank = api.invert(
            opened, config=settings, seed=seed, sources=mix, recordings=folder, overrides=changes,
            out=out, progress=progress, **given,
        )  # fmt: skip
    wavs = [
        str(path)
        for source in (bank.sources if listen else {})
        for path in write_examples(bank, source, listen or out)
    ]
    manifest, health = read_manifest(out), bank.index.health
    output.result(
        {
            "bank": str(bank.folder),
            "clips": bank.sources,
            "health": health,
            "seconds": manifest["seconds"],
            "plots": {name: str(out / path) for name, path in manifest["plots"].items()},
            "wavs": wavs,
            "run_dir": str(out),
        }
    )
    output.table(
        "Bank health, from the teacher"
        + (_real_audio(bank.index.recordings) or "; no real clip is involved"),
        (
            *("source", "clips", "target hit rate", "worst class"),
            *(name.replace("_", " ") for name in HEALTH),
        ),
        [
            (name, h["clips"], percent(h["hit_rate"], 0), worst, *(h[key] for key in HEALTH))
            for name, h in health.items()
            for worst in [_worst_class(h, bank.index.labels)]
        ],
    )
    output.note(f"Pictures: {out / 'plots'}")
    named = _teacher_file(out, teacher)
    words = ["frami-edge", "distill", *([config] if config else [])]
    words += ["--teacher", named, "--bank", str(bank.folder)]
    words += ["--sources", sources] if sources else []
    words += ["--recordings", str(recordings)] if recordings else []
    words += [word for text in overrides or () for word in ("--set", text)]
    keep = opt.keep_text(opened) if named == teacher else ""
    output.hint(f"{shlex.join(words)}{keep} --out runs/student")


@command(
    app,
    "frami-edge distill --teacher t.safetensors --out runs/s --budget 10min",
    "frami-edge distill esc10-student --teacher runs/teacher/teacher.safetensors --out runs/s",
    "frami-edge distill my.yaml --teacher t.safetensors --bank runs/bank/bank --out runs/s",
    "frami-edge distill my.yaml --teacher t.safetensors --out runs/s --resume",
    shared=[*opt.RUN, *opt.TEACHER],
)
def distill(
    output: Output,
    given: dict[str, Any],
    teacher: opt.TeacherOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")],
    config: opt.Recipe = None,
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Bank to use.", show_default="one that is made in OUT/bank"),
    ] = None,
    sources: opt.Sources = None,
    recordings: opt.Recordings = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Steps of distillation.", show_default="the config's"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Time for bank and student, such as 10min: a few steps are timed, then the "
            "config's steps and clips are scaled. With --resume the run keeps its numbers.",
        ),
    ] = None,
    allow_weak: Annotated[
        bool, typer.Option("--allow-weak", help="Accept a student that is not ready.")
    ] = False,
    overrides: opt.Overrides = None,
    seed: opt.NewSeed = None,
) -> None:
    """Distil a teacher into a compact student on synthetic clips. No audio is needed.

    Exit code 3 where the student is not ready, judged by its agreement with the teacher on
    synthetic clips of each source and class.
    """
    from frami_edge import api
    from frami_edge.checkpoint import read_card
    from frami_edge.errors import GateFailed
    from frami_edge.runs import read_manifest

    mix, folder = opt.parse_sources(sources, recordings)
    settings, changes = opt.read_recipe(config, overrides)
    opened = opt.open_teacher(teacher, given)
    with output.live() as progress:
        api.distill(
            opened, bank, config=settings, steps=steps, budget=budget, seed=seed, sources=mix,
            recordings=folder, overrides=changes, out=out, progress=progress, **given,
        )  # fmt: skip
    manifest, file = read_manifest(out), out / "student.safetensors"
    found, seconds = manifest["student"], manifest["seconds"]
    verdict = found["readiness"]
    output.result(
        {
            "student": str(file),
            **found,
            "seconds": seconds,
            "plots": {name: str(out / path) for name, path in manifest["plots"].items()},
            "run_dir": str(out),
        }
    )
    real = read_card(file)[0].recordings
    output.table(
        f"Student (last step){_real_audio(real)}",
        ("parameters", "MMAC per s of audio", "ready", "seconds"),
        [
            (
                found["parameters"],
                f"{found['macs_per_second'] / 1e6:.1f}",
                "yes" if verdict["ready"] else "no",
                sum(seconds.get(phase, 0.0) for phase in ("invert", "distill")),
            )
        ],
        caption=" ".join(verdict["reasons"]),
    )
    output.table(
        "Agreement with the teacher on synthetic clips",
        ("source", "clips", "agreement"),
        [
            (name, "held out" if name in verdict["held_out"] else "of the bank", percent(share, 1))
            for name, share in verdict["agreement"].items()
        ],
    )
    output.note(f"Model card and pictures: {out / 'README.md'}")
    known = opened.card.trained_on
    data = known.data if known else ""
    words = ["frami-edge", "evaluate", str(file), "--teacher", _teacher_file(out, teacher)]
    if not verdict["ready"] and not allow_weak:
        raise GateFailed(
            f"{file} is not ready: {' '.join(verdict['reasons'])}",
            fix="Give it more steps (--steps, --budget), or leave out the recipe; --allow-weak "
            "accepts it.",
        )
    own = data.partition("folder:")[2]  # the name of a folder, not where it was
    if data and (not own or Path(own).is_dir()):
        output.hint(shlex.join([*words, "--data", data]))
    else:
        made = str(bank or out / "bank")
        words = ["frami-edge", "export", str(file), "--int8", "--bank", made]
        output.hint(shlex.join([*words, "--out", str(out / "export")]))
