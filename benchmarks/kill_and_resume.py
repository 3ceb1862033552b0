"""Kill long jobs with SIGKILL at many points, resume them, and compare with the undisturbed result.

    python benchmarks/kill_and_resume.py                       # every job, 20 kills each
    python benchmarks/kill_and_resume.py --jobs distill --kills 3 --json

A point is a moment at which a process may die: an optimiser's step, a row of metrics (also when
half of it is written), a file (about to be opened, half written, about to be renamed, just renamed,
about to be deleted). The undisturbed run counts them; seeded draws, spread over all of them, choose
where the others die. Some runs are killed by the clock instead, and some twice. A resumed run is
identical when every file that the undisturbed run left has the same bytes, rows of metrics
included; the manifest, which tells times, must say that it finished. After each kill every file
under its own name must be whole.

All jobs are tiny, on the CPU in fp32, from audio and a teacher that the script makes itself.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Processes are forked from this one, which must have no threads yet.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SOURCE_DATE_EPOCH", "1700000000")  # exports note when they were made

import numpy as np
import soundfile
from matplotlib.figure import Figure
from torch.optim.optimizer import register_optimizer_step_post_hook

from frami_edge import cli
from frami_edge._metrics import MetricsFile
from frami_edge.states import load_state

PRELOADED = (
    "frami_edge.control_table",
    "frami_edge.exporting",
    "frami_edge.teachers.opening",
    "frami_edge.training.run",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "torch._dynamo",  # an optimiser imports it
)
"""What the forked processes need, imported once."""
STUDENT = """
student: {channels: [8, 8, 8], time_kernels: [3, 3, 3], out_channels: 12}
bank:
  frames: 24
  procedural_clips: 40
  control_clips: 40
  shard_clips: 16
  inversion: {steps: 7, burn_in: 1, batch_size: 8, latent: 8, width: 8, contrastive_memory: 20}
  translator: {steps: 5, burn_in: 1, batch_size: 8}
distill: {steps: 12, batch_size: 8, crop_min: 16, crop_max: 24, checkpoint_steps: 4}
seed: 3
"""
TEACHER = """
data: {name: "folder:SOUNDS", fold: test}
mel: {sample_rate: 8000, n_fft: 256, win_length: 200, hop_length: 80, n_mels: 16}
arch: {channels: [8, 12], blocks: 1}
train: {epochs: 4, batch_size: 4}
"""
CPU = ("--device", "cpu", "--precision", "fp32")
ENDS = (".safetensors", ".json", ".png", ".onnx", ".pt", ".md", ".yaml")
TIMED_ROWS = (b"| seconds", b"| started", b"| commit")
"""Of a model card; the checkout may get another commit while the script runs."""
UNTIMED = ("manifest.json", ".lock")
PICTURE = b"\x89PNG\r\n\x1a\n" + 20 * b"picture" + b"IEND\xaeB`\x82"
"""Written in place of every picture, which takes longer to draw than the jobs take."""
REPORTS = ("export_report.json", "README.md", "export.png")
"""Of an export: they tell how fast the files are, and the card which of them is recommended."""


@dataclass
class Job:
    """One command that is killed.

    Attributes:
        name: For the table.
        words: The command, `--out` and its value left out.
        resumes: Whether it takes `--resume`; otherwise the same words again go on or begin anew.
        loose: Names of files that tell times.
    """

    name: str
    words: list[str]
    resumes: bool = True
    loose: tuple[str, ...] = UNTIMED


@dataclass
class Tally:
    """What happened to one job."""

    points: int = 0
    kills: int = 0
    identical: int = 0
    where: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Points:
    """Counts points inside a job's process, and dies at one of them.

    Args:
        folder: Of the job's result; files elsewhere are no points.
        fatal: Number of the point at which to die; -1 for none.
    """

    def __init__(self, folder: Path, fatal: int) -> None:
        self.folder, self.fatal = str(folder), fatal
        self.seen: list[str] = []

    def at(self, label: str, before_death: Callable[[], None] = lambda: None) -> None:
        """A point; what `before_death` leaves behind is what a death in the midst would leave."""
        if len(self.seen) == self.fatal:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(label)

    def install(self) -> None:
        """Watch this process."""
        real_replace, real_write, real_append = os.replace, Path.write_bytes, MetricsFile.append

        def audit(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and self._ours(args[0]) and _writes(args[1], args[2]):
                self.at("open")
            elif event == "os.remove" and self._ours(args[0]):
                self.at("delete")

        def replace(source: Any, target: Any, **more: Any) -> None:
            ours = self._ours(target)
            if ours:
                self.at("rename")
            real_replace(source, target, **more)
            if ours:
                self.at("renamed")

        def write(path: Path, data: bytes) -> int:
            if self._ours(path):
                self.at("half a file", lambda: _ignore(real_write(path, data[: len(data) // 2])))
            return real_write(path, data)

        def append(file: MetricsFile, row: dict[str, Any]) -> None:
            self.at("row")

            def torn() -> None:
                with file.path.open("a") as half:
                    half.write('{"step": 1, "lo')

            self.at("half a row", torn)
            real_append(file, row)

        def savefig(_: Figure, path: Path, **__: Any) -> None:
            path.write_bytes(PICTURE)

        sys.addaudithook(audit)
        Figure.savefig = savefig  # type: ignore[assignment,method-assign]
        os.replace = replace
        Path.write_bytes = write  # type: ignore[assignment,method-assign]
        MetricsFile.append = append  # type: ignore[method-assign]
        register_optimizer_step_post_hook(lambda *_: self.at("step"))

    def _ours(self, path: Any) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(
            self.folder + os.sep
        )


def _writes(mode: Any, flags: Any) -> bool:
    asked = bool(set(mode) & set("wxa+")) if isinstance(mode, str) else False
    return asked or (isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR)))


def _ignore(_: object) -> None:
    pass


def start(words: list[str], folder: Path, fatal: int, log: Path) -> int:
    """Fork a process that runs the command; its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with (log.with_suffix(".out")).open("a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        points = Points(folder, fatal)
        points.install()
        sys.argv = ["frami-edge", *words]
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        log.write_text(json.dumps(points.seen))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child: int) -> int:
    """Its exit code; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Trial:
    """One job in one folder, from its beginning to its end through any number of deaths.

    Args:
        job: What is run.
        folder: Where its result goes.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.log = folder.with_name(folder.name + ".log")

    def run(self, fatal: int = -1, after_s: float | None = None) -> tuple[int, float]:
        """Begin or go on; exit code and seconds.

        Args:
            fatal: Point to die at.
            after_s: Kill it from outside after so many seconds.
        """
        words = [*self.job.words, "--out", str(self.folder)]
        if self.job.resumes and (self.folder / "manifest.json").exists():
            words.append("--resume")
        began = time.monotonic()
        child = start(words, self.folder, fatal, self.log)
        if after_s is not None:
            time.sleep(after_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return finish(child), time.monotonic() - began

    def said(self) -> str:
        """Everything that the command said."""
        return self.log.with_suffix(".out").read_text()

    def files(self) -> dict[str, str]:
        """SHA-256 by name of what must be the same."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(untimed(path)).hexdigest()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in self.job.loose
        }

    def torn(self) -> list[str]:
        """Files under their own names that are not whole."""
        if not self.folder.exists():
            return []
        own = (p for p in self.folder.rglob("*") if p.suffix in ENDS and not p.name.startswith("."))
        return [str(path.relative_to(self.folder)) for path in own if not whole(path)]


def untimed(path: Path) -> bytes:
    """What a file holds; a model card without the rows that tell times."""
    data = path.read_bytes()
    if path.name == "README.md":
        rows = data.splitlines(keepends=True)
        data = b"".join(r for r in rows if not r.startswith(TIMED_ROWS))
    return data


def whole(path: Path) -> bool:
    """Whether a file ends where its format says."""
    data = path.read_bytes()
    if path.suffix == ".json":
        with contextlib.suppress(ValueError):
            return isinstance(json.loads(data), dict)
        return False
    if path.suffix == ".safetensors":
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]) if len(data) >= 8 + size > 8 else {}
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        return bool(ends) and len(data) == 8 + size + max(ends)
    if path.suffix == ".png":
        return data.startswith(b"\x89PNG") and data.endswith(b"IEND\xaeB`\x82")
    if path.suffix == ".onnx":
        import onnx

        with contextlib.suppress(Exception):
            onnx.checker.check_model(onnx.load_from_string(data))
            return True
        return False
    return load_state(path) is not None if path.suffix == ".pt" else bool(data)


def deaths(
    points: int, kills: int, clock: int, seconds: float, rng: random.Random
) -> Iterator[Any]:
    """How each trial dies: one draw from each of equal stretches of the run."""
    at = [int((i + rng.random()) * points / (kills - clock)) for i in range(kills - clock)]
    yield from ({"fatal": n} for n in at)
    yield from ({"after_s": 0.6 * (i + rng.random()) * seconds / clock} for i in range(clock))


def try_job(job: Job, folder: Path, kills: int, clock: int, rng: random.Random) -> Tally:
    """Every trial of one job."""
    tally = Tally()
    undisturbed = Trial(job, folder / "undisturbed")
    code, seconds = undisturbed.run()
    if code:
        tally.problems.append(f"the undisturbed run ended with {code}:\n{undisturbed.said()}")
        return tally
    expected, labels = undisturbed.files(), json.loads(undisturbed.log.read_text())
    tally.points = len(labels)
    for number, death in enumerate(deaths(len(labels), kills, clock, seconds, rng)):
        trial = Trial(job, folder / f"killed-{number}")
        where = labels[death["fatal"]] if "fatal" in death else "the clock"
        code, _ = trial.run(**death)
        tally.kills += code == -signal.SIGKILL
        tally.where[where] += code == -signal.SIGKILL
        problems = [f"half written: {name}" for name in trial.torn()]
        if number % 4 == 3:  # and once more, soon after it has gone on
            trial.run(fatal=rng.randrange(1 + len(labels) // 4))
            problems += [f"half written: {name}" for name in trial.torn()]
        code, _ = trial.run()
        found = trial.files()
        different = sorted(
            n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)
        )
        if code:
            problems.append(f"the resumed run ended with {code}:\n{trial.said()}")
        elif different:
            problems.append(f"other than undisturbed: {', '.join(different)}")
        tally.identical += not problems
        tally.problems += [f"killed at {death} ({where}): {text}" for text in problems]
        if not problems:
            shutil.rmtree(trial.folder, ignore_errors=True)
    return tally


def tones(root: Path) -> None:
    """A folder of noisy tones, in train and test."""
    rng = np.random.default_rng(0)
    for side, n in (("train", 6), ("test", 4)):
        for k, label in enumerate(("high", "low")):
            for i in range(n):
                t = np.arange(2400 + 400 * i) / 8000
                wave = 0.3 * np.sin(2 * np.pi * (2000, 300)[k] * t)
                path = root / side / label / f"{i}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave + 0.02 * rng.standard_normal(len(t)), 8000)


def prepare(folder: Path, wanted: list[str]) -> dict[str, Job]:
    """Audio, configs, a teacher and students; the jobs on them."""
    tones(folder / "sounds")
    teacher, student = folder / "tones-teacher.yaml", folder / "tiny.yaml"
    teacher.write_text(TEACHER.replace("SOUNDS", str(folder / "sounds")))
    student.write_text(STUDENT)
    heard = str(folder / "teacher" / "teacher.safetensors")
    made = str(folder / "student" / "student.safetensors")
    bank = str(folder / "student" / "bank")
    train = Job("train-teacher", ["train-teacher", str(teacher), *CPU])
    invert = Job("invert", ["invert", str(student), "--teacher", heard, *CPU])
    distill = Job("distill", ["distill", str(student), "--teacher", heard, *CPU])
    controls = "white_noise,inversion,scratch"
    evaluate = Job(
        "evaluate --controls",
        ["evaluate", made, "--teacher", heard, "--data", f"folder:{folder / 'sounds'}",
         "--controls", controls, "--bank", bank, *CPU],
    )  # fmt: skip
    export = Job(
        "export --int8 --qat",
        [
            "export",
            str(folder / "settled" / "student.safetensors"),
            "--int8",
            "--qat",
            "60",
            "--bank",
            str(folder / "settled" / "bank"),
            "--samples",
            "32",
        ],
        resumes=False,
        loose=(*UNTIMED, *REPORTS),
    )
    # Calibration refuses a student whose BatchNorm is far from its bank, as after a few steps.
    longer = ["--set", "distill.steps=200", "--set", "distill.checkpoint_steps=200"]
    settled = Job("distill", [*distill.words, *longer])
    for job, name in ((train, "teacher"), (distill, "student"), (settled, "settled")):
        if name == "settled" and "export" not in wanted:
            continue
        trial = Trial(job, folder / name)
        if trial.run()[0]:
            raise SystemExit(f"{job.name} failed:\n{trial.said()}")
    return {job.name.split()[0]: job for job in (train, invert, distill, evaluate, export)}


def main() -> int:
    """Print the table; 1 where a trial was not identical."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = ("train-teacher", "invert", "distill", "evaluate", "export")
    parser.add_argument("--jobs", default=",".join(known), help=f"of {', '.join(known)}")
    parser.add_argument("--kills", type=int, default=20, help="of each job")
    parser.add_argument("--clock", type=int, default=-1, help="of these, by the clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="leave the folders of what failed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    clock = args.kills // 4 if args.clock < 0 else args.clock
    folder = Path(tempfile.mkdtemp(prefix="frami-kill-"))
    os.environ["FRAMI_EDGE_CACHE"] = str(folder / "cache")
    os.environ.pop("FRAMI_EDGE_DATA", None)
    for module in PRELOADED:
        importlib.import_module(module)
    found: dict[str, Tally] = {}
    try:
        jobs = prepare(folder, args.jobs.split(","))
        for name in args.jobs.split(","):
            rng = random.Random(f"{args.seed}/{name}")
            (folder / name).mkdir()
            found[jobs[name].name] = try_job(jobs[name], folder / name, args.kills, clock, rng)
    finally:
        if args.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        print(json.dumps({name: vars(tally) for name, tally in found.items()}))
    else:
        print(f"{'job':<22}{'points':>8}{'killed':>8}{'identical':>11}  where")
        for name, t in found.items():
            where = ", ".join(f"{label} {n}" for label, n in t.where.most_common())
            print(f"{name:<22}{t.points:>8}{t.kills:>8}{t.identical:>11}  {where}")
            for problem in t.problems:
                print(f"  {problem}")
    return 0 if all(t.identical == args.kills and not t.problems for t in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
