"""Ten thousand damaged files and odd calls: no traceback, hang, half-written or wrong answer.

    python benchmarks/fuzz.py --cases 10000 --seed 0
    python benchmarks/fuzz.py --cases 200 --kind bank --kind card
    python benchmarks/fuzz.py --kind card --repeat 17 --seed 0

Each case has a folder of its own, and everything outside of it is watched. Cases run in worker
processes with a limit of time and memory: a crash or hang is that of one case, and the rest goes
on. Kinds of `fuzz_runtime.py` are among them. A case is made again from its kind, number and seed.
The table is Markdown on stdout; the exit code is 3 where anything but an answer or an explained
refusal came.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

OUTCOMES: Final = ("accepted", "refused", "wrong", "traceback", "hang", "crash")
FAILURES: Final = OUTCOMES[2:]
MEMORY_MIB: Final = 1500
"""More than a worker held after its start; beyond it memory is refused, which is a failure."""
SHARES: Final = {
    "wav": 9, "flac": 9, "ogg-mp3": 6, "archive": 6, "checkpoint": 6, "card": 6, "safetensors": 6,
    "torch-file": 6, "state-file": 6, "config": 4, "description": 6, "labels": 5, "bank": 3,
    "run-folder": 3, "export-folder": 3, "engine-command": 3, "dataset": 1, "metadata": 1,
    "onnx-command": 2, "class-names": 1, "arguments": 2,
}  # fmt: skip
"""Trainer's kinds and how often each comes, by what a case costs."""
RUNTIME_SHARE: Final = 3
"""Of each kind of `fuzz_runtime`."""


def runtime_kinds() -> list[str]:
    """Kinds that `fuzz_runtime` knows, as ``runtime-NAME``."""
    return [f"runtime-{name}" for name in importlib.import_module("fuzz_runtime").ALL]


def functions() -> dict[str, Any]:
    """Kind to case of the trainer's kinds."""
    found: dict[str, Any] = {}
    for module, table in (("sounds", "SOUNDS"), ("weights", "WEIGHTS"), ("texts", "TEXTS"),
                          ("folders", "FOLDERS"), ("models", "MODELS"),
                          ("commands", "COMMANDS")):  # fmt: skip
        found |= getattr(importlib.import_module(f"fuzzing.{module}"), table)
    return found


def run_case(kind: str, number: int, seed: int, sandbox: Any) -> tuple[str, str]:
    """One case: its outcome, and what was said."""
    import numpy as np
    from fuzz_material import WrongAnswerError

    from frami_edge_runtime.errors import AudioError, FramiEdgeError

    rng = np.random.default_rng([seed, number, zlib.crc32(kind.encode())])
    case = sandbox.open(f"{kind}-{number}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, said = "accepted", ""
            try:
                functions()[kind](rng, case)
            except FramiEdgeError as error:
                outcome, said = "refused", error.message
                if not error.message or not (error.fix or isinstance(error, AudioError)):
                    outcome = "wrong"
                    said = f"a refusal without reason or fix: {said}"
            sandbox.check(case)
        return outcome, said
    except WrongAnswerError as error:
        return "wrong", str(error)
    except OSError as error:
        from frami_edge.cli._errors import explain

        known = explain(error)  # the program's own table
        if error.errno is None or not known.fix:
            return "traceback", traceback.format_exc()
        return "refused", known.message
    except MemoryError:
        return "wrong", "memory was taken before numbers were checked\n" + traceback.format_exc()
    except (Exception, SystemExit):
        return "traceback", traceback.format_exc()
    finally:
        sandbox.last = case


def plan(kinds: list[str], cases: int) -> list[tuple[str, int]]:
    """Every case of the trainer's kinds, by kind and number; the same in worker and supervisor."""
    weight = {kind: SHARES.get(kind, RUNTIME_SHARE) for kind in kinds}
    return [
        (kind, number)
        for kind in kinds
        if kind in SHARES
        for number in range(-(-cases * weight[kind] // sum(weight.values())))
    ]


def work(args: argparse.Namespace) -> int:
    """The worker: one line before and one after each case of the plan."""
    from fuzzing.case import Sandbox
    from fuzzing.material import Material

    os.environ["PYTHONPATH"] = str(args.material)
    sys.path.append(str(args.material))
    sandbox = Sandbox(Path(args.sandbox), Material(args.material))
    functions()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    limit = (_virtual_mib() + MEMORY_MIB) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for at, (kind, number) in list(enumerate(plan(args.kind, args.cases)))[args.start : args.end]:
        before = _peak_mib()
        print(json.dumps({"begin": at}), file=out)
        outcome, said = run_case(kind, number, args.seed, sandbox)
        grown = _peak_mib() - before
        if outcome not in FAILURES:
            sandbox.close(sandbox.last)
        row = {"end": at, "outcome": outcome, "said": said[-3000:], "grown_mib": grown}
        print(json.dumps(row), file=out)
    os._exit(0)  # libraries with threads of their own may not come to an end


def run_own(args: argparse.Namespace, kinds: list[str], material: Path) -> list[dict[str, Any]]:
    """The trainer's kinds, in as many workers as it takes; one row a kind."""
    jobs = plan(kinds, args.cases)
    rows = {kind: new_row(kind) for kind, _ in jobs}
    at = 0
    while at < len(jobs):
        at = _run_chunk(jobs, at, args, kinds, material, rows)
    return list(rows.values())


def new_row(kind: str) -> dict[str, Any]:
    """Nothing yet."""
    row = {"kind": kind, "cases": 0, **dict.fromkeys(OUTCOMES, 0), "offenders": []}
    return row | {"grown_mib": 0.0, "slowest_s": 0.0, "seconds": 0.0}


def _run_chunk(
    jobs: list[tuple[str, int]], start: int, args: argparse.Namespace, kinds: list[str],
    material: Path, rows: dict[str, dict[str, Any]],
) -> int:  # fmt: skip
    """Cases from ``start`` on until a chunk is done or one failed; the next place in the plan."""
    end = min(start + args.chunk, len(jobs))
    folder = Path(tempfile.mkdtemp(prefix=f"cases-{start}-", dir=args.keep))
    command = [sys.executable, __file__, "--worker", "--start", str(start), "--end", str(end)]
    command += ["--cases", str(args.cases), "--seed", str(args.seed), "--sandbox", str(folder)]
    command += ["--material", str(material), *(w for kind in kinds for w in ("--kind", kind))]
    current, failed, begun = start, False, time.monotonic()
    limit = args.timeout + 120  # for the start-up
    with (args.keep / "stderr").open("ab") as err:
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        assert worker.stdout is not None
        while not failed:
            left = limit - (time.monotonic() - begun)
            if left <= 0 or not select.select([worker.stdout], [], [], left)[0]:
                worker.kill()
                _count(rows, jobs[current], "hang", f"longer than {limit:.0f} s", 0, limit)
                current, failed = current + 1, True
                break
            line = worker.stdout.readline()
            if not line:
                break
            said = json.loads(line)
            if "begin" in said:
                current, limit, begun = int(said["begin"]), args.timeout, time.monotonic()
                if jobs[current][1] == 0:
                    print(f"{current} of {len(jobs)}: {jobs[current][0]}", file=sys.stderr)
                continue
            took = time.monotonic() - begun
            _count(rows, jobs[current], said["outcome"], said["said"], said["grown_mib"], took)
            if args.verbose or said["outcome"] in FAILURES:
                print(*jobs[current], said["outcome"], said["said"][-200:], file=sys.stderr)
            current += 1
        code = worker.wait()
    if limit > args.timeout and not failed:
        raise SystemExit(f"a worker did not start: see {args.keep / 'stderr'}")
    if not failed and current < end:
        _count(rows, jobs[current], "crash", f"exit {code}", 0, 0)
        current, failed = current + 1, True
    if (not failed and not (folder / "cases").is_dir()) or not any((folder / "cases").iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
    return current


def run_runtime(kind: str, cases: int, args: argparse.Namespace) -> dict[str, Any]:
    """A kind of `fuzz_runtime`, by its own workers."""
    runtime = importlib.import_module("fuzz_runtime")
    options = SimpleNamespace(
        cases=cases, chunk=200, seed=args.seed, timeout=args.timeout, model=[], verbose=args.verbose
    )
    began = time.monotonic()
    row: dict[str, Any] = runtime.run_kind(kind.removeprefix("runtime-"), options, args.keep)
    return {**row, "kind": kind, "seconds": time.monotonic() - began, "slowest_s": None}


def _count(
    rows: dict[str, dict[str, Any]], job: tuple[str, int], outcome: str, said: str, grown: float,
    took: float,
) -> None:  # fmt: skip
    row = rows[job[0]]
    row["cases"] += 1
    row[outcome] += 1
    row["grown_mib"] = max(row["grown_mib"], grown)
    row["slowest_s"] = max(row["slowest_s"], took)
    row["seconds"] += took
    if outcome in FAILURES:
        row["offenders"].append({"case": job[1], "outcome": outcome, "said": said})


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _virtual_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize() >> 20


def table(rows: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    heads = ["kind", "cases", *OUTCOMES, "most MiB", "slowest s", "s"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    total: dict[str, Any] = {"kind": "**all**", "grown_mib": 0.0, "slowest_s": None, "seconds": 0.0}
    total |= {key: sum(row[key] for row in rows) for key in ("cases", *OUTCOMES, "seconds")}
    total["grown_mib"] = max((row["grown_mib"] for row in rows), default=0.0)
    for row in [*rows, total]:
        slowest = "" if row["slowest_s"] is None else f"{row['slowest_s']:.1f}"
        cells = [row["kind"], *(f"{row[key]}" for key in ("cases", *OUTCOMES))]
        cells += [f"{row['grown_mib']:.0f}", slowest, f"{row['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parser(kinds: list[str]) -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = top.add_argument
    add("--cases", type=int, default=2000, help="in all, shared out over the kinds")
    add("--seed", type=int, default=0)
    add("--kind", action="append", choices=kinds, help="this kind; repeatable")
    add("--timeout", type=float, default=60.0, help="seconds for one case")
    add("--chunk", type=int, default=2000, help="cases in one worker")
    add("--keep", type=Path, help="folder for what failed cases used")
    add("--repeat", type=int, help="run this one case of --kind here, and show what it says")
    add("--report", type=Path, help="also write the table to this file")
    add("--verbose", action="store_true", help="a line for every case")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    add("--start", type=int, default=0, help=argparse.SUPPRESS)
    add("--end", type=int, default=0, help=argparse.SUPPRESS)
    add("--sandbox", help=argparse.SUPPRESS)
    add("--material", type=Path, help=argparse.SUPPRESS)
    return top


def make_material(folder: Path) -> Path:
    """Intact material, made by a process of its own."""
    code = "import sys; from pathlib import Path; from fuzzing.material import Material; "
    code += "Material.make(Path(sys.argv[1]))"
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": here, "FRAMI_EDGE_CACHE": str(folder / "cache")}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return folder


def main() -> int:
    """Run the cases, print the table; 3 where a bar is missed."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    if "--worker" in sys.argv:
        return work(parser([*SHARES, *runtime_kinds()]).parse_args())
    args = parser([*SHARES, *runtime_kinds()]).parse_args()
    os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp(prefix="fuzz-matplotlib-"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.keep = (args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    args.keep.mkdir(parents=True, exist_ok=True)
    kinds = args.kind or [*SHARES, *runtime_kinds()]
    material = args.keep / "material"
    if not (material / "foreign.yaml").exists() and any(kind in SHARES for kind in kinds):
        make_material(material)
    if args.repeat is not None:
        return _repeat(kinds[0], args, material)
    weight = {kind: SHARES.get(kind, RUNTIME_SHARE) for kind in kinds}
    rows = run_own(args, kinds, material)
    for kind in kinds:
        if kind not in SHARES:
            rows.append(
                run_runtime(kind, -(-args.cases * weight[kind] // sum(weight.values())), args)
            )
            print(kind, file=sys.stderr, flush=True)
    text = table(rows)
    print(text)
    if args.report:
        args.report.write_text(text + "\n")
    failed = [(row["kind"], offender) for row in rows for offender in row["offenders"]]
    (args.keep / "failed.json").write_text(json.dumps(failed, indent=1))
    for kind, offender in failed:
        said = offender["said"].strip().splitlines() or [""]
        print(f"FAIL {kind} {offender['case']} {offender['outcome']}: {said[-1][:200]}",
              file=sys.stderr)  # fmt: skip
    print(f"{len(failed)} failed; {args.keep} holds what they used.", file=sys.stderr)
    return 3 if failed else 0


def _repeat(kind: str, args: argparse.Namespace, material: Path) -> int:
    if kind not in SHARES:
        print("Repeat it with fuzz_runtime.py --only NAME --repeat N.", file=sys.stderr)
        return 2
    from fuzzing.case import Sandbox
    from fuzzing.material import Material

    sys.path.append(str(material))
    sandbox = Sandbox(Path(tempfile.mkdtemp(dir=args.keep)), Material(material))
    print(*run_case(kind, args.repeat, args.seed, sandbox))
    return 0


if __name__ == "__main__":
    sys.exit(main())
