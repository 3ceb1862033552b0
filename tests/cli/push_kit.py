"""Folders to push, and a hub that records what it is asked."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from frami_edge.cli import app

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
