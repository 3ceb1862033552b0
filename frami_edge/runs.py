"""The folder of a run: its config, manifest, metrics and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel

from frami_edge.errors import RunError
from frami_edge.io import atomic_write_bytes, atomic_write_json, atomic_write_text, json_text, plain
from frami_edge.yaml_config import dump, parse
from frami_edge_export.bench import cpu_name
from frami_edge_runtime.state import check_place

if TYPE_CHECKING:
    from frami_edge.device import Compute

log = logging.getLogger("frami_edge")

SCHEMA = 1
MANIFEST, CONFIG, METRICS, LOCK = "manifest.json", "config.yaml", "metrics.jsonl", ".lock"
PACKAGES = ("frami-edge", "frami-edge-runtime", "torch", "torchaudio", "numpy", "onnxruntime")
_LEFTOVER = re.compile(r"\.[0-9a-f]{8}\.tmp\.")
"""What a killed writer leaves behind (`frami_edge.io.atomic_path`)."""
_STATE_MAGIC = b"frami-edge state 1\n"

PathLike = str | os.PathLike[str]


class RunFolder:
    """One run of one command. Use `create`, and the result as a context manager.

    The end of the block decides the status in the manifest: finished, failed or interrupted. A
    killed process leaves the status `running`, and its lock is free: the run can be resumed or
    overwritten.

    Attributes:
        folder: The folder as the user named it.
        resumed: Whether an earlier run is continued.
    """

    def __init__(self, folder: Path, lock: FileLock, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.resumed = "resumes" in manifest
        self._lock = lock
        self._manifest = manifest
        self._start = time.monotonic()

    @classmethod
    def create(
        cls,
        path: PathLike,
        *,
        command: str,
        config: BaseModel | Mapping[str, Any],
        overwrite: bool = False,
        resume: bool = False,
        hashes: Mapping[str, str] | None = None,
        seeds: Mapping[str, int] | None = None,
        device: str = "",
    ) -> RunFolder:
        """Make or reopen a run; the folder must be empty, or a run to resume or overwrite.

        A resumed run must have the same command, config and `hashes` (of its inputs, by role).
        `seeds` and `device` go into the manifest.

        Raises:
            OutputError: The folder cannot be written.
            RunError: The folder is in use, not a run, or another run; or there is nothing to
                resume.
        """
        folder = Path(path)
        check_folder(folder, resume=resume)
        written = plain(config)
        inputs = {role: {"sha256": sha256} for role, sha256 in (hashes or {}).items()}
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RunError(
                f"{folder} is in use by another run.", fix="Wait for it, or give another --out."
            ) from None
        try:
            manifest = None
            if _content(folder):
                old = read_manifest(folder)
                if resume:
                    _check_same(folder, old, command, written, inputs)
                    manifest = {**old, "resumes": old.get("resumes", 0) + 1}
                elif overwrite:
                    for entry in _content(folder):
                        if entry.is_dir() and not entry.is_symlink():
                            shutil.rmtree(entry)
                        else:
                            entry.unlink()
                else:
                    state = "a finished" if old.get("status") == "finished" else "an unfinished"
                    raise RunError(
                        f"{folder} already holds {state} run of {old.get('command')}.",
                        fix="Give another --out, or continue it with --resume.",
                    )
            manifest = manifest or _new_manifest(command)
            manifest |= {"status": "running", "error": None, "inputs": inputs}
            manifest |= {"seeds": dict(seeds or {}), "device": device}
            # The manifest comes first: it marks the folder as a run.
            atomic_write_json(folder / MANIFEST, manifest)
            for leftover in [*folder.glob(".*"), *folder.glob("*/.*")]:
                if _LEFTOVER.match(leftover.name):
                    leftover.unlink(missing_ok=True)
            if not (folder / CONFIG).exists():
                atomic_write_text(folder / CONFIG, dump(written))
            # Without its newline, a torn last line would swallow the next row.
            if (folder / METRICS).is_file():
                with (folder / METRICS).open("r+b") as file:
                    file.truncate(file.read().rfind(b"\n") + 1)
        except BaseException:
            lock.release()
            raise
        return cls(folder, lock, manifest)

    def path(self, name: str) -> Path:
        """A path inside the folder; the folders above it are made."""
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def log(self, *, step: int, **metrics: Any) -> None:
        """Append a row to metrics.jsonl at once; NaN and infinities become null."""
        path = self.folder / METRICS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json_text({"step": step, **metrics}, indent=None) + "\n")
        except OSError as error:
            error.filename = str(path)
            raise

    def metrics(self) -> list[dict[str, Any]]:
        """All rows so far, those of earlier parts of a resumed run included.

        Raises:
            RunError: A line is damaged.
        """
        fix = "Delete that line, or start the run again."
        return read_rows(self.folder / METRICS, fix)

    def rewind(self, step: int, **match: Any) -> None:
        """Drop the metrics after `step`, which a resumed run is about to repeat.

        Only rows with the values of `match` are dropped, such as those of `phase="distill"`.
        """
        rows = self.metrics()
        kept = [
            row
            for row in rows
            if row.get("step", 0) <= step or any(row.get(k) != v for k, v in match.items())
        ]
        if len(kept) < len(rows):
            text = "".join(json_text(row, indent=None) + "\n" for row in kept)
            atomic_write_text(self.folder / METRICS, text)

    def record(self, **facts: Any) -> None:
        """Merge facts into manifest.json; mappings are merged key by key."""
        _merge(self._manifest, plain(facts))
        atomic_write_json(self.folder / MANIFEST, self._manifest)

    @property
    def manifest(self) -> dict[str, Any]:
        """A copy of what manifest.json holds."""
        copy: dict[str, Any] = plain(self._manifest)
        return copy

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds that the block takes to `seconds.PHASE`, also where it fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._add_seconds(phase, start)

    def _add_seconds(self, phase: str, start: float, **facts: Any) -> None:
        before = self._manifest["seconds"].get(phase, 0.0)
        self.record(seconds={phase: round(before + time.monotonic() - start, 3)}, **facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        status = "finished" if error is None else "failed"
        if isinstance(error, KeyboardInterrupt):
            status = "interrupted"
        if error is not None:
            error.add_note(f"The unfinished run is in {self.folder}")
        # A full disk must not hide the error that it caused.
        guard = contextlib.suppress(OSError) if error else contextlib.nullcontext()
        try:
            with guard:
                name = kind.__name__ if kind else None
                self._add_seconds("total", self._start, status=status, error=name, finished=_now())
        finally:
            self._lock.release()


def check_folder(folder: PathLike, *, resume: bool = False) -> None:
    """Check, before other work, that `folder` can be that of a run; nothing is made.

    Raises:
        OutputError: It cannot be written.
        RunError: It is no run, or there is none to resume.
    """
    folder = Path(folder)
    if _content(folder) and not (folder / MANIFEST).is_file():
        raise RunError(
            f"{folder} is not empty and holds no run of frami-edge.", fix="Give another --out."
        )
    if resume and not _content(folder):
        raise RunError(f"{folder} holds no run to resume.", fix="Start without --resume.")
    check_place(folder, folder=True)


def read_rows(path: Path, fix: str) -> list[dict[str, Any]]:
    """One JSON object per line, none without a file; a line that a kill has cut is left out.

    Raises:
        RunError: A whole line is damaged; ``fix`` says what to do.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise RunError(f"{path} is damaged: line {number} is not JSON.", fix=fix) from None
    return rows


def read_manifest(folder: PathLike) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        RunError: The folder holds none, or it is damaged.
    """
    file = Path(folder) / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{folder} holds no run: {MANIFEST} is missing.", fix="Check the path."
        ) from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise RunError(
            f"{file} is damaged or from another version.",
            fix=f"Delete {folder} and start again, or give the folder of another run.",
        )
    return manifest


def _content(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [f for f in folder.iterdir() if f.name != LOCK and not _LEFTOVER.match(f.name)]


def _check_same(
    folder: Path, old: dict[str, Any], command: str, config: Any, inputs: dict[str, Any]
) -> None:
    """A resumed run has the command, config and inputs of the run in the folder."""
    if old.get("command") != command:
        raise RunError(
            f"{folder} holds a run of {old.get('command')}, not of {command}.",
            fix="Give another --out.",
        )
    before = old.get("inputs", {})
    for role in {**before, **inputs}:
        if before.get(role, {}).get("sha256") != inputs.get(role, {}).get("sha256"):
            raise RunError(
                f"{folder} was started with another {role} file.",
                fix="Resume with the same one, or give another --out.",
            )
    try:
        saved = parse((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder / CONFIG} cannot be read: {error}.",
            fix=f"Delete {folder} and start again, or give another --out.",
        ) from None
    changed = _differences(saved, parse(dump(config)))
    if changed:
        raise RunError(
            f"{folder} was started with another config: {', '.join(changed[:8])}.",
            fix="Resume with the same config, or give another --out.",
        )


def _differences(a: Any, b: Any, key: str = "") -> list[str]:
    """`key: before -> after` for every leaf that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            line
            for k in {**a, **b}
            for line in _differences(a.get(k), b.get(k), f"{key}.{k}".strip("."))
        ]
    return [] if a == b else [f"{key or 'config'}: {a!r} -> {b!r}"]


def _merge(into: dict[str, Any], facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _new_manifest(command: str) -> dict[str, Any]:
    """What a result is made with: versions, commit and machine; never user, host or folders."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {
        "schema": SCHEMA,
        "command": command,
        "command_line": ["frami-edge", *sys.argv[1:]],
        "started": _now(),
        "finished": None,
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "git": git_commit(),
        "machine": {"system": system, "cpu": cpu_name(), "cores": cores},
        "seconds": {},
    }


def git_commit(package: Path = Path(__file__).parent) -> dict[str, str | bool] | None:
    """The commit of the checkout that holds `package`, and whether tracked files differ from it.

    None for an installed wheel, even inside the user's own repository.
    """
    root = package.parent
    if not (root / ".git").exists():
        return None
    try:
        commit, changed = (
            subprocess.check_output(
                ["git", "-C", root, *words.split()],
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=10,
            ).strip()
            for words in ("rev-parse HEAD", "status --porcelain --untracked-files=no")
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(changed)}


def record_compute(run: RunFolder, compute: Compute, *, deterministic: bool = False) -> None:
    """Write what decides the last bits of a result into the manifest.

    A resumed run that computes with other hardware or settings logs a warning.
    """
    import torch

    gpu = compute.device.type == "cuda"
    facts = {
        "device": str(compute.device),
        "gpu": torch.cuda.get_device_name(compute.device) if gpu else None,
        "precision": str(compute.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "deterministic": deterministic or not gpu,
    }
    before = run.manifest.get("compute") if run.resumed else None
    if before and before != facts:
        log.warning(
            "This run was started with other hardware or settings, so its last bits may differ: "
            f"{', '.join(_differences(before, facts))}."
        )
    run.record(compute=facts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to resume from, with a hash, whole or not at all."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    atomic_write_bytes(path, _STATE_MAGIC + hashlib.sha256(data).digest() + data)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote; None where there is no file or a damaged one. Runs no code."""
    import torch

    if not path.exists():
        return None
    data, start = path.read_bytes(), len(_STATE_MAGIC) + 32
    state: Any = None
    if data[:start] == _STATE_MAGIC + hashlib.sha256(data[start:]).digest():
        with contextlib.suppress(Exception):  # a matching hash does not prove who wrote the file
            state = torch.load(io.BytesIO(data[start:]), weights_only=True)
    return state if isinstance(state, dict) else None


def damaged(path: Path, what: str) -> str:
    """The warning where `load_state` gave None for a file; `what` is computed again."""
    return (
        f"The checkpoint {path} is damaged: {what} is done again from its first step, to the same "
        "result."
    )
