"""`frami-edge evaluate --controls`: the same recipe on other clips, beside the student."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from frami_edge.checkpoint import load_checkpoint, save_checkpoint
from frami_edge.cli._output import Output
from frami_edge.controls import (
    ControlTable,
    Wanted,
    control_student,
    parse_controls,
    student_recipe,
)
from frami_edge.data.sets import load_set
from frami_edge.device import choose_compute
from frami_edge.errors import ConfigError
from frami_edge.opening import open_model
from frami_edge.runs import read_manifest

Call = Callable[..., Result]
StudentNet = dict[str, Any]
EVERY = "white_noise,procedural,inversion,translator,real,scratch,unrelated=folder:{}"


@pytest.fixture
def evaluate(call: Call, student: StudentNet, teacher: Path, sounds: Path) -> Call:
    def run(controls: str, *more: object, model: object = student["student"], code: int = 0) -> Any:
        return call(
            "evaluate", model, "--data", f"folder:{sounds}", "--teacher", teacher,
            "--controls", controls, "--device", "cpu", "--precision", "fp32", *more, code=code,
        )  # fmt: skip

    return run


def other_tones(folder: Path) -> Path:
    import numpy as np
    import soundfile

    rng = np.random.default_rng(7)
    for side in ("train", "test"):
        for label in ("bang", "hiss", "hum"):
            path = folder / side / label / "0.wav"
            path.parent.mkdir(parents=True)
            soundfile.write(path, 0.1 * rng.standard_normal(4000), 8000)
    return folder


def test_every_control_is_a_row(evaluate: Call, student: StudentNet, tmp_path: Path) -> None:
    other, out = other_tones(tmp_path / "other"), tmp_path / "out"
    bank = Path(student["run_dir"]) / "bank"
    result = evaluate(EVERY.format(other), "--bank", bank, "--out", out, "--json")
    found = json.loads(result.stdout)
    controls = found["controls"]
    assert list(controls) == [
        "white_noise", "smooth_noise", "procedural", "inversion", "translator", "real",
        "unrelated", "scratch",
    ]  # fmt: skip
    for name, row in controls.items():
        assert 0 <= row["accuracy"] <= 1, name
        assert 0 <= row["agreement"] <= 1, name
        assert 0 < row["kl_nats"] < math.inf, name
        assert row["seed"] == 3, name
        assert row["steps"] == 6, name  # 12 clips in batches of 8: three epochs of two steps
    # None of them is the student, or another control, under a new name.
    assert len({found["kl_nats"], *(row["kl_nats"] for row in controls.values())}) == 9
    assert (controls["real"]["real_clips"], controls["unrelated"]["real_clips"]) == (12, 6)
    assert controls["unrelated"]["data"] == f"folder:{other}"
    for name in ("confusion", "controls"):
        assert Path(found["plots"][name]).read_bytes().startswith(b"\x89PNG")
    manifest = read_manifest(out)
    assert manifest["status"] == "finished"
    assert manifest["controls"] == controls


def test_people_get_a_table_with_the_teacher_on_top(evaluate: Call) -> None:
    result = evaluate("procedural")
    rows = [line for line in result.stdout.splitlines() if "%" in line]
    order = [
        next(i for i, row in enumerate(rows) if f"│ {what} " in row)
        for what in (
            "teacher", "student", "same steps on smooth noise", "same steps on procedural audio",
        )
    ]  # fmt: skip
    assert order == sorted(order)
    assert "Control procedural 6/6 (100%)" in result.stderr
    assert "left" in result.stderr
    assert "channels last, the layout" in result.stderr


def test_a_control_differs_from_the_student_in_its_clips_alone(
    student: StudentNet, teacher: Path, sounds: Path
) -> None:
    compute = choose_compute("cpu", "fp32")
    loaded = load_checkpoint(teacher, "teacher")
    judged = open_model(Path(student["student"]))
    config = student_recipe(judged, open_model(teacher))
    only = config.model_copy(
        update={"bank": config.bank.model_copy(update={"sources": {"procedural": 1.0}})}
    )
    data = load_set(f"folder:{sounds}")
    table = ControlTable.prepare(
        Wanted(("procedural",)), only, loaded, compute, data, "test", Output(quiet=True)
    )
    rows: list[int] = []
    one = control_student(
        "procedural", loaded, table.config, compute, on_step=lambda i, _: rows.append(i)
    )
    other = control_student("procedural", loaded, table.config, compute)
    assert rows == list(range(1, 7))
    same = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert judged.network is not None
    assert one.state_dict().keys() == judged.network.model.state_dict().keys()


@pytest.mark.parametrize(
    ("text", "names", "unrelated"),
    [
        ("smooth_noise", ("smooth_noise",), ""),
        ("all-synthetic", ("white_noise", "smooth_noise", "procedural"), ""),
        (" real , white_noise,real", ("white_noise", "smooth_noise", "real"), ""),
        ("unrelated=esc40", ("smooth_noise", "unrelated"), "esc40"),
        ("unrelated = folder:a=b", ("smooth_noise", "unrelated"), "folder:a=b"),
    ],
)
def test_names_of_controls(text: str, names: tuple[str, ...], unrelated: str) -> None:
    assert parse_controls(text) == Wanted(names, unrelated)


@pytest.mark.parametrize(
    "text", ["", "noise", "white_noise,", "real=2", "unrelated", "unrelated=", "all-synthetic=1"]
)
def test_unknown_controls_are_refused(text: str, evaluate: Call) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_controls(text)
    assert caught.value.fix
    assert "fix: " in evaluate(text, code=1).stderr


def test_what_a_control_needs_is_checked_before_any_work(
    evaluate: Call, call: Call, student: StudentNet, teacher: Path, sounds: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    bank = Path(student["run_dir"]) / "bank"
    again = f"unrelated=folder:{sounds}"
    for controls, words in (
        ("inversion", "needs a bank"),
        ("unrelated=folder:nowhere", "no folder"),
        ("unrelated=esc40", "data root"),
        (again, "20 clips are in both"),
    ):
        assert words in evaluate(controls, "--out", out, code=1).stderr
        assert not out.exists()
    lacking = tmp_path / "lacking"
    call("invert", student_config(student), "--teacher", teacher, "--out", lacking,
         "--sources", "procedural", "-q", "--device", "cpu")  # fmt: skip
    error = evaluate("translator", "--bank", lacking / "bank", code=1).stderr
    assert "has no clips of translator" in error
    assert "no bank" in evaluate("inversion", "--bank", tmp_path / "nowhere", code=1).stderr.lower()
    alone = ("evaluate", student["student"], "--data", f"folder:{sounds}", "--controls", "real")
    assert "--teacher FILE" in call(*alone, code=1).stderr
    unused = ("evaluate", student["student"], "--data", f"folder:{sounds}", "--bank", bank)
    assert "--bank is read by controls alone" in call(*unused, code=1).stderr


def student_config(student: StudentNet) -> Path:
    found = Path(student["run_dir"]) / "config.yaml"
    assert found.is_file()
    return found


def test_only_our_students_have_controls(
    evaluate: Call, student: StudentNet, teacher: Path, tmp_path: Path
) -> None:
    assert "kind teacher" in evaluate("real", model=teacher, code=1).stderr
    loaded = load_checkpoint(Path(student["student"]))
    bare = tmp_path / "bare.safetensors"
    recipe = dict(loaded.card.recipe)
    wider = {**recipe, "student": {**recipe["student"], "out_channels": 16}}
    for wrong in ({}, {"steps": 3}, wider):
        card = loaded.card.model_copy(update={"recipe": wrong})
        save_checkpoint(bare, loaded.model, card)
        assert "does not say how it was distilled" in evaluate("real", model=bare, code=1).stderr


def test_a_run_folder_in_the_way_costs_no_distillation(evaluate: Call, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    result = evaluate("white_noise", "--out", tmp_path / "out", code=1)
    assert "holds no run" in result.stderr
    assert "Control" not in result.stderr
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
