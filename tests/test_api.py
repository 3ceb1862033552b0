"""The contract of the Python interface; docs/test_pages.py runs the examples of its page."""

import subprocess
import sys

import pytest
import torch
from kit import LABELS, SPEC, tones
from torch import nn

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
from frami_edge.sources.procedural import procedural_mels

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
ON = {"device": "cpu", "precision": "fp32"}


class Net(nn.Module):
    """A classifier as a user has it: (B, 1, M, T) log-mels to logits."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        logits = self.head(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for seed in range(4):
            net(procedural_mels(SPEC, 32, 24, seed))
    return net.eval()


@pytest.fixture(scope="module")
def teacher(net):
    return fe.load_teacher(net, mel=SPEC, labels=LABELS)


@pytest.fixture(scope="module")
def bank(teacher):
    return fe.invert(teacher, config=TINY, **ON)


def test_the_public_names():
    names = "load_teacher invert distill export evaluate Teacher Student Bank MelSpec"
    assert sorted(names.split()) == fe.__all__
    assert all(callable(getattr(fe, name)) for name in fe.__all__)
    assert set(fe.__all__) <= set(dir(fe))
    with pytest.raises(AttributeError):
        fe.nothing  # noqa: B018


def test_the_package_and_its_configs_load_without_torch():
    code = (
        "import sys, frami_edge; from frami_edge.config import JourneyConfig; "
        "from frami_edge.yaml_config import load_config; "
        "load_config(JourneyConfig, 'esc10-student'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_temporary_folders_live_as_long_as_their_result(teacher):
    bank = fe.invert(teacher, config=TINY, sources=["procedural"], **ON)
    folder = bank.folder
    assert (folder / "bank.json").is_file()
    assert str(len(bank)) in repr(bank)
    del bank
    assert not folder.exists()


def test_a_bank_gives_its_config_and_seed_to_the_student(teacher, bank, tmp_path):
    changes = {"distill.batch_size": 8, "student": TINY.student.model_dump()}
    seen, how = [], {"steps": 2, "overrides": changes, "out": tmp_path / "run"} | ON
    student = fe.distill(teacher, bank, progress=seen.append, **how)
    assert (seen[-1].phase, seen[-1].done, seen[-1].total) == ("distill", 2, 2)
    assert {"loss", "agreement"} <= set(seen[-1].metrics)
    recipe = JourneyConfig.model_validate(student.card.recipe)
    assert (recipe.bank, recipe.seed, recipe.distill.steps) == (TINY.bank, 3, 2)
    assert recipe.distill.crop_max_s == 0.24
    assert student.card.teacher_sha256 == teacher.sha256
    with pytest.raises(RunError, match="already holds a finished run"):
        fe.distill(teacher, bank, **how)
    assert fe.distill(teacher, bank, resume=True, **how).sha256 == student.sha256
    assert student(procedural_mels(SPEC, 3, 40, seed=1)).shape == (3, 2)
    assert repr(teacher).startswith("Teacher(2 classes, ")


def test_a_student_is_scored_in_memory_and_from_its_file(teacher, bank, tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    data = {"data": f"folder:{tones(tmp_path / 'tones', train=3, test=3)}", "fold": "test"}
    student = fe.distill(teacher, bank, steps=1, config=TINY, **ON)
    student.save(tmp_path / "student.safetensors")
    found, again = (
        fe.evaluate(student, teacher=teacher, **data),
        fe.evaluate(tmp_path / "student.safetensors", **data),
    )
    assert found.sha256 == again.sha256 == student.sha256
    assert (found.accuracy, found.score.clips) == (again.accuracy, 6)


def test_any_sampler_of_clips_is_a_bank(teacher):
    class Recordings:
        def __init__(self):
            self.clips = procedural_mels(SPEC, 16, 24, seed=7)

        def batch(self, n, generator):
            return self.clips[torch.randint(0, len(self.clips), (n,), generator=generator)]

    student = fe.distill(teacher, Recordings(), config=TINY, **ON)
    assert student.card.metrics["steps"] == 6


def test_what_does_not_fit_is_refused(teacher, bank, net):
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        fe.distill(teacher, bank, overrides={"distill.stepz": 3})
    with pytest.raises(ConfigError, match="unknown source dreams"):
        fe.invert(teacher, sources=["dreams"])
    with pytest.raises(BankError, match=r"bank\.clip_s is 0\.96"):
        fe.distill(teacher, bank, config=JourneyConfig())
    with pytest.raises(ConfigError, match="labels"):
        fe.load_teacher(net, mel=SPEC)
    with torch.no_grad():
        other = fe.load_teacher(Net().eval(), mel=SPEC, labels=LABELS)
    with pytest.raises(BankError, match="another teacher"):
        fe.distill(other, bank)
    with pytest.raises(ConfigError):
        fe.export("student.safetensors", portable=True)
