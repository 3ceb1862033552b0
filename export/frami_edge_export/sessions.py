"""ONNX Runtime sessions as a small device runs them: one thread, CPU."""

from __future__ import annotations

import onnx
import onnxruntime as ort

_ERRORS_ONLY = 3


def cpu_session(model: onnx.ModelProto | bytes | str) -> ort.InferenceSession:
    """A single-threaded CPU session.

    Args:
        model: A graph, its bytes, or the path of a file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
