"""GPUs, TensorRT and ONNX Runtime as the doctor sees them."""

from __future__ import annotations

from typing import Any

import pytest

from frami_edge_runtime.doctor import Answer, gpu, onnx_runtime, supports, tensorrt_lines

SMI = "NVIDIA GeForce RTX 4090, 580.82.07, 8.9, 24564, 1200\n"
ORT_CPU = {
    "version": "1.32.0",
    "providers": ["CPUExecutionProvider"],
    "cpu": ["CPUExecutionProvider"],
}


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
