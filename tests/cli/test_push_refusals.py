"""What `frami-edge push` keeps from the hub: paths of this machine, audio, unfinished work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from push_kit import (
    CARD,
    make_export,
    make_run,
)

from frami_edge.hub import PushError, make_plan
from frami_edge.hub.private_paths import find_path, shortened


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return make_export(tmp_path / "export")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", CARD + "\n![x](/home/me/run/x.png)\n"),
        ("calib.json", '{"bank": "/tmp/r/bank"}'),
        ("calib.json", r'{"bank": "C:\\Users\\me\\bank"}'),
        ("calib.json", '{"data": "folder:/mnt/disk/sounds"}'),
    ],
)
def test_a_path_of_this_machine_is_refused(export: Path, name: str, text: str) -> None:
    (export / name).write_text(text)
    with pytest.raises(PushError, match=f"{name} holds a path of this machine"):
        make_plan(export)


def test_the_folders_own_path_is_found_wherever_it_is(export: Path) -> None:
    (export / "calib.json").write_text(json.dumps({"x": str(export.resolve())}))
    with pytest.raises(PushError, match="path of this machine"):
        make_plan(export)


@pytest.mark.parametrize(
    "text",
    ["https://github.com/tmp/x", "see /proc/cpuinfo", "24/7", "/node_Conv_3/tmp", "a.b/home/x"],
)
def test_what_is_no_path_of_this_machine(text: str, tmp_path: Path) -> None:
    assert find_path(text.encode(), tmp_path) == ""


def test_paths_are_cut_to_names() -> None:
    assert shortened({"a": ["--out=/tmp/r/run", "folder:/home/me/x", "https://h.com/a/b", 3, None],
                      "b": "one / two", "c": r"C:\\Users\\me\\x.pt"}) == {
        "a": ["--out=run", "folder:x", "https://h.com/a/b", 3, None], "b": "one / two",
        "c": "x.pt",
    }  # fmt: skip


def test_audio_under_another_name_and_links_stay(export: Path) -> None:
    (export / "plots" / "wave.png").write_bytes(b"RIFF....WAVE")
    os.symlink("/etc/hostname", export / "plots" / "link.png")
    left = {one.name: one.why for one in make_plan(export).left_out}
    assert left == {
        "plots/wave.png": "audio under another name", "plots/link.png": "a link, or no plain file",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "README.md").unlink(), "has no README.md"),
        (lambda f: (f / "README.md").write_text("# no header"), "is no model card"),
        (lambda f: (f / "student.fp32.onnx").write_bytes(b"other"), "its hash differs"),
        (lambda f: (f / "student.fp32.onnx").unlink(), "is missing"),
        (lambda f: (f / "export_report.json").unlink(), "it is no export and no run"),
    ],
)
def test_an_export_that_is_not_whole(
    export: Path, change: Callable[[Path], object], words: str
) -> None:
    change(export)
    with pytest.raises(PushError, match=words) as caught:
        make_plan(export)
    assert caught.value.fix


def test_a_report_that_names_a_file_elsewhere(export: Path) -> None:
    report = json.loads((export / "export_report.json").read_text())
    report["artifacts"][0]["path"] = "../secret.onnx"
    (export / "export_report.json").write_text(json.dumps(report))
    with pytest.raises(PushError, match="outside the folder"):
        make_plan(export)


def test_a_run_that_is_not_finished(run_folder: Path) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_text())
    (run_folder / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    with pytest.raises(PushError, match="is not finished, but interrupted"):
        make_plan(run_folder)


def test_failed_gates_and_a_missing_licence_are_warned_of(export: Path) -> None:
    report = json.loads((export / "export_report.json").read_text())
    report["gates"][0]["passed"] = False
    (export / "export_report.json").write_text(json.dumps(report))
    (export / "README.md").write_text(CARD.replace("license: mit\n", ""))
    gate, licence = make_plan(export).warnings
    assert "torch = ONNX fp32" in gate
    assert "no licence" in licence
