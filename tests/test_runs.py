import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frami_edge.config import Strict
from frami_edge.errors import RunError
from frami_edge.runs import PACKAGES, RunFolder, git_commit, load_state, read_manifest, save_state


class Inner(Strict):
    steps: int = 100
    rate: float = 1e-3


class Config(Strict):
    seed: int = 0
    inner: Inner = Inner()
    source: Path = Path("a/b")


def create(folder, config=None, **kwargs):
    return RunFolder.create(folder, command="distill", config=config or Config(), **kwargs)


def refusal(folder, **kwargs):
    with pytest.raises(RunError) as caught:
        create(folder, **kwargs)
    assert caught.value.fix
    return caught.value


def content(folder):
    return {entry.name for entry in folder.iterdir()}


def test_a_run_says_what_it_was_made_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [sys.executable, "distill", "--out", "runs/a"])
    with create(Path("runs/a"), hashes={"teacher": "ba78"}, seeds={"seed": 3}) as run:
        assert read_manifest("runs/a")["status"] == "running"
        run.record(student={"parameters": 5}, accuracy=float("nan"))
        run.record(student={"macs": 7})
        with run.timed("distill"):
            time.sleep(0.01)
    manifest = read_manifest("runs/a")
    assert manifest["status"] == "finished"
    assert manifest["command_line"] == ["frami-edge", "distill", "--out", "runs/a"]
    assert manifest["student"] == {"parameters": 5, "macs": 7}
    assert manifest["accuracy"] is None
    assert manifest["seeds"] == {"seed": 3}
    assert manifest["inputs"] == {"teacher": {"sha256": "ba78"}}
    assert set(manifest["versions"]) == {"python", *PACKAGES}
    assert 0.01 <= manifest["seconds"]["distill"] <= manifest["seconds"]["total"] + 0.002
    assert manifest["started"] <= manifest["finished"]
    assert Path("runs/a/config.yaml").read_text() == (
        "seed: 0\ninner:\n  steps: 100\n  rate: 0.001\nsource: a/b\n"
    )
    text = Path("runs/a/manifest.json").read_text()
    for secret in (str(tmp_path), str(Path.home()) + "/", sys.prefix, os.uname().nodename):
        assert secret not in text


def test_a_finished_run_is_not_written_over_by_accident(tmp_path):
    with create(tmp_path) as run:
        run.path("plots/a.png").write_text("x")
    assert "already holds a finished run of distill" in refusal(tmp_path).message
    (tmp_path / ".0123abcd.tmp.manifest.json").write_text("left by a killed writer")
    with create(tmp_path, overwrite=True) as run:
        assert not run.resumed
        assert content(tmp_path) == {".lock", "config.yaml", "manifest.json"}


def test_resuming_keeps_facts_and_wants_the_same_config(tmp_path):
    with create(tmp_path / "a") as run:
        run.record(bank={"clips": 5})
        run.record(seconds={"invert": 2.0})
    changed = Config(inner=Inner(steps=200), seed=1)
    message = refusal(tmp_path / "a", config=changed, resume=True).message
    assert "seed: 0 -> 1, inner.steps: 100 -> 200" in message
    with create(tmp_path / "a", resume=True) as run:
        assert run.manifest["bank"] == {"clips": 5}
        with run.timed("invert"):
            pass
        assert run.manifest["seconds"]["invert"] >= 2.0


def test_rewinding_drops_rows_past_the_step_of_one_phase(tmp_path):
    with create(tmp_path) as run:
        run.rewind(0)
        for phase in ("invert", "distill"):
            for step in range(1, 5):
                run.log(step=step, phase=phase)
        run.rewind(2, phase="distill")
        steps = [(row["phase"], row["step"]) for row in run.metrics()]
        assert steps == [("invert", s) for s in (1, 2, 3, 4)] + [("distill", 1), ("distill", 2)]
        run.log(step=3, phase="distill")
        assert len(run.metrics()) == 7
        run.rewind(1)
        assert [row["step"] for row in run.metrics()] == [1, 1]


def test_the_commit_is_recorded_for_a_checkout_only(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    assert git_commit(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("1")
    for args in (["init", "-q"], ["add", "file"], ["commit", "-qm", "x", "--no-verify"]):
        subprocess.run([*git, *args], check=True)
    found = git_commit(package)
    assert len(str(found["commit"])) == 40
    assert found["modified"] is False
    (tmp_path / "file").write_text("2")
    changed = git_commit(package)
    assert changed["modified"] is True


def test_a_state_is_whole_or_none(tmp_path):
    path = tmp_path / "a.pt"
    assert load_state(path) is None
    save_state(path, {"done": 3})
    data = path.read_bytes()
    assert load_state(path) == {"done": 3}
    for number in range(0, len(data), 97):
        path.write_bytes(data[:number] + bytes([data[number] ^ 1]) + data[number + 1 :])
        assert load_state(path) is None
