"""The Python interface: the notebook example as printed in the documentation, and its contract."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor, nn

import frami_edge as fe
from frami_edge.config import (
    BankConfig,
    DistillConfig,
    InversionConfig,
    JourneyConfig,
    StudentArch,
    TranslatorConfig,
)
from frami_edge.errors import BankError, ConfigError, RunError
from frami_edge.progress import Progress
from frami_edge.sources.procedural import procedural_mels
from frami_edge_export.options import ExportOptions

MEL = fe.MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
)
LABELS = ["high", "low"]
BUDGET = {"steps": 3, "burn_in": 1, "batch_size": 8}
TINY = JourneyConfig(
    student=StudentArch(channels=(8, 8, 8), time_kernels=(3, 3, 3), out_channels=12),
    bank=BankConfig(
        clip_s=0.24,
        procedural_clips=40,
        inversion=InversionConfig(**BUDGET, latent=8, width=8),
        translator=TranslatorConfig(**BUDGET),
    ),
    distill=DistillConfig(steps=6, batch_size=8, crop_min_s=0.16, crop_max_s=0.24),
    seed=3,
)
QUICK = ExportOptions(
    min_agreement=0, max_range_ratio=1e9, max_range_shift=1e9, bench_budget_s=0.02, bench_rounds=15
)
"""Eight steps leave BatchNorm statistics that int8 rightly refuses."""
ON: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


class Net(nn.Module):
    """A classifier as a user has it: (B, 1, M, T) log-mels to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for seed in range(4):
            net(procedural_mels(MEL, 32, 24, seed))
    return net.eval()


@pytest.fixture(scope="module")
def teacher(net: Net) -> fe.Teacher:
    return fe.load_teacher(net, mel=MEL, labels=LABELS)


@pytest.fixture(scope="module")
def bank(teacher: fe.Teacher) -> fe.Bank:
    return fe.invert(teacher, config=TINY, **ON)


def test_the_public_names() -> None:
    names = "load_teacher invert distill export evaluate Teacher Student Bank MelSpec"
    assert sorted(names.split()) == fe.__all__
    assert all(callable(getattr(fe, name)) for name in fe.__all__)
    assert set(fe.__all__) <= set(dir(fe))
    with pytest.raises(AttributeError):
        fe.nothing  # noqa: B018


def test_the_package_and_its_configs_load_without_torch() -> None:
    code = (
        "import sys, frami_edge; from frami_edge.config import JourneyConfig; "
        "from frami_edge.yaml_config import load_config; "
        "load_config(JourneyConfig, 'esc10-student'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_module_in_memory_becomes_files_on_disk(
    net: Net, tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of the documentation, with a small config and a folder of sounds."""
    monkeypatch.chdir(tmp_path)
    seen: list[Progress] = []
    teacher = fe.load_teacher(net, mel=MEL, labels=LABELS)
    bank = fe.invert(teacher, config=TINY, seed=0, progress=seen.append)
    student = fe.distill(teacher, bank, steps=8, progress=seen.append)
    files = fe.export(student, bank=bank, int8=True, out="export", samples=64, options=QUICK)
    print(fe.evaluate(student, data=f"folder:{sounds}", fold="test", teacher=teacher))

    assert {p.phase for p in seen} >= {"inversion", "translator", "distill"}
    assert (seen[-1].done, seen[-1].total) == (8, 8)
    assert {"loss", "agreement"} <= set(seen[-1].metrics)
    x = procedural_mels(MEL, 3, 40, seed=1)
    assert student(x).shape == (3, 2)
    assert repr(teacher).startswith("Teacher(2 classes, ")
    assert (tmp_path / "export" / "student.int8.cpu.onnx").is_file()
    assert bool(files) is all(gate.passed for gate in files.gates)
    assert "student.fp32.onnx" in str(files)
    student.save("student.safetensors")
    again = fe.evaluate("student.safetensors", data=f"folder:{sounds}", fold="test")
    assert again.sha256 == student.sha256


def test_temporary_folders_live_as_long_as_their_result(teacher: fe.Teacher) -> None:
    bank = fe.invert(teacher, config=TINY, **ON)
    folder = bank.folder
    assert (folder / "bank.json").is_file()
    assert str(len(bank)) in repr(bank)
    del bank
    assert not folder.exists()


def test_a_bank_gives_its_config_and_seed_to_the_student(
    teacher: fe.Teacher, bank: fe.Bank, tmp_path: Path
) -> None:
    overrides = {"distill.batch_size": 8, "student": TINY.student.model_dump()}
    student = fe.distill(teacher, bank, steps=2, overrides=overrides, out=tmp_path / "run", **ON)
    recipe = JourneyConfig.model_validate(student.card.recipe)
    assert (recipe.bank, recipe.seed, recipe.distill.steps) == (TINY.bank, 3, 2)
    assert recipe.distill.crop_max_s == 0.24
    assert student.card.teacher_sha256 == teacher.sha256
    with pytest.raises(RunError, match="already holds a finished run"):
        fe.distill(teacher, bank, steps=2, out=tmp_path / "run", **ON)
    same = fe.distill(
        teacher, bank, steps=2, overrides=overrides, out=tmp_path / "run", resume=True, **ON
    )
    assert same.sha256 == student.sha256


def test_any_sampler_of_clips_is_a_bank(teacher: fe.Teacher) -> None:
    class Recordings:
        def __init__(self) -> None:
            self.clips = procedural_mels(MEL, 16, 24, seed=7)

        def batch(self, n: int, generator: torch.Generator) -> Tensor:
            return self.clips[torch.randint(0, len(self.clips), (n,), generator=generator)]

    student = fe.distill(teacher, Recordings(), config=TINY, **ON)
    assert student.card.metrics["steps"] == 6


def test_what_does_not_fit_is_refused(teacher: fe.Teacher, bank: fe.Bank, net: Net) -> None:
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        fe.distill(teacher, bank, overrides={"distill.stepz": 3})
    with pytest.raises(ConfigError, match="unknown source dreams"):
        fe.invert(teacher, sources=["dreams"])
    with pytest.raises(BankError, match=r"bank\.clip_s is 0\.96"):
        fe.distill(teacher, bank, config=JourneyConfig())
    with pytest.raises(ConfigError, match="labels"):
        fe.load_teacher(net, mel=MEL)
    with torch.no_grad():
        other = fe.load_teacher(Net().eval(), mel=MEL, labels=LABELS)
    with pytest.raises(BankError, match="another teacher"):
        fe.distill(other, bank)
    with pytest.raises(ConfigError):
        fe.export("student.safetensors", portable=True)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "tones"
    for side, label, hz in (
        (side, label, hz)
        for side in ("train", "test")
        for label, hz in (("high", 2000), ("low", 300))
    ):
        folder = root / side / label
        folder.mkdir(parents=True)
        for i in range(3):
            t = torch.arange(2400 + 400 * i) / 8000
            soundfile.write(
                folder / f"{i}.wav", (0.3 * torch.sin(2 * torch.pi * hz * t)).numpy(), 8000
            )
    return root
