"""Teachers from timm, torchvision and a script of its own, distilled through the command line.

    pip install timm torchvision    # beside the torch that is there: pip install --no-deps keeps it
    python benchmarks/foreign_teachers.py [--data-root DIR] [--only timm,torchvision,script]

Each is trained on spoken digits (FSDD, official split) by plain torch, with a front end of its own;
its weights are saved, and from there on only the command line sees it: inspect, distill without
data, evaluate on the 300 test clips with both noise controls. The last step is scored, nothing is
selected. Results are kept in --out: what is done there is not done again.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from bars import Bar, judge
from foreign_training import DIGITS, train
from safetensors.torch import save_file
from torch import nn

from frami_edge.data import data_root, load_set
from frami_edge.errors import FramiEdgeError

HERE = Path(__file__).parent
BAR = 90.0
"""Per cent of the teacher's accuracy."""
RECIPE = (
    "bank.sources={inversion: 1, procedural: 1}",
    "bank.procedural_clips=2000",
    "bank.inversion.steps=200",
    "bank.inversion.burn_in=60",
)
"""Of the preset fsdd-student: shorter, for the sake of the clock."""
MEL = {
    "sample_rate": 8000, "n_fft": 512, "win_length": 256, "hop_length": 80, "n_mels": 40,
    "f_min": 0.0, "power": 2.0, "center": True, "mel_scale": "htk", "norm": "none",
    "log": "log10", "log_eps": 1e-6,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A teacher of somebody else's.

    Attributes:
        needs: Package that has to be there; "" for none.
        factory: As typed behind --teacher.
        arguments: As typed behind --teacher-arg.
        mel: What its front end does differently.
        layout: Order of its input's axes, as typed behind --layout.
        file: Name of its weights; the ending says the format.
        wrapping: How a trainer left them: keys before the state dictionary, and before each name.
    """

    needs: str
    factory: str
    arguments: dict[str, Any]
    mel: dict[str, Any]
    epochs: int
    rate: float
    file: str
    layout: str = "B1MT"
    wrapping: str = ""

    def build(self) -> nn.Module:
        """The network, untrained."""
        module, _, name = self.factory.partition(":")
        found: nn.Module = getattr(importlib.import_module(module), name)(**self.arguments)
        return found


CASES = {
    "timm": Case(
        "timm", "timm:create_model",
        # A stride of 32 leaves a digit one frame; timm dilates what it no longer strides over.
        {"model_name": "resnet10t", "in_chans": 1, "num_classes": 10, "output_stride": 8},
        {"log": "db", "log_eps": 1e-8}, 8, 2e-3, "weights.safetensors",
    ),
    "torchvision": Case(
        "torchvision", "foreign_networks:shufflenet", {"classes": 10},
        {"n_fft": 256, "win_length": 256, "hop_length": 100, "n_mels": 32, "mel_scale": "slaney",
         "norm": "slaney", "log_eps": 1e-7},
        10, 4e-3, "checkpoint.pt", wrapping="DataParallel",
    ),
    "script": Case(
        "", "foreign_networks:Spotter", {"width": 20},
        {"n_fft": 400, "win_length": 320, "hop_length": 64, "f_min": 40.0, "power": 1.0,
         "center": False, "mel_scale": "slaney", "log": "log2", "log_eps": 1e-4},
        8, 4e-3, "lightning.ckpt", layout="BTM", wrapping="Lightning, float16",
    ),
}  # fmt: skip


def save(net: nn.Module, case: Case, path: Path) -> None:
    """As the trainers of the world leave their weights behind."""
    state = net.state_dict()
    if case.wrapping == "DataParallel":
        state = nn.DataParallel(net).state_dict()
        torch.save({"epoch": case.epochs, "model": state, "optimizer": {"state": {}}}, path)
    elif case.wrapping:
        half = {f"net.{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}
        front = {"mel.spectrogram.window": torch.hann_window(case.mel["win_length"])}
        torch.save({"state_dict": half | front, "hyper_parameters": {"lr": case.rate}}, path)
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, path)


def make_teacher(case: Case, folder: Path, root: Path, seed: int) -> dict[str, Any]:
    """Train it once; its files lie in the folder."""
    facts = folder / "teacher.json"
    if facts.is_file():
        return dict(json.loads(facts.read_text()))
    torch.manual_seed(seed)
    net = case.build()
    mel, accuracy, seconds = train(
        net, MEL | case.mel, root, epochs=case.epochs, rate=case.rate,
        as_sequence=case.layout == "BTM", seed=seed,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save(net, case, folder / case.file)
    (folder / "mel.yaml").write_text(yaml.safe_dump(mel))
    (folder / "labels.txt").write_text("\n".join(DIGITS) + "\n")
    found = {"accuracy": accuracy, "seconds": seconds, "mel": mel}
    facts.write_text(json.dumps(found))
    return found


def frami_edge(*arguments: object) -> dict[str, Any]:
    """The command, as typed; its one JSON object."""
    words = [str(a) for a in arguments]
    print("$ frami-edge " + " ".join(words), flush=True)
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-m", "frami_edge", *words, "--json", "--quiet"],
        stdout=subprocess.PIPE, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"frami-edge {words[0]} ended with {done.returncode}.")
    return dict(json.loads(done.stdout))


def journey(
    name: str, case: Case, folder: Path, root: Path, steps: int, seed: int
) -> dict[str, Any]:
    """inspect, distill, evaluate."""
    kept = folder / f"row-{steps}-{seed}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    set_root = load_set("fsdd", root).root
    trained = make_teacher(case, folder, set_root, seed)
    how = ["--weights", folder / case.file, "--mel", folder / "mel.yaml"]
    how += ["--labels", folder / "labels.txt", "--layout", case.layout]
    for key, value in case.arguments.items():
        how += ["--teacher-arg", f"{key}={value}"]
    seen = frami_edge("inspect", case.factory, *how)
    run, begun = folder / f"run-{steps}-{seed}", time.monotonic()
    settings = [*RECIPE, f"distill.steps={steps}", f"seed={seed}"]
    sets = [word for setting in settings for word in ("--set", setting)]
    resume = ["--resume"] if run.exists() else []
    frami_edge(
        "distill", "fsdd-student", "--teacher", case.factory, *how, *sets, "--out", run, *resume
    )
    seconds = time.monotonic() - begun
    scored = frami_edge(
        "evaluate", run / "student.safetensors", "--teacher", run / "teacher.yaml",
        "--data", "fsdd", "--data-root", root, "--controls", "white_noise,smooth_noise",
    )  # fmt: skip
    row = {
        "name": name, "trained": trained, "inspect": seen, "evaluate": scored,
        "seconds": seconds, "steps": steps, "seed": seed,
    }  # fmt: skip
    kept.write_text(json.dumps(row))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = (
        "teacher", "parameters", "pooling", "mel", "weights", "teacher %", "student %", "of it %",
        "agreement %", "KL nats", "white noise %", "smooth noise %", "distil s",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in rows:
        case, seen, scored = CASES[row["name"]], row["inspect"], row["evaluate"]
        mel, states = row["trained"]["mel"], seen["hidden_states"]
        teacher, student = scored["teacher_accuracy"], scored["accuracy"]
        heard = (
            f"{mel['n_mels']} {mel['mel_scale']}, n_fft {mel['n_fft']}, hop {mel['hop_length']}, "
            f"{mel['log']}"
        )
        label = case.arguments.get("model_name", case.factory.partition(":")[2])
        noise = [scored["controls"][k]["accuracy"] for k in ("white_noise", "smooth_noise")]
        cells = [
            f"{row['name']}: {label}", f"{seen['network']['parameters']:,}",
            f"{states['pooling']} of `{states['frames']}`", heard, case.file,
            f"{100 * teacher:.1f}",
            f"{100 * student:.1f}", f"{100 * student / teacher:.1f}",
            f"{100 * scored['agreement']:.1f}", f"{scored['kl_nats']:.3f}",
            *(f"{100 * x:.1f}" for x in noise), f"{row['seconds']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--out", type=Path, default=Path("runs/foreign"))
    parser.add_argument("--steps", type=int, default=900, help="of distillation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--strict", action="store_true", help="exit with 3 where a bar is missed")
    args = parser.parse_args()
    names = args.only.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"--only knows {', '.join(CASES)}, not {', '.join(unknown)}.")
    needed = {CASES[name].needs for name in names} - {""}
    absent = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if absent:
        print(
            f"{' and '.join(absent)} is not installed: pip install --no-deps {' '.join(absent)} "
            "(a torchvision that fits the torch that is there), or leave it out with --only.",
            file=sys.stderr,
        )
        raise SystemExit(1)
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    try:
        root = data_root(args.data_root)
        rows = [
            journey(name, CASES[name], args.out.resolve() / name, root, args.steps, args.seed)
            for name in names
        ]
    except FramiEdgeError as error:
        raise SystemExit(f"{error.message} {error.fix}") from None
    print(table(rows))
    versions = [f"{n} {importlib.import_module(n).__version__}" for n in ("torch", *sorted(needed))]
    print(
        f"\nPython {platform.python_version()}, {', '.join(versions)}; {args.threads} thread, "
        f"seed {args.seed}, {args.steps} steps, {rows[0]['evaluate']['clips']} official test clips."
    )
    share = [100 * r["evaluate"]["accuracy"] / r["evaluate"]["teacher_accuracy"] for r in rows]
    bars = [
        Bar(f"{name}: student, of its teacher", value, BAR, " %")
        for name, value in zip(names, share, strict=True)
    ]
    raise SystemExit(judge(bars, strict=args.strict))


if __name__ == "__main__":
    main()
