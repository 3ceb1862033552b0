from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

import pytest

from frami_edge.doctor import (
    datasets,
    described,
    packages,
    requirements,
    torch_cuda,
    torch_pair,
    trainer_probes,
)
from frami_edge_runtime.doctor import Answer

SMI = "NVIDIA GeForce RTX 4090, 580.82.07, 8.9, 24564, 1200\n"
GOOD = {
    "torch": "2.14.1+cu130", "cuda": "13.0", "rocm": None, "torchaudio": "2.11.0+cu130",
    "stage": "done",
}  # fmt: skip
VERSIONS = {"torch": "2.14.1+cu130", "torchaudio": "2.11.0+cu130"}
BOTH = "pip install --force-reinstall 'torch<2.15,>=2.11' 'torchaudio<2.12,>=2.11'"
ARCHS = ["sm_75", "sm_80", "sm_90", "sm_120"]


def test_the_requirements_are_those_of_all_three_packages() -> None:
    wanted = requirements()
    assert {"torch", "torchaudio", "onnx", "onnxruntime", "numpy", "typer", "rich"} <= set(wanted)
    assert not {"frami-edge-runtime", "frami-edge-export", "tensorrt", "soxr"} & set(wanted)
    assert not wanted["torch"].specifier.contains("2.15.0")
    assert not wanted["onnxruntime"].specifier.contains("1.21.0")  # the export's bound, not 1.19


def test_this_environment_passes(machine: Any) -> None:
    (line,) = packages(machine(versions=_Installed()))
    assert (line.status, line.needed) == ("ok", True)


def test_a_package_out_of_range_or_missing(machine: Any, by_name: Any) -> None:
    lines = by_name(packages(machine(versions=_Installed(torch="2.15.0", matplotlib=None))))
    assert lines["torch"].blocks
    assert lines["torch"].found == "2.15.0, needs <2.15,>=2.11"
    assert lines["torch"].fix == "pip install 'torch<2.15,>=2.11'"
    assert lines["matplotlib"].found == "not installed"
    assert lines["packages"].status == "ok"


def test_parts_of_different_versions(machine: Any, by_name: Any) -> None:
    installed = _Installed(**{"frami-edge-runtime": "0.0.9"})
    assert by_name(packages(machine(versions=installed)))["one version"].blocks


def test_a_version_that_is_none(machine: Any, by_name: Any) -> None:
    assert by_name(packages(machine(versions=_Installed(numpy="built here"))))["numpy"].blocks


def test_a_pair_that_fits(machine: Any, by_name: Any) -> None:
    lines = by_name(torch_pair(machine(asks={"torch": GOOD})))
    assert [line.status for line in lines.values()] == ["ok", "ok"]
    assert lines["torch"].found == "2.14.1+cu130, built for CUDA 13.0"


@pytest.mark.parametrize(
    "message",
    [
        "Detected that PyTorch and TorchAudio were compiled with different CUDA versions. PyTorch "
        "has CUDA version 13.2 whereas TorchAudio has CUDA version 13.0.",
        "libc10_cuda.so: cannot open shared object file: No such file or directory",
    ],
)
def test_a_torchaudio_of_another_cuda(machine: Any, by_name: Any, message: str) -> None:
    told = {"torch": "2.15.0+cu132", "cuda": "13.2", "stage": "torchaudio",
            "error": "RuntimeError", "message": message}  # fmt: skip
    lines = by_name(torch_pair(machine(asks={"torch": told}, versions=VERSIONS)))
    assert lines["torch"].status == "ok"
    assert lines["torchaudio"].blocks
    assert message in lines["torchaudio"].found
    assert lines["torchaudio"].fix == BOTH


@pytest.mark.parametrize(
    ("told", "versions", "words"),
    [
        (None, {}, "not installed"),
        (None, VERSIONS, "No module named"),
        (Answer(-11, trouble="python3 crashed with SIGSEGV"), VERSIONS, "SIGSEGV"),
        (Answer(None, trouble="python3 did not end within 30 s"), VERSIONS, "did not end"),
    ],
)
def test_a_torch_that_does_not_load(
    machine: Any, told: Any, versions: dict[str, str], words: str
) -> None:
    asks = {} if told is None else {"torch": told}
    (line,) = torch_pair(machine(asks=asks, versions=versions))
    assert line.blocks
    assert words in line.found
    assert line.fix == BOTH


def test_a_torchaudio_that_hangs_is_told_from_a_torch_that_hangs(machine: Any) -> None:
    hung = Answer(
        None, 'frami-doctor: {"torch": "2.14.1", "cuda": null, "stage": "torchaudio"}\n',
        trouble="python3 did not end within 30 s",
    )  # fmt: skip
    torch, torchaudio = torch_pair(machine(asks={"torch": hung}, versions=VERSIONS))
    assert (torch.status, torch.found) == ("ok", "2.14.1, built without CUDA")
    assert torchaudio.blocks


def test_no_line_on_cuda_without_a_gpu(machine: Any) -> None:
    assert torch_cuda(machine()) == []


def test_torch_computes_on_the_gpu(machine: Any) -> None:
    told = {
        "available": True,
        "warnings": [],
        "archs": ARCHS,
        "sum": 262144.0,
        "gpu0": ["RTX 4090", "8.9", 25757220864],
        "gpu1": ["T4", "7.5", 16106127360],
    }
    first, second = torch_cuda(machine(commands={"nvidia-smi": SMI}, asks={"torch-cuda": told}))
    assert first.found == "cuda:0 RTX 4090, compute capability 8.9, 24.0 GiB, bf16"
    assert second.found.endswith("no bf16, runs take fp32")


@pytest.mark.parametrize(
    ("smi", "told", "versions", "words", "fix"),
    [
        (SMI, {"available": False, "warnings": [], "archs": []}, {"torch": "2.14.1+cpu"},
         "built without CUDA", BOTH),
        (SMI.replace("580.82.07", "535.54.03"),
         {"available": False, "warnings": ["The NVIDIA driver is too old"], "archs": ARCHS},
         VERSIONS, "driver 535.54.03 is too old for CUDA 13", "driver 580 or newer"),
        (SMI.replace("8.9", "6.1"), {"available": True, "archs": ARCHS, "warnings": [],
         "error": "RuntimeError", "message": "no kernel image is available"}, VERSIONS,
         "no kernels for compute capability 6.1", "--device cpu"),
        (SMI, {"available": False, "warnings": ["CUDA initialization: unknown error."],
         "archs": ARCHS}, VERSIONS, "CUDA initialization: unknown error", "--gpus all"),
        (SMI, Answer(None, trouble="python3 did not end within 36 s"), VERSIONS, "did not end",
         "restart"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_cannot_use_warns(
    machine: Any, smi: str, told: Any, versions: dict[str, str], words: str, fix: str
) -> None:
    pc = machine(commands={"nvidia-smi": smi}, asks={"torch-cuda": told}, versions=versions)
    (line,) = torch_cuda(pc)
    assert (line.status, line.needed) == ("warn", False)
    assert words in line.found
    assert fix in line.fix


def test_sets_that_nobody_has(machine: Any, by_name: Any) -> None:
    lines = by_name(datasets(machine()))
    assert lines["data root"].fix == "export FRAMI_EDGE_DATA=~/sounds"
    assert {lines[name].status for name in lines} == {"absent"}
    assert lines["esc10"].fix == "frami-edge data get esc50"
    assert lines["urbansound8k"].fix.startswith("fill in https://")


def test_a_set_that_is_incomplete(machine: Any, by_name: Any, tmp_path: Path) -> None:
    recordings = tmp_path / "sounds" / "free-spoken-digit-dataset" / "recordings"
    recordings.mkdir(parents=True)
    (recordings / "0_george_0.wav").write_bytes(b"RIFF")
    pc = machine(environ={"FRAMI_EDGE_DATA": str(tmp_path / "sounds")})
    lines = by_name(datasets(pc))
    assert lines["data root"].status == "ok"
    assert lines["fsdd"].status == "warn"
    assert lines["fsdd"].found.startswith("1 of 3,000 clips in ")
    assert lines["fsdd"].fix == "frami-edge data get fsdd, or complete the folder"


def test_a_data_root_that_is_no_folder(machine: Any, by_name: Any, tmp_path: Path) -> None:
    lines = by_name(datasets(machine(), tmp_path / "gone"))
    assert lines["data root"].status == "warn"


@pytest.mark.data
def test_the_real_sets_are_complete(machine: Any, by_name: Any) -> None:
    root = os.environ.get("FRAMI_EDGE_DATA")
    if not root:
        pytest.skip("FRAMI_EDGE_DATA is not set")
    lines = by_name(datasets(machine(), Path(root)))
    assert lines["fsdd"].status == "ok"


def test_terminals() -> None:
    assert described("utf-8", 120).status == "ok"
    assert "PYTHONUTF8" in described("ascii", 120).fix
    assert "100" in described("utf8", 60).fix


def test_probes_have_names_of_their_own() -> None:
    probes = trainer_probes(None, [Path("x.engine")])
    assert len({probe.name for probe in probes}) == len(probes)
    assert {probe.name for probe in probes if probe.needed} == {
        "packages", "torch", "onnxruntime", "audio files",
    }  # fmt: skip


class _Installed(dict[str, str | None]):
    """What is really installed, but for what is given."""

    def get(self, name: str, default: Any = None) -> str | None:  # type: ignore[override]
        if name in self:
            return self[name]
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None
