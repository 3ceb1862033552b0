import pytest
import torch
from kit import SPEC

from frami_edge.checkpoint import Card, Teacher
from frami_edge.config import BankConfig, StudentArch, TeacherArch
from frami_edge.device import Compute
from frami_edge.models import ResNetTeacher, ReusedHead, StudentNet
from frami_edge.sources import SourceContext

LABELS = ("a", "b", "c", "d", "e")


@pytest.fixture
def cpu():
    return Compute(torch.device("cpu"), torch.float32, "a test")


@pytest.fixture
def spec():
    return SPEC


@pytest.fixture
def teacher(spec):
    """A tiny teacher whose BatchNorm statistics are those of some data, not the initial ones."""
    torch.manual_seed(0)
    model = ResNetTeacher(TeacherArch(channels=(8, 12, 16), blocks=1), spec.n_mels, len(LABELS))
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 1, spec.n_mels, 40))
    return model.eval().requires_grad_(False)


@pytest.fixture
def opened(teacher, spec):
    """The tiny teacher as `load_teacher` returns it."""
    arch = teacher.arch.model_dump(mode="json")
    card = Card(kind="teacher", arch=arch, mel=spec.to_dict(), labels=LABELS)
    return Teacher(teacher, card, spec, "0" * 64)


@pytest.fixture
def student(spec, teacher):
    """A tiny student with the teacher's head and BatchNorm statistics of some data."""
    torch.manual_seed(1)
    arch = StudentArch(channels=(8, 12, 12, 16), time_kernels=(3, 3, 3, 1), out_channels=8)
    model = StudentNet(arch, spec.n_mels, len(LABELS), teacher.head)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 1, spec.n_mels, 40))
        assert isinstance(model.head, ReusedHead)
        model.head.projector.bias.normal_()
    return model.eval().requires_grad_(False)


@pytest.fixture
def bank_config():
    """`bank_config(sources={...}, inversion={...})`: a bank of a second."""

    def make(**changes):
        tiny = {"steps": 6, "burn_in": 2, "batch_size": 8}
        inversion = tiny | {"latent": 8, "width": 8, "contrastive_memory": 20}
        fields = {
            "clip_s": 0.16, "procedural_clips": 10, "control_clips": 10, "shard_clips": 16,
            "inversion": inversion | changes.pop("inversion", {}),
            "translator": tiny | changes.pop("translator", {}),
            "refinement": {"steps": 6, "batch_size": 8, "iterations": 3},
            "breeding": {"steps": 6, "burn_in": 0, "batch_size": 10, "founders": 12, "elites": 4},
        }  # fmt: skip
        return BankConfig.model_validate(fields | changes)

    return make


@pytest.fixture
def context(teacher, spec, cpu, bank_config):
    """`context(inversion={...})`: what sources need, tiny, on the CPU in float32."""

    def make(seed=0, model=teacher, **changes):
        return SourceContext(model, spec, len(LABELS), bank_config(**changes), cpu, seed)

    return make
