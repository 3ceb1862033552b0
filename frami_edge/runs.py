"""The folder of a run: its config, what it was made with, its metrics and its status."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from frami_edge import _provenance, _yaml
from frami_edge._lock import FolderLock
from frami_edge._metrics import MetricsFile
from frami_edge._reopen import (
    CONFIG,
    MANIFEST,
    SCHEMA,
    check_folder,
    check_inputs,
    clear_leftovers,
    old_run,
    read_manifest,
)
from frami_edge.io import atomic_write_json, atomic_write_text, plain, sha256_file

__all__ = ["RunFolder", "read_manifest"]

METRICS = "metrics.jsonl"


class RunFolder:
    """One run of one command. Use `create`, and the result as a context manager.

    The block's end decides the status in the manifest: finished, failed or interrupted. A process
    that was killed leaves `running` behind, and no lock: the next one may resume or overwrite.

    Attributes:
        folder: As the user gave it.
        resumed: Whether an earlier run is continued.
        resume_hint: The command that would continue this run; shown when it is cut short.
    """

    def __init__(self, folder: Path, lock: FolderLock, manifest: dict[str, Any]) -> None:
        """For `create` alone."""
        self.folder = folder
        self.resumed = "resumes" in manifest
        self.resume_hint = ""
        self._lock = lock
        self._manifest = manifest
        self._metrics = MetricsFile(folder / METRICS)
        self._began = time.monotonic()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        command: str,
        config: BaseModel | Mapping[str, Any],
        overwrite: bool = False,
        resume: bool = False,
        inputs: Mapping[str, str | os.PathLike[str]] | None = None,
        seeds: Mapping[str, int] | None = None,
        device: str = "",
        way_on: str = "continue it with --resume",
    ) -> RunFolder:
        """Make or reopen a run.

        Args:
            path: The folder; an existing one must be empty, or a run to resume or overwrite.
            command: Name of the command, such as `distill`.
            config: Written to config.yaml; a resumed run must have the same.
            overwrite: Delete a run that lies there; nothing but a run is ever deleted.
            resume: Continue the run that lies there, keeping its metrics and facts; its inputs
                must be what they were.
            inputs: Files by role; the manifest keeps the path as given, and the SHA-256.
            seeds: By name, for the manifest.
            device: Device, precision and their reason, for the manifest.
            way_on: What the command offers where a run lies in the way; empty for nothing.

        Raises:
            RunError: The folder is in use, no run, another run, or there is nothing to resume.
        """
        folder = Path(path)
        check_folder(folder, resume=resume)
        written = plain(config)
        # Hashing first: a wrong input path must leave no folder behind.
        hashes = {name: _input(file) for name, file in (inputs or {}).items()}
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        try:
            old = old_run(
                folder, command, written, overwrite=overwrite, resume=resume, way_on=way_on
            )
            manifest = _new_manifest(command)
            if old is not None:
                check_inputs(folder, old.get("inputs") or {}, hashes)
                manifest = {**old, "resumes": old.get("resumes", 0) + 1}
            manifest |= {"status": "running", "error": None, "inputs": hashes}
            manifest |= {"seeds": dict(seeds or {}), "device": device}
            # The manifest first: from then on the folder is known to be a run.
            atomic_write_json(folder / MANIFEST, manifest)
            clear_leftovers(folder)
            if not (folder / CONFIG).exists():
                atomic_write_text(folder / CONFIG, _yaml.dump(written))
        except BaseException:
            lock.release()
            raise
        return cls(folder, lock, manifest)

    def path(self, name: str) -> Path:
        """A place inside the folder; the folders above it are made.

        Raises:
            ValueError: `name` leads out of the run.
        """
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"{name} is not inside the run")
        place = self.folder / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def log(self, *, step: int, **metrics: Any) -> None:
        """Append a row to metrics.jsonl; text among the metrics, such as a phase, is kept too."""
        self._metrics.append({"step": step, **metrics})

    def metrics(self) -> list[dict[str, Any]]:
        """All rows so far, those of the runs that this one resumes included."""
        return self._metrics.rows()

    def rewind(self, step: int, **match: Any) -> None:
        """Drop metrics after `step`, which a resumed run is about to repeat.

        Args:
            step: The last step that the checkpoint holds.
            match: Only rows with these values, such as `phase="distill"`.
        """
        self._metrics.rewind(step, match)

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
            before = self._manifest["seconds"].get(phase, 0.0)
            self.record(seconds={phase: round(before + time.monotonic() - start, 3)})

    def __enter__(self) -> Self:
        """The run."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the status, say where unfinished work lies, and let go of the folder."""
        status = "finished" if error is None else "failed"
        if isinstance(error, KeyboardInterrupt):
            status = "interrupted"
        if error is not None:
            rest = f"; continue with: {self.resume_hint}" if self.resume_hint else ""
            error.add_note(f"What was done so far is in {self.folder}{rest}")
        before = self._manifest["seconds"].get("total", 0.0)
        total = round(before + time.monotonic() - self._began, 3)
        # A full disk must not hide the error that it caused.
        guard = contextlib.suppress(OSError) if error else contextlib.nullcontext()
        try:
            with guard:
                self._metrics.close()
                name = kind.__name__ if kind else None
                self.record(status=status, error=name, finished=_now(), seconds={"total": total})
        finally:
            self._lock.release()


def _new_manifest(command: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "command": command,
        "command_line": _provenance.command_line(),
        "started": _now(),
        "finished": None,
        "versions": _provenance.versions(),
        "git": _provenance.git_commit(),
        "machine": _provenance.machine(),
        "seconds": {},
    }


def _input(file: str | os.PathLike[str]) -> dict[str, str | None]:
    path = Path(file)
    return {"path": os.fspath(file), "sha256": None if path.is_dir() else sha256_file(path)}


def _merge(into: dict[str, Any], facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
