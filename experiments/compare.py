"""Compare methods on equal terms: folds x seeds x methods from one YAML file.

    python experiments/compare.py experiments/protocols/esc10-cpu.yaml --out runs/esc10 --workers 2

Teachers and banks are made once and shared; every student becomes one line of OUT/results.jsonl.
After an interruption the same command makes what is missing. All methods have the same teacher,
student, distillation and number of steps; the last step counts, never the best one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from protocol import Plan, Run, digest, load_protocol
from tables import AGAIN, Row, append_row, markdown, write_between
from torch import Tensor

from frami_edge import api
from frami_edge.bank import Bank, bank_sampler, check_bank
from frami_edge.checkpoint import Student, Teacher, parameters
from frami_edge.controls import control_sampler, labelled, scratch_student
from frami_edge.data.clips import Clip, check_unrelated
from frami_edge.data.sets import load_set
from frami_edge.data.store import FeatureStore
from frami_edge.device import choose_compute
from frami_edge.distillation import Sampler
from frami_edge.errors import ConfigError, FramiEdgeError, RunError
from frami_edge.evaluation import (
    EVERY,
    check_held_out,
    label_targets,
    labels_of,
    logits_of,
    open_fold,
    predict,
    score,
    training_clips,
)
from frami_edge.journey import Journey
from frami_edge.opening import OpenedModel
from frami_edge.runs import git_commit, read_manifest, read_rows
from frami_edge.sources.procedural import measured
from frami_edge_runtime.state import check_place

log = logging.getLogger("frami_edge")
ROWS = "results.jsonl"


def rows_by_run(folder: Path) -> dict[tuple[str, str, int], Row]:
    """Rows by method, fold and seed."""
    rows = read_rows(folder / ROWS, AGAIN)
    return {(row["method"], row["fold"], row["seed"]): row for row in rows}


class Maker:
    """Makes the students of a plan, with the teachers and banks that they need.

    Args:
        plan: The students.
        trained: The teacher that exists, where the protocol has one.
        folder: Folder of teachers, banks and rows; several protocols may share one.
        root: Folder of the data sets; None for $FRAMI_EDGE_DATA.
        device: As in `frami_edge.api`.
        precision: As in `frami_edge.api`.

    Raises:
        DataError: A data set or fold is missing, an unrelated set shares clips with it, or the
            teacher that exists has other classes or was trained on a fold.
    """

    def __init__(
        self,
        plan: Plan,
        trained: Teacher | None,
        folder: Path,
        root: Path | None,
        device: str,
        precision: Any,
    ) -> None:
        self.plan, self.folder, self.root = plan, folder, root
        self.on = {"device": device, "precision": precision}
        self.compute = choose_compute(device, precision)
        self.data = load_set(plan.protocol.data, root)
        self._teacher = None if trained is None else ("", trained)
        for fold in plan.protocol.folds:
            self.split(fold)
            if trained is not None:
                known, who = trained.card.real_clips, str(plan.protocol.trained)
                open_fold(known, plan.protocol.data, fold, root, who=who)
        if trained is not None:
            self.targets(trained)
        for method in plan.protocol.methods.values():
            if method.unrelated:
                others = load_set(method.unrelated, root)
                check_unrelated(others.name, others.files, self.data.files)

    def split(self, fold: str) -> tuple[list[Clip], list[Clip]]:
        """Clips to learn from and to be scored on; of the fold `all`, every clip is of the latter.

        Raises:
            DataError: There is no such fold.
        """
        return ([], list(self.data.clips)) if fold == EVERY else self.data.split(fold)

    def targets(self, teacher: Teacher) -> Tensor:
        """(D, K) bool: the teacher's classes for each of the set's.

        Raises:
            DataError: They do not match.
        """
        selection = teacher.card.keep is not None
        return label_targets(teacher.labels, self.data, selection=selection)

    def missing(self, runs: list[Run]) -> list[Run]:
        """The students without a row.

        Raises:
            RunError: A row was made by another recipe.
        """
        rows = rows_by_run(self.folder)
        for run in runs:
            if rows.get(run.key, {}).get("recipe", run.recipe) != run.recipe:
                raise RunError(
                    f"{self.folder / ROWS} has {run.name} by another recipe.",
                    fix="Give another --out, or delete that line to make it anew.",
                )
        return [run for run in runs if run.key not in rows]

    def work(self, runs: list[Run]) -> list[str]:
        """Make students until none is left that no other process is making.

        Returns:
            What failed and why; the other students are made all the same.
        """
        failures = []
        for run in self.missing(runs):
            try:
                with self._lock(f"student-{run.name}", timeout=0):
                    if run.key not in rows_by_run(self.folder):
                        log.info("%s", run.name)
                        append_row(self.folder / ROWS, self.student(run))
            except Timeout:
                continue
            except Exception as error:  # such as too little memory: others may fit
                failures.append(f"{run.name} failed: {error or repr(error)}")
                log.warning("%s", failures[-1])
        return failures

    def teacher(self, run: Run) -> Teacher:
        """The teacher of the run's fold, trained first if it does not exist."""
        if self._teacher is None or self._teacher[0] != run.teacher:
            folder = self.folder / run.teacher
            with self._lock(folder.name):
                if not _finished(folder):
                    config, resume = self.plan.teachers[run.fold], _started(folder)
                    api.train_teacher(
                        config, data_root=self.root, out=folder, resume=resume, **self.on
                    )
            self._teacher = run.teacher, api.load_teacher(folder / "teacher.safetensors")
        return self._teacher[1]

    def bank(self, run: Run, teacher: Teacher) -> tuple[Bank, dict[str, Any]]:
        """The run's bank, made first if it does not exist, and its manifest.

        Raises:
            BankError: It belongs to a teacher that has changed since.
        """
        folder = self.folder / run.bank
        config = self.plan.journeys[run.bank_method]
        with self._lock(folder.name):
            if not _finished(folder):
                with peak_memory(self.compute.device) as peak:
                    api.invert(
                        teacher, config=config, seed=run.bank_seed, out=folder,
                        resume=_started(folder), **self.on,
                    )  # fmt: skip
                (folder / "memory.json").write_text(json.dumps(peak))
        kept = folder / "memory.json"  # lost where a kill came right before it
        peaks = json.loads(kept.read_text()) if kept.exists() else {}
        bank = Bank.open(folder / "bank")
        check_bank(bank, teacher.mel, teacher.labels, teacher.sha256)
        return bank, read_manifest(folder) | peaks

    def student(self, run: Run) -> Row:
        """Distil one student and score it: its row."""
        method, teacher = self.plan.protocol.methods[run.method], self.teacher(run)
        config = self.plan.journeys[run.method].model_copy(update={"seed": run.seed})
        check_held_out(teacher.card.real_clips, self.data, run.fold)
        store, (train, test) = FeatureStore(teacher.mel), self.split(run.fold)
        row: Row = {
            "method": run.method,
            "fold": run.fold,
            "seed": run.seed,
            "recipe": run.recipe,
            "steps": config.distill.steps,
            "device": self.compute.device.type,
            "threads": torch.get_num_threads(),
            "precision": str(self.compute.dtype).removeprefix("torch."),
            "teacher_sha256": teacher.sha256,
            "git": git_commit(),
        }
        journey = Journey(teacher, config, self.compute, deterministic=False, out=None)
        targets_DK, real = self.targets(teacher), None
        sampler: Sampler | None = None
        if method.control is None:
            bank, manifest = self.bank(run, teacher)
            sampler = bank_sampler(bank, config, teacher.output, limit=method.mels)
            row |= bank_facts(bank, manifest, config.bank.shares, method.mels)
        elif method.control == "scratch":
            own = FeatureStore(measured(journey.student_mel)).load(train)
            real = labelled(own, targets_DK)
        else:
            if method.control == "real":
                real = store.load(train)
            elif method.unrelated:
                real = store.load(list(load_set(method.unrelated, self.root).clips))
            sampler = control_sampler(
                method.control, teacher, config, real=real, audio=journey.audio
            )
        with peak_memory(self.compute.device) as peak:
            wall, cpu = time.monotonic(), time.process_time()
            if sampler is None:
                assert real is not None
                network = scratch_student(real, teacher, config, self.compute)
                student = Student(network, teacher.card, real.mel, "")
            else:
                student = api.distill(teacher, sampler, config=config, **self.on)
            row["distill_s"] = round(time.monotonic() - wall, 2)
            row["distill_cpu_s"] = round(time.process_time() - cpu, 2)
        row |= peak | {"parameters": parameters(student.model)}
        judged = OpenedModel.of_network(Path("the teacher"), teacher)
        for suffix, clips in (("", test), ("_all", list(self.data.clips))):
            features = store.load(clips)
            if not suffix:  # no clip that a teacher from elsewhere was trained on
                known = training_clips(features, teacher.card.real_clips, self.data, run.fold)
                features = known.left_out(features)
            theirs_NK, targets_NK = logits_of(judged, features), targets_DK[features.labels]
            ours = features
            if student.mel != teacher.mel:
                ours = FeatureStore(student.mel).load(features.clips)
            ours_NK, labels_N = predict(student.model, ours.mels), labels_of(targets_NK)
            judge: Any = {"output": teacher.output, "targets_NK": targets_NK}
            found = score(ours_NK, labels_N, theirs_NK, **judge)
            row[f"clips{suffix}"] = found.clips
            row[f"agreement{suffix}"], row[f"kl{suffix}"] = found.agreement, found.kl
            if not suffix:
                best = score(theirs_NK, labels_N, **judge)
                row["accuracy"], row["teacher_accuracy"] = found.accuracy, best.accuracy
                row["map"], row["teacher_map"] = (
                    one.mean_average_precision for one in (found, best)
                )
        return row

    def _lock(self, name: str, timeout: float = -1) -> FileLock:
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "locks" / f"{name}.lock", timeout=timeout)


def bank_facts(
    bank: Bank, manifest: dict[str, Any], shares: dict[str, float], limit: int | None
) -> Row:
    """Cost of the clips, and what the teacher makes of them, for the sources in use."""
    seconds, health = manifest.get("source_seconds", {}), bank.index.health
    clips = sum(bank.sources[name] for name in shares)

    def average(key: str) -> float | None:
        known = [(w, health[n][key]) for n, w in shares.items() if health[n][key] is not None]
        weight = sum(w for w, _ in known)
        return sum(w * value for w, value in known) / weight if weight and not limit else None

    return {
        "mels": min(clips, limit or clips),
        "bank_s": round(sum(seconds.get(n, {}).get("wall", 0.0) for n in shares), 2),
        "bank_cpu_s": round(sum(seconds.get(n, {}).get("cpu", 0.0) for n in shares), 2),
        "bank_peak_mib": manifest.get("peak_mib"),
        "bank_peak_device_mib": manifest.get("peak_device_mib"),
        "cosine": average("cosine"),
        "variance": average("embedding_variance"),
        "requested": average("hit_rate"),
    }


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float | None]]:
    """The most memory in the block: resident in the process, and allocated on the GPU.

    Libraries and teacher are part of it. Only Linux can reset the mark; elsewhere it is that of the
    process since its start.
    """
    found: dict[str, float | None] = {"peak_mib": None, "peak_device_mib": None}
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory would stay resident and count here
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    kib = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    with contextlib.suppress(OSError):
        kib = float(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    found["peak_mib"] = round(kib / 1024, 1)
    if device.type == "cuda":
        found["peak_device_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def _started(folder: Path) -> bool:
    return (folder / "manifest.json").exists()


def _finished(folder: Path) -> bool:
    return _started(folder) and read_manifest(folder).get("status") == "finished"


def chosen(plan: Plan, methods: str | None, folds: str | None) -> list[Run]:
    """The runs of some methods and folds, by their names with commas between them.

    Raises:
        ConfigError: The protocol has no such method or fold.
    """
    names = methods.split(",") if methods else list(plan.protocol.methods)
    tests = folds.split(",") if folds else list(plan.protocol.folds)
    unknown = {*names, *tests} - {*plan.protocol.methods, *plan.protocol.folds}
    if unknown:
        raise ConfigError(
            f"The protocol has no {', '.join(sorted(unknown))}.",
            fix=f"It has {', '.join(plan.protocol.methods)} on folds "
            f"{', '.join(plan.protocol.folds)}.",
        )
    return [run for run in plan.runs if run.method in names and run.fold in tests]


def run_protocol(args: argparse.Namespace) -> int:
    """What the command does; 1 where a student failed."""
    protocol, trained, origin = load_protocol(args.protocol, args.set), None, ""
    if protocol.trained and not args.tables:
        trained = api.load_teacher(protocol.trained)
        origin = digest([trained.sha256, trained.labels, trained.card.keep, trained.output])
    plan = Plan(protocol, origin)
    runs = chosen(plan, args.methods, args.folds)
    folder = args.out or Path("runs") / args.protocol.stem
    check_place(folder, folder=True)
    if args.write:
        check_place(args.write)
    failures: list[str] = []
    if not args.tables:
        maker = Maker(plan, trained, folder, args.data_root, args.device, args.precision)
        left = maker.missing(runs)
        if args.dry_run:
            needed = {place for run in left for place in (run.teacher, run.bank) if place}
            for name in sorted(place for place in needed if not _finished(folder / place)):
                print(name)
            print(*(f"students/{run.name}" for run in left), sep="\n")
            print(f"{len(runs) - len(left)} of {len(runs)} students are there.")
            return 0
        if left and args.workers > 1:  # the same command, in processes that share by locks
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.workers))}
            command = [sys.executable, *sys.argv, "--workers", "1", "--quiet"]
            team = [
                subprocess.Popen(command, env=os.environ | threads) for _ in range(args.workers)
            ]
            for process in team:
                process.wait()
        failures = maker.work(runs)
    if not args.quiet:
        rows = rows_by_run(folder)
        text = markdown(plan.protocol, [rows[run.key] for run in plan.runs if run.key in rows])
        print(text)
        for page in filter(None, (folder / "RESULTS.md", args.write)):
            write_between(page, plan.protocol.title, text)
        print("\n".join(failures), file=sys.stderr)
    return bool(failures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, then the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", type=Path, help="YAML file")
    parser.add_argument("--out", type=Path, help="folder of all its runs (default: runs/NAME)")
    parser.add_argument("--methods", help="only these, with commas between them")
    parser.add_argument("--folds", help="only these, with commas between them")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="list what would be made")
    parser.add_argument("--tables", action="store_true", help="only the tables of what is there")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work")
    parser.add_argument("--write", type=Path, help="also put the tables into this Markdown file")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--quiet", action="store_true", help="make what is missing, no tables")
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        return run_protocol(parser.parse_args(arguments))
    except FramiEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
