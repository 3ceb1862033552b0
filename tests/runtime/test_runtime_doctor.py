"""The runtime's doctor: real child processes, and machines made up of files and answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frami_edge_runtime import doctor

Fake = Callable[..., None]
L4T = "etc/nv_tegra_release"
ORIN = {"files": {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"}}


def answers(command: str, out: str, problem: str = "") -> dict[str, Any]:
    return {"commands": {command: (out, problem)}}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """`fake(facts, files, commands, packages)`; nothing else is on the machine."""

    def make(
        facts: Any = None, files: Any = None, commands: Any = None, packages: Any = ()
    ) -> None:
        for name, text in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        missing = {"error": "ModuleNotFoundError: No module named 'it'"}

        def run(*command: str) -> tuple[str, str]:
            return (commands or {}).get(command[0], ("", f"{command[0]}: not found"))

        monkeypatch.setattr(doctor, "ROOT", tmp_path)
        monkeypatch.setattr(doctor, "run", run)
        monkeypatch.setattr(doctor, "probe", lambda code, limit_s=0: facts or missing)
        monkeypatch.setattr(doctor, "version_of", dict.fromkeys(packages, "1.0").get)

    return make


def test_this_machine_is_ready_and_nothing_heavy_is_imported() -> None:
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
        "onnxruntime",
        "tensorrt",
        "sounddevice",
        "soundfile",
        "torch",
    }


def test_a_machine_without_packages_is_not_ready(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
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
def test_children_that_hang_crash_or_raise_are_named(
    code: str, facts: dict[str, int], error: str
) -> None:
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
def test_l4t_names_the_jetpack(fake: Fake, release: str, version: str, status: str) -> None:
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
def test_what_is_found_and_its_fix(
    fake: Fake, what: str, facts: Any, machine: Any, status: str, words: str
) -> None:
    fake(facts, **machine)
    check = {
        "tensorrt": lambda: doctor.check_tensorrt()[1],
        "gpu": lambda: doctor.check_gpu()[1],
        "onnx": doctor.check_onnx_runtime,
        "microphone": doctor.check_microphone,
    }[what]()
    assert (check.status, words in f"{check.found} {check.fix}") == (status, True), check
    assert check.fix or status in ("ok", "absent")


def test_memory_within_a_container_and_limits(fake: Fake) -> None:
    fake(files={"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\n"})
    assert doctor.check_memory(1.0).found == "9.2 GB free"
    cgroup = "sys/fs/cgroup/memory"
    fake(files={f"{cgroup}.max": "2000000000", f"{cgroup}.current": "1500000000"})
    assert doctor.check_memory(1.0).blocks
    assert doctor.check_python((9, 9)).blocks


def test_an_engine_fits_only_its_tensorrt_and_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(tensorrt="10.3.0.30", sm="8.7", gpu="", onnx_name="s.onnx")
    monkeypatch.setattr(doctor, "read_plan_version", lambda path: (10, 3, 0, 30))
    monkeypatch.setattr(doctor, "read_sidecar", lambda path: card)
    monkeypatch.setattr(doctor, "check_content", lambda card, plan, name: None)
    (tmp_path / "student.engine").touch()
    for machine, status in {
        ("10.3.0", "8.7"): "ok",
        ("10.16.1", "8.7"): "fail",
        ("10.3.0", "8.9"): "fail",
        ("", "8.7"): "absent",
    }.items():
        (check,) = doctor.check_engines([tmp_path], *machine)
        assert (check.status, check.blocks) == (status, status == "fail"), check


def test_engines_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(b"ftrt" + bytes(60))
    (tmp_path / "empty").mkdir()
    places = [tmp_path / "x.engine", tmp_path / "gone.engine", tmp_path / "empty"]
    checks = doctor.check_engines(places, "10.3.0", "8.9")
    assert [check.status for check in checks] == ["fail", "fail", "absent"]
    assert all(check.fix for check in checks)
