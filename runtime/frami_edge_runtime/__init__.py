"""Streaming log-mel features and variable-length sound classification without torch.

>>> from frami_edge_runtime import Classifier
>>> result = Classifier("student.onnx").classify(samples, sample_rate=16000)
>>> result.label, result.score
"""

import os

# ONNX Runtime 1.29 and later sends telemetry and keeps a device id under HOME unless this is set
# before it is imported; every module that imports it belongs to a package that imports this one.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import (
    AudioError,
    BackendError,
    EngineError,
    FramiEdgeError,
    MelSpecError,
    ModelFileError,
    StreamError,
)
from frami_edge_runtime.logmel import LogMelStream, log_mel
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import Context, ModelInfo
from frami_edge_runtime.stream import Result, Stream

__version__ = "0.2.0"

__all__ = [
    "AudioError",
    "BackendError",
    "Classifier",
    "Context",
    "EngineError",
    "FramiEdgeError",
    "LogMelStream",
    "MelSpec",
    "MelSpecError",
    "ModelFileError",
    "ModelInfo",
    "Result",
    "Stream",
    "StreamError",
    "log_mel",
]
