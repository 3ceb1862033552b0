"""ESC-10, fold by fold: teacher, data-free students, and the control rows, all with the same steps.

    python benchmarks/esc10_folds.py OUT [--data-root DIR] [--folds 1,2,3,4,5] [--seed 0]
    [--variants ...]

Every result is one line of OUT/results.jsonl; what is there already is not run again, so the
script can be interrupted and split over processes by --folds. Last step, whole clips, official
folds; no real clip takes part in anything but the teacher's training, the two rows that say so,
and the scores.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from frami_edge.cli._output import Output
from frami_edge.config import load_config
from frami_edge.controls import control_student, distilled_on
from frami_edge.data import Features, FeatureStore, data_root, load_set
from frami_edge.device import choose_device
from frami_edge.distillation.config import JourneyConfig
from frami_edge.evaluation import check_unheard, predict, score
from frami_edge.inversion.bank import Bank, BankFeed
from frami_edge.inversion.run import context_of, invert, ready
from frami_edge.models.checkpoint import Loaded, load_checkpoint
from frami_edge.runs import RunFolder

MIXED = "mixed"
VARIANTS = (MIXED, "inversion", "procedural", "smooth_noise", "unrelated", "real", "white_noise")


def teacher_of(fold: str, out: Path, root: Path) -> Loaded:
    folder = out / f"teacher-{fold}"
    if not (folder / "teacher.safetensors").exists():
        command = [sys.executable, "-m", "frami_edge", "train-teacher", "esc10-teacher", "--quiet"]
        command += ["--set", f"data.fold={fold}", "--data-root", str(root), "--out", str(folder)]
        subprocess.run(command + (["--resume"] if folder.exists() else []), check=True)
    return load_checkpoint(folder / "teacher.safetensors", "teacher")


def bank_of(fold: str, out: Path, teacher: Loaded, config: JourneyConfig) -> tuple[Bank, float]:
    choice = choose_device()
    folder = out / f"bank-{fold}-{config.seed}"
    output = Output(quiet=True)
    if not (folder / "manifest.json").exists() or not _finished(folder):
        context = context_of(teacher, config.bank, choice, config.seed)
        resume = folder.exists()
        with RunFolder.create(folder, command="invert", config=config, resume=resume) as run:
            invert(run, run.path("bank"), context, teacher.card.labels, teacher.sha256, output)
    seconds = json.loads((folder / "manifest.json").read_text())["seconds"]["invert"]
    return Bank.open(folder / "bank"), seconds


def _finished(folder: Path) -> bool:
    status: str = json.loads((folder / "manifest.json").read_text())["status"]
    return status == "finished"


def run_fold(fold: str, args: argparse.Namespace, root: Path) -> None:
    out: Path = args.out
    choice = choose_device()
    config = load_config(JourneyConfig, "esc10-student", [f"seed={args.seed}", *args.set])
    teacher = ready(teacher_of(fold, out, root), choice)
    data = load_set("esc10", root)
    check_unheard(teacher.card.heard, data, fold)
    store = FeatureStore(teacher.spec)
    train, test = data.split(fold)
    tests, everything = store.load(test), store.load(list(data.clips))
    theirs, theirs_all = predict(teacher.model, tests.mels), predict(teacher.model, everything.mels)
    base = {"fold": fold, "seed": args.seed, "steps": config.distill.steps}
    first = {
        "variant": "teacher",
        "accuracy": score(theirs, tests.labels).accuracy,
        "clips": len(test),
    }
    record(out, base | first)
    bank, bank_s = bank_of(fold, out, teacher, config)
    real: dict[str, Features | None] = {
        "real": store.load(train) if "real" in args.variants else None,
        "unrelated": store.load(list(load_set("esc40", root).clips))
        if "unrelated" in args.variants
        else None,
    }
    for name in args.variants:
        if any(same(row, base | {"variant": name}) for row in results(out)):
            continue
        begun = time.monotonic()
        if name == MIXED:
            feed = BankFeed(bank, config.bank.shares)
            student = distilled_on(feed, teacher, config, choice)
        else:
            student = control_student(name, teacher, config, choice, bank=bank, real=real.get(name))
        seconds = time.monotonic() - begun
        mine = score(predict(student, tests.mels), tests.labels, theirs)
        both = score(predict(student, everything.mels), everything.labels, theirs_all)
        row = {
            "variant": name,
            "accuracy": mine.accuracy,
            "agreement": mine.agreement,
            "agreement_all": both.agreement,
            "kl_all": both.kl,
            "parameters": sum(p.numel() for p in student.parameters()),
            "distill_s": round(seconds, 1),
            "bank_s": round(bank_s, 1),
            "threads": torch.get_num_threads(),
        }
        record(out, base | row)


def same(row: dict[str, Any], key: dict[str, Any]) -> bool:
    return all(row.get(k) == v for k, v in key.items())


def results(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(out: Path, row: dict[str, Any]) -> None:
    key = {k: row[k] for k in ("fold", "seed", "steps", "variant")}
    if any(same(old, key) for old in results(out)):
        return
    print(json.dumps(row), flush=True)
    with (out / "results.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(row) + "\n")


def table(out: Path) -> None:
    """Markdown: mean over folds, the share of the teacher, and the standard error over folds."""
    rows = results(out)
    teacher = {r["fold"]: r["accuracy"] for r in rows if r["variant"] == "teacher"}
    print(
        "\n| student | folds | accuracy | of the teacher | agreement, all clips | KL, all clips |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    mean = 100 * statistics.mean(teacher.values())
    print(f"| teacher | {len(teacher)} | {mean:.1f} % | | | |")
    for name in VARIANTS:
        mine = [r for r in rows if r["variant"] == name]
        if not mine:
            continue
        accuracy = [100 * r["accuracy"] for r in mine]
        base = 100 * statistics.mean(teacher[r["fold"]] for r in mine)
        gap = [100 * (r["accuracy"] - teacher[r["fold"]]) for r in mine]
        error = statistics.stdev(gap) / len(gap) ** 0.5 if len(gap) > 1 else float("nan")
        agreement = 100 * statistics.mean(r["agreement_all"] for r in mine)
        kl = statistics.mean(r["kl_all"] for r in mine)
        value = statistics.mean(accuracy)
        print(
            f"| {name} | {len(mine)} | {value:.1f} % | {100 * value / base:.1f} % "
            f"({statistics.mean(gap):+.1f} ± {error:.1f} points) | {agreement:.1f} % | {kl:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--folds", default="1,2,3,4,5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    args.variants = args.variants.split(",")
    args.out.mkdir(parents=True, exist_ok=True)
    root = data_root(args.data_root)
    for fold in args.folds.split(","):
        run_fold(fold, args, root)
    table(args.out)


if __name__ == "__main__":
    main()
