"""The cards of a student's run and of its export: header, figures, and code that runs as it is."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import frami_edge_export
from frami_edge.assets import DIGITS_TEACHER
from frami_edge.cards import (
    Result,
    licence_id,
    model_header,
    provenance,
    read_header,
    table,
    teacher_readme,
)
from frami_edge.checkpoint import Card, load_checkpoint, save_checkpoint
from frami_edge.cli import app
from frami_edge.config import StudentArch
from frami_edge.distillation import write_readme
from frami_edge.evaluation import Score
from frami_edge.models import StudentNet
from frami_edge.runs import RunFolder
from frami_edge.training import TrainedTeacher
from frami_edge_export.options import ExportOptions

LABELS = ("high", "low")
MANIFEST = {
    "versions": {"frami-edge": "0.1.0", "python": "3.11.7", "torch": None},
    "git": {"commit": "abc", "modified": True},
    "seeds": {"seed": 3},
    "device": "cpu, as asked",
    "machine": {"cpu": "some CPU", "cores": 2},
    "seconds": {"distill": 3.2, "total": 9.0},
    "command_line": ["frami-edge", "distill", "/home/me/secret.yaml"],
}


@pytest.fixture(scope="module")
def run_folder(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ends of a run: a student that nobody taught, and the card that distill writes."""
    out = tmp_path_factory.mktemp("cards") / "run"
    theirs = load_checkpoint(teacher)
    arch = StudentArch(channels=(8, 8, 8), time_kernels=(3, 3, 3), out_channels=12)
    student = StudentNet(arch, theirs.spec.n_mels, len(LABELS)).eval()
    recipe = {"seed": 3, "distill": {"steps": 6}}
    card = Card(
        kind="student", arch=arch.model_dump(mode="json"), mel=theirs.spec.to_dict(), labels=LABELS,
        teacher_sha256=theirs.sha256, teacher_trained_on=theirs.card.trained_on, recipe=recipe,
        metrics={"synthetic_agreement": 0.5, "steps": 6}, licence=theirs.card.licence,
    )  # fmt: skip
    with RunFolder.create(out, command="distill", config=recipe, seeds={"seed": 3}) as run:
        save_checkpoint(run.path("student.safetensors"), student, card)
        bank: Any = SimpleNamespace(
            index=SimpleNamespace(health={"inversion": {"clips": 40}, "procedural": {"clips": 8}})
        )
        write_readme(run, card, student, bank, {"mels": "plots/mels.png"})
    return out


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def run_code(card: str) -> str:
    """Every Python block in turn, each in a module of its own; what they print."""
    said = io.StringIO()
    codes = blocks(card, "python")
    assert codes
    with contextlib.redirect_stdout(said):
        for code in codes:
            exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    return said.getvalue()


def commands(card: str) -> list[list[str]]:
    lines = [line for block in blocks(card, "sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("frami-edge ")]


def test_a_run_and_its_export_explain_themselves(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder)
    card = Path("README.md").read_text()
    header = read_header(card)
    assert header["library_name"] == "frami-edge"
    assert header["pipeline_tag"] == "audio-classification"
    assert header["license"] == "cc-by-sa-4.0"
    assert {"data-free", "knowledge-distillation"} <= set(header["tags"])
    assert not {"datasets", "model-index", "metrics"} & set(header)  # it heard none, none measured
    assert "**Not validated on real audio**" in card
    assert "| seed | 3 |" in card
    assert "| inversion | 40 |" in card
    assert "data-free with a procedural prior" in card
    assert "50.00 %" in card
    assert load_checkpoint(Path("student.safetensors")).sha256 in card
    assert str(run_folder.parent) not in card

    quick = functools.partial(ExportOptions, bench_budget_s=0.02, bench_rounds=15)
    monkeypatch.setattr(frami_edge_export, "ExportOptions", quick)
    (export,) = commands(card)  # makes ./export, which the next block needs
    done = CliRunner().invoke(app, [*export, "--quiet"])
    assert done.exit_code == 0, done.output
    lines = run_code(card).splitlines()
    assert lines[0].split()[0] in LABELS
    assert lines[-1] in LABELS

    monkeypatch.chdir("export")
    card = Path("README.md").read_text()
    header = read_header(card)
    assert {"onnx", "data-free"} <= set(header["tags"])
    assert "model-index" not in header
    assert run_code(card).split()[0] in LABELS
    for artifact in json.loads(Path("export_report.json").read_text())["artifacts"]:
        assert artifact["sha256"] in card
    assert "plots/export.png" in card
    assert str(run_folder.parent) not in card


def test_a_teachers_card(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_checkpoint(teacher)
    found = Score(0.875, None, None, torch.tensor([[4, 0], [1, 3]]), 8)
    trained = TrainedTeacher(teacher, loaded.sha256, loaded.card, found, 1234, 2.0)
    card = teacher_readme(trained, {"curves": "plots/curves.png"}, MANIFEST)
    header = read_header(card)
    assert "datasets" not in header  # folder:tones is nobody's data set but the user's
    (entry,) = header["model-index"]
    (result,) = entry["results"]
    assert result["dataset"] == {"type": "folder:tones", "name": "folder:tones", "split": "test"}
    assert result["metrics"][0]["value"] == 0.875
    assert "87.50 %" in card
    assert "/home/me" not in card
    (distil,) = commands(card)
    assert distil[0] == "distill"
    monkeypatch.chdir(teacher.parent)
    assert run_code(card).strip() in LABELS


def test_the_embedded_teachers_card_says_what_its_checkpoint_says() -> None:
    card = load_checkpoint(DIGITS_TEACHER, "teacher").card
    header = read_header(DIGITS_TEACHER.with_suffix(".md").read_text(encoding="utf-8"))
    assert card.trained_on is not None
    assert header["datasets"] == [card.trained_on.data]
    assert header["license"] == licence_id(card.licence)
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"]["split"] == card.trained_on.test_fold
    assert result["metrics"][0]["value"] == card.metrics["accuracy"]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC BY-NC 3.0", {"license": "cc-by-nc-3.0"}),
        ("MIT", {"license": "mit"}),
        ("Our Own Licence 2", {"license": "other", "license_name": "our-own-licence-2"}),
        ("", {}),
        ("not stated", {}),
        ("unknown", {}),
    ],
)
def test_a_licence_is_named_only_where_it_is_known(licence: str, expected: dict[str, str]) -> None:
    header = read_header(model_header(name="x", licence=licence, tags=[]) + "\n")
    assert {key: value for key, value in header.items() if "license" in key} == expected
    assert licence_id("CC BY-SA 4.0") == "cc-by-sa-4.0"


def test_names_that_yaml_would_read_otherwise_survive() -> None:
    odd = "yes: [1e-3, 'x'] # \"no\"\n---\nnull"
    text = model_header(name=odd, licence="", tags=[odd, "on"],
                        results=[Result(odd, "1", "accuracy", 0.5, odd)])  # fmt: skip
    header = read_header(text + "\n# Title\n")
    assert header["tags"][1:] == [odd, "on"]
    (entry,) = header["model-index"]
    assert entry["name"] == odd
    assert entry["results"][0]["dataset"]["split"] == "1"


@pytest.mark.parametrize(
    "text", ["", "# Title\n", "---\nno end", "---\n- a\n- b\n---\n", "---\na: [\n---\n"]
)
def test_what_is_no_header(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_header(text)


def test_tables_escape_bars_and_lines() -> None:
    assert table(["a"], [["x|y\nz"]]) == "| a |\n| --- |\n| x\\|y z |"


def test_provenance_has_no_paths() -> None:
    text = provenance([("student", "abc"), ("left out", "")], MANIFEST)
    assert "| commit | `abc`, with changes |" in text
    assert "frami-edge 0.1.0, python 3.11.7 |" in text
    assert "/home" not in text
    assert "left out" not in text


def test_the_hubs_own_library_reads_the_header(run_folder: Path) -> None:
    hub: Any = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    card = hub.ModelCard((run_folder / "README.md").read_text())
    assert card.data.pipeline_tag == "audio-classification"
    result = Result("esc10", "1", "accuracy", 0.9, "accuracy")
    text = model_header(name="x", licence="MIT", tags=[], datasets=["esc10"], results=[result])
    (known,) = hub.ModelCard(text + "\n# x\n").data.eval_results
    assert (known.dataset_name, known.metric_value) == ("esc10", 0.9)
