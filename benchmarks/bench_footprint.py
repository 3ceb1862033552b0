"""What the runtime costs a device: a fresh environment, its size, start, memory and imports.

A virtual environment is made in a temporary folder and only ``runtime/`` is installed into it, from
an index of Python packages. Then a fresh process imports, loads a model and classifies 1 s, several
times: start to first result is wall time from before Python starts to after the answer. MB are of
2**20 bytes, for disk and memory alike.

Without --model a student with random weights is exported by this environment (needs torch).

Run: python benchmarks/bench_footprint.py [--model FILE.onnx] [--runs 7] [--strict] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bars import Bar, judge

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"
MOST_INSTALL_MB = 160.0
MOST_START_S = 0.35
MOST_PEAK_MB = 75.0
UNWANTED = ("torch", "torchaudio", "scipy", "pydantic", "typer", "frami_edge", "frami_edge_export")
NO_PART = (
    "pip",
    "setuptools",
    "pkg_resources",
    "wheel",
    "_distutils_hack",
    "distutils-precedence.pth",
)
"""Of site-packages: what a virtual environment brings itself."""

CHILD = """
import sys
import numpy as np
from frami_edge_runtime import Classifier

classifier = Classifier(sys.argv[1], backend="cpu")
rate = classifier.info.mel.sample_rate
tone = (0.1 * np.sin(2 * np.pi * 440 / rate * np.arange(rate))).astype(np.float32)
result = classifier.classify(tone, rate)

import json, os, resource, time

done, cpu = time.time(), time.process_time()
peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if os.path.exists("/proc/self/status"):  # without what the parent process held before exec
    with open("/proc/self/status") as status:
        peak_kb = int(dict(line.split(":", 1) for line in status)["VmHWM"].split()[0])
print(json.dumps({
    "done": done,
    "cpu_s": cpu,
    "peak_mb": peak_kb / 1024,
    "label": result.label,
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="file of export")
    parser.add_argument("--python", default=sys.executable, help="what makes the environment")
    parser.add_argument("--runs", type=int, default=7, help="fresh processes; medians are reported")
    parser.add_argument("--strict", action="store_true", help="exit with 3 where a bar is missed")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="footprint-") as folder:
        python = install(Path(folder) / "env", options.python)
        if python is None:
            return 1
        model = options.model or random_model(Path(folder))
        found = measure(python, model.resolve(), max(1, options.runs))
        found["install_mb"], found["packages_mb"] = installed(python)
    show(found)
    bars = [
        Bar("install", found["install_mb"], MOST_INSTALL_MB, " MB", at_most=True),
        Bar("start to first result", found["start_s"], MOST_START_S, " s", at_most=True),
        Bar("peak memory", found["peak_mb"], MOST_PEAK_MB, " MB", at_most=True),
        Bar("unwanted imports", len(found["unwanted"]), 0, at_most=True),
    ]
    if options.json:
        report = {**found, "bars": [bar.to_dict() for bar in bars]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return judge(bars, strict=options.strict)


def install(folder: Path, maker: str) -> Path | None:
    """Make the environment; None, said on stderr, where that cannot be done."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    print(f"Installing {RUNTIME.name}/ into a fresh environment ...", file=sys.stderr)
    for command in (
        [maker, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", str(RUNTIME)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=clean(), check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
            print(
                "The environment cannot be made; it needs Python's venv and an index of packages:\n"
                + "\n".join(last),
                file=sys.stderr,
            )
            return None
    return python


def clean() -> dict[str, str]:
    """This process's environment without what would let another's packages in."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def random_model(folder: Path) -> Path:
    # Imported here: it brings torch, and is not needed where a model is given.
    from bench_stream import random_student

    return random_student(folder)[0]


def measure(python: Path, model: Path, runs: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for _ in range(runs + 1):
        begun = time.time()
        done = subprocess.run(
            [str(python), "-c", CHILD, str(model)],
            capture_output=True,
            text=True,
            env=clean(),
            cwd=python.parent,
        )
        if done.returncode:
            raise SystemExit(f"The first result never came:\n{done.stderr.strip()}")
        found.append(json.loads(done.stdout))
        found[-1]["start_s"] = found[-1]["done"] - begun
    found = found[1:]  # the first fills the caches of the file system
    modules = {name for run in found for name in run["modules"]}
    return {
        "model": model.name,
        "runs": runs,
        "start_s": median(run["start_s"] for run in found),
        "least_start_s": min(run["start_s"] for run in found),
        "cpu_s": median(run["cpu_s"] for run in found),
        "peak_mb": median(run["peak_mb"] for run in found),
        "unwanted": sorted(modules & set(UNWANTED)),
    }


def installed(python: Path) -> tuple[float, dict[str, float]]:
    """MB on disk of what was installed, in all and by package, as ``du -m`` counts."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    sizes: dict[str, float] = {}
    for entry in sorted(Path(answer.stdout.strip()).iterdir()):
        if entry.name.partition("-")[0] not in NO_PART and entry.name not in NO_PART:
            files = entry.rglob("*") if entry.is_dir() else [entry]
            sizes[entry.name] = sum(f.stat().st_blocks * 512 for f in files) / 2**20
    return sum(sizes.values()), sizes


def show(found: dict[str, Any]) -> None:
    largest = sorted(found["packages_mb"].items(), key=lambda item: -item[1])[:5]
    print(f"installed: {found['install_mb']:.1f} MB; largest:")
    for name, size in largest:
        print(f"  {size:7.1f}  {name}")
    print(
        f"start to first result of {found['model']}: {found['start_s']:.3f} s, median of "
        f"{found['runs']} (best {found['least_start_s']:.3f} s, CPU {found['cpu_s']:.3f} s); "
        f"peak {found['peak_mb']:.1f} MB"
    )
    print(f"unwanted modules imported: {', '.join(found['unwanted']) or 'none'}")


if __name__ == "__main__":
    raise SystemExit(main())
