"""The runtime's doctor: real child processes, and machines made up of files and answers."""

import json
import subprocess
import sys

import pytest

from frami_edge_runtime import doctor

L4T = "etc/nv_tegra_release"
ORIN = {"files": {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"}}


def answers(command, out, problem=""):
    return {"commands": {command: (out, problem)}}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake(facts, files, commands, packages)`; nothing else is on the machine."""

    def make(facts=None, files=None, commands=None, packages=()):
        for name, text in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        missing = {"error": "ModuleNotFoundError: No module named 'it'"}

        def run(*command):
            return (commands or {}).get(command[0], ("", f"{command[0]}: not found"))

        monkeypatch.setattr(doctor, "ROOT", tmp_path)
        monkeypatch.setattr(doctor, "run", run)
        monkeypatch.setattr(doctor, "probe", lambda code, limit_s=0: facts or missing)
        monkeypatch.setattr(doctor, "version_of", dict.fromkeys(packages, "1.0").get)

    return make


def test_this_machine_is_ready_and_nothing_heavy_is_imported():
    code = (
        "import sys; from frami_edge_runtime.doctor import main; code = main(['--json']); "
        "print('LOADED', *sorted({m.split('.')[0] for m in sys.modules})); sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    out, _, loaded = run.stdout.partition("LOADED")
    report = json.loads(out)
    assert report["ready"] is True
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["onnxruntime"]["status"] == "ok"
    assert set(checks["Python"]) == {"name", "status", "found", "fix", "group", "needed"}
    assert all(c["fix"] for c in report["checks"] if c["status"] in ("warn", "fail"))
    assert not set(loaded.split()) & {
        "onnxruntime", "tensorrt", "sounddevice", "soundfile", "torch",
    }  # fmt: skip


def test_a_machine_without_packages_is_not_ready(fake, capsys):
    fake()
    assert doctor.main([]) == 3
    assert "fix: pip install numpy\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "facts", "error"),
    [
        ("report(a=1)\nimport time\ntime.sleep(60)", {"a": 1}, "did not end within 1.5 s"),
        ("report(a=1)\nimport os\nos.kill(os.getpid(), 11)", {"a": 1}, "crashed with signal 11"),
        ("print('noise')\nraise OSError('no libnvinfer')", {}, "OSError: no libnvinfer"),
        ("import frami_no_such", {}, "ModuleNotFoundError: No module named 'frami_no_such'"),
    ],
)
def test_children_that_hang_crash_or_raise_are_named(code, facts, error):
    found = doctor.probe(code, 1.5)
    assert found.pop("error").endswith(error)
    assert found == facts


@pytest.mark.parametrize(
    ("release", "version", "status"),
    [
        ("R36 (release), REVISION: 4.3", "6.1 or 6.2", "ok"),
        ("R36 (release), REVISION: 3.0", "6.0", "warn"),
        ("R39 (release), REVISION: 2.0", "7.2", "ok"),
        ("R50 (release), REVISION: 1.0", "unknown", "ok"),
        ("R36 REVISION: 4", "cannot be read", "warn"),
    ],
)
def test_l4t_names_the_jetpack(fake, release, version, status):
    fake(files={L4T: f"# {release}, GCID: 1"})
    (check,) = doctor.check_jetpack()
    assert (check.status, version in check.found) == (status, True), check


NO_GPU = {"version": "1.32.0", "all": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
BOTH = {"packages": ["onnxruntime", "onnxruntime-gpu"]}
CARD = answers("arecord", "card 1: Device [USB PnP], device 0\n")


@pytest.mark.parametrize(
    ("what", "facts", "machine", "status", "words"),
    [
        ("tensorrt", {"version": "10.3.0", "system": True}, ORIN, "ok", "of the system"),
        ("tensorrt", {"version": "10.16.1", "system": False}, ORIN, "fail", "a Jetson"),
        ("tensorrt", {}, ORIN, "absent", "--system-site-packages"),
        ("tensorrt", {"version": "8.6.1", "system": False}, {}, "warn", "need 10.3"),
        ("tensorrt", {"error": "crashed with signal 11"}, {}, "warn", "crashed with signal 11"),
        ("gpu", {}, answers("nvidia-smi", "RTX 4090, 580.82.07, 8.9\n"), "ok", "8.9"),
        ("gpu", {}, ORIN, "ok", "8.7"),
        ("gpu", {}, {}, "absent", "on the CPU"),
        ("gpu", {}, answers("nvidia-smi", "", "nvidia-smi did not end"), "warn", "did not end"),
        ("onnx", {}, {}, "fail", "pip install --force-reinstall onnxruntime"),
        ("onnx", {"error": "ImportError: numpy.core"}, {}, "fail", "pip install 'numpy<2'"),
        ("onnx", NO_GPU, BOTH, "warn", "pip uninstall -y onnx"),
        ("onnx", NO_GPU, {}, "ok", "1.32.0, providers: CUDA, CPU"),
        ("microphone", {"name": "USB Mic", "rate": 48000.0}, {}, "ok", "USB Mic, 48000 Hz"),
        ("microphone", {}, CARD, "ok", "USB PnP"),
        ("microphone", {}, {}, "absent", "alsa-utils"),
    ],
)
def test_what_is_found_and_its_fix(fake, what, facts, machine, status, words):
    fake(facts, **machine)
    check = {
        "tensorrt": lambda: doctor.check_tensorrt()[1],
        "gpu": lambda: doctor.check_gpu()[1],
        "onnx": doctor.check_onnx_runtime,
        "microphone": doctor.check_microphone,
    }[what]()
    assert (check.status, words in f"{check.found} {check.fix}") == (status, True), check
    assert check.fix or status in ("ok", "absent")
