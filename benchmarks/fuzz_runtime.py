"""Thousands of damaged files and odd calls: no traceback, hang, crash or silent wrong answer.

    python benchmarks/fuzz_runtime.py --cases 4000 --seed 0
    python benchmarks/fuzz_runtime.py --model student.int8.cpu.onnx --model student.fp32.onnx
    python benchmarks/fuzz_runtime.py --only wav --repeat 17

Cases run in worker processes, so that a crash or hang is that of one case; what it used is kept
under ``--keep``. A case is made again from its kind, number and seed. Without ``--model`` the tiny
models of the tests are damaged. The exit code is 3 where anything but an answer or a documented
error came.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from fuzz_calls import CALLS
from fuzz_files import FILES
from fuzz_material import Material, WrongAnswerError
from fuzz_models import MODELS

from frami_edge_runtime import FramiEdgeError

ALL: Final = {**MODELS, **FILES, **CALLS}
OUTCOMES: Final = ("accepted", "refused", "wrong", "traceback", "hang", "crash")
FAILURES: Final = OUTCOMES[2:]
MOST_GROWTH_MIB: Final = 250
"""Of a worker over what it took to start: the largest front end that is read takes 170."""
CONFTEST: Final = Path(__file__).parents[1] / "tests" / "runtime" / "conftest.py"


def run_case(kind: str, number: int, seed: int, material: Material) -> tuple[str, str]:
    """One case: its outcome, and what was said."""
    rng = np.random.default_rng([seed, number, zlib.crc32(kind.encode())])
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            ALL[kind](rng, material)
        said = {str(w.message) for w in warned if w.category is RuntimeWarning}
        return "accepted", f"warned: {sorted(said)}" if said else ""
    except FramiEdgeError as error:
        if not error.message:
            return "wrong", "a refusal without a reason"
        return "refused", error.message
    except WrongAnswerError as error:
        return "wrong", str(error)
    except Exception:
        return "traceback", traceback.format_exc()


def load_models(paths: list[Path]) -> list[bytes]:
    """The model files, or two tiny ones of the tests."""
    if paths:
        return [path.read_bytes() for path in paths]
    spec = importlib.util.spec_from_file_location("tiny_models", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    tiny: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tiny  # dataclasses look their module up
    spec.loader.exec_module(tiny)
    models = [tiny.build(), tiny.build(channels=7, stride=3, seed=1, labels=("a", "b", "c"))]
    return [model.data for model in models] + [tiny._quantised(models[0])]


def work(args: argparse.Namespace) -> int:
    """The worker: one line before and one after each case."""
    material = Material(load_models(args.model), Path(args.keep))
    kind, first, last = args.only[0], args.start, args.cases
    baseline = _peak_mib()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print must not disturb the lines
    for number in range(first, last):
        print(json.dumps({"begin": number}), file=out)
        outcome, said = run_case(kind, number, args.seed, material)
        grown = _peak_mib() - baseline
        row = {"end": number, "outcome": outcome, "said": said[-3000:], "grown_mib": grown}
        print(json.dumps(row), file=out)
    return 0


def run_kind(kind: str, args: argparse.Namespace, keep: Path) -> dict[str, Any]:
    """All cases of one kind, in as many workers as it takes."""
    row: dict[str, Any] = {"kind": kind, "cases": 0, **dict.fromkeys(OUTCOMES, 0)}
    row.update(grown_mib=0.0, warned=0, offenders=[])
    number = 0
    while number < args.cases:
        number = _run_chunk(kind, number, args, keep, row)
    row["cases"] = sum(row[outcome] for outcome in OUTCOMES)
    return row


def _run_chunk(
    kind: str, start: int, args: argparse.Namespace, keep: Path, row: dict[str, Any]
) -> int:
    """Cases from ``start`` on, until a chunk is done or one has ended the worker; the next one."""
    end: int = min(start + args.chunk, args.cases)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", "--only", kind, "--start", str(start)]
        command += ["--cases", str(end), "--seed", str(args.seed), "--keep", folder]
        for path in args.model:
            command += ["--model", str(path)]
        errors = keep / f"{kind}.stderr"
        with (
            errors.open("ab") as err,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=err, text=True, cwd=folder
            ) as worker,
        ):
            assert worker.stdout is not None
            current, limit = start, args.timeout + 60  # for the start-up
            while True:
                if not select.select([worker.stdout], [], [], limit)[0]:
                    worker.kill()
                    _count(row, kind, current, "hang", "", Path(folder), keep)
                    return current + 1
                line = worker.stdout.readline()
                if not line:
                    break
                said = json.loads(line)
                if "begin" in said:
                    current, limit = int(said["begin"]), args.timeout
                    continue
                row["grown_mib"] = max(row["grown_mib"], said["grown_mib"])
                row["warned"] += said["outcome"] == "accepted" and bool(said["said"])
                where = Path(folder)
                _count(row, kind, current, said["outcome"], said["said"], where, keep)
                if args.verbose:
                    print(kind, current, said["outcome"], said["said"][:150], file=sys.stderr)
                current += 1
            code = worker.wait()
        if current < end:
            _count(row, kind, current, "crash", f"exit {code}", Path(folder), keep)
            return current + 1
    return end


def _count(
    row: dict[str, Any], kind: str, number: int, outcome: str, said: str, used: Path, keep: Path
) -> None:
    row[outcome] += 1
    if outcome in FAILURES:
        row["offenders"].append({"case": number, "outcome": outcome, "said": said})
        target = keep / f"{kind}-{number}"
        target.mkdir(exist_ok=True)
        for path in used.glob("case.*"):
            shutil.copy(path, target / path.name)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def failures_of(rows: list[dict[str, Any]]) -> list[str]:
    """What missed its bar, in words."""
    missed = [
        f"{row['kind']}: {row[outcome]} {outcome}"
        for row in rows
        for outcome in FAILURES
        if row[outcome]
    ]
    return missed + [
        f"{row['kind']}: a worker grew by {row['grown_mib']:.0f} MiB, at most {MOST_GROWTH_MIB}"
        for row in rows
        if row["grown_mib"] > MOST_GROWTH_MIB
    ]


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = top.add_argument
    add("--cases", type=int, default=2000, help="in all, spread evenly over the kinds")
    add("--seed", type=int, default=0)
    add("--only", action="append", choices=sorted(ALL), help="this kind; repeatable")
    add("--model", type=Path, action="append", default=[], help="damage this one; repeatable")
    add("--timeout", type=float, default=30.0, help="seconds for one case")
    add("--chunk", type=int, default=200, help="cases in one worker")
    add("--keep", default="", help="folder for the files of failed cases")
    add("--repeat", type=int, help="run this one case of --only here, and show what it says")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--verbose", action="store_true", help="a line for every case")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    add("--start", type=int, default=0, help=argparse.SUPPRESS)
    return top


def main() -> int:
    """Run the cases, print the table; 3 where a bar is missed."""
    args = parser().parse_args()
    if args.worker:
        return work(args)
    args.model = [path.resolve() for path in args.model]
    keep = Path(args.keep or tempfile.mkdtemp(prefix="fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    kinds = args.only or list(ALL)
    if args.repeat is not None:
        material = Material(load_models(args.model), keep)
        print(*run_case(kinds[0], args.repeat, args.seed, material))
        return 0
    args.cases = -(-args.cases // len(kinds))
    rows = []
    heads = ("cases", *OUTCOMES, "grown_mib", "warned")
    print(f"{'kind':14}" + "".join(f"{head:>10}" for head in heads), file=sys.stderr)
    for kind in kinds:
        row = run_kind(kind, args, keep.resolve())
        rows.append(row)
        line = "".join(f"{row[head]:>10.0f}" for head in heads)
        print(f"{kind:14}{line}", file=sys.stderr, flush=True)
    missed = failures_of(rows)
    for line in missed:
        print(f"MISS  {line}", file=sys.stderr)
    if missed:
        print(f"What they used is under {keep}.", file=sys.stderr)
    total = sum(row["cases"] for row in rows)
    print(f"{total} cases, {len(missed)} bars missed.", file=sys.stderr)
    if args.json:
        print(json.dumps({"seed": args.seed, "cases": total, "rows": rows, "missed": missed}))
    return 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
