from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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


def create(folder: Path, config: Any = None, **kwargs: Any) -> RunFolder:
    return RunFolder.create(folder, command="distill", config=config or Config(), **kwargs)


def refusal(folder: Path, **kwargs: Any) -> RunError:
    with pytest.raises(RunError) as caught:
        create(folder, **kwargs)
    assert caught.value.fix
    return caught.value


def content(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_run_says_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for kwargs in ({}, {"overwrite": True}, {"resume": True}):
        assert "is not empty and holds no run" in refusal(tmp_path, **kwargs).message
    assert content(tmp_path) == {"thesis.tex"}


def test_a_finished_run_is_not_written_over_by_accident(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.path("plots/a.png").write_text("x")
    assert "already holds a finished run of distill" in refusal(tmp_path).message
    (tmp_path / ".0123abcd.tmp.manifest.json").write_text("left by a killed writer")
    with create(tmp_path, overwrite=True) as run:
        assert not run.resumed
        assert content(tmp_path) == {".lock", "config.yaml", "manifest.json"}


def test_two_runs_cannot_share_a_folder_and_a_failed_one_lets_go(tmp_path: Path) -> None:
    first = create(tmp_path)
    error = refusal(tmp_path, resume=True)
    assert "is in use by another run" in error.message
    with pytest.raises(ValueError, match="boom"), first:
        raise ValueError("boom")
    assert read_manifest(tmp_path)["status"] == "failed"
    assert read_manifest(tmp_path)["error"] == "ValueError"
    with create(tmp_path, resume=True):
        pass


def test_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from frami_edge.runs import RunFolder\n"
        "run = RunFolder.create(sys.argv[1], command='distill', config={'a': 1})\n"
        "run.log(step=1, loss=0.5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode < 0
    assert read_manifest(tmp_path)["status"] == "running"
    assert "holds an unfinished run" in refusal(tmp_path).message
    with RunFolder.create(tmp_path, command="distill", config={"a": 1}, resume=True) as run:
        assert run.resumed
        assert run.metrics() == [{"step": 1, "loss": 0.5}]
    assert read_manifest(tmp_path)["resumes"] == 1


def test_resuming_keeps_facts_and_wants_the_same_config(tmp_path: Path) -> None:
    assert "holds no run to resume" in refusal(tmp_path / "a", resume=True).message
    assert not (tmp_path / "a").exists()
    with create(tmp_path / "a") as run:
        run.record(bank={"clips": 5})
        run.record(seconds={"invert": 2.0})
    changed = Config(inner=Inner(steps=200), seed=1)
    message = refusal(tmp_path / "a", config=changed, resume=True).message
    assert "seed: 0 -> 1, inner.steps: 100 -> 200" in message
    with pytest.raises(RunError, match="holds a run of distill, not of invert"):
        RunFolder.create(tmp_path / "a", command="invert", config=Config(), resume=True)
    with create(tmp_path / "a", resume=True) as run:
        assert run.manifest["bank"] == {"clips": 5}
        with run.timed("invert"):
            pass
        assert run.manifest["seconds"]["invert"] >= 2.0


def test_metrics_are_on_disk_at_once_and_survive_a_torn_line(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.log(step=1, loss=float("inf"))
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with create(tmp_path, resume=True) as run:
        run.log(step=2)
        assert run.metrics() == [{"step": 1, "loss": None}, {"step": 2}]
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{\n{"step": 3}\n')
        with pytest.raises(RunError, match="line 2"):
            run.metrics()


def test_rewinding_drops_rows_past_the_step_of_one_phase(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("text", ["{", '{"schema": 99}'])
def test_a_damaged_manifest_is_a_known_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(RunError, match="holds no run"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match="damaged"):
        read_manifest(tmp_path)
    assert "damaged" in refusal(tmp_path, resume=True).message


def test_the_commit_is_recorded_for_a_checkout_only(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    assert git_commit(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("1")
    for args in (["init", "-q"], ["add", "file"], ["commit", "-qm", "x", "--no-verify"]):
        subprocess.run([*git, *args], check=True)
    found = git_commit(package)
    assert found is not None
    assert len(str(found["commit"])) == 40
    assert found["modified"] is False
    (tmp_path / "file").write_text("2")
    changed = git_commit(package)
    assert changed is not None
    assert changed["modified"] is True


def test_a_state_is_whole_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert load_state(path) is None
    save_state(path, {"done": 3})
    data = path.read_bytes()
    assert load_state(path) == {"done": 3}
    for number in range(0, len(data), 97):
        path.write_bytes(data[:number] + bytes([data[number] ^ 1]) + data[number + 1 :])
        assert load_state(path) is None
