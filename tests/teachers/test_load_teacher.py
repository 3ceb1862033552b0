"""`load_teacher` on what users have: a module in memory, a path, an asset, Python code."""

from __future__ import annotations

from pathlib import Path

import pytest
import teacher_zoo as zoo
import torch
from teacher_zoo import K, M

from frami_edge.assets import DIGITS_TEACHER
from frami_edge.errors import ConfigError
from frami_edge.teachers import load_teacher
from frami_edge_runtime.melspec import MelSpec

LABELS = tuple("abcde")
MEL = MelSpec(n_mels=M)


def test_a_module_in_memory_is_copied_and_opened() -> None:
    torch.manual_seed(0)
    module = zoo.lively(zoo.KeywordNet(), "BTM").train()
    teacher = load_teacher(module, mel=MEL, labels=LABELS)
    assert (teacher.mel, teacher.labels) == (MEL, LABELS)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    x = torch.randn(2, 1, M, 60)
    expected = module.eval()(x[:, 0].transpose(1, 2))
    assert torch.allclose(teacher(x), expected, atol=1e-6)
    assert teacher.hidden(x).pooled_BD.shape == (2, 12)
    again = load_teacher(module, mel=MEL.to_dict(), labels=list(LABELS))
    assert again.sha256 == teacher.sha256
    with torch.no_grad():
        module.get_parameter("classify.bias").add_(1)
    assert load_teacher(module, mel=MEL, labels=LABELS).sha256 != teacher.sha256


def test_paths_and_assets() -> None:
    by_name, by_path = load_teacher("digits-teacher"), load_teacher(str(DIGITS_TEACHER))
    assert by_name.sha256 == by_path.sha256
    assert load_teacher(by_path) is by_path


def test_python_code_keeps_its_description(tmp_path: Path) -> None:
    torch.save(zoo.lively(zoo.KeywordNet(8), "BTM").state_dict(), tmp_path / "w.pt")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    teacher = load_teacher(
        "teacher_zoo:KeywordNet",
        weights=tmp_path / "w.pt",
        mel=MEL,
        labels=tmp_path / "labels.txt",
        arguments={"width": 8},
    )
    assert teacher.labels == LABELS
    assert teacher.description is not None
    assert teacher.description.model_dump()["arguments"] == {"width": 8}
    assert len(teacher.labels) == K


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (zoo.KeywordNet(), {"mel": MEL}, "labels missing"),
        (zoo.KeywordNet(), {"mel": MEL, "labels": LABELS, "weights": "w.pt"}, "weights given"),
        ("teacher_zoo:KeywordNet", {"mel": MEL}, "weights, labels is not given"),
        (DIGITS_TEACHER, {"mel": MEL}, "carries these facts itself"),
    ],
)
def test_arguments_that_do_not_go_together(source, arguments, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        load_teacher(source, **arguments)
