"""What a second process gives on this machine: synthesis and distillation, one process against two.

Both runs compute on as many cores as they have processes (one thread each), so that the ratio says
what sharing out by rows costs. Rounds alternate; the table shows medians.

    python benchmarks/two_processes.py CONFIG --teacher t.safetensors --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def seconds(processes: int, arguments: argparse.Namespace, out: Path) -> dict[str, float]:
    """Seconds of each phase, from the manifest: the start of the processes is not in it."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m"]
    command += ["frami_edge", "distill", arguments.config, "--teacher", arguments.teacher]
    command += ["--out", str(out), "--device", "cpu", "--json", "--quiet"]
    command += ["--precision", arguments.precision]
    for change in arguments.set:
        command += ["--set", change]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    found: dict[str, float] = json.loads((out / "manifest.json").read_text())["seconds"]
    return {phase: found[phase] for phase in ("invert", "distill")}


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    found: dict[int, list[dict[str, float]]] = {1: [], arguments.processes: []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.rounds):
            for n, rows in found.items():
                rows.append(seconds(n, arguments, Path(folder) / f"{i}-{n}"))
    print(f"{'phase':10} {'1 process':>10} {arguments.processes:>3} processes {'ratio':>7}")
    for phase in ("invert", "distill"):
        one, more = (statistics.median(r[phase] for r in rows) for rows in found.values())
        print(f"{phase:10} {one:8.2f} s {more:11.2f} s {one / more:7.2f}")


if __name__ == "__main__":
    main()
