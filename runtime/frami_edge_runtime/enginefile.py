"""What lies beside a TensorRT engine, and whether the engine can be loaded here.

An engine (a *plan*) is opaque and tied to one TensorRT version, one GPU architecture and one
platform. So `frami-edge export --tensorrt` writes a sidecar, ``student.int8.engine`` +
``student.int8.engine.json``: an `EngineCard` with the model's own description, which an engine has
no place for, and what the engine was built with, so that a wrong one is refused in plain words
before TensorRT sees it. The sidecar guards against mix-ups, not against malice: an engine is code,
so load only those that you built.

The plan's header, as ``trtexec --getPlanVersionOnly`` reads it (NVIDIA/TensorRT,
samples/common/sampleEngines.cpp, printPlanVersion): bytes 0..3 are ``ftrt``, 4..7 the header's
version 0, and 24..27 the TensorRT version, one byte a part.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from frami_edge_runtime._files import reason, write_whole
from frami_edge_runtime.enginecard import MAX_SIDECAR_BYTES, PLAN_HEADER_BYTES, REBUILD
from frami_edge_runtime.enginecard import EngineCard as EngineCard
from frami_edge_runtime.errors import EngineError


def sidecar_path(engine_path: str | os.PathLike[str]) -> Path:
    """``student.int8.engine`` -> ``student.int8.engine.json``."""
    path = Path(engine_path)
    return path.with_name(path.name + ".json")


def write_sidecar(engine_path: str | os.PathLike[str], card: EngineCard) -> Path:
    """Write the card beside the engine, whole or not at all; gives the sidecar's path.

    Raises:
        EngineError: The folder cannot be written to.
    """
    target = sidecar_path(engine_path)
    try:
        write_whole(target, lambda file: file.write(card.to_json().encode()))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"Cannot write {target}: {reason(error)}.", fix="Give a folder with space and access."
        ) from None
    return target


def read_sidecar(engine_path: str | os.PathLike[str]) -> EngineCard:
    """The card beside an engine.

    Raises:
        EngineError: There is none, or it is damaged.
    """
    path = sidecar_path(engine_path)
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            raise EngineError(f"{path} is larger than {MAX_SIDECAR_BYTES} bytes.", fix=REBUILD)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EngineError(
            f"{Path(engine_path).name} has no {path.name} beside it: an engine alone does not say "
            "what it hears.",
            fix="Copy both files of frami-edge export --tensorrt, or rebuild.",
        ) from None
    except (OSError, ValueError) as error:
        raise EngineError(f"Cannot read {path}: {reason(error)}.", fix=REBUILD) from None
    return EngineCard.from_json(text, path.name)


def read_plan_version(plan: str | os.PathLike[str] | bytes) -> tuple[int, int, int, int]:
    """The TensorRT version that built a plan, out of its first 28 bytes.

    Args:
        plan: Path of an engine file, or its bytes.

    Raises:
        EngineError: It cannot be read, is truncated, or is no TensorRT plan.
    """
    if isinstance(plan, bytes):
        name, head = "engine bytes", plan[:PLAN_HEADER_BYTES]
    else:
        name = Path(plan).name
        try:
            with open(plan, "rb") as file:
                head = file.read(PLAN_HEADER_BYTES)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"Cannot read the engine {plan}: {reason(error)}.",
                fix="Give the path of an .engine file that frami-edge export --tensorrt wrote.",
            ) from None
    if head[:4] != b"ftrt"[: len(head)] or not head:
        raise EngineError(
            f"{name} is no TensorRT engine: it does not start with 'ftrt'.",
            fix="Give an .engine file of frami-edge export --tensorrt; other tools prepend data.",
        )
    if len(head) < PLAN_HEADER_BYTES:
        raise EngineError(f"{name} is cut off after {len(head)} bytes.", fix=REBUILD)
    if head[4:8] != b"\0\0\0\0":
        version = int.from_bytes(head[4:8], "little")
        raise EngineError(f"{name} has an unknown plan header, version {version}.", fix=REBUILD)
    return head[24], head[25], head[26], head[27]


def check_content(card: EngineCard, plan: bytes, name: str = "The engine") -> None:
    """Check that a plan is the one that its card describes.

    Raises:
        EngineError: It is truncated, damaged or another one.
    """
    if len(plan) != card.engine_bytes:
        raise EngineError(
            f"{name} has {len(plan)} bytes, its sidecar says {card.engine_bytes}: it was cut off "
            "or replaced.",
            fix="Copy both files again, or rebuild: frami-edge export --tensorrt.",
        )
    if hashlib.sha256(plan).hexdigest() != card.engine_sha256:
        raise EngineError(
            f"{name} is not the engine that its sidecar describes: the sha256 differs.",
            fix="Copy both files again, or rebuild: frami-edge export --tensorrt.",
        )


def check_loadable(
    card: EngineCard,
    plan_version: tuple[int, int, int, int],
    running_tensorrt_version: str,
    running_sm: str,
    name: str = "The engine",
) -> None:
    """Check that this machine can load an engine: same TensorRT release, same architecture.

    `EngineCard.compat` widens one of the two. The fourth part of the version is not compared:
    system packages of TensorRT do not tell it.

    Args:
        card: The engine's sidecar.
        plan_version: From `read_plan_version`.
        running_tensorrt_version: ``tensorrt.__version__``, such as ``10.3.0`` or ``10.3.0.30``.
        running_sm: Compute capability of this machine's GPU, such as ``8.7``.
        name: The engine's file name, for the message.

    Raises:
        EngineError: It cannot; the message names both sides.
    """
    built = ".".join(map(str, plan_version))
    if built != card.tensorrt:
        raise EngineError(
            f"{name} was built with TensorRT {built}, its sidecar says {card.tensorrt}: they are "
            "not of one build.",
            fix="Copy both files again, or rebuild: frami-edge export --tensorrt.",
        )
    running = tuple(int(n) for n in running_tensorrt_version.split(".")[:3] if n.isdigit())
    release = running == plan_version[:3]
    if card.compat == "version":
        release = release or (running[:1] == plan_version[:1] and running > plan_version[:3])
    architecture = running_sm == card.sm
    if card.compat == "ampere+":
        architecture = architecture or min(_sm(running_sm), _sm(card.sm)) >= (8, 0)
    if not release or not architecture:
        gpu = f" ({card.gpu})" if card.gpu else ""
        raise EngineError(
            f"{name} was built with TensorRT {built} for SM {card.sm}{gpu}; this machine runs "
            f"TensorRT {running_tensorrt_version} on SM {running_sm}: engines do not carry over.",
            fix=f"Rebuild it here from {card.onnx_name}: frami-edge export --tensorrt.",
        )


def _sm(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(".") if n.isdigit())
