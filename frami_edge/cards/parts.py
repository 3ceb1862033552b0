"""Sections that cards share: front end, classes, provenance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from frami_edge_runtime.melspec import MelSpec

CLASSES_SHOWN: Final = 60
_VERSIONS: Final = ("frami-edge", "python", "torch", "torchaudio", "numpy", "onnxruntime")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in row) + " |" for row in lines)


def classes(labels: Sequence[str]) -> str:
    """Their names in the order of the outputs."""
    shown = ", ".join(f"`{label}`" for label in labels[:CLASSES_SHOWN])
    rest = len(labels) - CLASSES_SHOWN
    return shown + (f" and {rest} more, all of them in the file" if rest > 0 else "")


def mel_contract(spec: MelSpec) -> str:
    """What must be fed, exactly: every field of the front end."""
    top = spec.f_max or spec.sample_rate / 2
    rows = [
        ("audio", f"mono, {spec.sample_rate} Hz; int16, or float with full scale 1"),
        ("frames", f"FFT {spec.n_fft}, Hann window {spec.win_length}, hop {spec.hop_length} samples"
         f" ({1000 * spec.hop_s:g} ms), {'centred' if spec.center else 'from sample 0'}"),
        ("mel", f"{spec.n_mels} bands, {spec.f_min:g} to {top:g} Hz, {spec.mel_scale} scale, "
         f"norm {spec.norm}, power {spec.power:g}"),
        ("logarithm", f"{spec.log}, eps {spec.log_eps:g} ({spec.log_floor})"),
        ("normalisation", f"(log-mel - mean) / std, fixed: mean {_statistic(spec.mean)}, std "
         f"{_statistic(spec.std)}"),
        ("digest", f"`{spec.digest}`"),
    ]  # fmt: skip
    return table(["front end", "value"], rows)


def provenance(rows: Sequence[tuple[str, str]], manifest: Mapping[str, Any] | None = None) -> str:
    """Hashes and what it was made with; never a path, a user or a host.

    Args:
        rows: Of this model.
        manifest: Of the run.
    """
    made: list[tuple[str, str]] = [(name, text) for name, text in rows if text]
    if manifest:
        versions = manifest.get("versions") or {}
        shown = [f"{name} {versions[name]}" for name in _VERSIONS if versions.get(name)]
        made.append(("versions", ", ".join(shown)))
        git = manifest.get("git") or {}
        if git.get("commit"):
            changed = ", with changes" if git.get("modified") else ""
            made.append(("commit", f"`{git['commit']}`{changed}"))
        seeds = manifest.get("seeds") or {}
        made += [(name, str(value)) for name, value in seeds.items()]
        made.append(("computed on", str(manifest.get("device") or "")))
        machine = manifest.get("machine") or {}
        made.append(("machine", f"{machine.get('cpu', '')}, {machine.get('cores', '?')} cores"))
        seconds = manifest.get("seconds") or {}
        parts = [f"{name} {value:.0f}" for name, value in seconds.items() if name != "total"]
        made.append(("seconds", ", ".join(parts)))
        made.append(("started", str(manifest.get("started") or "")))
    return table(["", ""], [(name, text) for name, text in made if text])


def share(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.2f} %"


def sections(*parts: str) -> str:
    """Blocks with an empty line between them; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def _statistic(value: float | tuple[float, ...]) -> str:
    return f"{len(value)} values in the file" if isinstance(value, tuple) else f"{value:.6g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
