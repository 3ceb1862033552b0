"""A tiny protocol from end to end, the arithmetic of its tables, and the tables in RESULTS.md."""

import json
from itertools import product
from pathlib import Path

import compare
import numpy as np
import pytest
import regimes
import safetensors.torch
import soundfile
import tables
import teacher_zoo as zoo
import torch
from protocol import Plan, Protocol, load_protocol

from frami_edge import api
from frami_edge.errors import ConfigError

ROOT = Path(__file__).parents[2]
TEACHER = """
data: {name: tones, fold: "1"}
mel: {sample_rate: 8000, n_fft: 256, win_length: 200, hop_length: 80, n_mels: 16}
arch: {channels: [8, 12], blocks: 1}
train: {epochs: 2, batch_size: 4, crop_s: 0.24}
"""
STUDENT = """
student: {channels: [8, 8, 8], time_kernels: [3, 3, 3], out_channels: 12}
bank:
  clip_s: 0.24
  procedural_clips: 24
  control_clips: 24
  inversion: {steps: 4, burn_in: 1, batch_size: 8, latent: 8, width: 8, contrastive_memory: 20}
  translator: {steps: 4, burn_in: 1, batch_size: 8}
distill: {steps: 4, batch_size: 8, crop_min_s: 0.16, crop_max_s: 0.24}
"""
PROTOCOL = """
title: Two tones
data: folder:HERE/tones
teacher: HERE/t.yaml
student: HERE/s.yaml
folds: [1, 2]
seeds: [0, 1]
methods:
  mixed: {what: everything, folds: [1]}
  inversion: {bank_of: mixed, set: {bank.sources: {inversion: 1}}, folds: [1], seeds: [0]}
  few: {bank_of: mixed, mels: 6, folds: [1], seeds: [0]}
  noise: {control: smooth_noise, seeds: [0]}
  scratch: {control: scratch, folds: [1], seeds: [0]}
compare: [[mixed, inversion]]
"""


@pytest.fixture
def tones(tmp_path, monkeypatch):
    """The protocol beside its data set."""
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for fold, (label, hz), i in product((1, 2), (("high", 1500), ("low", 300)), range(3)):
        folder = tmp_path / "tones" / f"fold{fold}" / label
        folder.mkdir(parents=True, exist_ok=True)
        t = np.arange(4000 + 400 * i) / 8000
        x = 0.3 * np.sin(2 * np.pi * hz * t) + 0.01 * rng.standard_normal(len(t))
        soundfile.write(folder / f"{i}.wav", x, 8000)
    for name, text in (("t", TEACHER), ("s", STUDENT), ("p", PROTOCOL)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("HERE", str(tmp_path)))
    return tmp_path / "p.yaml"


@pytest.mark.slow
def test_a_protocol_from_end_to_end_and_again(tones, tmp_path, monkeypatch, capsys):
    out, page = tmp_path / "out", tmp_path / "PAGE.md"
    page.write_text("# Results\n\nBefore.\n")
    command = [str(tones), "--out", str(out), "--device", "cpu", "--precision", "fp32"]
    assert compare.main([*command, "--dry-run"]) == 0
    assert "0 of 7 students are there." in capsys.readouterr().out
    assert not (out / "results.jsonl").exists()

    assert compare.main([*command, "--write", str(page)]) == 0
    rows = compare.rows_by_run(out)
    assert len(rows) == 7
    assert rows["few", "1", 0]["mels"] == 6
    assert rows["inversion", "1", 0]["mels"] == 24 < rows["mixed", "1", 0]["mels"]
    assert 0 < rows["inversion", "1", 0]["bank_s"] < rows["mixed", "1", 0]["bank_s"]
    assert "mels" not in rows["noise", "1", 0]
    assert all(0 <= row["accuracy"] <= 1 <= row["clips"] for row in rows.values())
    assert len(list((out / "teachers").iterdir())) == 2
    assert len(list((out / "banks").iterdir())) == 1
    text = page.read_text()
    assert text.startswith("# Results\n\nBefore.\n")
    assert text.count("| everything |") == 1

    # A lost line and a cut one: those two students alone are made again, to the same scores.
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[1:-1]) + lines[-1][:40])
    made = []
    genuine = compare.Maker.student
    monkeypatch.setattr(
        compare.Maker, "student", lambda self, run: made.append(run.name) or genuine(self, run)
    )
    assert compare.main([*command, "--write", str(page)]) == 0
    assert len(made) == 2
    again = compare.rows_by_run(out)
    for key, row in rows.items():
        assert again[key]["kl_all"] == pytest.approx(row["kl_all"], rel=1e-3)
    assert page.read_text().count("| everything |") == 1

    # Rows travel alone, and a row of another recipe is not passed off as this one.
    (tmp_path / "tones").rename(tmp_path / "gone")
    assert compare.main([*command, "--tables"]) == 0
    (tmp_path / "gone").rename(tmp_path / "tones")
    capsys.readouterr()
    assert compare.main([*command, "--set", "set={distill.steps: 5}"]) == 1
    assert "by another recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_students_of_live_stored_and_hard_answers(tones, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        compare.main([str(tones), "--out", str(out), "--methods", "mixed", "--device", "cpu"]) == 0
    )
    capsys.readouterr()
    (teacher,) = out.glob("teachers/1-*/teacher.safetensors")
    (bank,) = out.glob("banks/*/bank")
    command = [str(teacher), "--bank", str(bank), "--student", str(tmp_path / "s.yaml"),
               "--data", f"folder:{tmp_path}/tones", "--fold", "1", "--out", str(out),
               "--sources", "procedural,mixed", "--steps"]  # fmt: skip
    assert regimes.main([*command, "1,12"]) == 0
    rows = [json.loads(line) for line in (out / "regimes.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    kl = {(row["source"], row["regime"], row["steps"]): row["kl"] for row in rows}
    assert all(kl[name, "live", 12] < kl[name, "live", 1] for name in ("procedural", "mixed"))
    assert len(set(kl.values())) == 12  # every regime and source teaches something else
    table = capsys.readouterr().out
    assert "| mixed | hard |" in table
    lines = (out / "regimes.jsonl").read_text().splitlines(keepends=True)
    (out / "regimes.jsonl").write_text("".join(lines[1:-1]) + lines[-1][:40])
    assert regimes.main([*command, "1,12", "--fold", "fold1"]) == 0  # those two rows alone
    again = capsys.readouterr()
    assert again.out == table
    assert again.err.count(" steps: ") == 2
    assert regimes.main([*command, "1", "--set", "distill.batch_size=4"]) == 1
    assert "rows of another recipe" in capsys.readouterr().err
    assert regimes.main([*command, "1", "--set", "bank.clip_s=0.3"]) == 1
    assert "are 0.24 s long" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        regimes.main([*command, "1,0"])
    capsys.readouterr()
    assert regimes.main([*command, "1", "--fold", "2"]) == 1
    assert "trained on" in capsys.readouterr().err
    assert regimes.main([*command, "1", "--sources", "inversoin"]) == 1
    assert "has no clips of inversoin" in capsys.readouterr().err


def test_a_teacher_that_exists_and_every_clip_for_scores(tones, tmp_path, capsys):
    torch.manual_seed(0)
    weights = zoo.lively(zoo.KeywordNet(), "BTM").state_dict()
    safetensors.torch.save_file(weights, tmp_path / "kws.safetensors")
    (tmp_path / "kws.yaml").write_text(
        "{factory: 'teacher_zoo:KeywordNet', weights: kws.safetensors, output: sigmoid,\n"
        "mel: {sample_rate: 8000, n_fft: 256, win_length: 200, hop_length: 80, n_mels: 16},\n"
        "labels: [go, stop, left, right, up], keep: {high: [go], low: [stop]}}"
    )
    text = tones.read_text().replace(f"teacher: {tmp_path}/t.", f"trained: {tmp_path}/kws.")
    text = text[: text.index("folds:")]
    tones.write_text(text + "folds: [all]\nmethods: {a: {set: {bank.sources: {procedural: 1}}}}\n")
    assert compare.main([str(tones), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    (row,) = compare.rows_by_run(tmp_path / "out").values()
    assert row["clips"] == row["clips_all"] == 12
    judged = api.evaluate(
        tmp_path / "kws.yaml", data=f"folder:{tmp_path}/tones", fold="all"
    ).score  # fmt: skip
    assert row["teacher_map"] == pytest.approx(judged.mean_average_precision)
    assert row["teacher_accuracy"] == judged.accuracy
    assert f"| {row['map']:.3f}, {row['teacher_map']:.3f} |" in capsys.readouterr().out
    (bank,) = (tmp_path / "out").glob("banks/*/bank")
    student = api.distill(  # the same distillation: its batches are balanced over the detectors
        tmp_path / "kws.yaml", bank, config=tmp_path / "s.yaml", seed=0, device="cpu",
        sources={"procedural": 1},
    )  # fmt: skip
    again = api.evaluate(student, data=f"folder:{tmp_path}/tones", fold="all",
                         teacher=tmp_path / "kws.yaml")  # fmt: skip
    assert row["kl"] == pytest.approx(again.score.kl, rel=1e-3)

    # The teacher is known by its content, and checked before any work.
    def change(old, new):
        text = (tmp_path / "kws.yaml").read_text()
        (tmp_path / "kws.yaml").write_text(text.replace(old, new))
        assert compare.main([str(tones), "--out", str(tmp_path / "out"), "--dry-run"]) == 1
        return capsys.readouterr().err

    assert "by another recipe" in change("[stop]", "[up]")
    assert "has the name of one of the model's labels" in change(
        "{high: [go], low: [up]}", "{a: [go]}"
    )


def test_controls_of_a_teacher_that_takes_audio(tones, tmp_path):
    torch.manual_seed(0)
    weights = zoo.M5().state_dict()
    safetensors.torch.save_file(weights, tmp_path / "m5.safetensors")
    (tmp_path / "m5.yaml").write_text(
        "{factory: 'teacher_zoo:M5', weights: m5.safetensors, output: softmax, sample_rate: 8000,\n"
        "labels: [low, high, left, right, up]}"
    )
    text = tones.read_text().replace(f"teacher: {tmp_path}/t.", f"trained: {tmp_path}/m5.")
    text = text[: text.index("folds:")] + "folds: [1]\nmethods:\n"
    text += "  noise: {control: smooth_noise}\n  real: {control: real}\n"
    tones.write_text(text + "  scratch: {control: scratch, set: {distill.steps: 150}}\n")
    assert compare.main([str(tones), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    rows = compare.rows_by_run(tmp_path / "out")
    assert rows["noise", "1", 0]["kl"] != rows["real", "1", 0]["kl"]
    # The teacher names the classes in another order than the set does: labels are learned by name.
    assert rows["scratch", "1", 0]["accuracy"] == 1.0


def test_what_fails_is_named_and_the_rest_is_made(tones, tmp_path, monkeypatch, capsys):
    def student(self, run):
        if run.seed:
            raise MemoryError("too large")
        return {"method": run.method, "fold": run.fold, "seed": run.seed}

    monkeypatch.setattr(compare.Maker, "student", student)
    assert compare.main([str(tones), "--out", str(tmp_path / "out"), "--quiet"]) == 1
    assert len(compare.rows_by_run(tmp_path / "out")) == 6


def row(method, fold, seed, accuracy, kl):
    return {
        "method": method, "fold": fold, "seed": seed, "accuracy": accuracy,
        "teacher_accuracy": 0.9, "agreement_all": accuracy, "kl_all": kl, "clips_all": 400,
        "steps": 800, "device": "cpu", "threads": 1, "git": None, "distill_cpu_s": 10.0,
        "peak_mib": 100.0, "teacher_sha256": f"t{fold}",
    }  # fmt: skip


def test_errors_are_over_folds_and_deviations_over_runs():
    rows = [row("a", "1", 0, 0.80, 0.1), row("a", "1", 1, 0.90, 0.1),
            row("a", "2", 0, 0.70, 0.2), row("a", "2", 1, 0.80, 0.2)]  # fmt: skip
    rows[1] |= {"resumed": True, "distill_cpu_s": 1.0}  # knows half of its time
    found = tables.method_figures(rows)
    assert found["accuracy"] == pytest.approx((0.8, 0.0816), abs=1e-4)
    # The means of the folds are 0.05 and 0.15 below the teacher.
    assert found["gap"] == pytest.approx((-0.10, 0.05))
    assert found["distill_s"] == 10.0
    protocol = Protocol.model_validate(
        {"title": "T", "data": "d", "teacher": "t", "student": "s", "folds": ["1", "2"],
         "seeds": [0, 1, 2], "methods": {"a": {}}}
    )  # fmt: skip
    text = tables.markdown(protocol, rows)
    assert (
        "| a | 2 x 2 (4 of 6) | 80.0 ± 8.2 % | -10.0 ± 5.0 | 80.0 ± 8.2 % | 0.150 ± 0.058 |" in text
    )


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ([(0.70, 0.3), (0.71, 0.31), (0.70, 0.3)], "closer in agreement and KL"),
        ([(0.70, 0.05), (0.71, 0.051), (0.70, 0.05)], "closer in agreement, farther in KL"),
        ([(0.76, 0.1), (0.79, 0.1), (0.73, 0.1)], "within the error"),  # 2.3 standard errors
        ([(0.70, 0.3), (0.71, 0.31)], "too few folds"),
    ],
)
def test_paired_differences_by_students_t(other, verdict):
    rows = [row("a", str(fold), 0, 0.8, 0.1) for fold in (1, 2, 3)]
    rows += [row("b", str(i + 1), 0, accuracy, kl) for i, (accuracy, kl) in enumerate(other)]
    rows += [row("a", "1", 1, 0.0, 9.0)]  # has no partner
    rows += [row("b", "1", 1, 0.0, 9.0) | {"teacher_sha256": "of another teacher"}]
    found = tables.pair_figures(rows, "a", "b")
    assert (found["folds"], found["pairs"], found["verdict"]) == (len(other), len(other), verdict)
    assert found["accuracy"][0] == pytest.approx(0.8 - sum(a for a, _ in other) / len(other))


def test_the_tables_in_the_results_are_those_of_the_stored_rows():
    for name, rows, page in (
        ("esc10-cpu", "esc10-cpu", "esc10"),
        ("esc10-parts", "esc10-cpu", "esc10"),
        ("esc50-cpu", "esc50-cpu", "esc50"),
    ):
        written = (ROOT / f"docs/results/{page}.md").read_text(encoding="utf-8")
        plan = Plan(load_protocol(ROOT / f"experiments/protocols/{name}.yaml"))
        text = (ROOT / f"docs/results/{rows}.jsonl").read_text(encoding="utf-8")
        stored = {
            (r["method"], r["fold"], r["seed"]): r for r in map(json.loads, text.splitlines())
        }
        text = tables.markdown(plan.protocol, [stored[run.key] for run in plan.runs])
        assert text.strip() in written


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/protocols").glob("*.yaml")), ids=str)
def test_the_shipped_protocols_are_valid(path):
    plan = Plan(load_protocol(path))
    assert {run.method for run in plan.runs} == set(plan.protocol.methods)
    assert len({run.key for run in plan.runs}) == len(plan.runs)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("{a: {control: unrelated}}", "go together"),
        ("{a: {control: real, mels: 3}}", "no bank"),
        ("{a: {bank_of: b}}", "makes no bank"),
        ("{a: {}}\ntrained: here", "either teacher or trained"),
        ("{a: {folds: [7]}}", "not in the protocol's folds"),
        ("{a: {set: {distill.stepz: 3}}}", "did you mean 'steps'"),
        ("{a: {}, b: {bank_of: a, set: {bank.inversion.contrastive: 0}}}", "is that of a's bank"),
        ("{a: {set: {bank.sources: {inversion: 1}}}, b: {bank_of: a}}", "lacks"),
        ("{a: {folds: []}}", "at least 1 item"),
    ],
)
def test_mistakes_are_found_before_any_work(tones, methods, message):
    text = tones.read_text()
    tones.write_text(text[: text.index("methods:")] + f"methods: {methods}\n")
    with pytest.raises(ConfigError, match=message):
        Plan(load_protocol(tones))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["folds=[1, 2, 1]"], "one is there twice"),
        (["trained=x", "teacher_set={train.epochs: 1}"], "not trained here"),
        (["trained=x", "folds=[all, 1]"], "holds the clips of the others"),
    ],
)
def test_mistakes_in_values_of_the_command_line(tones, values, message):
    values = ["teacher=null", *values] if values[0] == "trained=x" else values
    with pytest.raises(ConfigError, match=message):
        load_protocol(tones, ["methods={a: {}}", "compare=[]", *values])
