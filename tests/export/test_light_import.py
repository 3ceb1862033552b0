"""The device's half of the export needs neither torch nor onnx, and every public name resolves."""

from __future__ import annotations

import subprocess
import sys

import frami_edge_export

LIGHT = """
import sys
import frami_edge_export.tensorrt.__main__
heavy = {"torch", "onnx", "onnxscript"} & set(sys.modules)
print(sorted(heavy))
"""


def test_the_tensorrt_part_imports_neither_torch_nor_onnx() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_public_name_resolves() -> None:
    for name in frami_edge_export.__all__:
        assert getattr(frami_edge_export, name) is not None


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from frami_edge_export import export_student
"""


def test_without_torch_the_extra_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False
    )
    assert "needs torch: pip install 'frami-edge-export[torch]'" in done.stderr
