"""CONTRIBUTING.md: what it lets a newcomer write works as printed, in the file that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from docs_pages import ROOT

import frami_edge.distillation.extra as extra
from frami_edge.distillation.config import DistillConfig
from frami_edge.models.hidden import Hidden

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

FIGURES = ["README.md", *(f"docs/MY_{n}.md" for n in ("TEACHER", "DATA", "JETSON", "MICROPHONE"))]


def test_the_loss_of_the_page_is_a_term_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (indented,) = re.findall(r"```python\n(.*?)   ```", PAGE, re.DOTALL)
    (tmp_path / "cosine.py").write_text(re.sub(r"^   ", "", indented, flags=re.MULTILINE))
    monkeypatch.setattr(extra, "__path__", [*extra.__path__, str(tmp_path)])
    assert "cosine" in extra.extra_names()
    assert DistillConfig(extra={"cosine": 0.5}).extra == {"cosine": 0.5}
    z_BK = torch.randn(4, 5)
    teacher, same, against = (Hidden(z_BK, z_BK, s * z_BK) for s in (1, 3, -1))
    loss = extra.extra_loss("cosine")
    assert float(loss(same, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(loss(against, teacher)) == pytest.approx(2, abs=1e-6)


def test_it_names_the_interfaces_as_they_are() -> None:
    for function, path in (
        ("def build(arch: StudentArch)", "frami_edge/models/trunks/depthwise.py"),
        (
            "def loss(student: Hidden, teacher: Hidden)",
            "frami_edge/distillation/extra/logit_mse.py",
        ),
        ("def open_model(source, *, threads)", "tests/runtime/test_further_backend.py"),
    ):
        assert function in (ROOT / path).read_text(encoding="utf-8")
        assert re.sub(r": \w+", "", function).removeprefix("def ") in PAGE


@pytest.mark.parametrize("page", FIGURES)
def test_pages_repeat_figures_and_make_none(page: str) -> None:
    """Every share of something in per cent stands in docs/RESULTS.md."""
    results = (ROOT / "docs/RESULTS.md").read_text(encoding="utf-8")
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    figures = set(re.findall(r"(\d+\.\d+)(?=[^|\n%]{0,20}%)", rows))
    missing = [f for f in figures if not re.search(rf"(?<![\d.]){re.escape(f)}", results)]
    assert not missing
