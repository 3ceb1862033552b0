"""What inversion rests on: BatchNorms, of the teacher or borrowed, and a front end that fits."""

from functools import partial

import pytest
import torch
from kit import SPEC
from teacher_zoo import K, KeywordNet, M
from torch import nn

import frami_edge as fe
from frami_edge.errors import TeacherError
from frami_edge.frontend import LogMel
from frami_edge.inversion import BorrowedPrior
from frami_edge.sources.procedural import measured
from frami_edge.teachers.foreign import ForeignTeacher
from frami_edge.teachers.front_end_fit import (
    DOUBTFUL_FRONT_END,
    WRONG_FRONT_END,
    check_front_end,
    front_end_audio,
    front_end_error,
    front_ends_like,
)

SMALL = {
    "bank.clip_s": 0.96, "bank.procedural_clips": 24, "bank.inversion.batch_size": 12,
    "bank.inversion.width": 8, "bank.inversion.burn_in": 1,
}  # fmt: skip


class Grouped(nn.Module):
    """No BatchNorm."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv1d(M, 12, 5, 2), nn.GroupNorm(3, 12), nn.ReLU())
        self.fc = nn.Linear(12, K)

    def forward(self, x):
        assert x.shape[1] == M
        return self.fc(self.trunk(x).mean(2))


def test_a_teacher_without_batch_norm_borrows_a_prior(tmp_path, monkeypatch):
    monkeypatch.setattr(BorrowedPrior, "clips", 64)
    monkeypatch.setattr(BorrowedPrior, "steps", 4)
    torch.manual_seed(0)
    teacher = fe.load_teacher(Grouped(), mel=SPEC, labels=list("abcde"))
    made = [
        fe.invert(
            teacher, sources=["inversion"], steps=4, overrides=SMALL, out=tmp_path / str(i),
            device="cpu",
        )
        for i in range(2)
    ]  # fmt: skip
    metrics = (tmp_path / "0" / "metrics.jsonl").read_text()
    assert '"batch_norm"' in metrics  # the term is on, and the same seed gives the same bits
    clips = [bank.read("inversion").mels_N1MT for bank in made]
    assert torch.equal(*clips)
    assert made[0].index.health["inversion"]["batch_norm_error"] is None  # it has none of its own


@pytest.fixture(scope="module")
def fitted():
    """A front end, and a teacher whose BatchNorms met its log-mels."""
    torch.manual_seed(0)
    right = measured(SPEC.replace(mean=0.0, std=1.0))
    module = KeywordNet()
    for layer in (module.bn1, module.bn2):
        layer.momentum = None
    module.train()(LogMel(right)(front_end_audio(right)).transpose(1, 2))
    return right, ForeignTeacher(module, M, K, layout="BTM")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"log": "db"}, "log: ln"),
        ({"mean": 0.0, "std": 1.0}, "with mean -"),
        ({"log": "db", "mean": 9.0}, "with mean -"),  # nearly ln with the right mean
    ],
)
def test_front_ends_like_a_wrong_one_are_compared(fitted, wrong, nearest):
    right, teacher = fitted
    ranking = front_ends_like(teacher, right.replace(**wrong))
    name, error = next(iter(ranking.items()))
    assert name.startswith(nearest)
    assert error <= ranking["as given"]
    assert ranking["as given"] > DOUBTFUL_FRONT_END
    assert error < 0.1
    assert list(ranking.values()) == sorted(ranking.values())


def test_a_wrong_front_end_stops(caplog):
    digits = fe.load_teacher("digits-teacher")

    def loaded(**changes):
        mel = digits.mel.replace(**changes)
        return fe.load_teacher(digits.model, mel=mel, labels=digits.labels, layout="B1MT")

    assert front_end_error(loaded().model, digits.mel) < DOUBTFUL_FRONT_END
    for act, changes, nearest in (
        (check_front_end, {"mean": 0.0, "std": 1.0}, "nearest: with mean -8"),
        (partial(fe.invert, steps=1), {"log": "db"}, "log: ln (0.3"),
    ):
        with pytest.raises(TeacherError, match="front end does not match") as caught:
            act(loaded(**changes))
        assert "mean and std" in (caught.value.fix or "")
        assert nearest in caught.value.message
    check_front_end(loaded(log_eps=1e-10))
    assert "may not match" in caplog.text
    assert "log_eps: 1e-06 (0.3" in caplog.text
    assert WRONG_FRONT_END == 200
