"""TensorRT engines, built where they run: on the device, from the ONNX files of an export.

Everything in here needs NumPy, onnxruntime, frami-edge-runtime and the device's own TensorRT, never
torch or onnx, and runs on Python 3.10: JetPack 6 has no newer one.

>>> python -m frami_edge_export.tensorrt FOLDER
"""

from frami_edge_export.tensorrt.builder import Built, build_engine
from frami_edge_export.tensorrt.bundle import EngineSource, read_bundle, read_source
from frami_edge_export.tensorrt.device_facts import DeviceFacts, device_facts
from frami_edge_export.tensorrt.engines import build_engines, rebuild
from frami_edge_export.tensorrt.errors import BuildError, ParseError, TensorRTUnavailable
from frami_edge_export.tensorrt.inspection import LayerCounts, count_layers
from frami_edge_export.tensorrt.options import EngineOptions, Seconds
from frami_edge_export.tensorrt.profiles import Profile, profile_for
from frami_edge_export.tensorrt.report import EngineArtifact, EngineReport

__all__ = [
    "BuildError",
    "Built",
    "DeviceFacts",
    "EngineArtifact",
    "EngineOptions",
    "EngineReport",
    "EngineSource",
    "LayerCounts",
    "ParseError",
    "Profile",
    "Seconds",
    "TensorRTUnavailable",
    "build_engine",
    "build_engines",
    "count_layers",
    "device_facts",
    "profile_for",
    "read_bundle",
    "read_source",
    "rebuild",
]
