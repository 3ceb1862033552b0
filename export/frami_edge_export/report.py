"""What an export measured: records, the recommendation, and the report as Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from frami_edge_runtime.thresholds import NEVER, Thresholds

if TYPE_CHECKING:
    import onnx

SCHEMA: Final = 1


@dataclass(frozen=True)
class Artifact:
    """One file and its measurements; None means not measured or not applicable."""

    name: str
    """``fp32``, ``model``, ``int8.cpu``, ``int8.trt``, ``int8.portable``, ``fp16``,
    ``int8.trt.fp16`` or ``wave``."""
    path: str
    """File name, in the folder of the report."""
    kind: str
    """``streaming`` (trunk and head, for frami-edge-runtime), ``classifier`` (mel to logits) or
    ``waveform`` (samples to logits)."""
    precision: str
    """``fp32``, ``fp16`` or ``int8``."""
    bytes: int = 0
    p50_ms: float | None = None
    """Median latency of the graph on 1 s of audio, one thread, batch 1."""
    p95_ms: float | None = None
    max_abs_difference: float | None = None
    """Largest |difference| of the logits: fp32 against torch, int8 against fp32 on the hold-out."""
    agreement: float | None = None
    """Share of inputs with the same top class as the reference."""
    sqnr_db: float | None = None
    """Signal to quantisation noise of the logits on the hold-out, dB; None without noise."""
    accuracy: float | None = None
    """Result of the caller's ``evaluate``."""
    lint: str = ""
    """Result of the TensorRT lint: ``clean``, ``n findings``, or "" where it does not apply."""
    verdict: str = ""
    """One sentence, from measurements only."""
    chunk_p50_ms: float | None = None
    """Median latency on a streaming chunk with its carried context."""
    speedup: float | None = None
    """How much faster than fp32 in the same interleaved rounds, on 1 s of audio."""
    chunk_speedup: float | None = None
    """The same on the streaming chunk."""
    speedup_95: tuple[float, float] | None = None
    """Ends of its 95 % confidence interval."""
    chunk_speedup_95: tuple[float, float] | None = None
    """The same on the streaming chunk."""
    sha256: str = ""
    purpose: str = ""
    """Target of the file where that is not this CPU, such as ``TensorRT``."""
    findings: tuple[dict[str, str], ...] = ()
    """Lint findings: rule, node, message and fix of each."""


@dataclass(frozen=True)
class Gate:
    """A measured value and the limit that it must keep."""

    name: str
    value: float
    limit: float
    passed: bool
    better: str = "lower"
    """``lower``: value <= limit passes; ``higher``: value >= limit passes."""
    artifact: str = ""
    """Name of the one artefact concerned; "" for a gate that concerns every file."""

    @classmethod
    def at_most(cls, name: str, value: float, limit: float, artifact: str = "") -> Gate:
        """Passes where value <= limit."""
        return cls(name, value, limit, bool(value <= limit), "lower", artifact)

    @classmethod
    def at_least(cls, name: str, value: float, limit: float, artifact: str = "") -> Gate:
        """Passes where value >= limit."""
        return cls(name, value, limit, bool(value >= limit), "higher", artifact)


@dataclass(frozen=True)
class Draft:
    """A built file before it is timed, judged and written."""

    artifact: Artifact
    data: bytes
    graph: onnx.ModelProto
    """The graph that is linted, and timed where ``timed``."""
    gates: tuple[Gate, ...] = ()
    timed: bool = True


@dataclass(frozen=True)
class Calibration:
    """The samples that set the int8 ranges."""

    source: str
    """Origin as the caller names it, such as ``bank``."""
    samples: int
    """Number that set the ranges, without the hold-out."""
    holdout: int
    sha256: str
    """Hash of the clamped samples that set the ranges, float32, in order."""
    clamped: float
    """Share of values that were outside the front end's floor and ceiling."""


@dataclass(frozen=True)
class ExportReport:
    """All files and measurements of one export; `to_dict` is ``export_report.json``."""

    name: str
    artifacts: tuple[Artifact, ...]
    recommended: str
    """File name of the artefact to put on the device; "" where a gate of all files failed."""
    reason: str
    calibration: Calibration | None
    gates: tuple[Gate, ...]
    quantisation: dict[str, Any] | None = None
    """Flavour, candidates tried, layers left float and why; None for fp32 only."""
    layers: tuple[dict[str, Any], ...] = ()
    """SQNR of each int8 convolution on its own, worst first."""
    bench: dict[str, Any] = field(default_factory=dict)
    """How latency was measured."""
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a reader should know before using a file."""
    stale: tuple[str, ...] = ()
    """Files of an earlier export in the same folder."""
    labels: tuple[str, ...] = ()
    """In the order of the logits, and of ``thresholds``."""
    thresholds: dict[str, Any] | None = None
    """`Thresholds` of the events, and what they are expected to cost; None where not set."""
    engines: Any = None
    """`EngineReport` of the TensorRT engines; None where none were built."""

    @property
    def ok(self) -> bool:
        """Every gate passed, and every engine its check."""
        return all(gate.passed for gate in self.gates) and (not self.engines or self.engines.ok)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return markdown_card(self)

    _repr_markdown_ = __str__

    def artifact(self, name: str) -> Artifact:
        """The artefact of that name.

        Raises:
            KeyError: There is none.
        """
        return {artifact.name: artifact for artifact in self.artifacts}[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        engines = self.engines.to_dict() if self.engines else None
        values = dataclasses.asdict(replace(self, engines=None))
        return {"schema": SCHEMA, "ok": self.ok, **values, "engines": engines}


PURPOSES: Final = {
    "classifier": "for your own runtime: mel in, logits out",
    "waveform": "for your own runtime: samples in, logits out",
}
"""Verdicts of the kinds that do not compete with the streaming files."""
NO_SLOWER: Final = 1 / 1.05
"""A file is slower than fp32 where its whole interval lies below. A difference that no interval
shows decides nothing."""


def judge(
    artifacts: Sequence[Artifact], gates: Sequence[Gate], target: str = ""
) -> tuple[tuple[Artifact, ...], str, str]:
    """Give every artefact its verdict and recommend one.

    A file is recommended only where all its gates passed and it was slower than fp32 neither on
    1 s of audio nor on a streaming chunk; of several such files the fastest, and of those that may
    be as fast the one whose logits are nearest to fp32.

    Args:
        artifacts: The files; ``fp32`` is among them.
        gates: Their gates.
        target: Device that nothing here was timed on: then fp32 is recommended. "" where this
            machine's times hold for it.

    Returns:
        The artefacts with verdicts, the recommended file's name ("" where none), the reason.
    """
    broken = [gate for gate in gates if not gate.passed and not gate.artifact]
    if broken:
        verdict = f"not recommended: {_describe(broken)}"
        judged = tuple(replace(a, verdict=verdict) for a in artifacts)
        return judged, "", f"Nothing is recommended: {_describe(broken)}."
    fp32 = next(a for a in artifacts if a.name == "fp32")
    if target:
        return _judge_elsewhere(artifacts, gates, fp32, target)
    faults = {a.name: _failed(a, gates) or _slower(a) for a in artifacts}
    # A file for TensorRT that was not timed here is no choice for this CPU.
    rivals = [a for a in artifacts if a.kind == "streaming" and a is not fp32 and not _untimed(a)]
    fit = [a for a in rivals if not faults[a.name]]
    fastest = max((_speed(a)[0] for a in fit), default=1.0)
    alike = [a for a in fit if _speed(a)[1] >= NO_SLOWER * fastest]
    best = max(alike, key=lambda a: a.sqnr_db or 0.0, default=None)
    judged = tuple(replace(a, verdict=_verdict(a, fp32, best, faults[a.name])) for a in artifacts)
    if best is not None:
        return judged, best.path, f"{best.name} passed its gates: {_gains(best, fp32)}."
    reasons = [f"{a.name}: not recommended: {faults[a.name]}." for a in rivals[:1]]
    return judged, fp32.path, " ".join(reasons) or "fp32 is the only streaming file."


def _judge_elsewhere(
    artifacts: Sequence[Artifact], gates: Sequence[Gate], fp32: Artifact, target: str
) -> tuple[tuple[Artifact, ...], str, str]:
    """Verdicts for a device that is not this machine: its gates hold there, no time does."""
    int8 = next((a for a in artifacts if a.name == "int8.cpu"), None)
    judged = []
    for a in artifacts:
        fault = _failed(a, gates)
        verdict = f"passed its gates, {_smaller(a, fp32)}; not timed on {target}"
        if a is fp32:
            verdict = "recommended until another file was timed on the device"
        elif fault:
            verdict = f"not recommended: {fault}"
        elif a.kind in PURPOSES:
            verdict = PURPOSES[a.kind]
        judged.append(replace(a, verdict=f"for {a.purpose}; {verdict}" if a.purpose else verdict))
    if target == "jetson-gpu":
        reason = (
            "fp32 runs everywhere; build the engines on the Jetson, where they are timed: "
            "frami-edge export --tensorrt FOLDER."
        )
    elif int8 is not None and not _failed(int8, gates):
        reason = (
            f"no {target} CPU has timed {int8.name} yet, which passed its gates and is "
            f"{_smaller(int8, fp32)}: compare the two on the device."
        )
    else:
        reason = "fp32 is the only streaming file that passed its gates."
    return tuple(judged), fp32.path, reason


def _verdict(a: Artifact, fp32: Artifact, best: Artifact | None, fault: str) -> str:
    if a is fp32:
        return "recommended" if best is None else "the reference"
    if a.kind in PURPOSES:
        return f"not recommended: {fault}" if fault else PURPOSES[a.kind]
    if _untimed(a) and not fault:
        return f"for {a.purpose}; not timed on this CPU"
    if a is best:
        return f"recommended: {_gains(a, fp32)}"
    if fault:
        verdict = f"not recommended: {fault}"
    else:
        better = (
            "is faster" if best is None or _speed(best)[0] > _speed(a)[1] else "is nearer to fp32"
        )
        verdict = f"good, but {best.name if best else 'fp32'} {better}: {_gains(a, fp32)}"
    if not a.purpose:
        return verdict
    if a.lint not in ("", "clean"):
        return f"not for {a.purpose}: {a.lint} of the lint; on this CPU {verdict}"
    return f"for {a.purpose}; on this CPU {verdict}"


def _failed(a: Artifact, gates: Sequence[Gate]) -> str:
    """The gates that this file failed, or ""."""
    failed = [gate for gate in gates if not gate.passed and gate.artifact == a.name]
    return _describe(failed) if failed else ""


def _paces(a: Artifact) -> list[tuple[str, float, float, float]]:
    """What was timed, how much faster than fp32 that was, and the ends of its interval."""
    timed = (
        ("1 s of audio", a.speedup, a.speedup_95),
        ("a streaming chunk", a.chunk_speedup, a.chunk_speedup_95),
    )
    return [
        (what, factor, *(ends or (factor, factor)))
        for what, factor, ends in timed
        if factor is not None
    ]


def _slower(a: Artifact) -> str:
    """Where this file is slower than fp32, or ""."""
    if a.kind != "streaming":
        return ""
    slower = [
        f"on {what} ({1 / factor:.2f}x the time)"
        for what, factor, _, high in _paces(a)
        if high < NO_SLOWER
    ]
    return f"slower than fp32 {' and '.join(slower)}" if slower else ""


def _untimed(a: Artifact) -> bool:
    return bool(a.purpose) and a.speedup is None


def _speed(a: Artifact) -> tuple[float, float]:
    """Product of both speedups, least and most; 1 where nothing was measured."""
    paces = _paces(a)
    return math.prod(low for *_, low, _ in paces), math.prod(high for *_, high in paces)


def _gains(a: Artifact, fp32: Artifact) -> str:
    """Faster, or as fast, and smaller: what is slower has a fault and no gains."""
    gains = [
        f"{f'{factor:.2f}x faster' if low > 1 else 'as fast'} on {what}"
        + (f" ({low:.2f} to {high:.2f})" if low < high else "")
        for what, factor, low, high in _paces(a)
    ]
    return ", ".join([*gains, _smaller(a, fp32)])


def _smaller(a: Artifact, fp32: Artifact) -> str:
    return f"{fp32.bytes / a.bytes:.1f}x smaller"


def _describe(gates: Sequence[Gate]) -> str:
    side = {"lower": "above", "higher": "below"}
    return "; ".join(
        f"{g.name} is {g.value:.4g}, {side[g.better]} its limit {g.limit:.4g}" for g in gates
    )


MAX_FINDINGS: Final = 5
"""Lint findings per file in the card; ``export_report.json`` has them all."""
MAX_LABELS: Final = 60
_FILE_COLUMNS = (
    "file | size | smaller | p50 / p95 ms, 1 s | chunk p50 ms | faster (1 s / chunk) | "
    "max difference | agreement | SQNR dB | accuracy | TensorRT lint | verdict"
)


def markdown_card(report: ExportReport) -> str:
    """The report as Markdown: tables of files, gates and layers, then the notes."""
    fp32 = report.artifact("fp32")
    use = f"Use `{report.recommended}`.** {report.reason}" if report.recommended else ""
    lines = [f"# Export of {report.name}", "", f"**{use or report.reason + '**'}", ""]
    lines += _table(_FILE_COLUMNS.split(" | "), [_file_row(a, fp32) for a in report.artifacts])
    rows = []
    for g in report.gates:
        limit = f"{'≤' if g.better == 'lower' else '≥'} {g.limit:.4g}"
        rows.append([g.name, f"{g.value:.4g}", limit, "yes" if g.passed else "**no**"])
    lines += ["## Gates", "", *_table(["gate", "value", "limit", "passed"], rows)]
    lines += _int8_section(report)
    lines += _events_section(report)
    findings = [
        [f"`{a.path}`", f["node"], f["rule"], f["message"], f["fix"]]
        for a in report.artifacts
        for f in a.findings[:MAX_FINDINGS]
    ]
    if findings:
        columns = ["file", "node", "rule", "what", "fix"]
        lines += ["## What TensorRT would refuse", "", *_table(columns, findings)]
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
    levels = q["levels"]
    rows = [[row["layer"], _number(row["sqnr_db"], ".1f")] for row in report.layers[:8]]
    return [
        "## int8",
        "",
        f"Calibrated on {c.samples} samples ({c.source}), judged on {c.holdout} others; "
        f"{c.clamped:.2%} of the values were clamped to the front end's range. {q['reason']}.",
        "",
        f"At levels up to {levels['level_db']:g} dB louder or softer: agreement "
        f"{levels['agreement']:.2%}, SQNR {_number(levels['sqnr_db'], '.1f')} dB.",
        "",
        *_table(["most sensitive layers, each int8 alone", "SQNR dB"], rows),
    ]


def _events_section(report: ExportReport) -> list[str]:
    if report.thresholds is None:
        return []
    t = Thresholds(**report.thresholds)
    hits = t.hit_rates or (None,) * len(t.on)
    worst_first = sorted(
        zip(report.labels, t.on, t.off, hits, strict=True), key=lambda row: row[3] or 0.0
    )
    rows = [
        [f"`{label}`", "never" if on == NEVER else f"{on:.7g}", f"{off:.4g}", _number(hit, ".0%")]
        for label, on, off, hit in worst_first
    ]
    return [
        "## Events",
        "",
        f"Thresholds in every file: {t}. No recording was used; measure on your own with "
        "`frami-edge evaluate --stream`, adapt them with `frami-edge tune`.",
        "",
        *_table(["label", "starts at", "ends below", "expected hit rate"], rows[:MAX_LABELS]),
        *([f"And {len(rows) - MAX_LABELS} others.", ""] if len(rows) > MAX_LABELS else []),
    ]


def _file_row(a: Artifact, fp32: Artifact) -> list[str]:
    speedups = [f"{s:.2f}x" for s in (a.speedup, a.chunk_speedup) if s is not None]
    return [
        f"`{a.path}`",
        f"{a.bytes / 1000:.1f} kB",
        f"{fp32.bytes / a.bytes:.2f}x",
        f"{_number(a.p50_ms, '.3f')} / {_number(a.p95_ms, '.3f')}",
        _number(a.chunk_p50_ms, ".3f"),
        " / ".join(speedups),
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
