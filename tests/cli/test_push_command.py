from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from frami_edge.cli import app
from frami_edge.hub import PushError, make_plan
from frami_edge.hub.private_paths import find_path, shortened
from frami_edge.hub.upload import check_repo_id

CARD = "---\nlicense: mit\nlibrary_name: frami-edge\n---\n\n# A model\n"
MODEL = b"\x08\x08not really a graph"
WEIGHTS = (2).to_bytes(8, "little") + b"{}" + bytes(64)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_export(folder: Path) -> Path:
    (folder / "plots").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "calib.json").write_text("{}")
    (folder / "plots" / "export.png").write_bytes(b"\x89PNG....")
    (folder / "student.fp32.onnx").write_bytes(MODEL)
    report = {
        "schema": 1, "name": "student", "recommended": "student.fp32.onnx",
        "artifacts": [{"name": "fp32", "path": "student.fp32.onnx", "bytes": len(MODEL),
                       "sha256": sha(MODEL)}],
        "gates": [{"name": "torch = ONNX fp32", "passed": True}],
    }  # fmt: skip
    (folder / "export_report.json").write_text(json.dumps(report))
    return folder


def make_run(folder: Path) -> Path:
    (folder / "bank").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "student.safetensors").write_bytes(WEIGHTS)
    (folder / "distill-state.pt").write_bytes(b"state")
    (folder / "bank" / "bank.json").write_text("{}")
    (folder / "bank" / "shard-00000-inversion.safetensors").write_bytes(WEIGHTS)
    manifest = {
        "schema": 1, "status": "finished", "student": {"sha256": sha(WEIGHTS)},
        "command_line": ["frami-edge", "distill", "x", "--out", "/home/me/project/run"],
        "inputs": {"teacher": {"path": "/home/me/secret/teacher.safetensors", "sha256": "0"}},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    make_export(folder / "export")
    return folder


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return make_export(tmp_path / "export")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def push(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["push", *map(str, arguments)])


class RepositoryNotFoundError(OSError):
    """As the hub's library raises it."""


class Hub:
    """Records what is asked of it; its methods take what the real ones take."""

    def __init__(self, *, token: str | None = "t", private: bool | None = None) -> None:
        self.token, self.private = token, private
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails: Exception | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module: Any = ModuleType("huggingface_hub")
        errors: Any = ModuleType("huggingface_hub.errors")
        errors.RepositoryNotFoundError = RepositoryNotFoundError
        module.errors = errors
        module.get_token = lambda: self.token
        module.HfApi = self._api
        module.CommitOperationAdd = lambda path_in_repo, path_or_fileobj: SimpleNamespace(
            name=path_in_repo, content=path_or_fileobj
        )
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)

    def _api(self, **settings: str) -> Hub:
        assert set(settings) == {"library_name", "library_version"}
        return self

    def repo_info(self, repo_id: str, **others: Any) -> Any:
        self.calls.append(("repo_info", {"repo_id": repo_id, **others}))
        if self.private is None:
            raise RepositoryNotFoundError("404")
        return SimpleNamespace(private=self.private)

    def create_repo(self, repo_id: str, **others: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **others}))

    def create_commit(self, repo_id: str, **others: Any) -> Any:
        if self.fails:
            raise self.fails
        self.calls.append(("create_commit", {"repo_id": repo_id, **others}))
        return SimpleNamespace(repo_url=f"https://hub/{repo_id}")

    def sent(self) -> dict[str, Any]:
        (last,) = [kwargs for name, kwargs in self.calls if name == "create_commit"]
        return {operation.name: operation.content for operation in last["operations"]}


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
