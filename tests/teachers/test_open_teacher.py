"""From files and options to a teacher; and the whole journey of one through the command line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import teacher_zoo as zoo
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from frami_edge.checkpoint import load_checkpoint
from frami_edge.cli import app
from frami_edge.errors import CheckpointError, ConfigError, TeacherError
from frami_edge.teachers.opening import (
    build_module,
    load_weights,
    open_teacher,
    read_description,
    read_weights,
)
from frami_edge_runtime.errors import FramiEdgeError

MEL = "sample_rate: 8000\nn_fft: 256\nwin_length: 200\nhop_length: 80\nn_mels: 16\nlog: log2\n" \
      "mel_scale: slaney\nnorm: slaney\ncenter: true\nmean: -8.0\nstd: 4.0\n"  # fmt: skip
LABELS = ("go", "stop", "left", "right", "up")
TINY = """\
student: {channels: [8, 12], time_kernels: [3, 3], out_channels: 12}
bank:
  frames: 24
  sources: {inversion: 1, procedural: 1}
  procedural_clips: 40
  inversion: {steps: 6, burn_in: 2, batch_size: 16, latent: 8, width: 8}
distill: {steps: 6, batch_size: 8, crop_min: 16, crop_max: 24}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(zoo.lively(zoo.KeywordNet(), "BTM").state_dict(), tmp_path / "kws.safetensors")
    (tmp_path / "mel.yaml").write_text(MEL)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "kws.yaml").write_text(
        "factory: teacher_zoo:KeywordNet\nweights: kws.safetensors\nmel: mel.yaml\n"
        "labels: labels.txt\n"
    )
    return tmp_path


def options(folder: Path) -> list[str]:
    return [
        "--teacher", "teacher_zoo:KeywordNet", "--weights", str(folder / "kws.safetensors"),
        "--mel", str(folder / "mel.yaml"), "--labels", str(folder / "labels.txt"),
    ]  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_description_is_relative_to_its_folder(folder: Path) -> None:
    loaded = open_teacher(folder / "kws.yaml")
    assert loaded.card.labels == LABELS
    assert (loaded.spec.log, loaded.spec.mel_scale, loaded.spec.center) == ("log2", "slaney", True)
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_from_module_to_student_and_on_to_a_score(folder: Path) -> None:
    out = folder / "run"
    result = run("distill", folder / "tiny.yaml", *options(folder), "--out", out, "--json", "-q")
    assert result.exit_code == 0, result.output
    student = load_checkpoint(Path(json.loads(result.stdout)["student"]), "student")
    teacher = open_teacher(out / "teacher.yaml")
    assert read_description(out / "teacher.yaml").factory == "teacher_zoo:KeywordNet"
    assert student.card.teacher_sha256 == teacher.sha256
    assert student.spec == teacher.spec
    done = run("export", out / "student.safetensors", "--out", folder / "export", "--quiet")
    assert done.exit_code == 0, done.output


def test_a_network_without_affine_head_gives_the_student_its_own(folder: Path) -> None:
    torch.manual_seed(0)
    torch.save({"state_dict": zoo.lively(zoo.XVector(), "BMT").state_dict()}, folder / "x.pt")
    arguments = options(folder)
    arguments[1], arguments[3] = "teacher_zoo:XVector", str(folder / "x.pt")
    result = run("distill", folder / "tiny.yaml", *arguments, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert "is not affine: the student gets a head of its own" in result.stderr


def test_invert_alone(folder: Path) -> None:
    result = run("invert", folder / "tiny.yaml", *options(folder), "--out", folder / "run", "-q")
    assert result.exit_code == 0, result.output
    assert (folder / "run" / "bank" / "bank.json").is_file()


def test_wrappings_around_the_weights_are_taken_off(folder: Path) -> None:
    state = zoo.KeywordNet().state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, folder / "w.pt")
    tensors = read_weights(folder / "w.pt")
    model = zoo.KeywordNet()
    load_weights(model, tensors, folder / "w.pt")
    assert torch.equal(model.classify.weight, state["classify.weight"])


def test_code_in_a_weights_file_is_not_run(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (folder / "ran",))

    (folder / "evil.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    with pytest.raises(CheckpointError, match="is not executed"):
        read_weights(folder / "evil.pt")
    torch.save({"state_dict": Trap()}, folder / "evil2.pt")
    with pytest.raises(CheckpointError, match="is not executed"):
        read_weights(folder / "evil2.pt")
    assert not (folder / "ran").exists()


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    model = zoo.KeywordNet(width=10)
    with pytest.raises(CheckpointError, match=r"other shape: conv1\.weight"):
        load_weights(model, read_weights(folder / "kws.safetensors"), Path("kws"))
    with pytest.raises(CheckpointError, match=r"missing: conv1\.weight.*unknown: other"):
        load_weights(model, {"other": torch.zeros(1)}, Path("kws"))
    damaged = dict(zoo.KeywordNet().state_dict())
    damaged["classify.bias"] = torch.full((5,), torch.nan)
    with pytest.raises(CheckpointError, match=r"not finite: classify\.bias"):
        load_weights(zoo.KeywordNet(), damaged, Path("kws"))


@pytest.mark.parametrize(
    ("factory", "arguments", "said"),
    [
        ("no_such_module:Net", {}, "Cannot import no_such_module:Net"),
        ("teacher_zoo:Nothing", {}, "Cannot import teacher_zoo:Nothing"),
        ("teacher_zoo:KeywordNet", {"depth": 3}, r"KeywordNet\(depth=3\) fails: TypeError"),
        ("teacher_zoo:conv", {"c_in": 1}, "fails: TypeError"),
        ("builtins:dict", {}, "gives dict, not an nn.Module"),
    ],
)
def test_factories_that_fail_say_how(factory: str, arguments: dict[str, int], said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        build_module(factory, arguments)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"factory": "no colon"}, ConfigError, "factory"),
        ({"labels": ["one"]}, TeacherError, "name 1 classes"),
        ({"labels": ["a", "a", "b", "c", "d"]}, TeacherError, "4 of them different"),
        ({"labels": "none.txt"}, TeacherError, "Cannot read the labels"),
        ({"weights": "none.pt"}, CheckpointError, "There are no weights"),
        ({"mel": {"n_mel": 3}}, FramiEdgeError, "has no key n_mel"),
        ({"unknown": 1}, ConfigError, "unknown"),
    ],
)
def test_mistakes_in_a_description(
    folder: Path, changes: dict[str, object], kind: type[FramiEdgeError], said: str
) -> None:
    base = {"factory": "teacher_zoo:KeywordNet", "weights": "kws.safetensors", "mel": "mel.yaml",
            "labels": "labels.txt"}  # fmt: skip
    (folder / "bad.yaml").write_text(json.dumps(base | changes))
    with pytest.raises(kind, match=said):
        open_teacher(folder / "bad.yaml")


def test_options_that_do_not_go_together(folder: Path) -> None:
    out = folder / "r"
    alone = run("invert", "fsdd-student", "--teacher", "teacher_zoo:KeywordNet", "--out", out)
    assert alone.exit_code == 1
    assert "--weights, --mel, --labels is not given" in alone.stderr
    described = ["--teacher", folder / "kws.yaml", "--weights", "w"]
    both = run("invert", "fsdd-student", *described, "--out", out)
    assert both.exit_code == 1
    assert "a file that says these things itself" in both.stderr
    wrong = run("invert", "fsdd-student", *options(folder), "--teacher-arg", "width", "--out", out)
    assert "is not NAME=VALUE" in wrong.stderr
    assert not out.exists()
