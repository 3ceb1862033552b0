"""`invert`, `distill` and `evaluate`, from a teacher to a student with control rows."""

import errno
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kit import CPU, LABELS, tones

import frami_edge as fe
from frami_edge.checkpoint import load_checkpoint, save_checkpoint
from frami_edge.runs import read_manifest

SOURCES = {"inversion": 32, "procedural": 40, "translator": 32}


def same_student(a, b):
    return (a / "student.safetensors").read_bytes() == (b / "student.safetensors").read_bytes()


def same_run(a, b):
    names = ("metrics.jsonl", "bank/bank.json")
    return same_student(a, b) and all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


def steps(run):
    """Steps in metrics.jsonl by phase."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["phase"], []).append(row["step"])
    return found


def stop_at(phase, step):
    """A progress callback that ends the run as Ctrl-C does."""

    def callback(progress):
        if (progress.phase, progress.done) == (phase, step):
            raise KeyboardInterrupt

    return callback


# --- invert


def test_invert_makes_a_bank_and_writes_wavs(invert, tmp_path):
    wavs = tmp_path / "wavs"
    found = json.loads(invert("--listen", wavs, "--json").stdout)
    assert found["clips"] == SOURCES
    assert set(found["health"]) == set(SOURCES)
    assert found["health"]["procedural"]["hit_rate"] is None
    assert {"diversity", "mels-inversion", "curves-inversion"} <= set(found["plots"])
    assert all(Path(picture).is_file() for picture in found["plots"].values())
    assert sorted(found["wavs"]) == sorted(str(p) for p in wavs.iterdir())
    assert fe.Bank.open(Path(found["bank"])).index.labels == LABELS
    assert read_manifest(found["run_dir"])["status"] == "finished"
    assert steps(tmp_path / "bank")["inversion"] == [1, 2, 3, 4, 5]


# --- distill


def test_the_student_records_its_origin(student, teacher):
    loaded = load_checkpoint(Path(student["student"]), "student")
    theirs = load_checkpoint(teacher, "teacher")
    card = loaded.card
    assert loaded.sha256 == student["sha256"]
    assert (card.teacher_sha256, card.labels) == (theirs.sha256, LABELS)
    assert card.teacher_trained_on == theirs.card.trained_on
    assert card.trained_on is None
    assert (card.licence, card.recipe["seed"]) == ("CC-BY-SA-4.0", 3)
    verdict = student["readiness"]
    assert set(verdict["agreement"]) == set(SOURCES)
    assert set(verdict["held_out"]) == set(SOURCES)
    assert not verdict["ready"]
    assert verdict["reasons"]
    assert verdict == card.metrics["readiness"]
    assert verdict["reasons"][0] in (Path(student["run_dir"]) / "README.md").read_text()
    assert student["synthetic_agreement"] == verdict["agreement"]["procedural"]
    assert student["parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert student["macs_per_second"] > 0
    assert set(student["seconds"]) >= {"invert", "distill"}
    run = Path(student["run_dir"])
    assert steps(run)["distill"] == [1, 2, 3, 4, 5, 6]
    assert not [p for p in run.rglob("*") if ".tmp." in p.name]
    assert "knowledge-distillation" in (run / "README.md").read_text()
    assert len(student["plots"]) == 7
    for picture in student["plots"].values():
        assert Path(picture).read_bytes().startswith(b"\x89PNG")


def test_a_student_of_the_classes_that_are_kept(call, config, tagger, teacher, tmp_path):
    (tmp_path / "keep.txt").write_text("pets=Dog,Cat\n")
    chosen = ("--keep", "smoke alarm", "--keep-file", tmp_path / "keep.txt")
    use = ("distill", config, "--allow-weak", "--out", tmp_path / "some", *CPU)
    call(*use, "--teacher", *tagger, *chosen)
    card = load_checkpoint(tmp_path / "some" / "student.safetensors", "student").card
    assert card.labels == ("Smoke alarm", "pets")
    assert card.output == "sigmoid"
    mistyped = call(
        *use[:-5], tmp_path / "other", *CPU, "--teacher", *tagger, "--keep", "Sirn", code=1
    )
    assert "Siren" in mistyped.stderr
    # A selection travels in the command that is printed, which runs as it stands.
    use = ("invert", config, "--teacher", teacher, "--out", tmp_path / "bank", "--keep", "high")
    (line,) = [x for x in call(*use, *CPU).stderr.splitlines() if x.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: frami-edge "))
    call(*words[:-1], tmp_path / "student", *CPU, code=3)  # six steps make no student
    card = load_checkpoint(tmp_path / "student" / "student.safetensors", "student").card
    assert card.labels == ("high", "other")


def test_bank_sources_and_seed_decide_the_student(distill, student, tmp_path, sounds, monkeypatch):
    first = Path(student["run_dir"])
    result = distill(tmp_path / "same", "--bank", first / "bank")
    assert "next: frami-edge export" in result.stderr, "folder:tones is not here"
    monkeypatch.chdir(sounds.parent)
    result = distill(tmp_path / "here", "--bank", first / "bank")
    assert "warning: Not ready. " in result.stderr
    assert same_student(tmp_path / "same", first)
    assert not (tmp_path / "same" / "bank").exists()
    assert "next: frami-edge evaluate" in result.stderr
    assert "--data folder:tones" in result.stderr
    for name, more in {
        "mixed": ("--sources", "inversion=2,procedural=1"),
        "seed": ("--seed", "4"),
    }.items():
        distill(tmp_path / name, "--bank", first / "bank", "-q", *more)
        assert not same_student(tmp_path / name, first), name


@pytest.mark.parametrize(("phase", "step"), [("translator", 4), ("distill", 3)])
def test_an_interrupted_run_is_resumed_to_the_same_student(
    distill, student, teacher, config, tmp_path, phase, step
):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fe.distill(
            teacher, config=config, out=run, device="cpu", precision="fp32",
            progress=stop_at(phase, step),
        )  # fmt: skip
    assert read_manifest(run)["status"] == "interrupted"
    assert not (run / "student.safetensors").exists()
    assert "unfinished run" in distill(run, code=1).stderr
    (run / "bank" / ".0123abcd.tmp.shard").write_text("left by a killed process")
    torch.manual_seed(99)  # the global stream must not matter
    for _ in range(2):  # a finished run is only written again
        distill(run, "--resume", "-q")
        assert same_run(run, Path(student["run_dir"]))
    left = [*run.rglob("*.tmp.*"), *(run / "bank").rglob("*state*")]
    assert left == [], "what killed processes and finished sources leave"


def test_a_full_disk_and_a_damaged_checkpoint(distill, student, tmp_path, monkeypatch):
    run, real, states = tmp_path / "run", Path.write_bytes, list[Path]()

    def full(path, data):
        if path.name.endswith("distill-state.pt"):
            states.append(path)
            if len(states) == 2:
                real(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert "distill-state.pt: no space is left" in distill(run, code=1).stderr
    assert not [p for p in run.rglob("*") if ".tmp." in p.name]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    state = run / "distill-state.pt"
    state.write_bytes(state.read_bytes()[:-50])
    error = distill(run, "--resume").stderr
    assert "is damaged: the distillation is done again" in error
    assert same_run(run, Path(student["run_dir"]))
    (run / "manifest.json").write_text('{"schema": 1, "com')
    assert "damaged" in distill(run, "--resume", code=1).stderr


@pytest.mark.slow
def test_signals_and_a_second_process(distill, config, student, teacher, tmp_path):
    run, long = tmp_path / "run", ("--set", "distill.steps=100000")
    bank = ("--bank", Path(student["run_dir"]) / "bank")
    words = ["distill", config, "--teacher", teacher, "--out", run, *CPU, *long, *bank]
    command = [sys.executable, "-m", "frami_edge", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + 240
            while not (run / "distill-state.pt").exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end
                time.sleep(0.05)
            assert f"{run} is in use by another run" in distill(run, *long, *bank, code=1).stderr
            process.send_signal(signal.SIGTERM)
            message = process.communicate(timeout=240)[1]
        finally:
            process.kill()
    assert process.returncode == 143
    assert read_manifest(run)["status"] == "interrupted"
    assert f"--out {run}" in message.split("continue with: frami-edge distill")[1]


def test_only_the_same_run_is_resumed(
    new_teacher, distill, call, config, student, teacher, tmp_path
):
    bank, run = Path(student["run_dir"]) / "bank", tmp_path / "run"
    assert "no run to resume" in distill(run, "--resume", code=1).stderr
    distill(run, "--bank", bank, "-q")
    assert "already holds a finished run" in distill(run, "--bank", bank, code=1).stderr
    other = ("--bank", bank, "--resume", "--seed", 4)
    assert "another config: seed: 3 -> 4" in distill(run, *other, code=1).stderr
    assert "another bank" in distill(run, "--resume", code=1).stderr
    second = new_teacher(tmp_path / "second.safetensors", seed=1)
    again = ("--out", run, "--resume", *CPU)
    assert "another teacher" in call("distill", config, "--teacher", second, *again, code=1).stderr
    assert "not of invert" in call("invert", config, "--teacher", teacher, *again, code=1).stderr


# --- Refusals: one sentence, a fix, and nothing half-written


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sources", "dreams"), "unknown source dreams"),
        (("--sources", "inversion=0"), "one must be positive"),
        (("--sources", "inversion=nan"), "is not NAME or NAME=WEIGHT"),
        (("--sources", "a: 1}, b: {c"), "is not NAME or NAME=WEIGHT"),
        (("--set", "bank.inversion.burnin=1"), "did you mean 'burn_in'?"),
        (("--set", "distill.crop_max_s=0.25"), "crop_max_s"),
        (("--device", "tpu"), "fix: Use"),
        (("--device", "cuda:99"), "fix: Use"),
    ],
)
def test_options_that_do_not_fit(invert, tmp_path, options, words):
    error = invert(*options, code=1).stderr
    assert words in error
    assert "fix: " in error
    assert not (tmp_path / "bank").exists()


def test_a_value_out_of_range_is_wrong_usage(invert):
    assert "--sample-rate" in invert("--sample-rate", 7, code=2).stderr


def test_files_that_are_not_what_they_should_be(invert, student, teacher, tmp_path):
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(teacher.read_bytes()[:999])
    file = tmp_path / "file"
    file.write_text("mine")
    for changes, words in (
        ({"--teacher": tmp_path / "nowhere.safetensors"}, "no checkpoint"),
        ({"--teacher": torn}, "not a whole safetensors file"),
        ({"--teacher": student["student"]}, "student"),
        ({"config": "esc10-studnet"}, "did you mean 'esc10-student'"),
        ({"--out": tmp_path}, "holds no run"),
        ({"--recordings": tmp_path / "nowhere"}, "which does not exist"),
    ):
        error = invert(code=1, **changes).stderr
        assert words in error
        assert "fix: " in error
    assert not (tmp_path / "bank").exists()
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        "export nothing.safetensors --out PLACE",
        "export nothing.safetensors --out new --web PLACE",
        "evaluate nothing.safetensors --data folder:nothing --out PLACE",
        "evaluate nothing.safetensors --stream nothing.wav --out PLACE",
        "tune nothing.onnx --audio nothing.wav --out PLACE/tuned.onnx",
        "train-teacher fsdd-teacher --data-root nothing --out PLACE",
        "invert --teacher digits-teacher --out PLACE",
        "invert --teacher digits-teacher --out new --listen PLACE",
        "distill --teacher digits-teacher --out PLACE --budget 5min",
        "quickstart --out PLACE",
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    command, call, tmp_path, monkeypatch
):
    """The inputs that are missing, too, have not been looked at."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below", "/proc/below"):
        error = call(*command.replace("PLACE", place).split(), code=1).stderr
        assert f"{place}" in error
        assert "cannot be written" in error
        assert "fix: Give another place." in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_bank_that_does_not_fit(new_teacher, distill, call, config, student, tmp_path):
    other = new_teacher(tmp_path / "other.safetensors", seed=1)
    bank, out = Path(student["run_dir"]) / "bank", tmp_path / "run"
    again = ("distill", config, "--teacher", other, "--bank", bank, "--out", out, *CPU)
    assert "made with another teacher" in call(*again, code=1).stderr
    shorter = ("--set", "bank.clip_s=0.26", "--set", "distill.crop_max_s=0.26")
    for more, words in (
        (("--bank", bank, "--sources", "smooth_noise"), "no clips of smooth_noise"),
        (("--bank", bank, *shorter), "are 0.24 s long"),
        (("--bank", tmp_path / "nowhere"), "no bank"),
    ):
        error = distill(out, *more, code=1).stderr
        assert words in error
        assert "fix: " in error
    assert not out.exists()


def test_what_diverges_or_is_empty_is_never_written(distill, invert, student, tmp_path):
    bank, run = Path(student["run_dir"]) / "bank", tmp_path / "run"
    error = distill(run, "--bank", bank, "--set", "distill.learning_rate=1e30", code=1).stderr
    assert "distillation diverged" in error
    assert not (run / "student.safetensors").exists()
    empty = {"--out": tmp_path / "empty"}
    assert "burn" in invert("--set", "bank.inversion.burn_in=5", code=1, **empty).stderr
    assert "diverged" in invert("--set", "bank.inversion.learning_rate=1e30", code=1).stderr
    assert not list((tmp_path / "bank").rglob("*.safetensors"))


# --- evaluate


@pytest.fixture
def evaluate(call, student, teacher, sounds):
    def run(controls, *more, model=student["student"], code=0):
        return call(
            "evaluate", model, "--data", f"folder:{sounds}", "--teacher", teacher,
            "--controls", controls, *CPU, *more, code=code,
        )  # fmt: skip

    return run


def test_every_control_is_a_row_of_the_same_recipe(evaluate, student, tmp_path):
    bank, out = Path(student["run_dir"]) / "bank", tmp_path / "out"
    other = tones(tmp_path / "other", train=3, test=1, seed=7)
    names = f"white_noise,procedural,inversion,translator,real,scratch,unrelated=folder:{other}"
    found = json.loads(evaluate(names, "--bank", bank, "--out", out, "--json").stdout)
    rows = found["controls"]
    assert list(rows) == [
        "white_noise", "smooth_noise", "procedural", "inversion", "translator", "real",
        "unrelated", "scratch",
    ]  # fmt: skip
    for name, row in rows.items():
        assert 0 <= row["accuracy"] <= 1, name
        assert 0 <= row["agreement"] <= 1, name
        assert 0 < row["kl_nats"] < math.inf, name
        assert (row["seed"], row["steps"]) == (3, 6), name  # scratch: 3 epochs of 2 steps
    assert len({found["kl_nats"], *(row["kl_nats"] for row in rows.values())}) == 9
    assert (rows["real"]["real_clips"], rows["unrelated"]["real_clips"]) == (12, 8)
    assert all((out / found["plots"][name]).is_file() for name in ("confusion", "controls"))
    manifest = read_manifest(out)
    assert (manifest["status"], manifest["controls"]) == ("finished", rows)
    again = json.loads(evaluate(names, "--bank", bank, "--out", out, "--resume", "--json").stdout)
    assert again["controls"] == rows


def test_what_a_control_needs_is_checked_before_any_work(
    evaluate, call, student, teacher, sounds, tmp_path
):
    out, bank = tmp_path / "out", Path(student["run_dir"]) / "bank"
    for controls, words in (
        ("inversion", "needs a bank"),
        ("unrelated=folder:nowhere", "no folder"),
        ("unrelated=esc40", "data root"),
        (f"unrelated=folder:{sounds}", "20 of its clips are among"),
    ):
        assert words in evaluate(controls, "--out", out, code=1).stderr
    assert "no clips of cmi" in evaluate("cmi", "--bank", bank, "--out", out, code=1).stderr
    assert (
        "a teacher, does not record" in evaluate("real", "--out", out, model=teacher, code=1).stderr
    )
    loaded, bare = load_checkpoint(Path(student["student"])), tmp_path / "bare.safetensors"
    save_checkpoint(bare, loaded.model, loaded.card.model_copy(update={"recipe": {"steps": 3}}))
    assert "how it was distilled" in evaluate("real", "--out", out, model=bare, code=1).stderr
    assert not out.exists()
    alone = ("evaluate", student["student"], "--data", f"folder:{sounds}")
    assert "--teacher" in call(*alone, "--controls", "real", code=1).stderr
    assert "controls only" in call(*alone, "--bank", bank, code=1).stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("mine")
    assert "holds no run" in evaluate("white_noise", "--out", tmp_path / "mine", code=1).stderr
