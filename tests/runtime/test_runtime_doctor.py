"""The runtime's doctor: real children, and machines that are made up of files and answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frami_edge_runtime import doctor
from frami_edge_runtime.doctor import Check

Fake = Callable[..., None]
ORIN = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit\0",
}
MISSING = {"error": "ModuleNotFoundError: No module named 'it'"}


def answers(command: str, out: str, problem: str = "") -> dict[str, Any]:
    return {"commands": {command: (out, problem)}}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """`fake(files, commands, facts, versions)`; nothing else is on the machine."""

    def make(
        files: dict[str, str] | None = None,
        commands: dict[str, tuple[str, str]] | None = None,
        facts: dict[str, Any] | None = None,
        versions: dict[str, str] | None = None,
    ) -> None:
        for name, text in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def run(*command: str, limit_s: float = 0) -> tuple[str, str]:
            return (commands or {}).get(command[0], ("", f"{command[0]}: not found"))

        monkeypatch.setattr(doctor, "ROOT", tmp_path)
        monkeypatch.setattr(doctor, "run", run)
        monkeypatch.setattr(doctor, "probe", lambda code, limit_s=0: facts or MISSING)
        monkeypatch.setattr(doctor, "version_of", (versions or {}).get)

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
    heavy = {"onnxruntime", "tensorrt", "sounddevice", "soundfile", "torch", "soxr"}
    assert not set(loaded.split()) & heavy


def test_a_machine_without_packages_is_not_ready(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    assert doctor.main([]) == 3
    out, err = capsys.readouterr()
    assert "fix: pip install numpy\n" in out
    assert err == "Not ready for listening: numpy, onnxruntime.\n"


def test_children_that_hang_crash_or_raise_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the current folder')")
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    facts = doctor.probe("report(first=1)\nimport time\ntime.sleep(60)", 1.5)
    assert time.monotonic() - begun < 6
    assert facts["first"] == 1
    assert "did not end within 1.5 s" in facts["error"]
    facts = doctor.probe("report(a=2)\nimport os\nos.kill(os.getpid(), 11)")
    assert facts["a"] == 2
    assert facts["error"].endswith("crashed with signal 11")
    assert doctor.probe("raise OSError('no libnvinfer')") == {"error": "OSError: no libnvinfer"}
    assert doctor.is_missing(doctor.probe("import frami_no_such_module"))
    assert time.monotonic() - begun < 15
    assert doctor.run("frami-edge-no-such-command")[1].endswith("not found")


@pytest.mark.parametrize(
    ("revision", "version", "status"),
    [
        ("R36 (release), REVISION: 4.3", "6.2", "ok"),
        ("R36 (release), REVISION: 4.0", "6.1", "ok"),
        ("R36 (release), REVISION: 3.0", "6.0", "warn"),
        ("R35 (release), REVISION: 4.1", "5.x", "warn"),
        ("R38 (release), REVISION: 4", "7.1", "ok"),
        ("R39 (release), REVISION: 2.0", "7.2", "ok"),
        ("R50 (release), REVISION: 1.0", "", "ok"),
    ],
)
def test_l4t_names_the_jetpack(fake: Fake, revision: str, version: str, status: str) -> None:
    jetpack = doctor.read_release(f"# {revision}, GCID: 1")
    assert jetpack is not None
    assert jetpack.version == version
    fake({"etc/nv_tegra_release": f"# {revision}, GCID: 1"})
    assert doctor.check_jetpack()[0].status == status
    assert doctor.read_release("# R36 REVISION: 4") is None


CUDA = {"version": "1.32.0", "available": ["CUDAExecutionProvider"], "loaded": []}
BOTH = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}
NO_DEFAULT = {"error": "PortAudioError: Error querying device -1"}
CARD = answers("arecord", "card 1: Device [USB PnP], device 0\n")


@pytest.mark.parametrize(
    ("what", "facts", "machine", "status", "words"),
    [
        ("tensorrt", {"version": "10.3.0", "system": True}, {"files": ORIN}, "ok", "the system"),
        ("tensorrt", {"version": "10.16.1", "system": False}, {"files": ORIN}, "fail", "a Jetson"),
        ("tensorrt", {}, {"files": ORIN}, "absent", "--system-site-packages"),
        ("tensorrt", {"version": "8.6.1", "system": False}, {}, "warn", "need 10.3"),
        ("tensorrt", {"error": "crashed with signal 11"}, {}, "warn", "crashed with signal 11"),
        ("gpu", {}, answers("nvidia-smi", "RTX 4090, 580.82.07, 8.9\n"), "ok", "8.9"),
        ("gpu", {}, {"files": ORIN}, "ok", "8.7"),
        ("gpu", {}, {}, "absent", "none of NVIDIA's"),
        ("gpu", {}, answers("nvidia-smi", "", "nvidia-smi did not end"), "warn", "did not end"),
        ("onnx", {}, {}, "fail", "pip install --force-reinstall onnxruntime"),
        ("onnx", {"error": "ImportError: numpy.core"}, {}, "fail", "pip install 'numpy<2'"),
        ("onnx", {"error": "crashed"}, {"versions": BOTH}, "fail", "pip uninstall -y onnx"),
        ("onnx", CUDA | {"loaded": CUDA["available"]}, {}, "ok", "providers: CUDA"),
        ("onnx", CUDA, {}, "warn", "CUDA does not load"),
        ("microphone", {"device": "USB Mic", "rate": 48000.0}, {}, "ok", "USB Mic, 48000 Hz"),
        ("microphone", {}, CARD, "ok", "USB PnP"),
        ("microphone", NO_DEFAULT, CARD, "warn", "PortAudio has no default device"),
        ("microphone", {}, answers("arecord", "no soundcards"), "absent", "no input device"),
        ("microphone", {}, {}, "absent", "libportaudio2"),
    ],
)
def test_what_is_found_and_its_fix(
    fake: Fake, what: str, facts: Any, machine: Any, status: str, words: str
) -> None:
    fake(facts=facts, **machine)
    check = {
        "tensorrt": lambda: doctor.check_tensorrt()[1],
        "gpu": lambda: doctor.check_gpu()[1],
        "onnx": doctor.check_onnx_runtime,
        "microphone": doctor.check_microphone,
    }[what]()
    assert (check.status, words in f"{check.found} {check.fix}") == (status, True), check
    assert check.fix or status in ("ok", "absent")


def test_memory_within_a_container_and_old_python(fake: Fake) -> None:
    info = {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\n"}
    fake(info)
    assert doctor.check_memory(1.0).found == "9.2 GB free"
    limits = {
        "sys/fs/cgroup/memory.max": "2000000000",
        "sys/fs/cgroup/memory.current": "1500000000",
    }
    fake(limits)
    assert doctor.check_memory(1.0).blocks
    assert doctor.check_python((9, 9)).blocks
    assert doctor.check_disk(1e9).blocks


@pytest.mark.parametrize(
    ("tensorrt", "sm", "status"),
    [
        ("10.3.0", "8.7", "ok"),
        ("10.16.1", "8.7", "fail"),
        ("10.3.0", "8.9", "fail"),
        ("", "8.7", "absent"),
    ],
)
def test_engines_of_an_orin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensorrt: str, sm: str, status: str
) -> None:
    card = SimpleNamespace(
        tensorrt="10.3.0.30", sm="8.7", compat="none", gpu="", onnx_name="s.onnx"
    )
    monkeypatch.setattr(doctor, "read_plan_version", lambda path: (10, 3, 0, 30))
    monkeypatch.setattr(doctor, "read_sidecar", lambda path: card)
    monkeypatch.setattr(doctor, "check_content", lambda card, plan, name: None)
    monkeypatch.setattr(doctor, "read_model", lambda path: ("", b""))
    (tmp_path / "student.engine").touch()
    (check,) = doctor.check_engines([tmp_path], tensorrt, sm)
    assert (check.name, check.status, check.blocks) == ("student.engine", status, status == "fail")


def test_engines_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(b"ftrt" + bytes(60))
    (tmp_path / "empty").mkdir()
    places = [tmp_path / "x.engine", tmp_path / "gone.engine", tmp_path / "empty"]
    checks = doctor.check_engines(places, "10.3.0", "8.9")
    assert [check.status for check in checks] == ["fail", "fail", "absent"]
    assert all(check.fix for check in checks)


def test_text_and_verdict() -> None:
    good, warn = Check("a", "ok", "x", group="g"), Check("b", "warn", "y", "z", group="g")
    assert doctor.as_text([good, warn]) == "g\n  ok      a  x\n  warn    b  y\n    fix: z"
    assert doctor.verdict([good, warn], "work") == "Ready for work; see 1 more with a fix."
    bad = Check("c", "fail", "x", "y", needed=True)
    assert doctor.verdict([good, bad], "work") == "Not ready for work: c."
