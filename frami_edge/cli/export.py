"""`frami-edge export`: a student in, ONNX files out, proven against the student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frami_edge.cli._app import Json, Quiet, Seed, command_app, examples
from frami_edge.cli._output import Output

if TYPE_CHECKING:
    from frami_edge.calibrating import CalibrationMels
    from frami_edge.data import Features
    from frami_edge.models.checkpoint import Loaded
    from frami_edge_export import Artifact, ExportReport

app = command_app()

CARD = "MODEL.md"


@app.command(
    epilog=examples(
        "frami-edge export runs/s/student.safetensors --int8 --bank runs/s/bank --out runs/export",
        "frami-edge export student.safetensors --int8 --bank bank --data fsdd --out runs/export",
        "frami-edge export student.safetensors --out runs/export --json",
    )
)
def export(
    student: Annotated[Path, typer.Argument(help="Checkpoint of the student.")],
    out: Annotated[Path, typer.Option("--out", help="Folder; older files are replaced.")],
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
    choose anything. Exit code 3 when a gate fails; the files are kept.
    """
    from frami_edge.errors import ConfigError
    from frami_edge.exporting import accuracy_on, facts_of, model_card
    from frami_edge.io import atomic_write_text
    from frami_edge.models.checkpoint import load_checkpoint
    from frami_edge.models.student import Student
    from frami_edge_export import ExportOptions, export_student

    output = Output(json=json, quiet=quiet)
    for option, value in (("--bank", bank), ("--teacher", teacher)):
        if value and not int8:
            raise ConfigError(
                f"{option} calibrates int8, and --int8 was not given.", fix="Add --int8."
            )
    if bank and teacher:
        raise ConfigError(
            "--bank and --teacher exclude each other.",
            fix="Give the bank where there is one; --teacher makes one.",
        )
    if portable and not int8:
        raise ConfigError(
            "--portable makes an int8 file, and --int8 was not given.", fix="Add --int8."
        )
    if data is None and (fold or data_root):
        raise ConfigError("--fold and --data-root need --data.", fix="Add --data NAME.")
    options = ExportOptions(min_agreement=min_agreement, max_drop=max_drop, seed=seed)
    loaded = load_checkpoint(student, "student")
    assert isinstance(loaded.model, Student)
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
        options=options,
        evaluate=None if features is None else accuracy_on(features),
    )
    atomic_write_text(out / CARD, model_card(report, loaded, measured))
    output.result(
        report.to_dict()
        | {
            "out": str(out),
            "card": str(out / CARD),
            "student": {"path": str(student), "sha256": loaded.sha256},
            "calibration_clips": None if mels is None else mels.clips,
            "data": measured,
        }
    )
    _show(report, output)
    for note in report.notes:
        output.note(note)
    _conclude(report, out, data, output)


def _mels(
    loaded: Loaded,
    student: Path,
    bank: Path | None,
    teacher: Path | None,
    samples: int,
    seed: int,
    output: Output,
) -> CalibrationMels:
    from frami_edge.calibrating import bank_mels, made_mels, teacher_mels
    from frami_edge.device import choose_device
    from frami_edge.inversion.run import step_bars
    from frami_edge.models.checkpoint import load_checkpoint

    if bank:
        mels = bank_mels(bank, loaded, samples)
    elif teacher:
        known = load_checkpoint(teacher, "teacher")
        with step_bars(output) as show:
            mels = teacher_mels(loaded, known, samples, seed, choose_device(), show)
    else:
        mels = made_mels(loaded, samples, seed)
    output.note(f"Calibration: {mels.reason}.")
    beside = student.parent / "bank"
    if bank is None and (beside / "bank.json").is_file():
        output.note(f"The student's own bank lies beside it: --bank {beside} calibrates on that.")
    return mels


def _features(
    loaded: Loaded, name: str | None, asked: str | None, root: Path | None, output: Output
) -> tuple[Features | None, dict[str, Any] | None]:
    """Real clips that the teacher never heard, and what to call them."""
    if name is None:
        return None, None
    from frami_edge.data import load_set, resolve_fold
    from frami_edge.errors import DataError
    from frami_edge.evaluation import check_labels, check_unheard
    from frami_edge.training.material import load_features, warn_rejected

    card = loaded.card
    sound_set = load_set(name, root)
    check_labels(card, sound_set)
    heard = card.heard
    if asked is None and heard is not None and heard.data == sound_set.name:
        asked = heard.test_fold
    if asked is None and len(sound_set.folds) > 1:
        raise DataError(
            f"The student does not say which fold of {sound_set.name} its teacher held out.",
            fix=f"Give --fold; the folds are {', '.join(sound_set.folds)}.",
        )
    fold = resolve_fold(sound_set, asked)
    check_unheard(heard, sound_set, fold)
    if heard is None:
        output.warn(f"Nobody checked that the teacher held out fold {fold}: its card is silent.")
    clips = [clip for clip in sound_set.clips if clip.fold == fold]
    features = load_features(loaded.spec, clips, output, "Log-mels of real clips")
    warn_rejected(features, "test clips", output)
    return features, {"name": sound_set.name, "fold": fold, "clips": len(features)}


def _show(report: ExportReport, output: Output) -> None:
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
    names = ["name", "kB", "smaller", "1 s, ms", "faster", "chunk, ms", "faster", "max diff.",
             "agreement", "SQNR dB", "lint"]  # fmt: skip
    rows = [_row(a, fp32) for a in report.artifacts]
    if fp32.accuracy is not None:
        names.append("accuracy")
        rows = [[*r, _share(a.accuracy)] for r, a in zip(rows, report.artifacts, strict=True)]
    bench = report.bench
    output.table(
        f"Export of {report.name}",
        names,
        rows,
        caption=f"Medians of {bench['rounds']} interleaved rounds, one thread, {bench['cpu']}; "
        f"a chunk is {bench['chunk_s']:g} s.",
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
        _share(a.agreement),
        _fixed(a.sqnr_db, 1),
        a.lint or None,
    ]


def _fixed(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2f} %"


def _conclude(report: ExportReport, out: Path, data: str | None, output: Output) -> None:
    from frami_edge.errors import GateFailed

    failed = [gate.name for gate in report.gates if not gate.passed]
    if failed:
        rest = f"{report.recommended} passed its own gates" if report.recommended else "use no file"
        raise GateFailed(
            f"Gate failed: {', '.join(failed)}. The files are kept in {out}; {rest}.",
            fix="Calibrate on the student's own bank (--bank), or distil the student longer.",
        )
    output.note(f"Use {out / report.recommended}: {report.reason}")
    output.hint(f"frami-edge evaluate {out / report.recommended} --data {data or 'NAME'}")
