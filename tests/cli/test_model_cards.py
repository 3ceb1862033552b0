"""Model cards: the header that hubs read, figures, and code and commands that run as they stand."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from kit import LABELS
from typer.testing import CliRunner

from frami_edge import cards
from frami_edge.cards import export_readme, model_header, teacher_readme
from frami_edge.checkpoint import DIGITS_TEACHER, load_checkpoint
from frami_edge.cli import app
from frami_edge.evaluation import Score
from frami_edge.training import TrainedTeacher
from frami_edge_export.report import Artifact, ExportReport

MANIFEST = {
    "versions": {"frami-edge": "0.1.0", "python": "3.11.7", "torch": None},
    "git": {"commit": "abc", "modified": True},
    "seeds": {"seed": 3},
    "device": "cpu, as asked",
    "command_line": ["frami-edge", "distill", "/home/me/secret.yaml"],
}


def header_of(card):
    """The header, which the hub's own reader must understand and write back unchanged."""
    found = yaml.safe_load(card.split("---\n")[1])
    hub = ModelCard(card)
    assert hub.data.to_dict() == found
    return found


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def run_code(card):
    """Run every Python block, each in a module of its own; what they print."""
    printed = io.StringIO()
    codes = blocks(card, "python")
    assert codes
    with contextlib.redirect_stdout(printed):
        for code in codes:
            exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def commands(card):
    lines = [line for block in blocks(card, "sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("frami-edge ")]


def test_the_cards_of_a_run_and_its_export(student, tmp_path, monkeypatch):
    run_folder = tmp_path / "run"
    shutil.copytree(student["run_dir"], run_folder)
    monkeypatch.chdir(run_folder)
    card = Path("README.md").read_text()
    header = header_of(card)
    assert header["pipeline_tag"] == "audio-classification"
    assert header["license"] == "cc-by-sa-4.0"
    assert {"data-free", "knowledge-distillation"} <= set(header["tags"])
    assert "datasets" not in header
    sha256 = load_checkpoint(Path("student.safetensors")).sha256
    for words in ("**Not validated on real audio**", "| seed | 3 |", "| inversion | 32 |", sha256):
        assert words in card
    assert str(Path(student["run_dir"]).parent) not in card

    (export,) = commands(card)  # makes ./export, which the next block needs
    done = CliRunner().invoke(app, [*export, "--quiet"])
    assert done.exit_code == 0, done.output
    lines = run_code(card).splitlines()
    assert lines[0].split()[0] in LABELS
    assert lines[-1] in LABELS

    monkeypatch.chdir("export")
    card = Path("README.md").read_text()
    assert {"onnx", "data-free"} <= set(header_of(card)["tags"])
    assert run_code(card).split()[0] in LABELS
    for artifact in json.loads(Path("export_report.json").read_text())["artifacts"]:
        assert artifact["sha256"] in card
    events = card.partition("## Events")[2]
    for label in LABELS:
        assert re.search(rf"\| `{label}` \| (0\.\d+|never) \| 0\.\d+ \|", events)
    assert "plots/export.png" in card
    assert str(tmp_path) not in card


def test_a_teachers_card(teacher, monkeypatch):
    loaded = load_checkpoint(teacher)
    found = Score(0.875, None, None, torch.tensor([[4, 0], [1, 3]]), 8)
    trained = TrainedTeacher(teacher, loaded.sha256, loaded.card, found, 1234, 2.0)
    card = teacher_readme(trained, {"curves": "plots/curves.png"}, MANIFEST)
    header = header_of(card)  # folder:tones is a folder of the user's own
    assert {"datasets", "model-index"} & set(header) == set()
    for words in ("87.50%", "| commit | abc, with changes |", "frami-edge 0.1.0, python 3.11.7 |"):
        assert words in card
    assert "/home/me" not in card
    (distil,) = commands(card)
    assert distil[0] == "distill"
    monkeypatch.chdir(teacher.parent)
    assert run_code(card).strip() in LABELS


def test_real_accuracies_are_results_that_the_hub_reads(teacher, monkeypatch):
    monkeypatch.setattr(cards, "markdown_card", lambda _: "# Export")
    loaded = load_checkpoint(teacher)
    trained_on = loaded.card.trained_on.model_copy(update={"data": "esc10", "test_fold": "3"})
    card = loaded.card.model_copy(update={"trained_on": trained_on})
    score = Score(0.875, None, None, torch.tensor([[4, 0], [1, 3]]), 8)
    trained = TrainedTeacher(teacher, loaded.sha256, card, score, 1234, 2.0)
    student = SimpleNamespace(card=card, mel=loaded.mel, sha256="0" * 64)
    files = (
        Artifact("fp32", "s.fp32.onnx", "streaming", "fp32", accuracy=0.9),
        Artifact("int8.cpu", "s.int8.cpu.onnx", "streaming", "int8", accuracy=0.85),
    )
    report = ExportReport("s", files, "s.int8.cpu.onnx", "", None, ())
    data = {"name": "esc10", "fold": "3", "clips": 80}
    for text, name, accuracy in (
        (teacher_readme(trained, {}, MANIFEST), "esc10-teacher", 0.875),
        (export_readme(report, student, data, {}), "s", 0.85),
    ):
        header_of(text)
        found = ModelCard(text).data
        (result,) = found.eval_results
        assert (found.model_name, found.pipeline_tag) == (name, "audio-classification")
        assert (result.dataset_type, result.dataset_split) == ("esc10", "3")
        assert (result.metric_type, result.metric_value) == ("accuracy", accuracy)


def test_the_embedded_teachers_card_agrees_with_its_checkpoint():
    card = load_checkpoint(DIGITS_TEACHER, "teacher").card
    header = header_of(DIGITS_TEACHER.with_suffix(".md").read_text(encoding="utf-8"))
    assert header["datasets"] == [card.trained_on.data]
    assert header["license"] == header_of(model_header(card.licence, []) + "\n")["license"]
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"]["split"] == card.trained_on.test_fold
    assert result["metrics"][0]["value"] == card.metrics["accuracy"]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC BY-NC 3.0", {"license": "cc-by-nc-3.0"}),
        ("MIT", {"license": "mit"}),
        ("CC BY-ND 3.0", {"license": "other", "license_name": "cc-by-nd-3.0"}),
        ("Our Own Licence 2", {"license": "other", "license_name": "our-own-licence-2"}),
        ("not stated", {}),
    ],
)
def test_a_licence_is_named_only_where_it_is_known(licence, expected):
    header = header_of(model_header(licence, ["on"]) + "\n")
    assert {key: value for key, value in header.items() if "license" in key} == expected
    assert header["tags"][1] == "on"  # quoted where YAML would read something else
