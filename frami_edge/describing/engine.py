"""A TensorRT engine: header and sidecar, read without TensorRT, and whether it loads here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from frami_edge.describing.description import Description, Fact, Section, size_text
from frami_edge.describing.words import info_sections
from frami_edge.errors import FramiEdgeError
from frami_edge.io import sha256_file
from frami_edge_runtime.enginefile import (
    EngineCard,
    read_plan_version,
    read_sidecar,
    sidecar_path,
)


def describe_engine(path: Path) -> Description:
    """Header, sidecar, and whether this machine could run it.

    Raises:
        EngineError: It is no TensorRT plan, or truncated within its header.
    """
    version = ".".join(map(str, read_plan_version(path)))
    total, digest = path.stat().st_size, sha256_file(path)
    findings: list[str] = []
    card: EngineCard | None = None
    try:
        card = read_sidecar(path)
    except FramiEdgeError as error:
        findings.append(str(error))
    sections = [
        Section(
            "file",
            (
                Fact("path", str(path)),
                Fact("bytes", total, size_text(total)),
                Fact("sha256", digest),
                Fact("tensorrt", version, f"built with TensorRT {version}"),
            ),
        )
    ]
    if card is not None:
        sections += [_built(card, path), *info_sections(card.info)]
        findings += _mismatch(card, version, total, digest)
    loads, why = _loads_here(path, findings)
    sections.insert(1, Section("here", (Fact("loads", loads), Fact("reason", why))))
    return Description("engine", "TensorRT engine", tuple(sections), tuple(findings))


def _built(card: EngineCard, path: Path) -> Section:
    shapes = {key: list(shape) for key, shape in card.profile.items()}
    layers = None if card.layers is None else dict(card.layers)
    return Section(
        "built",
        (
            Fact("sidecar", str(sidecar_path(path))),
            Fact("precision", card.precision),
            Fact("gpu", card.gpu, f"{card.gpu} (SM {card.sm})"),
            Fact("sm", card.sm),
            Fact("driver", card.driver),
            Fact("jetpack", card.jetpack),
            Fact("profile", shapes, "; ".join(f"{k} {tuple(s)}" for k, s in shapes.items())),
            Fact("layers", layers,
                 None if not layers else ", ".join(f"{n} {k}" for k, n in layers.items())),
            Fact("onnx", card.onnx_name),
            Fact("onnx_sha256", card.onnx_sha256),
            Fact("created", card.created or None),
        ),
    )  # fmt: skip


def _mismatch(card: EngineCard, version: str, total: int, digest: str) -> list[str]:
    if card.engine_sha256 != digest or card.engine_bytes != total:
        return [
            "The sidecar describes another engine: its size or hash differs. Copy both files "
            "again, or rebuild: frami-edge export --tensorrt."
        ]
    if card.tensorrt != version:
        return [f"The sidecar says TensorRT {card.tensorrt}, the header {version}."]
    return []


def _loads_here(path: Path, findings: list[str]) -> tuple[bool, str]:
    if findings:
        return False, findings[0]
    if find_spec("tensorrt") is None:
        return False, "TensorRT is not installed in this Python environment"
    from frami_edge_runtime import Classifier

    try:
        Classifier(path, backend="tensorrt")
    except FramiEdgeError as error:
        return False, str(error)
    return True, "it was loaded and answered a probe"
