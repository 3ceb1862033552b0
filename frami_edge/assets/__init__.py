"""Files that ship in the package."""

from __future__ import annotations

from pathlib import Path

DIGITS_TEACHER = Path(__file__).parent / "digits-teacher.safetensors"
"""Ten spoken digits, trained by `frami-edge train-teacher fsdd-teacher`; see digits-teacher.md."""


def teacher_assets() -> dict[str, Path]:
    """Teachers that ship in the package, by name."""
    return {file.stem: file for file in sorted(Path(__file__).parent.glob("*.safetensors"))}
