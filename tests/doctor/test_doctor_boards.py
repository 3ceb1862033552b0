"""Boards that the doctor looks at: Jetsons, Raspberry Pis, PCs."""

from __future__ import annotations

from typing import Any

import pytest

from frami_edge_runtime.doctor import (
    board,
    cudart,
    gpu,
    gpus,
    onnx_runtime,
    read_release,
    tensorrt_lines,
)


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
            "onnxruntime": {
                "version": "1.23.2",
                "providers": ["CPUExecutionProvider"],
                "cpu": ["CPUExecutionProvider"],
            },
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
