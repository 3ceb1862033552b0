"""Jobs that are killed and resumed, and how their results are compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frami_edge.states import load_state
from killing.points import finish, start

ENDS = (".safetensors", ".json", ".png", ".onnx", ".pt", ".md", ".yaml")
TIMED_ROWS = (b"| seconds", b"| started", b"| commit")
"""Of a model card; the checkout may get another commit while the script runs."""
UNTIMED = ("manifest.json", ".lock")


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
