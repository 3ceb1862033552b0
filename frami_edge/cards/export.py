"""README.md of an export: what the files are, how they were proven, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frami_edge.cards.header import Result, model_header
from frami_edge.cards.parts import classes, mel_contract, provenance, sections, table
from frami_edge.cards.snippets import install, listen_commands, runtime_code
from frami_edge.models.checkpoint import Loaded
from frami_edge_export import ExportReport, markdown_card

CARD = "README.md"


def export_readme(
    report: ExportReport,
    student: Loaded,
    data: Mapping[str, Any] | None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The model card of an export's folder.

    Args:
        report: Of the export.
        student: The checkpoint that was exported.
        data: Name, fold and clips that the accuracy was measured on; None where it was not.
        pictures: Paths inside the folder, by what they show.
    """
    card, spec, used = student.card, student.spec, report.calibration
    heard = card.heard
    precisions = sorted({a.precision for a in report.artifacts} - {"fp32"})
    header = model_header(
        name=report.name,
        licence=card.licence,
        tags=["onnx", *precisions, "knowledge-distillation", "data-free", "statistics-pooling"],
        results=_results(report, data),
    )
    rows = [
        ("classes", f"{len(card.labels)}: {classes(card.labels)}"),
        ("input", f"mono at {spec.sample_rate} Hz, any length; other rates with "
         "`frami-edge-runtime[resample]`"),
        ("the teacher heard",
         f"{heard.data} without fold {heard.test_fold}" if heard else "not said"),
        ("the student heard", "no recording"),
        ("calibration", f"{used.samples} synthetic clips ({used.source})" if used else "none"),
        ("accuracy measured on", _measured(data) if data else "nothing: no --data was given"),
        ("licence", card.licence or "not said"),
    ]  # fmt: skip
    usable = bool(report.recommended)
    origin = [
        *((a.path, f"SHA-256 `{a.sha256}`") for a in report.artifacts),
        ("student", f"SHA-256 `{student.sha256}`"),
        ("teacher", f"SHA-256 `{card.teacher_sha256}`" if card.teacher_sha256 else "not named"),
        ("calibration clips", f"SHA-256 `{used.sha256}`" if used else ""),
        ("seed of the export", str(report.options.get("seed", ""))),
        ("versions", ", ".join(f"{name} {v}" for name, v in report.versions.items())),
    ]
    lines = [
        header,
        markdown_card(report).rstrip(),
        "\n\n".join(f"![{name}]({path})" for name, path in (pictures or {}).items()),
        "## The model",
        table(["", ""], rows),
        "## Run it" if usable else "",
        install() if usable else "",
        runtime_code(report.recommended, spec.sample_rate) if usable else "",
        listen_commands(report.recommended) if usable else "",
        "## What it wants",
        "The runtime computes it; for `.model.onnx` your program does, normalised, (B, 1, M, T).",
        mel_contract(spec),
        "## Limits",
        _limits(data),
        "## Provenance",
        provenance(origin),
    ]
    return sections(*lines)


def _results(report: ExportReport, data: Mapping[str, Any] | None) -> list[Result]:
    if data is None:
        return []
    return [
        Result(
            str(data["name"]), str(data["fold"]), "accuracy", a.accuracy, f"accuracy of {a.path}"
        )
        for a in report.artifacts
        if a.accuracy is not None
    ]


def _measured(data: Mapping[str, Any]) -> str:
    return f"fold {data['fold']} of {data['name']}, {data['clips']} clips"


def _limits(data: Mapping[str, Any] | None) -> str:
    points = [
        "Every sound gets one of these classes, silence and noise too: set a threshold.",
        "Scores are a softmax and were not calibrated.",
        "Latency was measured on the machine named above and says little of another one: "
        "`frami-edge bench`.",
    ]
    if data is None:
        points.insert(
            0,
            "**Not validated on real audio here**: agreement compares files with each other on "
            "synthetic clips. Measure accuracy: `frami-edge evaluate FILE --data NAME`.",
        )
    return "\n".join(f"- {point}" for point in points)
