"""`frami-edge push` against a hub that only records."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from push_kit import (
    Hub,
    make_export,
    make_run,
    push,
)

from frami_edge.hub import PushError, make_plan
from frami_edge.hub.upload import check_repo_id


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return make_export(tmp_path / "export")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_a_dry_run_needs_no_hub(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (export / "clip.wav").write_bytes(b"RIFF")
    (export / "student.int8.engine").write_bytes(b"ftrt")
    done = push(export, "me/model", "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [file["name"] for file in told["files"]] == [
        "README.md", "calib.json", "export_report.json", "student.fp32.onnx", "plots/export.png",
    ]  # fmt: skip
    assert told["bytes"] == sum(file["bytes"] for file in told["files"]) > 0
    assert told["left_out"] == [
        {"name": "clip.wav", "why": "audio is never sent"},
        {"name": "student.int8.engine", "why": "an engine belongs to one machine, and is code"},
    ]
    assert (told["sent"], told["private"], told["url"]) == (False, True, None)


def test_the_lists_are_shown(export: Path) -> None:
    (export / "notes.txt").write_text("mine")
    done = push(export, "me/model", "--dry-run")
    assert "Would be sent to me/model: export" in done.stdout
    assert "not part of the model" in done.stdout
    assert "next: frami-edge push" in done.stderr


def test_an_export_is_sent_in_one_private_commit(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    hub.install(monkeypatch)
    done = push(export, "me/model", "--json", "-m", "First")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["sent"], told["private"], told["created"]) == (True, True, True)
    assert [name for name, _ in hub.calls] == ["repo_info", "create_repo", "create_commit"]
    assert hub.calls[1][1]["private"] is True
    assert hub.calls[2][1]["commit_message"] == "First"
    assert hub.sent()["student.fp32.onnx"] == str(export / "student.fp32.onnx")


def test_a_run_goes_with_its_export_and_a_clean_manifest(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(private=True)
    hub.install(monkeypatch)
    done = push(run_folder, "me/student")
    assert done.exit_code == 0, done.output
    sent = hub.sent()
    assert {"student.safetensors", "config.yaml", "export/student.fp32.onnx"} <= set(sent)
    assert not [name for name in sent if name.startswith("bank/") or name.endswith(".pt")]
    manifest = sent["manifest.json"]
    assert b"/home" not in manifest
    assert json.loads(manifest)["inputs"]["teacher"]["path"] == "teacher.safetensors"
    assert json.loads(manifest)["command_line"][-1] == "run"
    assert "/home/me" in (run_folder / "manifest.json").read_text()  # the file itself is left alone
    assert "create_repo" not in [name for name, _ in hub.calls]


def test_the_bank_only_when_asked_for(run_folder: Path) -> None:
    left = {one.name: one.why for one in make_plan(run_folder).left_out}
    assert left["bank/bank.json"] == "the bank; --with-bank sends it"
    names = {item.name for item in make_plan(run_folder, with_bank=True).items}
    assert {"bank/bank.json", "bank/shard-00000-inversion.safetensors"} <= names


def test_public_must_be_said(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(private=False)
    hub.install(monkeypatch)
    done = push(export, "me/model")
    assert done.exit_code == 1
    assert "is public already" in done.stderr
    assert [name for name, _ in hub.calls] == ["repo_info"]
    assert push(export, "me/model", "--public").exit_code == 0
    hub = Hub()
    hub.install(monkeypatch)
    assert push(export, "me/new", "--public").exit_code == 0
    assert hub.calls[1][1]["private"] is False


def test_without_the_extra_or_a_token(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = push(export, "me/model")
    assert done.exit_code == 1
    assert "fix: pip install 'frami-edge[hub]'" in done.stderr
    Hub(token=None).install(monkeypatch)
    done = push(export, "me/model")
    assert done.exit_code == 1
    assert "hf auth login" in done.stderr


@pytest.mark.parametrize(
    ("status", "fix"), [(403, "may not write to me/model"), (None, "Check the connection")]
)
def test_a_hub_that_refuses(
    export: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, fix: str
) -> None:
    hub = Hub()
    hub.fails = OSError("Forbidden: no\nmore")
    hub.fails.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    hub.install(monkeypatch)
    done = push(export, "me/model")
    assert done.exit_code == 1
    assert "did not take me/model: Forbidden: no." in done.stderr
    assert fix in done.stderr


@pytest.mark.parametrize("name", ["", "a/b/c", "me/", "me/../x", "me/a--b", "-x", "me/x.", "me x"])
def test_names_that_the_hub_refuses(name: str, export: Path) -> None:
    with pytest.raises(PushError):
        check_repo_id(name)


def test_names_that_the_hub_takes() -> None:
    for name in ("model", "me/model", "Me_1/my.model-2"):
        assert check_repo_id(name) == name


def test_no_folder(tmp_path: Path) -> None:
    done = push(tmp_path / "gone", "me/x", "--dry-run")
    assert done.exit_code == 1
    assert "is no folder" in done.stderr


def test_the_calls_fit_the_real_library(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that was recorded binds to the signature of the real method."""
    real: Any = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    signatures = {
        name: inspect.signature(getattr(real.HfApi, name))
        for name in ("repo_info", "create_repo", "create_commit")
    }
    inspect.signature(real.HfApi).bind(library_name="x", library_version="1")
    operation = real.CommitOperationAdd(path_in_repo="a/b.json", path_or_fileobj=b"{}")
    assert operation.path_in_repo == "a/b.json"
    assert inspect.signature(real.get_token).parameters == {}
    import huggingface_hub.errors as errors

    assert issubclass(errors.RepositoryNotFoundError, Exception)
    for name in ("model", "me/model", "Me_1/my.model-2"):
        real.utils.validate_repo_id(name)
    hub = Hub()
    hub.install(monkeypatch)
    assert push(run_folder, "me/x").exit_code == 0
    for name, arguments in hub.calls:
        signatures[name].bind(hub, **arguments)
