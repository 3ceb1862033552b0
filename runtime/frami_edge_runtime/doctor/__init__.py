"""What this machine has, what it lacks, and the exact fix: ``python -m frami_edge_runtime.doctor``.

Every probe is on its own: what may crash or hang (TensorRT, ONNX Runtime, PortAudio, the driver's
tools) runs in child processes with a limit in seconds. Nothing is changed and nothing is sent.
"""

from frami_edge_runtime.doctor.check import Check, Probe, Status, examine
from frami_edge_runtime.doctor.machine import Machine

__all__ = ["Check", "Machine", "Probe", "Status", "examine"]
