"""What `frami-edge export` shows at its end: gates, files, verdicts, engines, the next step."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from frami_edge.cli._output import Output

if TYPE_CHECKING:
    from frami_edge_export import Artifact, ExportReport
    from frami_edge_export.tensorrt.report import EngineReport


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
