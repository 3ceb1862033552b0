"""Where a bank's sources differ: what students learn from live, stored and hard answers.

    python experiments/regimes.py runs/teacher/teacher.safetensors --bank runs/student/bank \
        --student fsdd-student --data fsdd-speaker --fold theo --out runs/regimes

The same student learns from the same clips by cross entropy with the teacher's answers alone:
`live` ones, for the stretch that the student hears, `stored` ones, for the whole clip, or `hard`
ones, the likeliest class of that. Hidden states, mixup and the reused head are left out, so that
nothing else differs. Every number of steps is a training of its own, scored at its last step. Rows
are kept in OUT/regimes.jsonl: the same command makes what is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frami_edge import api
from frami_edge.augment import random_crop, random_gain
from frami_edge.bank import Bank, check_bank
from frami_edge.checkpoint import Teacher
from frami_edge.config import JourneyConfig, frames_in
from frami_edge.data.sets import load_set
from frami_edge.data.store import FeatureStore
from frami_edge.device import generator
from frami_edge.distillation import cosine_with_warmup, new_student, weight_groups
from frami_edge.errors import ConfigError, FramiEdgeError
from frami_edge.evaluation import (
    check_held_out,
    label_targets,
    labels_of,
    predict,
    score,
    training_clips,
)
from frami_edge.models import StudentNet
from frami_edge.yaml_config import load_config

REGIMES = ("live", "stored", "hard")
Clips = dict[str, tuple[Tensor, Tensor]]


def learn(
    teacher: Teacher, clips: Clips, config: JourneyConfig, regime: str, steps: int
) -> StudentNet:
    """A student after so many steps on clips by source, as (N, 1, M, T) and logits (N, K)."""
    d, shares = config.distill, config.bank.shares
    lengths = [frames_in(seconds, teacher.mel) for seconds in (d.crop_min_s, d.crop_max_s)]
    student = new_student(config, teacher)
    optimizer = torch.optim.AdamW(weight_groups(student, d.weight_decay), fused=True)
    known = {name: clips[name] for name in shares}
    for step in range(steps):
        rng = generator(config.seed, f"regimes/{step}")
        parts, answers = [], []
        for name, (mels, logits) in known.items():
            n = max(1, round(d.batch_size * shares[name]))
            index = torch.randint(0, len(mels), (n,), generator=rng)
            parts.append(mels[index])
            answers.append(logits[index])
        frames = int(torch.randint(lengths[0], lengths[1] + 1, (), generator=rng))
        x = random_gain(random_crop(torch.cat(parts), frames, rng), d.gain, rng)
        target = torch.cat(answers).softmax(1)
        if regime == "live":
            with torch.no_grad():
                target = teacher.model(x).softmax(1)
        elif regime == "hard":
            target = torch.nn.functional.one_hot(target.argmax(1), target.shape[1]).float()
        for group in optimizer.param_groups:
            group["lr"] = d.learning_rate * cosine_with_warmup(step, steps, d.warmup)
        student.train()
        loss = torch.nn.functional.cross_entropy(student(x), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return student.eval()


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Make the rows that are missing."""
    teacher, bank = api.load_teacher(args.teacher), Bank.open(args.bank)
    if teacher.output != "softmax" or teacher.takes != "mel":
        raise ConfigError(
            "The regimes need a teacher that takes log-mels and chooses one of K classes.",
            fix="Give a checkpoint of `frami-edge train-teacher`.",
        )
    check_bank(bank, teacher.mel, teacher.labels, teacher.sha256)
    data = load_set(args.data, args.data_root)
    known = teacher.card.real_clips
    check_held_out(known, data, args.fold)
    test = FeatureStore(teacher.mel).load(data.split(args.fold)[1])
    test = training_clips(test, known, data, args.fold).left_out(test)
    targets_DK = label_targets(teacher.labels, data, selection=teacher.card.keep is not None)
    labels_N = labels_of(targets_DK[test.labels])
    theirs = predict(teacher.model, test.mels)
    config = load_config(JourneyConfig, args.student, ["distill.reuse_head=false", *args.set])
    clips = {}
    for name in bank.sources:
        kept = bank.read(name)
        clips[name] = (kept.mels_N1MT, kept.logits_NK)
    weights = {"mixed": config.bank.shares} | {name: {name: 1} for name in bank.sources}
    for name in args.sources:
        if not set(weights.get(name, {name: 1})) <= set(bank.sources):
            raise ConfigError(
                f"The bank in {bank.folder} lacks clips of {name}.",
                fix=f"It has {', '.join(bank.sources)}; mixed is what the student's config mixes.",
            )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "regimes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    keys = ("source", "regime", "steps", "fold", "seed")
    done = {tuple(row[key] for key in keys) for row in rows}
    for steps, name, regime in itertools.product(args.steps, args.sources, REGIMES):
        if (key := (name, regime, steps, args.fold, args.seed)) in done:
            continue
        bank_of = config.bank.model_copy(update={"sources": weights[name]})
        one = config.model_copy(update={"bank": bank_of, "seed": args.seed})
        ours = predict(learn(teacher, clips, one, regime, steps), test.mels)
        found = score(ours, labels_N, theirs)
        figures = {"accuracy": found.accuracy, "agreement": found.agreement, "kl": found.kl}
        best = {"teacher_accuracy": score(theirs, labels_N).accuracy}
        rows.append(dict(zip(keys, key, strict=True)) | figures | best)
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"{name}, {regime}, {steps} steps: {100 * found.accuracy:.1f} %", file=sys.stderr)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Rows, then a table: mean accuracy over folds and seeds, by source, regime and steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", help="checkpoint of a teacher that chooses one of K")
    parser.add_argument("--bank", type=Path, required=True, help="its bank, of log-mels")
    parser.add_argument("--student", required=True, help="preset or YAML file of `distill`")
    parser.add_argument("--data", required=True, help="a known set, or folder:PATH")
    parser.add_argument("--fold", required=True, help="the fold that the teacher held out")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets")
    parser.add_argument("--sources", type=lambda text: text.split(","), default=["mixed"])
    parser.add_argument(
        "--steps", type=lambda text: [int(n) for n in text.split(",")], default=[200, 800, 3200]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    try:
        rows = run(parser.parse_args(arguments))
    except FramiEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    steps = sorted({row["steps"] for row in rows})
    print("| learned from | answers |", *(f"{n} steps |" for n in steps))
    print("| --- | --- |", "--- |" * len(steps))
    for source, regime in itertools.product(dict.fromkeys(r["source"] for r in rows), REGIMES):
        cells = []
        for n in steps:
            mine = [
                r for r in rows if (r["source"], r["regime"], r["steps"]) == (source, regime, n)
            ]
            share = 100 * sum(r["accuracy"] for r in mine) / max(len(mine), 1)
            cells.append(f"{share:.1f} % |" if mine else "|")
        print(f"| {source} | {regime} |", *cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
