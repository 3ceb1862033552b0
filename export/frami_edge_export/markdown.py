"""The report as a Markdown card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from frami_edge_export.report import Artifact, ExportReport

MAX_FINDINGS: Final = 5
"""Of each file; the rest are in ``export_report.json``."""
_FINDING_COLUMNS: Final = ["file", "node", "rule", "what", "fix"]


def markdown_card(report: ExportReport) -> str:
    """Tables of artefacts, gates and layers, and what a reader should know."""
    fp32 = report.artifact("fp32")
    lines = [f"# Export of {report.name}", ""]
    if report.recommended:
        lines += [f"**Use `{report.recommended}`.** {report.reason}", ""]
    else:
        lines += [f"**{report.reason}**", ""]
    lines += _table(
        ["file", "size", "smaller", "p50 / p95 ms, 1 s", "chunk p50 ms", "faster (1 s / chunk)",
         "max difference", "agreement", "SQNR dB", "accuracy", "TensorRT lint", "verdict"],
        [_artifact_row(a, fp32) for a in report.artifacts],
    )  # fmt: skip
    lines += ["## Gates", ""]
    lines += _table(
        ["gate", "value", "limit", "passed"],
        [
            [g.name, f"{g.value:.4g}", f"{'≤' if g.better == 'lower' else '≥'} {g.limit:.4g}",
             "yes" if g.passed else "**no**"]
            for g in report.gates
        ],
    )  # fmt: skip
    lines += _int8_section(report)
    lines += _fine_tuning_section(report)
    lines += _lint_section(report)
    bench = report.bench
    lines += [
        f"Latency: of the graph alone, batch 1, {bench['threads']} thread, {bench['cpu']}, medians "
        f"of {bench['rounds']} interleaved rounds; 1 s is {bench['frames_1s']} mel frames, the "
        f"chunk is {bench['frames_chunk']} ({bench['context_frames']} of them carried context).",
        "",
    ]
    lines += [f"- {note}" for note in report.notes]
    return "\n".join(lines).rstrip() + "\n"


def _int8_section(report: ExportReport) -> list[str]:
    if report.calibration is None or report.quantisation is None:
        return []
    c, q = report.calibration, report.quantisation
    lines = [
        "## int8",
        "",
        f"Calibrated on {c.samples} samples ({c.source}), judged on {c.holdout} others; "
        f"{c.clamped:.2%} of the values were clamped to the front end's range. {q['reason']}.",
        "",
    ]
    levels = q["levels"]
    lines += [
        f"At levels up to {levels['level_db']:g} dB louder or softer: agreement "
        f"{levels['agreement']:.2%}, SQNR {_number(levels['sqnr_db'], '.1f')} dB.",
        "",
    ]
    rows = [[row["layer"], _number(row["sqnr_db"], ".1f")] for row in report.layers[:8]]
    return lines + _table(["most sensitive layers, each int8 alone", "SQNR dB"], rows)


def _fine_tuning_section(report: ExportReport) -> list[str]:
    if report.fine_tuning is None:
        return []
    f = report.fine_tuning
    rows = []
    for name, without in f["without"].items():
        a = report.artifact(name)
        rows.append(
            [
                f"`{a.path}`",
                f"{_number(without['agreement'], '.2%')} to {_number(a.agreement, '.2%')}",
                f"{_number(without['sqnr_db'], '.1f')} to {_number(a.sqnr_db, '.1f')}",
            ]
        )
    said = f"{f['steps']} steps on the calibration set, {f['seconds']:.0f} s; the last step ships."
    columns = ["fine-tuned", "agreement with fp32", "SQNR dB"]
    return ["## int8, fine-tuned", "", said, "", *_table(columns, rows)]


def _lint_section(report: ExportReport) -> list[str]:
    rows = [
        [f"`{a.path}`", f["node"], f["rule"], f["message"], f["fix"]]
        for a in report.artifacts
        for f in a.findings[:MAX_FINDINGS]
    ]
    if not rows:
        return []
    return ["## What TensorRT would refuse", "", *_table(_FINDING_COLUMNS, rows)]


def _artifact_row(a: Artifact, fp32: Artifact) -> list[str]:
    faster = "" if a.speedup is None else f"{a.speedup:.2f}x"
    if a.chunk_speedup is not None:
        faster += f" / {a.chunk_speedup:.2f}x"
    return [
        f"`{a.path}`",
        f"{a.bytes / 1000:.1f} kB",
        f"{fp32.bytes / a.bytes:.2f}x",
        f"{_number(a.p50_ms, '.3f')} / {_number(a.p95_ms, '.3f')}",
        _number(a.chunk_p50_ms, ".3f"),
        faster,
        _number(a.max_abs_difference, ".2g"),
        _number(a.agreement, ".2%"),
        _number(a.sqnr_db, ".1f"),
        _number(a.accuracy, ".2%"),
        a.lint,
        a.verdict,
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells] + [""]
