"""Where a bank's sources differ: what students learn from live, stored and hard answers.

    python experiments/regimes.py runs/teacher/teacher.safetensors --bank runs/student/bank \
        --student fsdd-student --data fsdd-speaker --fold theo --out runs/regimes

The same student learns from the same clips by cross entropy with the teacher's answers alone:
`live` ones, for the stretch that the student hears, `stored` ones, for the whole clip, or `hard`
ones, the likeliest class of that. Hidden states, the reused head, and all augmentation but random
crops and loudness are left out, so that nothing else differs. Every number of steps is a training
of its own, scored at its last step. Rows are kept in OUT/regimes.jsonl: the same command makes what
is missing, and other folds and seeds add to the table.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from protocol import digest
from tables import AGAIN, Row, append_row
from torch import Tensor

from frami_edge import api
from frami_edge.augment import random_crop, random_gain
from frami_edge.bank import Bank, check_bank, check_length
from frami_edge.checkpoint import Teacher
from frami_edge.config import JourneyConfig, frames_in
from frami_edge.data.clips import resolve_fold
from frami_edge.data.sets import load_set
from frami_edge.data.store import FeatureStore
from frami_edge.device import generator
from frami_edge.distillation import cosine_with_warmup, new_student, weight_groups
from frami_edge.errors import ConfigError, FramiEdgeError, RunError
from frami_edge.evaluation import (
    check_held_out,
    label_targets,
    labels_of,
    predict,
    score,
    training_clips,
)
from frami_edge.io import sha256_file
from frami_edge.models import StudentNet
from frami_edge.runs import read_rows
from frami_edge.yaml_config import load_config
from frami_edge_runtime.state import check_place

REGIMES = ("live", "stored", "hard")
KEYS = ("source", "regime", "steps", "fold", "seed")
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


def student_config(args: argparse.Namespace, bank: Bank) -> JourneyConfig:
    """The student's config, checked against the bank and with the command's seed.

    Raises:
        BankError: The bank has clips of another length.
        ConfigError: The student has what a bank of log-mels alone cannot teach, or the bank lacks
            a source.
    """
    config = load_config(JourneyConfig, args.student, ["distill.reuse_head=false", *args.set])
    for key, given in (
        ("student.inherit", config.student.inherit),
        ("student_mel", config.student_mel),
    ):
        if given is not None:
            raise ConfigError(
                f"{key}: students of the regimes hear the teacher's log-mels and start afresh.",
                fix=f"Give a student without {key}, such as fsdd-student.",
            )
    check_length(bank, config.bank.clip_s)
    for name in args.sources:
        if lacking := set(sources_of(name, config)) - set(bank.sources):
            raise ConfigError(
                f"--sources {name}: the bank in {bank.folder} has no clips of "
                f"{', '.join(sorted(lacking))}.",
                fix=f"It has {', '.join(bank.sources)}; mixed is what the student's config mixes.",
            )
    seed = config.seed if args.seed is None else args.seed
    return config.model_copy(update={"seed": seed})


def sources_of(name: str, config: JourneyConfig) -> dict[str, float]:
    """The weights of a row's sources."""
    return dict(config.bank.shares) if name == "mixed" else {name: 1.0}


def rows_so_far(path: Path, same: Row, fold: str, seed: int) -> list[Row]:
    """The rows of earlier calls.

    Raises:
        RunError: They were made by another recipe, or from another teacher or bank.
    """
    rows = read_rows(path, AGAIN)
    for row in rows:
        ours = row["fold"] == fold and row["seed"] == seed
        for key, what in (("recipe", "recipe"), ("origin", "teacher or bank")):
            if row.get(key) != same[key] and (ours or key == "recipe"):
                raise RunError(
                    f"{path} has rows of another {what}.",
                    fix="Give another --out, or delete that file to make them anew.",
                )
    return rows


def run(args: argparse.Namespace) -> list[Row]:
    """Make the rows that are missing."""
    check_place(args.out, folder=True)
    teacher, bank = api.load_teacher(args.teacher), Bank.open(args.bank)
    if teacher.output != "softmax" or teacher.takes != "mel":
        raise ConfigError(
            "The regimes need a teacher that takes log-mels and chooses one of K classes.",
            fix="Give a checkpoint of `frami-edge train-teacher`.",
        )
    check_bank(bank, teacher.mel, teacher.labels, teacher.sha256)
    config = student_config(args, bank)
    data = load_set(args.data, args.data_root)
    fold, known = resolve_fold(data, args.fold), teacher.card.real_clips
    check_held_out(known, data, fold)
    path = args.out / "regimes.jsonl"
    same = {
        "recipe": digest([config.model_dump(mode="json", exclude={"seed"}), args.data]),
        "origin": digest([teacher.sha256, sha256_file(bank.folder / "bank.json")]),
    }
    rows = rows_so_far(path, same, fold, config.seed)
    test = FeatureStore(teacher.mel).load(data.split(fold)[1])
    test = training_clips(test, known, data, fold).left_out(test)
    targets_DK = label_targets(teacher.labels, data, selection=teacher.card.keep is not None)
    labels_N = labels_of(targets_DK[test.labels])
    theirs = predict(teacher.model, test.mels)
    best = {"teacher_accuracy": score(theirs, labels_N).accuracy}
    read = {name: bank.read(name) for name in bank.sources}
    clips = {name: (kept.mels_N1MT, kept.logits_NK) for name, kept in read.items()}
    done = {tuple(row[key] for key in KEYS) for row in rows}
    for steps, name, regime in itertools.product(args.steps, args.sources, REGIMES):
        if (key := (name, regime, steps, fold, config.seed)) in done:
            continue
        bank_of = config.bank.model_copy(update={"sources": sources_of(name, config)})
        one = config.model_copy(update={"bank": bank_of})
        ours = predict(learn(teacher, clips, one, regime, steps), test.mels)
        found = score(ours, labels_N, theirs)
        figures = {"accuracy": found.accuracy, "agreement": found.agreement, "kl": found.kl}
        rows.append(dict(zip(KEYS, key, strict=True)) | figures | best | same)
        append_row(path, rows[-1])
        print(f"{name}, {regime}, {steps} steps: {100 * found.accuracy:.1f} %", file=sys.stderr)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Mean accuracy and KL over folds and seeds, by source, regime and steps."""
    steps = sorted({row["steps"] for row in rows})
    lines = [
        " ".join(["| learned from | answers |", *(f"{n} steps |" for n in steps)]),
        " ".join(["| --- | --- |", *("--- |" for _ in steps)]),
    ]
    for kind in itertools.product(dict.fromkeys(row["source"] for row in rows), REGIMES):
        cells = []
        for n in steps:
            mine = [r for r in rows if (r["source"], r["regime"], r["steps"]) == (*kind, n)]
            accuracy, kl = ([row[key] for row in mine] for key in ("accuracy", "kl"))
            cells.append(f"{100 * mean(accuracy):.1f} %, {mean(kl):.3f} |" if mine else "|")
        lines.append(" ".join([f"| {kind[0]} | {kind[1]} |", *cells]))
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    """Positive numbers with commas between them."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", help="checkpoint of a teacher that chooses one of K")
    parser.add_argument("--bank", type=Path, required=True, help="its bank, of log-mels")
    parser.add_argument("--student", required=True, help="preset or YAML file of `distill`")
    parser.add_argument("--data", required=True, help="a known set, or folder:PATH")
    parser.add_argument("--fold", help="the fold that the teacher held out")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets")
    parser.add_argument(
        "--sources", type=lambda text: text.split(","), default=["mixed"],
        help="sources of the bank, with commas between them (default: mixed, as in the config)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=numbers, default=[200, 800, 3200],
        help="lengths of training, with commas between them (default: 200,800,3200)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="of the student (default: the config's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    try:
        print(table(run(parser.parse_args(arguments))))
    except FramiEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
