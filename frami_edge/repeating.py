"""Repeat a run with its config, seed, inputs and arithmetic, and say whether the result is its own.

On one machine with one set of versions the result is the same bit for bit: on a CPU with the same
number of threads, on a GPU where both runs used deterministic kernels.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from frami_edge.cli._output import Output
from frami_edge.device import Compute, set_seed
from frami_edge.distributed import world
from frami_edge.errors import ConfigError, GateFailed, RunError
from frami_edge.io import sha256_file, sha256_tensors
from frami_edge.runs import METRICS, MetricsFile, RunFolder, read_manifest

SHOWN = 12
"""Differences that are told; the manifest holds all."""


@dataclass(frozen=True)
class Original:
    """A finished run that is to be repeated.

    Attributes:
        folder: Of the run.
        manifest: What it says of itself.
    """

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, command: str) -> Original:
        """Read a run.

        Raises:
            RunError: There is none, it is of another command, or it never finished.
        """
        manifest = read_manifest(folder)
        if manifest.get("command") != command:
            raise RunError(
                f"{folder} holds a run of {manifest.get('command')}, not of {command}.",
                fix=f"Repeat it with frami-edge {manifest.get('command')} --from.",
            )
        if manifest.get("status") != "finished":
            raise RunError(
                f"The run in {folder} never finished: there is no result to repeat.",
                fix="Finish it with --resume first.",
            )
        return cls(folder, manifest)

    @property
    def config(self) -> str:
        """The path of its config, as the command takes it."""
        return str(self.folder / "config.yaml")

    def input(self, role: str, given: Path | None) -> Path | None:
        """The file that the run read in this role; None where it read none.

        Args:
            role: Such as `teacher`; also the name of the option that names another place.
            given: Where the user says that it lies now.

        Raises:
            RunError: It is not there, or has another content.
        """
        record = (self.manifest.get("inputs") or {}).get(role)
        if record is None:
            if given is not None:
                raise RunError(f"The run in {self.folder} had no --{role}.", fix="Leave it out.")
            return None
        path = given or Path(record["path"])
        if not path.is_file():
            raise RunError(
                f"The {role} of the run in {self.folder} is not at {path}.",
                fix=f"Run from where it was run, or say where the file lies now: --{role}.",
            )
        if sha256_file(path) != record["sha256"]:
            raise RunError(
                f"{path} is not the {role} of the run in {self.folder}: its hash is another.",
                fix=f"Give the same file with --{role}; its SHA-256 begins with "
                f"{record['sha256'][:16]}.",
            )
        return path

    def device(self, asked: str) -> str:
        """The kind of device that it used, where the user asks for none and it is there."""
        kind = str(self._compute.get("device", "auto")).partition(":")[0]
        return kind if asked == "auto" and (kind != "cuda" or torch.cuda.is_available()) else asked

    def precision(self, asked: Any) -> Any:
        """The precision that it used, where the user asks for none and this machine has it."""
        dtype = self._compute.get("precision")
        return "fp32" if asked == "auto" and dtype == "float32" else asked

    def use_threads(self) -> None:
        """Share sums out to as many threads as it did: their order decides the last bits."""
        threads = self._compute.get("threads")
        if isinstance(threads, int) and 1 <= threads <= 4096:
            torch.set_num_threads(threads)

    @property
    def _compute(self) -> dict[str, Any]:
        found = self.manifest.get("compute")
        return found if isinstance(found, dict) else {}


def refuse_changes(**given: object) -> None:
    """A repeated run has the config and seed of its original.

    Raises:
        ConfigError: An option changes them.
    """
    named = [name for name, value in given.items() if value not in (None, [], ())]
    if named:
        options = {"config": "CONFIG", "overrides": "--set"}
        names = ", ".join(options.get(n, f"--{n}") for n in named)
        raise ConfigError(
            f"--from repeats a run as it was, and {names} would change it.",
            fix="Leave out one of the two.",
        )


def compute_facts(compute: Compute, *, deterministic: bool) -> dict[str, Any]:
    """What decides the last bits of a result, for the manifest."""
    gpu = compute.device.type == "cuda"
    return {
        "device": str(compute.device),
        "gpu": torch.cuda.get_device_name(compute.device) if gpu else None,
        "precision": str(compute.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processes": world().size,
        "deterministic": deterministic or not gpu,
    }


def record_compute(run: RunFolder, compute: Compute, deterministic: bool, out: Output) -> None:
    """Write `compute_facts` into the manifest; a run that goes on with others is told."""
    facts = compute_facts(compute, deterministic=deterministic)
    before = run.manifest.get("compute")
    if run.resumed and before and before != facts:
        changed = ", ".join(_leaves(before, facts, "compute"))
        out.warn(f"This run was begun otherwise, so its last bits may differ: {changed}.")
    run.record(compute=facts)


def use_deterministic_kernels(compute: Compute, seed: int) -> None:
    """On a GPU, take kernels that give the same bits on every run; CPU kernels all do."""
    if compute.device.type == "cuda":
        set_seed(seed, deterministic=True)
        torch.backends.cuda.matmul.allow_tf32 = False


def compare(original: Original, run: RunFolder, file: str) -> dict[str, Any]:
    """Whether `file` of a repeated run is what the original wrote.

    Args:
        original: What was repeated.
        run: The repetition; its manifest gets the verdict as `repeats`.
        file: Path of the result inside both runs.

    Returns:
        ``of`` (the original's folder), ``identical`` (weights, or bytes of a file without weights),
        ``same_file``, and ``differences``, one sentence each.
    """
    theirs, ours = original.folder / file, run.folder / file
    same_file = theirs.is_file() and sha256_file(theirs) == sha256_file(ours)
    identical = same_file or _same_weights(theirs, ours)
    differences = [] if same_file else list(_differences(original, run))
    if not theirs.is_file():
        differences.insert(0, f"{theirs} is not there any more")
    elif identical and not same_file:
        differences.insert(0, "the weights are the same, and what the file says of them differs")
    verdict = {
        "of": os.fspath(original.folder),
        "identical": identical,
        "same_file": same_file,
        "differences": differences,
    }
    run.record(repeats=verdict)
    return verdict


def check_identical(verdict: dict[str, Any], what: str) -> None:
    """Exit code 3 where the repetition gave another result.

    Args:
        verdict: Of `compare`.
        what: Name of the result.

    Raises:
        GateFailed: It did.
    """
    if verdict["identical"]:
        return
    lines = "".join(f"\n  {text}" for text in verdict["differences"][:SHOWN])
    raise GateFailed(
        f"The {what} is not that of {verdict['of']}. What differs:{lines}",
        fix="Bit for bit it can be repeated on the same machine, with the same versions, threads "
        "and precision, and on a GPU where both runs had --deterministic.",
    )


def _same_weights(a: Path, b: Path) -> bool:
    if a.suffix != ".safetensors" or not a.is_file():
        return False
    try:
        return sha256_tensors(load_file(a)) == sha256_tensors(load_file(b))
    except (SafetensorError, OSError):
        return False


def _differences(original: Original, run: RunFolder) -> Iterator[str]:
    before, now = original.manifest, run.manifest
    for group in ("versions", "git", "machine", "compute", "data"):
        yield from _leaves(before.get(group), now.get(group), group)
    row = _first_other_row(original.folder / METRICS, run.folder / METRICS)
    yield row or f"all rows of {METRICS} are the same"


def _leaves(before: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _leaves(before.get(key), now.get(key), f"{name}.{key}")
    elif before != now:
        yield f"{name}: {json.dumps(before)} there, {json.dumps(now)} here"


def _first_other_row(before: Path, now: Path) -> str:
    pairs = itertools.zip_longest(MetricsFile(before).rows(), MetricsFile(now).rows())
    for number, (a, b) in enumerate(pairs, start=1):
        if a == b:
            continue
        if a is None or b is None:
            return f"{METRICS} ends at row {number - 1} {'there' if a is None else 'here'}"
        key = next(k for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k))
        where = f"row {number} ({a.get('phase')}, step {a.get('step')})"
        return f"{METRICS} differs first in {where}: {key} {a.get(key)} there, {b.get(key)} here"
    return ""
