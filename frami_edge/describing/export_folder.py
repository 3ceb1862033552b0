"""The folder of an export: what its report says, and whether the files are still those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from frami_edge.describing.description import Description, Fact, Section, size_text
from frami_edge.errors import ModelFileError
from frami_edge.io import read_small, sha256_file

REPORT = "export_report.json"
MAX_BYTES = 64 << 20


def read_report(folder: Path) -> dict[str, Any]:
    """`export_report.json`.

    Raises:
        ModelFileError: Damaged, or of another schema.
    """
    path = folder / REPORT
    try:
        report = json.loads(read_small(path, MAX_BYTES))
    except (ValueError, RecursionError):
        report = None
    whole = isinstance(report, dict) and _is_report(report)
    if not whole:
        raise ModelFileError(
            f"{path} is damaged or of another version.",
            fix="Export the student again: frami-edge export.",
        )
    found: dict[str, Any] = report
    return found


def _is_report(report: dict[str, Any]) -> bool:
    """Of this schema, as far as it is read here."""
    artifacts, gates = report.get("artifacts"), report.get("gates", [])
    return (
        report.get("schema") == 1
        and isinstance(report.get("recommended", ""), str)
        and isinstance(report.get("notes", []), list)
        and isinstance(report.get("bench", {}), dict)
        and isinstance(artifacts, list)
        and all(_has(a, name=str, path=str, bytes=int) for a in artifacts)
        and len({a["name"] for a in artifacts}) == len(artifacts)
        and isinstance(gates, list)
        and all(_has(gate, name=str, passed=bool) for gate in gates)
    )


def _has(value: Any, **types: type) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(k), t) for k, t in types.items())


def describe_export(folder: Path) -> Description:
    """Report and files.

    Raises:
        ModelFileError: The report is damaged, or of another schema.
    """
    report = read_report(folder)
    failed = [g["name"] for g in report.get("gates", []) if not g.get("passed")]
    findings = [f"Gate failed: {name}." for name in failed]
    findings += _changed(folder, report)
    gates = len(report.get("gates", []))
    summary = Section(
        "export",
        (
            Fact("path", str(folder)),
            Fact("student", report.get("name")),
            Fact("recommended", report.get("recommended") or None,
                 report.get("recommended") or "none"),
            Fact("reason", report.get("reason")),
            Fact("gates", report.get("gates"), f"{gates - len(failed)} of {gates} passed"),
            Fact("calibration", report.get("calibration"), _calibration(report)),
            Fact("measured_on", report.get("bench", {}).get("cpu")),
        ),
    )  # fmt: skip
    files = Section(
        "files", tuple(Fact(a["name"], a, f"{a['path']}: {_artifact(a)}")
                       for a in report["artifacts"]),
    )  # fmt: skip
    findings += [str(note) for note in report.get("notes", [])]
    return Description("export", "folder of frami-edge export", (summary, files), tuple(findings))


def _artifact(a: dict[str, Any]) -> str:
    parts = [size_text(a["bytes"])]
    for key, words, form in (
        ("p50_ms", "1 s in", ".3f"), ("chunk_p50_ms", "chunk in", ".3f"),
    ):  # fmt: skip
        if isinstance(a.get(key), (int, float)):
            parts.append(f"{words} {a[key]:{form}} ms")
    for key, words in (("agreement", "agreement"), ("accuracy", "accuracy")):
        if isinstance(a.get(key), (int, float)):
            parts.append(f"{words} {a[key]:.1%}")
    return ", ".join(parts) + (f"; {a['verdict']}" if a.get("verdict") else "")


def _calibration(report: dict[str, Any]) -> str:
    used = report.get("calibration")
    if not isinstance(used, dict):
        return "none"
    return f"{used.get('samples')} clips ({used.get('source')}), {used.get('holdout')} judge"


def _changed(folder: Path, report: dict[str, Any]) -> list[str]:
    found = []
    for a in report["artifacts"]:
        file = folder / Path(a["path"]).name
        if not file.is_file():
            found.append(f"{a['path']} is missing from the folder.")
        elif a.get("sha256") and sha256_file(file) != a["sha256"]:
            found.append(
                f"{a['path']} is not the file that the report describes: its hash differs."
            )
    return found
