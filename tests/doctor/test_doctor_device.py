from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frami_edge_runtime.doctor.boards import board
from frami_edge_runtime.doctor.children import Answer
from frami_edge_runtime.doctor.cuda import cudart
from frami_edge_runtime.doctor.engines import engines
from frami_edge_runtime.doctor.gpu import gpu, gpus
from frami_edge_runtime.doctor.jetpack import read_release
from frami_edge_runtime.doctor.onnx_runtime import onnx_runtime
from frami_edge_runtime.doctor.sound import microphone, readers, resampling
from frami_edge_runtime.doctor.system import cores, disk, memory, python
from frami_edge_runtime.doctor.tensorrt import supports, tensorrt_lines

SMI = "NVIDIA GeForce RTX 4090, 580.82.07, 8.9, 24564, 1200\n"
ORT_CPU = {
    "version": "1.32.0",
    "providers": ["CPUExecutionProvider"],
    "cpu": ["CPUExecutionProvider"],
}


@pytest.mark.parametrize(
    ("line", "l4t", "version", "engines"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 1", "36.4.3", "6.2", True),
        ("# R36 (release), REVISION: 4.4, GCID: 1", "36.4.4", "6.2.1", True),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "36.4.0", "6.1", True),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "36.3.0", "6.0", False),
        ("# R35 (release), REVISION: 4.1, GCID: 1", "35.4.1", "5.x", False),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "38.2.0", "7.0", True),
        ("# R38 (release), REVISION: 4, GCID: 1", "38.4", "7.1", True),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "39.2.0", "7.2", True),
        ("# R50 (release), REVISION: 1.0, GCID: 1", "50.1.0", "", False),
    ],
)
def test_l4t_names_the_jetpack(line: str, l4t: str, version: str, engines: bool) -> None:
    found = read_release(line)
    assert found is not None
    assert (found.l4t, found.version, found.engines) == (l4t, version, engines)


@pytest.mark.parametrize("text", ["", "Ubuntu 22.04", "# R36 REVISION: 4", "# R36 (release), "])
def test_other_release_files_are_no_jetpack(text: str) -> None:
    assert read_release(text) is None


def test_a_jetson_orin_with_jetpack_6_2(
    machine: Any, by_name: Any, jetson_files: dict[str, str]
) -> None:
    orin = machine(
        files=jetson_files,
        arch="aarch64",
        commands={
            "nvpmodel": "NV Power Mode: 15W\n0\n",
            "nvidia-smi": "Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A]\n",
            "dpkg-query": "10.3.0.30-1+cuda12.5\n",
        },
        asks={
            "tensorrt": {
                "version": "10.3.0",
                "file": "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py",
            },
            "cudart": {"sm": "8.7"},
            "onnxruntime": ORT_CPU | {"version": "1.23.2"},
        },
        versions={"onnxruntime": "1.23.2", "numpy": "2.2.6"},
    )
    lines = by_name([*board(orin), *gpu(orin), *tensorrt_lines(orin), *cudart(orin),
                     *onnx_runtime(orin)])  # fmt: skip
    assert {check.status for check in lines.values()} == {"ok"}
    assert lines["JetPack"].found.startswith("6.2 (L4T 36.4.3: CUDA 12.6, TensorRT 10.3) on NVIDIA")
    assert lines["power mode"].found.startswith("15W")
    assert "jetson_clocks" in lines["power mode"].fix
    assert "compute capability 8.7" in lines["GPU"].found
    assert "540.4.0" in lines["GPU"].found
    assert lines["TensorRT"].found == "10.3.0, of the system"
    assert lines["TensorRT for this GPU"].found == "knows compute capability 8.7"


def test_pips_tensorrt_on_a_jetson_fails(machine: Any, jetson_files: dict[str, str]) -> None:
    orin = machine(
        files=jetson_files,
        asks={"tensorrt": {"version": "10.16.1", "file": "/v/site-packages/tensorrt/__init__.py"}},
        versions={"tensorrt": "10.16.1", "tensorrt-cu12": "10.16.1"},
    )
    (line,) = tensorrt_lines(orin)
    assert line.status == "fail"
    assert "do not support a Jetson's GPU" in line.found
    assert line.fix.startswith("pip uninstall -y tensorrt tensorrt-cu12; then sudo apt install")
    assert "--system-site-packages" in line.fix


def test_a_jetsons_tensorrt_that_the_venv_hides(machine: Any, jetson_files: dict[str, str]) -> None:
    (line,) = tensorrt_lines(
        machine(files=jetson_files, commands={"dpkg-query": "10.3.0.30-1+cuda12.5\n"})
    )
    assert line.status == "warn"
    assert line.found == "the system has 10.3.0.30, and this Python does not see it"
    assert "--system-site-packages" in line.fix


def test_jetpack_5_is_too_old_for_engines(machine: Any, by_name: Any) -> None:
    xavier = machine(
        files={
            "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 1",
            "proc/device-tree/model": "NVIDIA Jetson AGX Xavier\0",
        }
    )
    assert by_name(board(xavier))["JetPack"].status == "warn"
    assert gpus(xavier).found[0].sm == "7.2"


def test_a_container_on_a_jetson_without_its_release_file(machine: Any, by_name: Any) -> None:
    hidden = machine(files={"proc/device-tree/model": "NVIDIA Jetson AGX Orin\0"})
    assert "nv_tegra_release:ro" in by_name(board(hidden))["JetPack"].fix


def test_a_gpu_node_that_the_user_may_not_open(
    machine: Any, by_name: Any, jetson_files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    orin = machine(files=jetson_files | {"dev/nvmap": ""})
    monkeypatch.setattr(type(orin), "usable", lambda self, path: False)
    line = by_name(board(orin))["access to the GPU"]
    assert line.found == "this user may not use /dev/nvmap"
    assert "video,render" in line.fix


@pytest.mark.parametrize(
    ("flags", "name", "status"),
    [
        ("0x0", "power and cooling", "ok"),
        ("0x50005", "power supply", "warn"),
        ("0x80008", "cooling", "warn"),
    ],
)
def test_a_raspberry_pi_5(machine: Any, by_name: Any, flags: str, name: str, status: str) -> None:
    pi = machine(
        files={"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"},
        arch="aarch64",
        commands={"vcgencmd": f"throttled={flags}\n"},
    )
    lines = by_name(board(pi))
    assert lines["board"].found == "Raspberry Pi 5 Model B Rev 1.0, aarch64"
    assert lines[name].status == status


def test_a_32_bit_pi_cannot_run_onnxruntime(machine: Any, by_name: Any) -> None:
    pi = machine(files={"proc/device-tree/model": "Raspberry Pi 4 Model B\0"}, arch="armv7l")
    assert by_name(board(pi))["board"].blocks


def test_a_pc_has_no_board(machine: Any) -> None:
    assert board(machine()) == []


def test_gpus_by_nvidia_smi(machine: Any, by_name: Any) -> None:
    lines = by_name(gpu(machine(commands={"nvidia-smi": SMI + SMI})))
    assert list(lines) == ["GPU 0", "GPU 1"]
    assert "22.8 of 24.0 GiB free" in lines["GPU 0"].found


@pytest.mark.parametrize(
    ("files", "commands", "status", "words"),
    [
        ({}, {}, "absent", "none of NVIDIA's"),
        ({"sys/bus/pci/devices/0/vendor": "0x10de\n", "sys/bus/pci/devices/0/class": "0x030000\n"},
         {}, "warn", "its driver is not installed"),
        ({"sys/bus/pci/devices/0/vendor": "0x10de\n", "sys/bus/pci/devices/0/class": "0x040300\n"},
         {}, "absent", "none of NVIDIA's"),
        ({"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  "
          "580.82.07  Sat\n"}, {}, "warn", "driver 580.82.07 is loaded"),
        ({}, {"nvidia-smi": Answer(None, trouble="nvidia-smi did not end within 4 s")},
         "warn", "the driver hangs"),
        ({}, {"nvidia-smi": Answer(9, "NVIDIA-SMI has failed because it couldn't communicate with "
          "the NVIDIA driver.\n", trouble="nvidia-smi ended with exit code 9")},
         "warn", "couldn't communicate"),
        ({}, {"nvidia-smi": "garbage\n,,,,\n"}, "warn", "lists no GPU"),
    ],
)  # fmt: skip
def test_no_gpu_and_why(
    machine: Any, files: dict[str, str], commands: dict[str, Any], status: str, words: str
) -> None:
    (line,) = gpu(machine(files=files, commands=commands))
    assert line.status == status
    assert words in line.found


@pytest.mark.parametrize(
    ("version", "sm", "known"),
    [
        ("10.3.0", "8.7", True), ("10.3.0", "7.0", True), ("10.5.0", "7.0", False),
        ("10.3.0", "6.1", False), ("10.3.0", "12.0", False), ("10.8.0", "12.0", True),
        ("10.10.0", "11.0", False), ("10.13.3", "11.0", True), ("11.4.0", "7.5", True),
        ("11.2.0", "10.7", False), ("11.3.0", "10.7", True), ("11.4.0", "13.0", True),
    ],
)  # fmt: skip
def test_which_tensorrt_knows_which_gpu(version: str, sm: str, known: bool) -> None:
    assert supports(version, sm) is known


def test_a_new_gpu_with_an_old_tensorrt(machine: Any, by_name: Any) -> None:
    pc = machine(
        commands={"nvidia-smi": SMI.replace("8.9", "12.0")},
        asks={"tensorrt": {"version": "10.3.0", "file": "/v/site-packages/tensorrt/x.py"}},
    )
    line = by_name(tensorrt_lines(pc))["TensorRT for this GPU"]
    assert line.status == "fail"
    assert line.fix == "Install TensorRT 10.8 or newer."


def test_two_tensorrts_of_which_pips_hides_the_systems(machine: Any, by_name: Any) -> None:
    pc = machine(
        commands={"ldconfig": "\tlibnvinfer.so.10.3.0 (libc6,x86-64) => /usr/lib/x\n"},
        asks={"tensorrt": {"version": "11.4.0", "file": "/v/site-packages/tensorrt/x.py"}},
        versions={"tensorrt": "11.4.0"},
    )
    assert by_name(tensorrt_lines(pc))["TensorRT, twice"].status == "warn"


@pytest.mark.parametrize(
    ("told", "versions", "status", "words"),
    [
        (None, {}, "absent", "not installed"),
        (Answer(-11, trouble="it crashed with SIGSEGV"), {"tensorrt": "11"}, "warn", "SIGSEGV"),
        (Answer(None, trouble="python3 did not end within 4.5 s"), {"tensorrt": "11"}, "warn",
         "did not end"),
        ({"error": "ImportError", "message": "libnvinfer.so.11: cannot open shared object file"},
         {"tensorrt": "11"}, "warn", "libnvinfer.so.11"),
        ({"version": "8.6.1", "file": "/v/site-packages/tensorrt/x.py"}, {}, "warn", "10.3"),
    ],
)  # fmt: skip
def test_a_tensorrt_that_cannot_be_used(
    machine: Any, told: Any, versions: dict[str, str], status: str, words: str
) -> None:
    asks = {} if told is None else {"tensorrt": told}
    (line,) = tensorrt_lines(machine(asks=asks, versions=versions))
    assert line.status == status
    assert words in line.found


def test_onnxruntime_twice(machine: Any) -> None:
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}
    (line,) = onnx_runtime(machine(versions=both, asks={"onnxruntime": ORT_CPU}))
    assert line.status == "warn"
    assert line.fix == (
        "pip uninstall -y onnxruntime onnxruntime-gpu; then pip install onnxruntime-gpu"
    )
    crash = Answer(-6, trouble="python3 crashed with SIGABRT")
    (line,) = onnx_runtime(machine(versions=both, asks={"onnxruntime": crash}))
    assert line.blocks


def test_a_gpu_provider_that_falls_back(machine: Any, by_name: Any) -> None:
    told = ORT_CPU | {"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
                      "cuda": ["CPUExecutionProvider"]}  # fmt: skip
    gpu_build = machine(versions={"onnxruntime-gpu": "1.32.0"}, asks={"onnxruntime": told})
    lines = by_name(onnx_runtime(gpu_build))
    assert lines["GPU in onnxruntime"].status == "warn"
    told["cuda"] = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    lines = by_name(onnx_runtime(machine(asks={"onnxruntime": told})))
    assert lines["GPU in onnxruntime"].status == "ok"


@pytest.mark.parametrize(
    ("told", "versions", "fix"),
    [
        ({"error": "ModuleNotFoundError", "message": "No module named 'onnxruntime'"}, {},
         "pip install onnxruntime"),
        ({"error": "ImportError", "message": "numpy.core.multiarray failed to import"},
         {"onnxruntime-gpu": "1.18.0"}, "pip install 'numpy<2'"),
        (Answer(-11, trouble="python3 crashed with SIGSEGV"), {"onnxruntime": "1.29.0"},
         "pip install --force-reinstall --no-deps onnxruntime"),
    ],
)  # fmt: skip
def test_an_onnxruntime_that_does_not_load(
    machine: Any, told: Any, versions: dict[str, str], fix: str
) -> None:
    (line,) = onnx_runtime(machine(asks={"onnxruntime": told}, versions=versions))
    assert line.blocks
    assert line.fix == fix


def test_an_onnxruntime_that_crashes_on_jetsons(machine: Any, jetson_files: dict[str, str]) -> None:
    orin = machine(files=jetson_files, asks={"onnxruntime": ORT_CPU | {"version": "1.22.0"}})
    (line,) = onnx_runtime(orin)
    assert (line.status, line.fix) == ("warn", "pip install 'onnxruntime!=1.22.0'")


PCM = "00-00: bcm2835 Headphones : : playback 8\n01-00: USB Audio : USB Audio : capture 1\n"


@pytest.mark.parametrize(
    ("told", "commands", "files", "status", "words"),
    [
        ({"portaudio": True, "device": "USB Mic", "rate": 48000.0}, {}, {}, "ok",
         "USB Mic, 48000 Hz"),
        (None, {"arecord": "card 1: Device [USB PnP Sound Device], device 0: USB Audio\n"}, {},
         "ok", "USB PnP Sound Device (arecord)"),
        (None, {"arecord": Answer(0, "", "no soundcards found...\n")}, {}, "absent", "lists none"),
        (None, {}, {}, "absent", "neither sounddevice nor arecord"),
        ({"error": "OSError", "message": "PortAudio library not found"}, {}, {}, "warn",
         "the PortAudio library is not"),
        ({"portaudio": True, "none": "Error querying device -1"}, {}, {}, "absent", "no default"),
        ({"portaudio": True, "none": "Error querying device -1"}, {},
         {"proc/asound/pcm": PCM, "dev/snd/controlC0": ""}, "warn", "ALSA has 1"),
        ({"portaudio": True, "none": "Error querying device -1"}, {}, {"proc/asound/pcm": PCM},
         "warn", "this user may not use it"),
        (Answer(None, trouble="python3 did not end within 4.5 s"), {}, {}, "warn", "did not end"),
    ],
)  # fmt: skip
def test_microphones(
    machine: Any, told: Any, commands: dict[str, Any], files: dict[str, str], status: str,
    words: str,
) -> None:  # fmt: skip
    asks = {} if told is None else {"sounddevice": told}
    (line,) = microphone(machine(asks=asks, commands=commands, files=files))
    assert (line.status, words in line.found) == (status, True), line


def test_readers_of_audio(machine: Any) -> None:
    (line,) = readers(machine())
    assert (line.status, line.needed) == ("absent", False)
    (line,) = readers(machine(), needed=True)
    assert line.blocks
    good = {"version": "0.14.0", "libsndfile": "1.2.2", "formats": ["FLAC", "WAV", "XI"]}
    (line,) = readers(machine(asks={"soundfile": good | {"flac": True}}))
    assert line.found == "WAV, FLAC (soundfile 0.14.0, libsndfile 1.2.2)"
    (line,) = readers(machine(asks={"soundfile": good | {"flac": False}}), needed=True)
    assert line.blocks


def test_resampling_is_an_extra(machine: Any) -> None:
    assert resampling(machine())[0].status == "absent"
    assert resampling(machine(versions={"soxr": "1.1.0"}))[0].found == "soxr 1.1.0"


def test_python_too_old(machine: Any) -> None:
    assert python(machine(python=(3, 9, 2)))[0].blocks
    assert python(machine(python=(3, 10, 12)))[0].status == "ok"
    assert python(machine(python=(3, 10, 12)), least=(3, 11))[0].blocks


def test_memory_and_a_containers_limit(machine: Any) -> None:
    info = {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\n"}
    (line,) = memory(machine(files=info), 1.0, 4.0)
    assert (line.status, line.found) == ("ok", "9.2 of 16.4 GB free")
    group = {"sys/fs/cgroup/memory.max": "2000000000\n",
             "sys/fs/cgroup/memory.current": "1500000000\n"}  # fmt: skip
    (line,) = memory(machine(files=info | group), 1.0, 4.0)
    assert line.blocks
    assert line.found.startswith("0.5 of 2.0 GB free in this container")
    assert memory(machine(files={"proc/meminfo": "nonsense"}), 1.0, 4.0) == []


def test_threads_in_a_container(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    box = machine(files={"sys/fs/cgroup/cpu.max": "200000 100000\n"})
    (line,) = cores(box)
    assert (line.status, line.fix) == ("warn", "export OMP_NUM_THREADS=2")
    box = machine(
        files={"sys/fs/cgroup/cpu.max": "max 100000\n"}, environ={"OMP_NUM_THREADS": "99"}
    )
    (line,) = cores(box)
    assert (line.status, line.fix) == ("warn", "export OMP_NUM_THREADS=64")


def test_a_full_disk_blocks_where_results_go(machine: Any, tmp_path: Path) -> None:
    full = machine(disk=lambda path: (2_000_000, 10**12))
    places = [("here", tmp_path), ("cache", tmp_path / "not" / "there" / "yet")]
    here, cache = disk(full, places, 0.3, 5.0)
    assert here.blocks
    assert here.found.startswith("0.0 of 1000 GB free")
    assert (cache.status, cache.needed) == ("warn", False)
    roomy = machine(disk=lambda path: (10**11, 10**12))
    assert [line.status for line in disk(roomy, places, 0.3, 5.0)] == ["ok"]  # one file system


def test_a_disk_that_cannot_be_asked(machine: Any, tmp_path: Path) -> None:
    def broken(path: Path) -> tuple[int, int]:
        raise OSError(116, "Stale file handle")

    (line,) = disk(machine(disk=broken), [("here", tmp_path)], 0.3, 5.0)
    assert line.blocks
    assert "Stale file handle" in line.found


def test_engines_that_are_none(
    machine: Any, tmp_path: Path, by_name: Callable[[Any], dict[str, Any]]
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (tmp_path / "x.engine").write_bytes(b"ftrt" + bytes(60))
    lines = by_name(engines(machine(), [folder, tmp_path / "x.engine", tmp_path / "gone.engine"]))
    assert lines["export"].status == "absent"
    assert lines["x.engine"].status == "fail"
    assert lines["gone.engine"].status == "fail"
