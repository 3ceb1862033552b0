"""Damaged files of every kind: each must be refused with a sentence and its fix, or read soundly.

    python benchmarks/fuzz.py [--cases 2000] [--seed 0] [--kinds onnx,bank] [--keep DIR]

One case is one intact file with a few bytes changed, cut, repeated or removed, opened as a user
would open it. A worker process reads it, so that crashes and hangs are found too. Exit code 3 where
a case ended in a traceback, a wrong answer, a crash or a hang; --keep stores those files.
tests/test_bad_input.py runs the same cases in a short form.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import soundfile
import torch

import frami_edge as fe
from frami_edge.bank import Bank
from frami_edge.checkpoint import DIGITS_TEACHER, load_checkpoint
from frami_edge.config import JourneyConfig, TeacherConfig
from frami_edge.data.clips import read_audio
from frami_edge.errors import UnusableClipError
from frami_edge.runs import load_state, read_manifest, save_state
from frami_edge.yaml_config import load_config, presets
from frami_edge_export.options import ExportOptions
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import FramiEdgeError

HANG_S = 60.0
SMALL = (
    "bank.clip_s=0.24", "bank.procedural_clips=24", "distill.batch_size=8",
    "distill.crop_min_s=0.16", "distill.crop_max_s=0.24", "bank.sources={procedural: 1}",
    "student={channels: [8, 8, 8], time_kernels: [3, 3, 3], out_channels: 12}",
)  # fmt: skip


def make_material(folder: Path) -> dict[str, Path]:
    """One intact file of each kind."""
    teacher = fe.load_teacher(DIGITS_TEACHER)
    config = load_config(JourneyConfig, "fsdd-student", SMALL)
    bank = fe.invert(teacher, config=config, out=folder / "run", device="cpu")
    student = fe.distill(teacher, bank, config=config, steps=8, device="cpu")
    student.save(folder / "student.safetensors")
    options = ExportOptions(bench_budget_s=0.02, bench_rounds=3)
    fe.export(student, out=folder / "export", options=options)
    sound = 0.3 * np.sin(np.arange(4000) / 9)
    for suffix in ("wav", "flac", "ogg"):
        soundfile.write(folder / f"clip.{suffix}", sound, 8000)
    save_state(folder / "state.pt", {"step": 3, "weights": torch.zeros(4)})
    shutil.copy(presets()["fsdd-teacher"], folder / "config.yaml")
    return {
        "checkpoint": folder / "student.safetensors",
        "onnx": next((folder / "export").glob("*.fp32.onnx")),
        "bank": folder / "run" / "bank" / "bank.json",
        "shard": next((folder / "run" / "bank").glob("*.safetensors")),
        "manifest": folder / "run" / "manifest.json",
        "state": folder / "state.pt",
        "config": folder / "config.yaml",
        **{suffix: folder / f"clip.{suffix}" for suffix in ("wav", "flac", "ogg")},
    }


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes, anywhere."""
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(data) + 1))
        length = int(rng.integers(1, 64))
        match rng.integers(5):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + data[at + length :]
            case 2:
                data = data[:at] + rng.bytes(length) + data[at + length :]
            case 3:
                data = data[:at] + data[at : at + length] * 2 + data[at + length :]
            case _ if data:
                at = min(at, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1 :]
    return data


def _classify(path: Path) -> None:
    classifier = Classifier(path)
    with np.errstate(all="ignore"):
        scores = classifier.classify(np.zeros(8000, np.float32)).scores
    assert scores.shape == (len(classifier.labels),)


def _checkpoint(path: Path) -> None:
    opened = load_checkpoint(path)
    with torch.no_grad():  # a flipped exponent is a valid weight, however large
        logits = opened.model(torch.zeros(1, 1, opened.mel.n_mels, 40))
    assert logits.shape == (1, len(opened.labels))


def _bank(path: Path) -> None:
    bank = Bank.open(path.parent)
    for name in bank.sources:
        assert bank.read(name).mels_N1MT.isfinite().all()


def _audio(path: Path) -> None:
    samples, rate = read_audio(path)
    assert np.isfinite(samples).all()
    assert rate > 0


def _state(path: Path) -> None:
    state = load_state(path)
    assert state is None or state["step"] == 3


OPEN: dict[str, Callable[[Path], object]] = {
    "checkpoint": _checkpoint,
    "onnx": _classify,
    "bank": _bank,
    "shard": _bank,
    "manifest": lambda path: read_manifest(path.parent),
    "state": _state,
    "config": lambda path: load_config(TeacherConfig, path),
    "wav": _audio,
    "flac": _audio,
    "ogg": _audio,
}


def run_case(kind: str, intact: Path, data: bytes, folder: Path) -> str:
    """Open one damaged file; how it ended.

    Args:
        kind: A key of `OPEN`.
        intact: The file that was damaged; a bank and a manifest need what is beside it.
        data: The damaged bytes.
        folder: Empty folder for the case.

    Returns:
        `accepted`, `refused`, or what is wrong.
    """
    path = folder / intact.name
    if kind in ("bank", "shard"):
        shutil.copytree(intact.parent, folder, dirs_exist_ok=True)
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            OPEN[kind](path)
    except UnusableClipError:
        return "refused"  # the clip is left out and listed, which needs no fix
    except FramiEdgeError as error:
        return "refused" if error.fix else f"no fix: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def main() -> int:
    """Run the cases, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="only these, with commas between them")
    parser.add_argument("--keep", type=Path, help="folder for the files of failed cases")
    args = parser.parse_args()
    kinds = args.kinds.split(",") if args.kinds else list(OPEN)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        material = make_material(Path(name))
        pool = ProcessPoolExecutor(1)
        for number in range(args.cases):
            kind = kinds[number % len(kinds)]
            rng = np.random.default_rng([args.seed, number])
            data = damage(material[kind].read_bytes(), rng)
            folder = Path(tempfile.mkdtemp(dir=name))
            try:
                future = pool.submit(run_case, kind, material[kind], data, folder)
                outcome = future.result(timeout=HANG_S)
            except (TimeoutError, BrokenProcessPool) as error:
                outcome = "hang" if isinstance(error, TimeoutError) else "crash"
                for process in list(pool._processes.values()):
                    process.kill()
                pool = ProcessPoolExecutor(1)
            shutil.rmtree(folder, ignore_errors=True)
            good = outcome in ("accepted", "refused")
            counts[kind][outcome if good else "wrong"] += 1
            if not good:
                wrong.append(f"{kind}, case {number}, seed {args.seed}: {outcome}")
                print(wrong[-1], file=sys.stderr, flush=True)
                if args.keep:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    (args.keep / f"{number}-{material[kind].name}").write_bytes(data)
        pool.shutdown()
    print("| kind | accepted | refused | wrong |\n| --- | --- | --- | --- |")
    for kind, found in counts.items():
        print(f"| {kind} | {found['accepted']} | {found['refused']} | {found['wrong']} |")
    return 3 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
