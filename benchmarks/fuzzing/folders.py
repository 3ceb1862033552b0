"""Banks, run folders and exports: indexes, shards, manifests and reports that lie."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_material import ODD, Rng, WrongAnswerError, change, damage
from safetensors.torch import load_file

from frami_edge import _yaml
from frami_edge._metrics import MetricsFile
from frami_edge.inversion.bank import Bank, BankFeed
from frami_edge.runs import RunFolder, read_manifest
from fuzzing.case import Case
from fuzzing.sounds import NAMES
from fuzzing.weights import bank_tensors


def bank(rng: Rng, case: Case) -> None:
    """A bank whose index or shards were changed; with and without a matching hash."""
    folder = case.copy(case.material.bank, "bank")
    intact = _draw(Bank.open(folder))
    index = json.loads((folder / "bank.json").read_text())
    shards = index["shards"]
    shard = shards[int(rng.integers(0, len(shards)))]
    file = folder / shard["file"]
    covered = False
    way = int(rng.integers(0, 7))
    if way == 0:
        file.write_bytes(damage(rng, file.read_bytes(), [b"\0" * 64], head=500))
        covered = True
    elif way == 1:
        _other_tensors(rng, file, shard)
    elif way == 2:
        shard["file"] = str(rng.choice([n for n in NAMES if n]))
    elif way == 3:
        huge = [0, -1, 1, 10**6, 1 << 40, 10**30, 2.5, "3", None, True]
        key = str(rng.choice(["clips", "first_step", "next_step", "frames", "schema_version"]))
        value = huge[int(rng.integers(0, len(huge)))]
        (shard if key in shard else index)[key] = value
    elif way == 4:
        target = [Path("/etc/passwd"), folder / "bank.json", Path("/dev/zero"), folder, Path("no")]
        file.unlink()
        os.symlink(target[int(rng.integers(0, 5))], file)
    else:
        for _ in range(int(rng.integers(1, 3))):
            change(rng, index)
    text = json.dumps(index)
    if way == 6:
        text = damage(rng, text.encode(), [b"[]"]).decode("utf-8", "replace")
    (folder / "bank.json").write_text(text, encoding="utf-8", errors="replace")
    act = rng.random()
    if act < 0.2:
        case.cli_json("inspect", folder)
        return
    if act < 0.21:
        case.cli_json(
            "distill", case.material.config, "--teacher", case.material.teacher, "--bank", folder,
            "--out", "out", "--device", "cpu", "--precision", "fp32", "--set",
            "bank.sources={procedural: 1}",
        )  # fmt: skip
        return
    opened = Bank.open(folder)
    drawn = _draw(opened)
    if covered and not torch.equal(drawn, intact):
        raise WrongAnswerError("a damaged shard was read as if it were whole")
    if not torch.isfinite(drawn).all():
        raise WrongAnswerError("clips that are not finite")


def _draw(opened: Bank) -> torch.Tensor:
    """Some clips of each source, through every door that training uses."""
    sources = opened.sources
    feed = BankFeed(opened, {name: 1 / len(sources) for name in sources})
    mels = feed.batch(16, torch.Generator().manual_seed(0))
    for name in sources:
        clips = opened.read(name, 8)
        if not torch.isfinite(clips.logits_NK).all():
            raise WrongAnswerError("logits that are not finite")
        if clips.logits_NK.shape[1] != len(opened.index.labels):
            raise WrongAnswerError("logits of another number of classes")
        if clips.labels_N.dtype != torch.int64 or bool((clips.labels_N < -1).any()):
            raise WrongAnswerError(f"requested classes {clips.labels_N[:9]}")
        if bool((clips.labels_N >= len(opened.index.labels)).any()):
            raise WrongAnswerError("a requested class that is none")
    return mels


def _other_tensors(rng: Rng, file: Path, shard: dict[str, Any]) -> None:
    """Other tensors under a hash that fits: somebody made this bank on purpose."""
    tensors = load_file(file)
    name = str(rng.choice(["mels", "labels", "logits"]))
    value = tensors[name]
    odd: list[Any] = [
        torch.full_like(value, 99), value[:1], value[..., :1], value.double(), value[None],
        torch.zeros(0), value.flatten(), value.to(torch.int8), -value,
    ]  # fmt: skip
    if value.is_floating_point():
        odd += [torch.full_like(value, np.nan), torch.full_like(value, np.inf)]
    choice = int(rng.integers(0, len(odd) + 1))
    if choice == len(odd):
        del tensors[name]
    else:
        tensors[name] = odd[choice]
    data = bank_tensors(**{k: v.contiguous() for k, v in tensors.items()})
    file.write_bytes(data)
    shard["sha256"] = hashlib.sha256(data).hexdigest()


def run_folder(rng: Rng, case: Case) -> None:
    """A run's manifest, config, metrics or saved state, damaged; then read, reopened, resumed."""
    folder = case.folder / "run"
    source = case.material.run
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("plots", "README.md"))
    names = [n for n in ("manifest.json", "config.yaml", "metrics.jsonl", "student.safetensors",
                         "bank/bank.json") if (folder / n).is_file()]  # fmt: skip
    name = names[int(rng.integers(0, len(names)))]
    file = folder / name
    way = int(rng.integers(0, 5))
    if way == 0 and name.endswith(".json"):
        values = json.loads(file.read_text())
        for _ in range(int(rng.integers(1, 3))):
            change(rng, values)
        file.write_text(json.dumps(values))
    elif way == 1:
        odd = ["[]", "null", "{}", "", "1" * 5000, "[" * 5000, "\x00", '{"schema": 1}', "\ud800"]
        text = odd[int(rng.integers(0, len(odd)))]
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
    elif way == 2:
        file.unlink()
        os.symlink([Path("/etc/passwd"), folder, Path("no")][int(rng.integers(0, 3))], file)
    else:
        file.write_bytes(damage(rng, file.read_bytes(), [b"{}", b"\0"]))
    act = rng.random()
    if act < 0.02:
        words = ["distill", case.material.config, "--teacher", case.material.teacher, "--out",
                 "run",
                 "--device", "cpu", "--precision", "fp32"]  # fmt: skip
        case.cli_json(*words, *(["--resume"] if rng.random() < 0.8 else []))
        return
    if act < 0.25:
        case.cli_json("inspect", folder / "student.safetensors")
        return
    if act < 0.3:
        case.cli("inspect", folder)
        return
    read_manifest(folder)
    for row in MetricsFile(folder / "metrics.jsonl").rows():
        if not isinstance(row, dict):
            raise WrongAnswerError("a row of metrics that is no object")
    config = _yaml.parse((source / "config.yaml").read_text())
    with RunFolder.create(folder, command="distill", config=config, resume=True) as run:
        run.metrics()
        run.rewind(1, phase="distill")
        run.log(step=2, loss=float("nan"))


def export_folder(rng: Rng, case: Case) -> None:
    """An export's report that lies about its files: places, sizes, hashes, verdicts."""
    folder = case.copy(case.material.export, "exported")
    file = folder / "export_report.json"
    values = json.loads(file.read_text())
    way = int(rng.integers(0, 4))
    if way == 0:
        chosen = values["artifacts"][int(rng.integers(0, len(values["artifacts"])))]
        chosen["path"] = str(rng.choice([*NAMES, "/etc/passwd", "../teacher.safetensors"]))
    elif way == 1:
        key = str(rng.choice(sorted(values)))
        values[key] = ODD[int(rng.integers(0, len(ODD)))]
    else:
        for _ in range(int(rng.integers(1, 4))):
            change(rng, values)
    text = json.dumps(values)
    if way == 3:
        text = damage(rng, text.encode(), [b"{}"]).decode("utf-8", "replace")
    file.write_text(text, encoding="utf-8", errors="replace")
    act = rng.random()
    if act < 0.6:
        case.cli_json("inspect", folder)
    elif act < 0.8:
        case.cli("inspect", folder)
    else:
        case.cli_json("export", "--tensorrt", folder)


FOLDERS = {"bank": bank, "run-folder": run_folder, "export-folder": export_folder}
