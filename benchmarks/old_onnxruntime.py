"""One model file under two Python interpreters: the same answers from an old ONNX Runtime?

JetPack 6 stops at onnxruntime 1.23.2 under Python 3.10. The same mels and the same audio go through
the runtime in both interpreters; what is compared, and how closely, is in benchmarks/arm64_answers.

Set up once, outside the project's environment:
    python3.10 -m venv build/old && build/old/bin/pip install onnxruntime==1.23.2 numpy

Run: python benchmarks/old_onnxruntime.py --old build/old/bin/python runs/export/*.onnx [--json F]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_ANSWERS = ROOT / "benchmarks" / "arm64_answers.py"
_VERSIONS = (
    "import json, platform, numpy, onnxruntime; print(json.dumps(dict(python="
    "platform.python_version(), onnxruntime=onnxruntime.__version__, numpy=numpy.__version__)))"
)


def main() -> int:
    """Record under both, compare; 3 where an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="streaming files of export")
    parser.add_argument("--old", required=True, help="the other interpreter")
    parser.add_argument("--new", default=sys.executable, help="default: this one")
    parser.add_argument("--json", type=Path, help="write the result there")
    args = parser.parse_args()
    pair = (args.new, args.old)
    result: dict[str, Any] = {
        "new": json.loads(run(args.new, "-c", _VERSIONS)),
        "old": json.loads(run(args.old, "-c", _VERSIONS)),
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            records = [str(Path(folder, f"{i}.npz")) for i in range(len(pair))]
            for python, record in zip(pair, records, strict=True):
                run(python, str(_ANSWERS), str(model.resolve()), record)
            compared = run(args.new, str(_ANSWERS), "--compare", *records)
            result["models"][str(model)] = json.loads(compared)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(row["passed"] for row in result["models"].values()) else 3


def run(python: str, *command: str) -> str:
    """Standard output of an interpreter that finds this checkout's runtime."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python} failed:\n{done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
