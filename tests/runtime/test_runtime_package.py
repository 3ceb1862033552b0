"""What the package promises around its code: a short API and nothing heavy behind it."""

import inspect
import json
import os
import pickle
import subprocess
import sys

import numpy as np

import frami_edge_runtime
from frami_edge_runtime import logmel
from frami_edge_runtime.errors import AudioError, FramiEdgeError

HEAVY = {"torch", "scipy", "typer", "pydantic", "rich", "torchaudio", "librosa", "onnx", "soxr"}


def test_public_names():
    for name in frami_edge_runtime.__all__:
        assert getattr(frami_edge_runtime, name).__doc__


def loaded_after(code):
    code += "; import sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return list(json.loads(run.stdout))


def test_classifying_imports_nothing_heavy(model_path):
    loaded = loaded_after(
        "import numpy; from frami_edge_runtime import Classifier; "
        f"Classifier({str(model_path)!r}).classify(numpy.zeros(9000))"
    )
    assert "onnxruntime" in loaded
    assert not HEAVY & set(loaded)
    modules = [name for name in loaded if name.startswith("frami_edge_runtime")]
    assert len(modules) <= 15
    assert "frami_edge_runtime.tensorrt" not in modules, "it is imported for an engine only"


def test_features_alone_do_not_load_onnx_runtime():
    loaded = loaded_after(
        "import numpy; from frami_edge_runtime import MelSpec, log_mel; "
        "log_mel(numpy.zeros(9000), MelSpec())"
    )
    assert not (HEAVY | {"onnxruntime"}) & set(loaded)


LOOK = """
import os, time
time.sleep(0.5)
fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]]
print(os.environ["ORT_DISABLE_TELEMETRY"], [fd for fd in fds if "socket" in fd])
"""


def test_nothing_is_sent_and_nothing_is_kept(model_path, tmp_path):
    """ONNX Runtime 1.29 and later would write a device id and a database under HOME."""
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import numpy; from frami_edge_runtime import Classifier\n"
        f"Classifier({str(model_path)!r}).classify(numpy.zeros(9000))\n{LOOK}"
    )
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", code]

    def run(**more):
        return subprocess.run(
            command, env=environment | more, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    assert run() == "1 []\n"
    assert list(home.rglob("*")) == []
    assert run(ORT_DISABLE_TELEMETRY="0").startswith("0 ")  # the user decides


def test_errors_keep_both_sentences():
    error = AudioError("It broke.", fix="Mend it.")
    assert str(error) == "It broke. Mend it."
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.fix) == (AudioError, "It broke.", "Mend it.")
    assert isinstance(error, FramiEdgeError)
    assert str(FramiEdgeError("Only this.")) == "Only this."


def test_few_calls_lie_between_a_push_and_the_fft(model_path, monkeypatch):
    """`Stream.push`, its share of the log-mel, the block's arithmetic, NumPy."""
    calls = []
    plain = logmel.rfft

    def recorded(*args, **options):
        frames = [frame.function for frame in inspect.stack(0)]
        calls.append(frames.index("push"))
        return plain(*args, **options)

    monkeypatch.setattr(logmel, "rfft", recorded)
    stream = frami_edge_runtime.Classifier(model_path).stream(hop_s=0.1)
    for _ in range(20):
        stream.push(np.zeros(800, np.float32))
    assert np.median(calls) <= 4
