import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from frami_edge import device
from frami_edge.device import choose_compute, generator
from frami_edge.errors import ConfigError


@pytest.fixture
def gpu(monkeypatch):
    """Two pretended CUDA devices; the list is their compute capability, to be changed."""
    capability = [(9, 0)]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Pretend GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability[0])
    return capability


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_auto_without_a_gpu_is_the_cpu_and_says_why():
    compute = choose_compute()
    assert compute.device == torch.device("cpu")
    assert compute.reason.startswith("cpu, because torch finds no CUDA device; ")
    assert len(compute.reason.split("; ")) == 2


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_an_error_with_the_fix(monkeypatch):
    with pytest.raises(ConfigError, match="'cuda:1' is not available: torch finds no") as caught:
        choose_compute("cuda:1")
    assert "--device cpu" in caught.value.fix

    def old_driver():
        warnings.warn("The NVIDIA driver is too old. Update.\nMore.", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    with pytest.raises(ConfigError, match="driver is too old"):
        choose_compute("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="built without CUDA"):
        choose_compute("cuda")


def test_a_gpu_is_taken_with_bf16(gpu, monkeypatch):
    compute = choose_compute()
    assert compute.device == torch.device("cuda", 0)
    assert compute.dtype == torch.bfloat16
    assert "Pretend GPU" in compute.reason
    assert "compute capability 9.0" in compute.reason
    monkeypatch.setenv("LOCAL_RANK", "1")  # each process of torchrun takes its own
    assert [choose_compute(name).device.index for name in ("auto", "cuda", "cuda:0")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("cpuinfo", "flag"),
    [
        ("model name : x\nflags\t\t: fpu avx512_bf16 amx_bf16\n", "amx_bf16"),
        ("flags\t\t: fpu avx512_bf16\n", "avx512_bf16"),
        ("Features\t: fp asimd bf16\n", "bf16"),
        ("flags\t\t: fpu avx2 notbf16\n", ""),
        ("", ""),
    ],
)
def test_bf16_on_a_cpu_is_read_from_its_flags(tmp_path, monkeypatch, cpuinfo, flag):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert device.cpu_bf16_flag(tmp_path / "cpuinfo") == flag
    monkeypatch.setattr(device, "cpu_bf16_flag", lambda: flag)
    compute = choose_compute("cpu")
    assert compute.dtype == (torch.bfloat16 if flag else torch.float32)
    assert (flag or "without bf16") in compute.reason


def test_streams_are_the_same_on_every_machine():
    assert generator(0, "train").initial_seed() == 1382848523564605726


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what is resident")
def test_memory_with_holes_goes_back_to_the_kernel():
    code = """
import torch
from frami_edge import device
from frami_edge.device import choose_compute, trim_memory
def mib():
    return int(open("/proc/self/statm").read().split()[1]) // 256
choose_compute("cpu")
before = mib()
tensors = [torch.ones(16 << 20) for _ in range(6)]  # 64 MiB each
del tensors[:5]  # the last one keeps the top of the heap
kept = mib()
trim_memory()
small = mib()
device._GROWTH = 0
trim_memory()
print(kept - before, small - before, mib() - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, small, left = map(int, found.stdout.split())
    if kept < 300:
        pytest.skip("this C library keeps nothing")
    assert small > 300, "a small run keeps its speed"
    assert left < 150
