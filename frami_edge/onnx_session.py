"""ONNX Runtime on the CPU for graphs that the device's runtime does not run, errors in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from frami_edge.errors import ModelFileError


def external_tensors(model: Any) -> list[str]:
    """Names of the tensors of an `onnx.ModelProto` whose values lie in another file.

    Looks at initialisers and attributes, in subgraphs and functions too.
    """
    found: list[str] = []

    def look(message: Any) -> None:
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto":
            if message.data_location == message.EXTERNAL or message.external_data:
                found.append(message.name or "a constant")
            return
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                repeated = hasattr(value, "__len__") and not hasattr(value, "DESCRIPTOR")
                for inner in value if repeated else (value,):
                    look(inner)

    look(model)
    return found


def _refuse_external_data(source: Path | bytes, name: str) -> None:
    """ONNX Runtime would read whatever file of this machine the graph names."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(source if isinstance(source, bytes) else source.read_bytes())
    except OSError as error:
        raise ModelFileError(
            f"{name} cannot be read: {error.strerror}.", fix="Check the path."
        ) from None
    except Exception:  # protobuf's errors differ between its implementations
        return  # ONNX Runtime says what is wrong with it
    if external_tensors(model):
        raise ModelFileError(
            f"{name} keeps weights in another file, which is not read.",
            fix="Save it as one file: onnx.save_model(model, FILE, save_as_external_data=False).",
        )


class OnnxSession:
    """A graph of one input.

    Args:
        source: Path of the file, or its bytes.
        name: For messages.
        threads: CPU threads of one run.

    Raises:
        ModelFileError: ONNX Runtime cannot load it.
    """

    def __init__(self, source: Path | bytes, name: str, *, threads: int = 1) -> None:
        import onnxruntime as ort

        _refuse_external_data(source, name)
        self._name = name
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what it would print, the error says
        try:
            self._session: Any = ort.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise ModelFileError(
                f"ONNX Runtime {ort.__version__} cannot load {name}: {_first(error)}",
                fix="The file is damaged, or needs a newer onnxruntime.",
            ) from None
        inputs = [port.name for port in self._session.get_inputs()]
        if len(inputs) != 1:
            raise ModelFileError(
                f"{name} takes {len(inputs)} inputs, and one is expected.", fix="Export it again."
            )
        self._input = inputs[0]

    def run(
        self, x: npt.NDArray[np.float32], outputs: Sequence[str] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """The outputs, all of them where none is named.

        Raises:
            ModelFileError: The graph does not take this shape, or failed.
        """
        try:
            found: list[npt.NDArray[np.float32]] = self._session.run(outputs, {self._input: x})
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise ModelFileError(
                f"ONNX Runtime could not run {self._name} on {x.shape}: {_first(error)}",
                fix="Export it again.",
            ) from None
        return found


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
