"""`frami-edge evaluate`: scores on real clips that the teacher was not trained on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import command, command_app
from frami_edge.cli._output import Output
from frami_edge.errors import ConfigError

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
