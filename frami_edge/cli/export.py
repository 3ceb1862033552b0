"""`frami-edge export`: from a student to ONNX files and engines, compared with the student."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import Output, command, command_app
from frami_edge.errors import ConfigError, GateFailed
from frami_edge.tables import Table, percent

if TYPE_CHECKING:
    from frami_edge_export.report import Artifact, ExportReport
    from frami_edge_export.tensorrt import EngineReport

app = command_app()


@command(
    app,
    "frami-edge export runs/s/student.safetensors --int8 --bank runs/s/bank --out runs/export",
    "frami-edge export student.safetensors --int8 --bank bank --data fsdd --out runs/export",
    "frami-edge export student.safetensors --int8 --target arm --out runs/raspberry",
    "frami-edge export student.safetensors --int8 --tensorrt --seconds 0:1:10 --out runs/e",
    "frami-edge export --tensorrt runs/export",
    "frami-edge export student.safetensors --out runs/export --web runs/page",
)
def export(
    output: Output,
    student: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint of the student; with --tensorrt also the folder of an earlier export."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the files; older files are replaced."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also quantise, calibrated without real data.")
    ] = False,
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank",
            help="The student's bank: calibrates int8, and tells thresholds how many sounds they "
            "find.",
            show_default="procedural clips",
        ),
    ] = None,
    target: Annotated[
        Literal["x86", "arm", "jetson-gpu"],
        typer.Option(
            "--target",
            help="Device that int8.cpu and the recommendation are for; each file runs on every CPU "
            "with the same answers.",
        ),
    ] = "x86",
    portable: Annotated[
        bool,
        typer.Option("--portable", help="Also one int8 file for ONNX Runtime and TensorRT alike."),
    ] = False,
    with_frontend: Annotated[
        bool,
        typer.Option(
            "--with-frontend", help="Also a model that takes samples, with the log-mel inside."
        ),
    ] = False,
    web: Annotated[
        Path | None,
        typer.Option(
            "--web", metavar="DIR", help="Also a web page that runs it on a microphone or a file."
        ),
    ] = None,
    ort_web: Annotated[
        Path | None,
        typer.Option(
            "--ort-web",
            metavar="FOLDER",
            help="onnxruntime-web for the page: an unpacked npm package, or an earlier page.",
            show_default="fetched once",
        ),
    ] = None,
    tensorrt: Annotated[
        bool,
        typer.Option(
            "--tensorrt", help="Also build engines, where TensorRT and a GPU are present."
        ),
    ] = False,
    seconds: Annotated[
        str | None,
        typer.Option(
            "--seconds",
            metavar="MIN:OPT:MAX",
            help="Seconds of audio in one call of an engine.",
            show_default="what streams need",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option("--samples", min=16, help="Synthetic clips that calibrate and judge int8."),
    ] = 1024,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Also measure the accuracy on this data set."),
    ] = None,
    fold: opt.Fold = None,
    data_root: opt.DataRoot = None,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            min=0,
            max=1,
            help="Gate: share of held-out synthetic clips on which int8 and fp32 agree.",
        ),
    ] = 0.98,
    max_drop: Annotated[
        float,
        typer.Option(
            "--max-drop", min=0, max=1, help="Gate: accuracy that int8 may lose (--data)."
        ),
    ] = 0.02,
    false_alarms: Annotated[
        float,
        typer.Option(
            "--false-alarms-per-hour",
            min=1e-6,
            max=1e4,
            help="Target for the thresholds of events, all labels together.",
        ),
    ] = 0.2,
    seed: opt.Seed = 0,
) -> None:
    """Write a student as ONNX files, fp32 and int8, and compare each file with the student.

    No audio is needed. With --data the accuracy of each file is measured too; it chooses nothing.
    Exit code 3 when a gate fails; the files are kept. Without TensorRT or a GPU the ONNX files are
    complete, and the device builds the engines from them.
    """
    from frami_edge import api
    from frami_edge_export.options import ExportOptions
    from frami_edge_runtime.thresholds import Thresholds

    if seconds and not tensorrt:
        raise ConfigError("--seconds sizes engines, and --tensorrt is off.", fix="Add --tensorrt.")
    if ort_web and not web:
        raise ConfigError("--ort-web is a part of a page, and --web is off.", fix="Add --web DIR.")
    if student.is_dir() and tensorrt:
        built = api.build_engines(student, out=out, seconds=seconds)
        folder = out or student
        output.result(built.to_dict() | {"out": str(folder)})
        _show_engines(built, output)
        _check_engines(built, folder)
        output.note(f"Use {folder / built.recommended}: {built.reason}")
        return
    if out is None:
        raise ConfigError("--out is missing.", fix="Name a folder for the files.")
    with output.live() as progress:
        report = api.export(
            student,
            bank=bank,
            int8=int8,
            portable=portable,
            with_frontend=with_frontend,
            web=web,
            ort_web=ort_web,
            tensorrt=tensorrt,
            seconds=seconds,
            samples=samples,
            data=data,
            fold=fold,
            data_root=data_root,
            options=ExportOptions(
                target=target,
                min_agreement=min_agreement,
                max_drop=max_drop,
                false_alarms_per_hour=false_alarms,
                seed=seed,
            ),
            out=out,
            progress=progress,
        )
    beside = student.parent / "bank"
    if bank is None and (beside / "bank.json").is_file():
        output.note(f"Add --bank {beside} to use the student's own bank.")
    output.tables(_tables(report))
    if report.engines:
        _show_engines(report.engines, output)
    places = {"out": str(out), "card": str(out / "README.md")}
    output.result(report.to_dict() | places | ({"page": str(web)} if web else {}))
    if report.thresholds:
        output.note(f"Events: {Thresholds(**report.thresholds)}.")
    for note in report.notes:
        output.note(note)
    if report.stale:
        output.warn(f"Files of an earlier export, still in {out}: {', '.join(report.stale)}.")
    output.note(f"Model card and picture: {out / 'README.md'}")
    if web is not None:
        serve = f"python -m http.server --directory {shlex.quote(str(web))}"
        output.note(f"Page: {web}. Run `{serve}` and open http://localhost:8000")
    failed = [gate.name for gate in report.gates if not gate.passed]
    if failed:
        rest = f"{report.recommended} passed its own gates" if report.recommended else "use no file"
        raise GateFailed(
            f"Gate failed: {', '.join(failed)}. The files are kept in {out}; {rest}.",
            fix="Calibrate on the student's own bank (--bank), or distil the student longer.",
        )
    if report.engines:
        _check_engines(report.engines, out)
    output.note(f"Use {out / report.recommended}: {report.reason}")
    file = shlex.quote(str(out / report.recommended))
    output.hint(
        f"frami-edge evaluate {file} --data {shlex.quote(data)}"
        if data
        else f"frami-edge-listen {file} --selftest"
    )


def _tables(report: ExportReport) -> list[Table]:
    """Gates, files and verdicts."""
    fp32, bench = report.artifact("fp32"), report.bench
    gates = [
        (
            g.name,
            g.value,
            f"at {'most' if g.better == 'lower' else 'least'} {g.limit:.4g}",
            g.passed,
        )
        for g in report.gates
    ]
    accuracy = fp32.accuracy is not None
    columns = ("name", "kB", "x", "1 s, ms", "x", "chunk", "x", "diff.", "agree %", "SQNR", "lint")
    caption = (
        "x: times smaller or faster than fp32; diff.: largest logit difference; SQNR in dB; "
        f"lint: findings of TensorRT's rules. Medians of {bench['rounds']} interleaved rounds, one "
        f"thread, {bench['cpu']}; a chunk is {bench['chunk_s']:g} s."
    )
    return [
        Table("Gates", ("gate", "value", "limit", "passed"), gates),
        Table(
            f"Export of {report.name}",
            (*columns, "acc. %") if accuracy else columns,
            [
                (*_row(a, fp32), _fixed(a.accuracy, 1, 100)) if accuracy else _row(a, fp32)
                for a in report.artifacts
            ],
            caption,
        ),
        Table(
            "Verdicts",
            ("name", "file", "verdict"),
            [(a.name, a.path, a.verdict) for a in report.artifacts],
        ),
    ]


def _row(a: Artifact, fp32: Artifact) -> tuple[object, ...]:
    return (
        a.name,
        _fixed(a.bytes, 1, 1e-3),
        _fixed(fp32.bytes / a.bytes, 2),
        _fixed(a.p50_ms, 3),
        _fixed(a.speedup, 2),
        _fixed(a.chunk_p50_ms, 3),
        _fixed(a.chunk_speedup, 2),
        None if a.max_abs_difference is None else f"{a.max_abs_difference:.1e}",
        _fixed(a.agreement, 1, 100),
        _fixed(a.sqnr_db, 1),
        a.lint.partition(" ")[0] or None,
    )


def _fixed(value: float | None, digits: int, scale: float = 1) -> str | None:
    return None if value is None else f"{value * scale:.{digits}f}"


def _show_engines(report: EngineReport, output: Output) -> None:
    rows = []
    for e in report.engines:
        layers = e.card.layers or {}
        int8 = f"{layers.get('int8_convolutions', 0)} of {layers.get('convolutions', 0)}"
        rows.append(
            (
                e.path,
                _fixed(e.bytes, 1, 1e-3),
                _fixed(e.p50_ms, 3),
                _fixed(e.chunk_p50_ms, 3),
                _fixed(e.speedup, 2),
                percent(e.agreement, 1),
                int8 if layers else None,
                e.verdict,
            )
        )
    columns = ("engine", "kB", "1 s, ms", "1 frame, ms", "faster", "agreement")
    device = report.device
    output.table(
        f"Engines of {report.name}",
        (*columns, "int8 convolutions", "verdict"),
        rows,
        caption=f"TensorRT {device.get('tensorrt')}, {device.get('gpu')}, SM {device.get('sm')}.",
    )
    for precision, reason in report.failures.items():
        output.warn(f"No {precision} engine: {reason}")
    for note in report.notes:
        output.note(note)


def _check_engines(report: EngineReport, folder: Path) -> None:
    if not report.ok:
        wrong = [e.path for e in report.engines if not e.passed] + list(report.failures)
        raise GateFailed(
            f"Not every engine was built and passed its check: {', '.join(wrong)}. {report.reason}",
            fix=f"See {folder / 'engine_report.json'}; the ONNX files work without engines.",
        )
