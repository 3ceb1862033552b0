"""A web page that listens: one folder of static files around an exported model.

    index.html, page.js     the page; no framework, no build step, no server code
    model.onnx              samples to logits and log-mel, from ``{name}.wave.onnx``
    model.json              what the page needs to know about the model
    ort*.mjs, ort*.wasm     onnxruntime-web, so that the folder works without a network

The page gives the results of a `Stream` with the default window and hop, and events with the
thresholds of the model file. It carries no frames from one result to the next: each result is
computed from its window and the audio around it that the trunk sees. Only the ends of a clip have
context frames, so their number is an input of the page's graph; where it is negative, Pad removes
frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto, helper

from frami_edge_export.errors import ExportError
from frami_edge_export.exporter import write_files
from frami_edge_export.frontend import MEL
from frami_edge_export.graph import check_loadable, serialised
from frami_edge_runtime.events import EventSpec
from frami_edge_runtime.modelfile import WAVEFORM_KEY, ModelInfo
from frami_edge_runtime.stream import plan_results
from frami_edge_runtime.thresholds import HOP_S, MIN_ON_S, WINDOW_S

CONTEXT: Final = "context"
"""Input of the page's graph: (8,) int64, the ``pads`` of its log-mel (1, 1, M, T)."""
ORT_VERSION: Final = "1.30.0"
ORT_FILES: Final = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The part of onnxruntime-web that runs on a CPU."""
_ORT_SHA512: Final = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
_FIX: Final = (
    f"Unpack `npm pack onnxruntime-web@{ORT_VERSION}` where there is a network, and pass that "
    "folder, or the folder of an earlier page, with --ort-web."
)


def write_page(wave: Path, folder: Path, ort: Mapping[str, bytes]) -> None:
    """Write the page of a model; older files of the same names are replaced.

    Args:
        wave: ``{name}.wave.onnx`` of an export with the front end.
        folder: Folder of the page; made where missing.
        ort: The files of `onnxruntime_web`.

    Raises:
        ExportError: The folder cannot be written to: no file was replaced.
        GraphError: The page's graph cannot be loaded.
    """
    data = wave.read_bytes()
    model = onnx.load_from_string(data)
    about = json.loads({p.key: p.value for p in model.metadata_props}[WAVEFORM_KEY])
    info = ModelInfo.from_json(json.dumps(about["model"]))
    name = wave.name.removesuffix(".wave.onnx")
    facts = page_facts(info) | {"name": name, "model": hashlib.sha256(data).hexdigest()[:12]}
    page = resources.files("frami_edge_export") / "page"
    files = {name: (page / name).read_bytes() for name in ("index.html", "page.js")}
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    files |= {"model.onnx": serialised(page_graph(model)), "model.json": text.encode()}
    write_files(folder, files | dict(ort))


def page_graph(wave: onnx.ModelProto) -> onnx.ModelProto:
    """Waveform (1, N) and context (8,) -> logits (1, K) and log-mel (1, 1, M, T).

    Raises:
        GraphError: The result cannot be loaded.
    """
    model = onnx.ModelProto()
    model.CopyFrom(wave)
    model.ClearField("metadata_props")
    graph = model.graph
    (pad,) = (node for node in graph.node if node.op_type == "Pad" and node.input[0] == MEL)
    constants = [x for x in graph.initializer if x.name != pad.input[1]]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    pad.input[1] = CONTEXT
    graph.input.append(helper.make_tensor_value_info(CONTEXT, TensorProto.INT64, [8]))
    graph.output.append(
        helper.make_tensor_value_info(MEL, TensorProto.FLOAT, [1, 1, "bands", "time"])
    )
    check_loadable(model)
    return model


def page_facts(info: ModelInfo) -> dict[str, Any]:
    """What the page's script knows about a model, as plain values."""
    mel = info.mel
    hop, blocks = plan_results(info.frame_s, WINDOW_S, None, HOP_S)
    rules = EventSpec.for_model(info).rules(info.labels)
    return {
        "labels": info.labels,
        "output": info.output,
        "licence": info.licence,
        "sample_rate": mel.sample_rate,
        # In samples, as the properties of `MelSpec`:
        "hop_length": mel.hop_length,
        "span": mel.span,
        "pad": mel.pad,
        "min_samples": mel.min_samples,
        # In mel frames:
        "stride": info.stride,
        "left": info.context.left,
        "right": info.context.right,
        # In trunk frames and hops:
        "hop": hop,
        "blocks": blocks,
        "on": [rules[label].on for label in info.labels],
        "off": [rules[label].threshold_off for label in info.labels],
        "min_on_s": MIN_ON_S,
        "reject": rules[info.labels[0]].reject,
        "darkest": max(float(mel.floor.min()), -3.0),
        "brightest": min(float(mel.ceiling.max()), 3.0),
    }


def onnxruntime_web(folder: Path | None = None) -> dict[str, bytes]:
    """The files of onnxruntime-web, by name.

    Args:
        folder: Folder that holds them, at any depth: an unpacked npm package, or an earlier page.
            None: the pinned version from the registry that ``NPM_CONFIG_REGISTRY`` or else npm's
            own settings name, checked and kept in the user's cache.

    Raises:
        ExportError: They cannot be had.
    """
    if folder is None:
        found = _downloaded()
    else:
        found = {name: next(folder.rglob(name), None) for name in ORT_FILES}
    missing = [name for name in ORT_FILES if found.get(name) is None]
    if missing:
        raise ExportError(f"{folder} does not contain {' and '.join(missing)}.", fix=_FIX)
    return {name: path.read_bytes() for name, path in found.items() if path is not None}


def _downloaded() -> dict[str, Path | None]:
    import pooch  # type: ignore[import-untyped]

    registry = os.environ.get("NPM_CONFIG_REGISTRY", "")
    if not registry and (npm := shutil.which("npm")):
        asked = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True)
        registry = asked.stdout.strip() if asked.returncode == 0 else ""
    if not registry.startswith("http"):
        raise ExportError(
            "onnxruntime-web comes from an npm registry, and neither NPM_CONFIG_REGISTRY nor npm "
            "names one.",
            fix=f"{_FIX} With a network: install npm, or set NPM_CONFIG_REGISTRY to its address.",
        )
    pooch.get_logger().setLevel("WARNING")
    try:
        paths = pooch.retrieve(
            f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{ORT_VERSION}.tgz",
            known_hash=f"sha512:{_ORT_SHA512}",
            fname=f"onnxruntime-web-{ORT_VERSION}.tgz",
            path=os.environ.get("FRAMI_EDGE_CACHE") or pooch.os_cache("frami-edge"),
            processor=pooch.Untar(members=[f"package/dist/{name}" for name in ORT_FILES]),
        )
    except (OSError, ValueError) as error:  # requests raises subclasses of OSError
        raise ExportError(
            f"onnxruntime-web could not be fetched from the npm registry: {type(error).__name__}.",
            fix=_FIX,
        ) from None
    return {Path(path).name: Path(path) for path in paths if Path(path).name in ORT_FILES}
