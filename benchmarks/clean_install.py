"""The built wheels in fresh environments of every Python found, and what they do there.

`runtime` installs frami-edge-runtime alone and streams an exported model (Python 3.10 and newer);
`device` adds frami-edge-export without torch, as where TensorRT engines are built; `all` installs
the three and runs `frami-edge quickstart` in an empty folder, shortened (Python 3.11 and newer).
Versions are those that the index gives today: the ranges in the wheels are what is tried, not
constraints.txt. Seconds include downloads where uv's cache has no copy.

Run: python benchmarks/clean_install.py dist [--only 3.10=runtime --only 3.13=all] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

WHEELS: Final = {
    "runtime": ("frami_edge_runtime",),
    "device": ("frami_edge_runtime", "frami_edge_export"),
    "all": ("frami_edge_runtime", "frami_edge_export", "frami_edge"),
}
DEFAULT: Final = ("3.10=runtime", "3.10=device", "3.11=all", "3.12=runtime", "3.13=all")
SHORT: Final = (
    "bank.procedural_clips=400", "bank.control_clips=100", "distill.steps=200",
    "bank.inversion={steps: 20, burn_in: 5}", "bank.translator={steps: 20, burn_in: 5}",
)  # fmt: skip
HERE: Final = Path(__file__).resolve().parent
STREAM: Final = """
import sys, wave
import numpy as np
from frami_edge_runtime import Classifier
clf = Classifier(sys.argv[1])
rate = clf.info.mel.sample_rate
samples = (np.random.default_rng(0).normal(0, 0.1, 3 * rate) * 32767).astype(np.int16)
stream = clf.stream()
for start in range(0, len(samples), rate // 10):
    stream.push(samples[start : start + rate // 10])
assert np.array_equal(stream.flush().logits, clf.classify(samples).logits), "stream and clip differ"
assert not {"torch", "onnx", "scipy", "frami_edge"} & set(sys.modules)
with wave.open("noise.wav", "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
    file.writeframes(samples.tobytes())
"""


class StepError(Exception):
    """A step that did not end with 0; its last words."""


@dataclass
class Row:
    """One environment."""

    python: str
    what: str
    install_s: float = 0.0
    mib: float = 0.0
    run_s: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    failed: str = ""


def find_python(version: str) -> Path | None:
    """An interpreter that starts, of pyenv or the search path; None where there is none."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [str(path) for path in sorted(home.glob(f"versions/{version}.*/bin/python"))]
    for candidate in (*found, shutil.which(f"python{version}")):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return Path(candidate)
    return None


def find_uv() -> str:
    """The uv of the search path, or that which `make setup` brought."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not uv:
        raise SystemExit("This needs uv: make setup brings it, then run .venv/bin/python.")
    return uv


def step(folder: Path, *command: object) -> str:
    """Run in a folder that holds no checkout, without paths of this one; stdout."""
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    run = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**kept, "PYTHONNOUSERSITE": "1"},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        words = (run.stderr.strip() or run.stdout.strip()).splitlines()[-6:]
        raise StepError(f"{Path(str(command[0])).name} {command[1]}: {' | '.join(words)}")
    return run.stdout


def use(what: str, bin_folder: Path, model: Path, empty: Path) -> None:
    """What someone would do first with what was installed."""
    python = bin_folder / "python"
    step(empty, python, "-c", STREAM, model)
    step(empty, bin_folder / "frami-edge-listen", model, "noise.wav")
    if what == "device":
        step(empty, python, "-m", "frami_edge_export.tensorrt", "--help")
    if what == "all":
        step(empty, bin_folder / "frami-edge", "--help")
        step(empty, bin_folder / "frami-edge", "doctor", "--json")
        changes = [part for change in SHORT for part in ("--set", change)]
        step(empty, bin_folder / "frami-edge", "quickstart", "--out", "run", "--json", *changes)


def try_out(python: Path, row: Row, wheels: Path, model: Path) -> None:
    """Fill the row; what fails is noted in it."""
    uv = find_uv()
    files = [next(wheels.glob(f"{name}-*.whl")) for name in WHEELS[row.what]]
    with tempfile.TemporaryDirectory() as name:
        folder, bin_folder = Path(name), Path(name) / "env/bin"
        (empty := folder / "empty").mkdir()
        try:
            start = time.perf_counter()
            step(folder, uv, "venv", "--quiet", "--python", python, "env")
            step(folder, uv, "pip", "install", "--python", bin_folder / "python", *files)
            row.install_s = time.perf_counter() - start
            row.mib = sum(f.lstat().st_size for f in (folder / "env").rglob("*")) / 2**20
            listed = step(
                folder, uv, "pip", "list", "--format=json", "--python", bin_folder / "python"
            )
            row.versions = {package["name"]: package["version"] for package in json.loads(listed)}
            start = time.perf_counter()
            use(row.what, bin_folder, model, empty)
            row.run_s = time.perf_counter() - start
        except StepError as failed:
            row.failed = str(failed)


def parse() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder of `make dist`")
    parser.add_argument("--only", action="append", help="PYTHON=runtime, =device or =all")
    parser.add_argument("--model", type=Path, help="an exported .onnx; else a random one is made")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    return parser.parse_args()


def main() -> int:
    """1 where an environment failed or no Python was found."""
    arguments = parse()
    sys.path.insert(0, str(HERE))
    from bench_stream import models

    rows = []
    with models([arguments.model] if arguments.model else []) as made:
        print("| Python | installed | packages | install s | MiB | run s | result |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for version, _, what in (text.partition("=") for text in arguments.only or DEFAULT):
            python = find_python(version)
            if python is None:
                print(f"| {version} | {what} | | | | | no such Python here: skipped |")
                continue
            row = Row(version, what)
            try_out(python, row, arguments.wheels.resolve(), made[0].resolve())
            rows.append(row)
            print(
                f"| {version} | {what} | {len(row.versions)} | {row.install_s:.1f} | {row.mib:.0f} "
                f"| {row.run_s:.1f} | {row.failed or 'ok'} |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 1 if not rows or any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
