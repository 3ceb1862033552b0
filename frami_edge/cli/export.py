"""`frami-edge export`: a student in, ONNX files out, proven against the student."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frami_edge.cli._app import Json, Quiet, Seed, command_app, examples
from frami_edge.cli._output import Output

if TYPE_CHECKING:
    from frami_edge.checkpoint import Student
    from frami_edge.data.store import Features
    from frami_edge.exporting import CalibrationMels
    from frami_edge_export.report import Artifact, ExportReport
    from frami_edge_export.tensorrt import EngineOptions, EngineReport


# --- What `frami-edge export` shows at its end: gates, files, verdicts, engines, the next step


def show_export(report: ExportReport, output: Output) -> None:
    """Gates, artefacts and verdicts."""
    fp32 = report.artifact("fp32")
    output.table(
        "Gates",
        ("gate", "value", "limit", "passed"),
        [
            (g.name, g.value, f"{'at most' if g.better == 'lower' else 'at least'} {g.limit:.4g}",
             g.passed)
            for g in report.gates
        ],
    )  # fmt: skip
    names = ["name", "kB", "x", "1 s, ms", "x", "chunk", "x", "diff.", "agree %", "SQNR",
             "lint"]  # fmt: skip
    rows = [_row(a, fp32) for a in report.artifacts]
    if fp32.accuracy is not None:
        names.append("acc. %")
        rows = [[*r, _percent(a.accuracy)] for r, a in zip(rows, report.artifacts, strict=True)]
    bench = report.bench
    output.table(
        f"Export of {report.name}",
        names,
        rows,
        caption="x: times smaller or faster than fp32; diff.: largest of the logits; SQNR in dB; "
        f"lint: what TensorRT would refuse. Medians of {bench['rounds']} interleaved rounds, one "
        f"thread, {bench['cpu']}; a chunk is {bench['chunk_s']:g} s.",
    )
    output.table(
        "Verdicts",
        ("name", "file", "verdict"),
        [(a.name, a.path, a.verdict) for a in report.artifacts],
    )


def _row(a: Artifact, fp32: Artifact) -> list[object]:
    return [
        a.name,
        f"{a.bytes / 1000:.1f}",
        f"{fp32.bytes / a.bytes:.2f}",
        _fixed(a.p50_ms, 3),
        _fixed(a.speedup, 2),
        _fixed(a.chunk_p50_ms, 3),
        _fixed(a.chunk_speedup, 2),
        None if a.max_abs_difference is None else f"{a.max_abs_difference:.1e}",
        _percent(a.agreement),
        _fixed(a.sqnr_db, 1),
        a.lint.partition(" ")[0] or None,
    ]


def _fixed(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f}"


def conclude(
    report: ExportReport,
    engines: EngineReport | None,
    out: Path,
    data: str | None,
    output: Output,
) -> None:
    """Say which file to use.

    Raises:
        GateFailed: A gate failed, or an engine was not built or failed its check.
    """
    from frami_edge.errors import GateFailed

    failed = [gate.name for gate in report.gates if not gate.passed]
    if failed:
        rest = f"{report.recommended} passed its own gates" if report.recommended else "use no file"
        raise GateFailed(
            f"Gate failed: {', '.join(failed)}. The files are kept in {out}; {rest}.",
            fix="Calibrate on the student's own bank (--bank), or distil the student longer.",
        )
    if engines is not None:
        check_engines(engines, out)
    output.note(f"Use {out / report.recommended}: {report.reason}")
    file = shlex.quote(str(out / report.recommended))
    output.hint(f"frami-edge evaluate {file} --data {shlex.quote(data or 'NAME')}")


def show_engines(report: EngineReport, output: Output) -> None:
    """Engines as they were measured on this GPU."""
    rows = []
    for e in report.engines:
        layers = e.card.layers or {}
        int8 = f"{layers.get('int8_convolutions', 0)} of {layers.get('convolutions', 0)}"
        rows.append(
            (
                e.path,
                f"{e.bytes / 1000:.1f}",
                _fixed(e.p50_ms, 3),
                _fixed(e.chunk_p50_ms, 3),
                _fixed(e.speedup, 2),
                _percent(e.agreement),
                int8 if layers else None,
                e.verdict,
            )
        )
    device = report.device
    output.table(
        f"Engines of {report.name}",
        ("engine", "kB", "1 s, ms", "1 frame, ms", "faster", "agreement %", "int8 convolutions",
         "verdict"),
        rows,
        caption=f"TensorRT {device.get('tensorrt')}, {device.get('gpu')}, SM {device.get('sm')}.",
    )  # fmt: skip
    for precision, why in report.failures.items():
        output.warn(f"No {precision} engine: {why}")
    for note in report.notes:
        output.note(note)


def check_engines(report: EngineReport, out: Path) -> None:
    """An engine that is missing or wrong fails the command.

    Raises:
        GateFailed: One was not built, or disagrees with its ONNX file.
    """
    from frami_edge.errors import GateFailed

    if not report.ok:
        wrong = [e.path for e in report.engines if not e.passed] + list(report.failures)
        raise GateFailed(
            f"Not every engine was built and passed its check: {', '.join(wrong)}. {report.reason}",
            fix=f"See {out / 'engine_report.json'}; the ONNX files work without engines.",
        )


# --- `frami-edge export`: a student in, ONNX files out, proven against the student

app = command_app()

PICTURE = Path("plots/export.png")
HEARD_BY_ENGINES = 256
"""Synthetic clips on which an engine is compared with its ONNX file."""


@app.command(
    epilog=examples(
        "frami-edge export runs/s/student.safetensors --int8 --bank runs/s/bank --out runs/export",
        "frami-edge export student.safetensors --int8 --bank bank --data fsdd --out runs/export",
        "frami-edge export student.safetensors --int8 --with-frontend --out runs/export",
        "frami-edge export student.safetensors --int8 --tensorrt --seconds 0:1:10 --out runs/e",
        "frami-edge export --tensorrt runs/export",
    )
)
def export(
    student: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint of the student; with --tensorrt alone, the folder of an export."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder; older files are replaced. Engines of an export go beside its files "
            "where this is left out.",
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise too, without real data.")] = False,
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Calibrate int8 on this bank, the student's own."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher",
            help="Without a bank: make a small one from this teacher. Without both, int8 is "
            "calibrated on procedural clips.",
        ),
    ] = None,
    portable: Annotated[
        bool,
        typer.Option("--portable", help="Also one int8 file for ONNX Runtime and TensorRT alike."),
    ] = False,
    with_frontend: Annotated[
        bool,
        typer.Option("--with-frontend", help="Also a model that takes samples, mel in the graph."),
    ] = False,
    tensorrt: Annotated[
        bool,
        typer.Option("--tensorrt", help="Build engines too, where TensorRT and a GPU are."),
    ] = False,
    seconds: Annotated[
        str | None,
        typer.Option(
            "--seconds",
            metavar="MIN:OPT:MAX",
            help="Audio in one call of an engine.",
            show_default="what streams need",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=16, help="Synthetic clips to calibrate and judge int8.")
    ] = 1024,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Also measure accuracy on this set; see `frami-edge data`."),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option("--fold", help="Test fold.", show_default="the one the teacher held out"),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Folder that holds the sets; else $FRAMI_EDGE_DATA."),
    ] = None,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement", min=0, max=1, help="Gate: int8 = fp32 on held-out synthetic clips."
        ),
    ] = 0.98,
    max_drop: Annotated[
        float,
        typer.Option(
            "--max-drop", min=0, max=1, help="Gate: accuracy that int8 may lose (--data)."
        ),
    ] = 0.02,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a student as ONNX, fp32 and int8, and prove that every file still says the same.

    No audio is needed; with --data the accuracy of each file is measured too, and never used to
    choose anything. Exit code 3 when a gate fails; the files are kept. Without TensorRT or a GPU
    the ONNX files are complete, and the device builds the engines from them.
    """
    from frami_edge.cards import CARD, export_readme
    from frami_edge.checkpoint import load_checkpoint
    from frami_edge.errors import ConfigError
    from frami_edge.exporting import accuracy_on, facts_of
    from frami_edge.io import atomic_write_text
    from frami_edge.models import StudentNet
    from frami_edge.plots import draw_export_report
    from frami_edge_export.exporter import export_student
    from frami_edge_export.options import ExportOptions
    from frami_edge_export.tensorrt import EngineOptions, Seconds

    output = Output(json=json, quiet=quiet)
    span = Seconds.parse(seconds) if seconds else None
    if seconds and not tensorrt:
        raise ConfigError("--seconds sizes engines; --tensorrt was not given.", fix="Add it.")
    if student.is_dir() and tensorrt:
        _engines_alone(student, out, EngineOptions(seconds=span), output)
        return
    if out is None:
        raise ConfigError("--out is missing.", fix="Name a folder for the files.")
    _check_int8_options(int8, bank=bank, teacher=teacher, portable=portable)
    if data is None and (fold or data_root):
        raise ConfigError("--fold and --data-root need --data.", fix="Add --data NAME.")
    options = ExportOptions(min_agreement=min_agreement, max_drop=max_drop, seed=seed)
    loaded = load_checkpoint(student, "student")
    assert isinstance(loaded.model, StudentNet)
    mels = _mels(loaded, student, bank, teacher, samples, seed, output) if int8 else None
    features, measured = _features(loaded, data, fold, data_root, output)
    output.note("Exporting, comparing and timing; this takes seconds to minutes.")
    report = export_student(
        loaded.model.collapse(),
        facts_of(loaded),
        out,
        name=student.stem,
        int8=int8,
        calibration=None if mels is None else mels.mels,
        source="" if mels is None else mels.source,
        portable=portable,
        half=tensorrt,
        waveform=with_frontend,
        options=options,
        evaluate=None if features is None else accuracy_on(features),
    )
    draw_export_report(report.to_dict(), out / PICTURE)
    shown = {"size, latency and answers of every file": PICTURE.as_posix()}
    atomic_write_text(out / CARD, export_readme(report, loaded, measured, shown))
    show_export(report, output)
    engines, why = (
        _engines(out, EngineOptions(seconds=span), mels, output) if tensorrt else (None, "")
    )
    output.result(
        report.to_dict()
        | {
            "out": str(out),
            "card": str(out / CARD),
            "picture": str(out / PICTURE),
            "student": {"path": str(student), "sha256": loaded.sha256},
            "calibration_clips": None if mels is None else mels.clips,
            "data": measured,
            "engines": None if engines is None else engines.to_dict(),
            "engines_missing": why,
        }
    )
    for note in report.notes:
        output.note(note)
    if report.stale:
        output.warn(f"Not of this export, and still in {out}: {', '.join(report.stale)}.")
    output.note(f"Picture: {out / PICTURE}")
    conclude(report, engines, out, data, output)


def _check_int8_options(
    int8: bool, *, bank: Path | None, teacher: Path | None, portable: bool
) -> None:
    from frami_edge.errors import ConfigError

    given = {"--bank": bank, "--teacher": teacher, "--portable": portable}
    alone = [option for option, value in given.items() if value and not int8]
    if alone:
        raise ConfigError(
            f"{alone[0]} is about int8 files, and --int8 was not given.", fix="Add --int8."
        )
    if bank and teacher:
        raise ConfigError(
            "--bank and --teacher exclude each other.",
            fix="Give the bank where there is one; --teacher makes one.",
        )


def _engines(
    out: Path, options: EngineOptions, mels: CalibrationMels | None, output: Output
) -> tuple[EngineReport | None, str]:
    """Engines beside the files just written, or why there are none: no fault of the export."""
    from frami_edge_export.tensorrt import TensorRTUnavailable, rebuild

    heard = None if mels is None else mels.mels[:HEARD_BY_ENGINES]
    try:
        report = rebuild(out, options=options, mels=heard)
    except TensorRTUnavailable as missing:
        output.warn(f"No engines were built: {missing}")
        return None, missing.message
    show_engines(report, output)
    return report, ""


def _engines_alone(folder: Path, out: Path | None, options: EngineOptions, output: Output) -> None:
    from frami_edge_export.tensorrt import rebuild

    report = rebuild(folder, out_dir=out, options=options)
    output.result(report.to_dict() | {"out": str(out or folder)})
    show_engines(report, output)
    check_engines(report, out or folder)
    output.note(f"Use {(out or folder) / report.recommended}: {report.reason}")


def _mels(
    loaded: Student,
    student: Path,
    bank: Path | None,
    teacher: Path | None,
    samples: int,
    seed: int,
    output: Output,
) -> CalibrationMels:
    from frami_edge.checkpoint import load_checkpoint
    from frami_edge.device import choose_compute
    from frami_edge.exporting import bank_mels, made_mels, teacher_mels
    from frami_edge.inversion import step_bars

    if bank:
        mels = bank_mels(bank, loaded, samples)
    elif teacher:
        known = load_checkpoint(teacher, "teacher")
        with step_bars(output) as show:
            mels = teacher_mels(loaded, known, samples, seed, choose_compute(), show)
    else:
        mels = made_mels(loaded, samples, seed)
    output.note(f"Calibration: {mels.reason}.")
    beside = student.parent / "bank"
    if bank is None and (beside / "bank.json").is_file():
        output.note(f"The student's own bank lies beside it: --bank {beside} calibrates on that.")
    return mels


def _features(
    loaded: Student,
    name: str | None,
    asked: str | None,
    root: Path | None,
    output: Output,
) -> tuple[Features | None, dict[str, Any] | None]:
    """Real clips that the teacher never heard, and what to call them."""
    if name is None:
        return None, None
    from frami_edge.data.sets import load_set
    from frami_edge.evaluation import check_labels, check_unheard, held_out_fold
    from frami_edge.training import load_features, warn_rejected

    card = loaded.card
    sound_set = load_set(name, root)
    check_labels(card, sound_set)
    heard = card.heard
    fold = held_out_fold(asked, heard, sound_set, who="The student", options="--fold")
    check_unheard(heard, sound_set, fold)
    if heard is None:
        output.warn(f"Nobody checked that the teacher held out fold {fold}: its card is silent.")
    clips = [clip for clip in sound_set.clips if clip.fold == fold]
    features = load_features(loaded.spec, clips, output, "Log-mels of real clips")
    warn_rejected(features, "test clips", output)
    return features, {"name": sound_set.name, "fold": fold, "clips": len(features)}
