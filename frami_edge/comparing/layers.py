"""Where two ONNX graphs of one student part: signal to noise after each convolution.

Shape legend: B batch, M mel bands, T mel frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from frami_edge.comparing.clips import Batch
from frami_edge.comparing.sides import Side
from frami_edge.describing.onnx_file import read_onnx
from frami_edge.errors import ConfigError
from frami_edge.onnx_session import OnnxSession
from frami_edge_export.scoring import sqnr_db

CLIPS: Final = 16
_ACTIVATIONS = ("Relu", "Clip")
_PREFIX = "trunk."
"""Of the same layer's name in the whole classifier."""


@dataclass(frozen=True)
class LayerNoise:
    """After one convolution and its activation."""

    layer: str
    sqnr_db: float | None
    """None where both are equal."""


def compare_layers(a: Side, b: Side, batch: Batch) -> list[LayerNoise]:
    """From the input on; both graphs run on the same log-mels.

    Raises:
        ConfigError: One is no ONNX file that takes log-mels, or they share no layer.
    """
    for side in (a, b):
        if side.kind not in ("streaming", "classifier"):
            raise ConfigError(
                f"--layers looks into two ONNX files that take log-mels; {side.path.name} is none.",
                fix="Leave --layers out, or compare two .onnx files of one export.",
            )
    taps = [_taps(read_onnx(side.path)) for side in (a, b)]
    shared = [name for name in taps[0] if name in taps[1]]
    if not shared:
        raise ConfigError(
            f"{a.path.name} and {b.path.name} share no layer by name: they are not of one student.",
            fix="Leave --layers out, or compare two files of one export.",
        )
    mels = batch.mels_for(a.spec)
    shortest = min(mel.shape[1] for mel in mels)
    x_B1MT = np.stack([mel[:, :shortest] for mel in mels[:CLIPS]])[:, None]
    first, second = (
        _run(side, [tap[name] for name in shared], x_B1MT)
        for side, tap in zip((a, b), taps, strict=True)
    )
    return [
        LayerNoise(name, sqnr_db(x, y))
        for name, x, y in zip(shared, first, second, strict=True)
        if x.shape == y.shape
    ]


def _taps(model: onnx.ModelProto) -> dict[str, str]:
    """Convolution to the tensor behind it: after its activation, and after rounding to 8 bits."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        tensor = node.output[0]
        for wanted in (_ACTIVATIONS, ("QuantizeLinear",), ("DequantizeLinear",)):
            following = readers.get(tensor, [])
            if len(following) == 1 and following[0].op_type in wanted:
                tensor = following[0].output[0]
            elif wanted is not _ACTIVATIONS:
                break
        found[node.name.removeprefix(_PREFIX)] = tensor
    return found


def _run(
    side: Side, tensors: list[str], x_B1MT: npt.NDArray[np.float32]
) -> list[npt.NDArray[np.float32]]:
    model = read_onnx(side.path)
    known = {port.name for port in model.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    if side.kind == "streaming" and side.context is not None:
        x_B1MT = np.pad(x_B1MT, ((0, 0), (0, 0), (0, 0), side.context))
    unique = list(dict.fromkeys(tensors))
    session = OnnxSession(model.SerializeToString(), side.path.name)
    found = dict(zip(unique, session.run(x_B1MT, unique), strict=True))
    return [found[name] for name in tensors]
