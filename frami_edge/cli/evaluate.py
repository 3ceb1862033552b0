"""`frami-edge evaluate`: how right a model is on real clips that its teacher never heard."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from frami_edge.cli._app import Device, Json, Precision, Quiet, command_app, examples
from frami_edge.cli._options import Resume, resume_command
from frami_edge.cli._output import Output

if TYPE_CHECKING:
    from frami_edge.controls import ControlTable
    from frami_edge.data.sets import SoundSet
    from frami_edge.evaluation import Score
    from frami_edge.opening import OpenedModel
    from frami_edge.runs import RunFolder

app = command_app()


@app.command(
    epilog=examples(
        "frami-edge evaluate runs/student/student.safetensors --data esc10",
        "frami-edge evaluate student.safetensors --data fsdd --teacher teacher.safetensors",
        "frami-edge evaluate student.int8.cpu.onnx --data fsdd --teacher t.safetensors --json",
        "frami-edge evaluate student.safetensors --data esc10 --teacher t.safetensors "
        "--controls all-synthetic,inversion,unrelated=esc40 --bank runs/student/bank --out runs/c",
    )
)
def evaluate(
    model: Annotated[
        Path, typer.Argument(help="Checkpoint (.safetensors) or exported model (.onnx).")
    ],
    data: Annotated[
        str, typer.Option("--data", help="A known set (`frami-edge data`), or folder:PATH.")
    ],
    fold: Annotated[
        str | None,
        typer.Option("--fold", help="Test fold.", show_default="the one the teacher held out"),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Also compare with this teacher, clip by clip.")
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Folder that holds the sets; else $FRAMI_EDGE_DATA."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder for the pictures and the figures."),
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            "--controls",
            metavar="NAMES",
            help="Distil the student's network again, with its seed and steps, on other clips: "
            "white_noise, smooth_noise, procedural (these three: all-synthetic), inversion, "
            "translator or a baseline (of --bank), real, unrelated=SET, scratch. smooth_noise is "
            "always there.",
        ),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank", help="Bank folder, for controls on one of its sources, like inversion."
        ),
    ] = None,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy on real clips, agreement with the teacher, and a table by class.

    Refuses clips that the teacher was trained on.
    """
    from frami_edge.data.sets import load_set
    from frami_edge.errors import ConfigError
    from frami_edge.evaluation import (
        check_labels,
        check_teacher,
        check_unheard,
        class_rows,
        held_out_fold,
        logits_of,
        score,
    )
    from frami_edge.opening import open_model
    from frami_edge.training import load_features, warn_rejected

    output = Output(json=json, quiet=quiet)
    if bank and controls is None:
        raise ConfigError(
            "--bank is read by controls alone, and none was asked for.",
            fix="Add --controls inversion,translator, or leave --bank out.",
        )
    if resume and out is None:
        raise ConfigError("--resume goes on with a run in --out.", fix="Add --out FOLDER.")
    judged = open_model(model)
    reference = open_model(teacher) if teacher else None
    if reference:
        check_teacher(judged, reference)
    sound_set = load_set(data, data_root)
    check_labels(judged, sound_set)
    heard = judged.trained_on or (reference.trained_on if reference else None)
    key = held_out_fold(
        fold, heard, sound_set, who=str(judged.path), options="--teacher FILE, or --fold"
    )
    check_unheard(heard, sound_set, key)
    if heard is None:
        described = teacher is not None and teacher.suffix in {".yaml", ".yml"}
        tells = f"trained_on in {teacher}" if described else "--teacher FILE"
        output.warn(
            f"{model} does not say what its teacher was trained on, so nobody checked that fold "
            f"{key} was held out; {tells} tells."
        )
    table = None
    if controls is not None:
        table = _control_table(
            controls, judged, reference, sound_set, key, output,
            bank=bank, root=data_root, device=device, precision=precision,
        )  # fmt: skip
    with ExitStack() as stack:
        run = None
        if out:
            run = _begin(out, judged, reference, sound_set, key, table, bank=bank, resume=resume)
            run.resume_hint = resume_command()
            stack.enter_context(run)
        clips = [clip for clip in sound_set.clips if clip.fold == key]
        features = load_features(judged.mel, clips, output, "Log-mels")
        warn_rejected(features, "test clips", output)
        theirs = their_logits = None
        their_features = features
        if reference:
            if reference.mel != judged.mel:
                their_features = load_features(reference.mel, clips, output, "Teacher's log-mels")
            their_logits = logits_of(reference, their_features)
            theirs = score(their_logits, features.labels)
        with output.progress("Scoring", len(features), fields=()) as bar:
            logits = logits_of(judged, features, lambda done: bar.update(done - bar.completed))
        mine = score(logits, features.labels, their_logits)
        found: dict[str, Any] = {
            "model": str(model),
            "kind": judged.kind,
            "sha256": judged.sha256,
            "data": sound_set.name,
            "fold": key,
            "clips": mine.clips,
            "rejected": len(features.rejected),
            "accuracy": mine.accuracy,
            "agreement": mine.agreement,
            "kl_nats": mine.kl,
            "teacher_accuracy": theirs.accuracy if theirs else None,
            "recall": dict(zip(judged.labels, mine.per_class(), strict=True)),
            "confusion": mine.confusion_KK,
        }
        rows: list[tuple[object, ...]] = []
        bars: list[tuple[str, float, float | None]] = []
        if table and theirs and their_logits is not None:
            from frami_edge.controls import bars as bar_rows
            from frami_edge.controls import table_rows

            kept = run.path("controls/of").parent if run else None
            controlled = table.rows(their_features, their_logits, output, kept)
            found["controls"] = {name: row for name, (_, row) in controlled.items()}
            rows, bars = table_rows(mine, theirs, controlled), bar_rows(mine, theirs, controlled)
        if run:
            found["plots"] = _keep(run, judged, found, mine, bars)
        output.result(found)
    names = ("class", "clips", "recall", "teacher's recall")
    by_class: list[tuple[str, ...]] = list(class_rows(judged.labels, mine, theirs))
    shown = len(names) if theirs else 3
    output.table(
        f"Fold {key} of {sound_set.name} by class", names[:shown], [row[:shown] for row in by_class]
    )
    output.table(f"{judged.kind}: {model}", *_summary(mine, theirs))
    if table:
        output.table(
            f"Controls: same network, recipe, seed and {table.config.distill.steps} steps",
            ("", "accuracy", "agreement with the teacher", "KL from it in nats"),
            rows,
            caption=f"Last step, {mine.clips} clips of fold {key} of {sound_set.name}.",
        )
    if out:
        output.note(f"Pictures and figures: {out}")


def _control_table(
    text: str,
    judged: OpenedModel,
    reference: OpenedModel | None,
    data: SoundSet,
    fold: str,
    out: Output,
    *,
    bank: Path | None,
    root: Path | None,
    device: str,
    precision: Literal["auto", "bf16", "fp32"],
) -> ControlTable:
    """Everything that the controls need, checked before any of them is distilled."""
    from frami_edge.checkpoint import Teacher
    from frami_edge.cli._options import journey_device
    from frami_edge.controls import ControlTable, parse_controls, student_recipe

    wanted = parse_controls(text)
    config = student_recipe(judged, reference)
    assert reference is not None
    assert isinstance(reference.network, Teacher)
    compute = journey_device(device, precision)
    out.note(f"Device: {compute.reason}")
    return ControlTable.prepare(
        wanted, config, reference.network, compute, data, fold, out, bank=bank, root=root
    )


def _summary(mine: Score, theirs: Score | None) -> tuple[list[str], list[list[object]]]:
    names, row = ["accuracy", "clips"], [f"{100 * mine.accuracy:.2f} %", mine.clips]
    if theirs and mine.agreement is not None:
        names += ["teacher's accuracy", "agreement with it", "mean KL from it in nats"]
        row += [f"{100 * theirs.accuracy:.2f} %", f"{100 * mine.agreement:.2f} %", mine.kl]
    return names, [row]


def _begin(
    out: Path,
    judged: OpenedModel,
    reference: OpenedModel | None,
    data: SoundSet,
    fold: str,
    table: ControlTable | None,
    *,
    bank: Path | None,
    resume: bool,
) -> RunFolder:
    """The run folder, before any work: one that cannot be written must not cost an hour."""
    from frami_edge.runs import RunFolder

    inputs = {"model": judged.path} | ({"teacher": reference.path} if reference else {})
    inputs |= {"bank": bank / "bank.json"} if bank else {}
    config: dict[str, Any] = {"data": data.name, "fold": fold}
    if table:
        config |= {"controls": list(table.wanted.names), "unrelated": table.wanted.unrelated}
    device = table.compute.reason if table else ""
    return RunFolder.create(
        out, command="evaluate", config=config, inputs=inputs, resume=resume, device=device
    )


def _keep(
    run: RunFolder,
    judged: OpenedModel,
    found: dict[str, Any],
    mine: Score,
    bars: list[tuple[str, float, float | None]],
) -> dict[str, str]:
    """Figures and pictures; returns the pictures' paths."""
    from frami_edge import plots

    run.record(**{k: v for k, v in found.items() if k != "model"})
    pictures = {"confusion": run.path("plots/confusion.png")}
    title = f"Fold {found['fold']} of {found['data']}: {100 * mine.accuracy:.1f} %"
    plots.confusion(pictures["confusion"], mine.confusion_KK, judged.labels, title)
    if bars:
        pictures["controls"] = run.path("plots/controls.png")
        title = f"Fold {found['fold']} of {found['data']}: same student, other clips"
        plots.accuracy_bars(pictures["controls"], bars, title)
    return {name: str(path) for name, path in pictures.items()}
