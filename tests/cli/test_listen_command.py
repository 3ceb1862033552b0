"""`frami-edge listen` is the runtime's `frami-edge-listen`."""

import os
import subprocess
import sys

import numpy as np
import onnx
import soundfile
from typer.testing import CliRunner

from frami_edge.cli import app


def test_help_arguments_and_errors_are_the_runtime_s(tmp_path):
    shown = CliRunner().invoke(app, ["listen", "--help"])
    assert shown.exit_code == 0
    assert "frami-edge listen student.onnx" in shown.stdout
    assert "--min-level DB" in shown.stdout
    arguments = ["listen", str(tmp_path / "none.onnx"), "a.wav", "-q", "--watch", "dog"]
    failed = CliRunner().invoke(app, arguments)
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: ")
    assert "\nfix: " in failed.stderr


def test_the_command_line_and_the_export_leave_nothing_under_home(tmp_path):
    """ONNX Runtime 1.29 and later would write a device id there, and send telemetry."""
    graph = "<ir_version: 8, opset_import: ['': 17]> g (float[N] x) => (float[N] y) {y = Relu(x)}"
    model = onnx.parser.parse_model(graph.replace("'", '"'))
    (tmp_path / "any.onnx").write_bytes(model.SerializeToString())
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    (home := tmp_path / "home").mkdir()
    for command, words in (
        (["-m", "frami_edge", "listen", "any.onnx", "a.wav"], "was not made by frami-edge export"),
        (["-c", "import frami_edge_export.parity as p; p.ort.InferenceSession('any.onnx')"], ""),
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path,
            env={"HOME": str(home), "PATH": os.environ["PATH"]}, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert words in done.stderr
        assert list(home.rglob("onnxruntime*")) + list(home.rglob("deviceid")) == []
