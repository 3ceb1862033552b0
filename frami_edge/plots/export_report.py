"""One picture of an export: size, speed, answers, layers, and the verdicts in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frami_edge.plots.style import INK, SERIES, figure

_BLUE, _ORANGE, _GREEN, _RED = SERIES[0], SERIES[1], SERIES[2], SERIES[3]
_GREY = SERIES[5]
_PALE = "#a9c4de"
_LAYERS = 16
"""Shown, the most sensitive ones first; the report has all."""
_LINE = 150
"""Characters of a line of the verdicts."""
_CUT = 1.15
"""Times the longest median: where the lines to p95 are cut."""
_ROW = 0.42
"""Inches of an artefact."""


def draw_export_report(report: Mapping[str, Any], path: Path) -> None:
    """Draw an `export_report.json`.

    Args:
        report: Its content.
        path: PNG file.

    Raises:
        ValueError: There is no artefact.
    """
    artifacts = list(report["artifacts"])
    if not artifacts:
        raise ValueError("the picture of an export needs at least one artefact")
    lines = _words(report)
    layers = list(report.get("layers") or [])[:_LAYERS]
    bars = max(1.5 + _ROW * len(artifacts), 0.9 + 0.2 * len(layers), 2.4)
    words = 0.3 + 0.175 * len(lines)
    with figure(
        path, 2, 4, (13, 0.5 + bars + words), width_ratios=[1, 1.35, 1, 1.1],
        height_ratios=[bars, words],
    ) as axes:  # fmt: skip
        size, latency, answers, noise = axes[0]
        _size(size, artifacts, report)
        _latency(latency, artifacts, report)
        _answers(answers, artifacts)
        _noise(noise, layers, report)
        for axis in axes[1]:
            axis.set_axis_off()
        _write(axes[1][0], lines)
        size.figure.suptitle(_title(report), fontweight="bold", fontsize=12, x=0.01, ha="left")


def _size(axis: Any, artifacts: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    kilobytes = [a["bytes"] / 1000 for a in artifacts]
    whole = next((a["bytes"] for a in artifacts if a["name"] == "fp32"), 0) / 1000
    used = [a["path"] == report.get("recommended") for a in artifacts]
    axis.barh(
        range(len(artifacts)), kilobytes, color=[_GREEN if u else _BLUE for u in used], height=0.55
    )
    for i, value in enumerate(kilobytes):
        smaller = whole / value
        text = f" {value:.0f} kB" + (f", {smaller:.1f}x smaller" if smaller >= 1.05 else "")
        _label(axis, value, i, text)
    axis.set_xlim(0, 1.84 * max(kilobytes))
    axis.locator_params(axis="x", nbins=5)
    axis.set_title("Size, kB", loc="left")
    _names(axis, artifacts, used)


def _latency(axis: Any, artifacts: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    chunk_s = (report.get("bench") or {}).get("chunk_s")
    medians = [a.get(key) or 0.0 for a in artifacts for key in ("p50_ms", "chunk_p50_ms")]
    most = max(*medians, 1e-9)
    chunk = "a chunk" if chunk_s is None else f"a chunk of {chunk_s:g} s"
    for name, colour in (("1 s of audio", _BLUE), (chunk, _PALE)):
        axis.barh([0], [0], color=colour, label=name)
    for i, a in enumerate(artifacts):
        p50, p95, chunk_p50 = a.get("p50_ms"), a.get("p95_ms"), a.get("chunk_p50_ms")
        if p50 is not None:
            axis.barh(i - 0.16, p50, height=0.3, color=_BLUE)
            end = p50
            if p95 is not None and p95 > p50:
                # On a busy machine p95 can be a hundred medians: the line is cut, with an arrow.
                end = min(p95, _CUT * most)
                axis.plot([p50, end], [i - 0.16] * 2, color=INK, linewidth=0.8)
                if end < p95:
                    axis.plot([end], [i - 0.16], ">", color=INK, markersize=4)
            text = f"  {p50:.3f} ms" + _faster(a.get("speedup"), a)
            _label(axis, end, i - 0.16, text)
        if chunk_p50 is not None:
            axis.barh(i + 0.16, chunk_p50, height=0.3, color=_PALE)
            text = f" {chunk_p50:.3f} ms" + _faster(a.get("chunk_speedup"), a)
            _label(axis, chunk_p50, i + 0.16, text)
    axis.set_title("Latency, ms: median, line to p95", loc="left")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    _names(axis, artifacts, None)
    axis.set_xlim(0, 2.1 * most)
    axis.locator_params(axis="x", nbins=5)


def _faster(speedup: float | None, a: Mapping[str, Any]) -> str:
    return "" if speedup is None or a["name"] == "fp32" else f", {speedup:.2f}x as fast"


def _answers(axis: Any, artifacts: Sequence[Mapping[str, Any]]) -> None:
    shown: list[float] = []
    for key, marker, colour, shift in (
        ("agreement", "o", _BLUE, -0.14), ("accuracy", "D", _ORANGE, 0.14),
    ):  # fmt: skip
        known = [(i, 100 * a[key]) for i, a in enumerate(artifacts) if a.get(key) is not None]
        if not known:
            continue
        at, values = zip(*known, strict=True)
        axis.plot(values, [i + shift for i in at], marker, color=colour, markersize=6, label=key)
        for i, value in known:
            axis.annotate(
                f"{value:.1f}", (value, i + shift), xytext=(-7, 0), textcoords="offset points",
                ha="right", va="center", fontsize=8,
            )  # fmt: skip
        shown += values
    low = min([*shown, 98.0])
    axis.set_xlim(low - 0.35 * (101 - low), 100 + 0.04 * (101 - low))
    axis.locator_params(axis="x", nbins=5)
    axis.set_title("Answers, % (cut axis)", loc="left")
    handles, names = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    _names(axis, artifacts, None)


def _noise(axis: Any, layers: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    axis.set_title("SQNR of each layer in int8, dB", loc="left")
    known = [row for row in layers if row.get("sqnr_db") is not None]
    if not known:
        axis.set_axis_off()
        axis.text(0, 0.9, "No layer was quantised.", transform=axis.transAxes, va="top")
        return
    kept = set((report.get("quantisation") or {}).get("float_layers") or [])
    values = [row["sqnr_db"] for row in known]
    colours = [_PALE if row["layer"] in kept else _BLUE for row in known]
    axis.barh(range(len(known)), values, color=colours, height=0.7)
    for i, (row, value) in enumerate(zip(known, values, strict=True)):
        text = f" {value:.1f}" + (", stays float" if row["layer"] in kept else "")
        axis.text(value, i, text, va="center", fontsize=7)
    names = [_shortened(str(row["layer"])) for row in known]
    axis.set_yticks(range(len(known)), names, fontsize=7)
    axis.set_ylim(len(known) - 0.4, -0.6)
    axis.set_xlim(0, 1.35 * max(*values, 1.0))
    axis.tick_params(axis="y", length=0)


def _names(axis: Any, artifacts: Sequence[Mapping[str, Any]], used: Sequence[bool] | None) -> None:
    axis.set_ylim(len(artifacts) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    if used is None:
        axis.set_yticks(range(len(artifacts)), [""] * len(artifacts))
        return
    axis.set_yticks(range(len(artifacts)), [a["name"] for a in artifacts])
    for label, chosen in zip(axis.get_yticklabels(), used, strict=True):
        label.set_fontweight("bold" if chosen else "normal")


def _label(axis: Any, at: float, y: float, text: str) -> None:
    axis.text(at, y, text, va="center", fontsize=7.5)


def _title(report: Mapping[str, Any]) -> str:
    gates = report.get("gates") or []
    passed = sum(bool(g["passed"]) for g in gates)
    use = report.get("recommended") or "nothing"
    return f"Export of {report['name']}: use {use} ({passed} of {len(gates)} gates passed)"


def _words(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines and their colours."""
    said: list[tuple[str, str]] = []
    for a in report["artifacts"]:
        chosen = a["path"] == report.get("recommended")
        text = f"{a['path']}: {a.get('verdict') or 'no verdict'}"
        said.append((text, _GREEN if chosen else INK))
    for gate in report.get("gates") or []:
        if not gate["passed"]:
            bound = "at most" if gate.get("better", "lower") == "lower" else "at least"
            rule = f"must be {bound} {gate['limit']:.4g}"
            text = f"Gate failed: {gate['name']} is {gate['value']:.4g}, {rule}"
            said.append((text, _RED))
    bench = report.get("bench") or {}
    if bench.get("cpu"):
        text = f"Latency of the graph alone: {bench.get('rounds', 'some')} interleaved rounds, one "
        said.append((f"{text}thread, batch 1, {bench['cpu']}.", _GREY))
    said += [(str(note), _GREY) for note in report.get("notes") or []]
    lines = []
    for text, colour in said:
        wrapped = textwrap.wrap(text, _LINE, subsequent_indent="    ") or [""]
        lines += [(line, colour) for line in wrapped]
    return lines


def _write(axis: Any, lines: Sequence[tuple[str, str]]) -> None:
    for i, (line, colour) in enumerate(lines):
        text = axis.text(
            0, 1 - i / max(1, len(lines)), line, transform=axis.transAxes, va="top", color=colour,
            fontsize=8.5,
        )  # fmt: skip
        # It runs below the other columns; counting it would squeeze them.
        text.set_in_layout(False)


def _shortened(name: str) -> str:
    return name if len(name) <= 18 else f"…{name[-17:]}"
