"""The folder of a run: its config, what it was made with, its metrics and its status."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

import torch
from pydantic import BaseModel

from frami_edge import config as _yaml
from frami_edge.cli._app import Terminated
from frami_edge.device import Compute
from frami_edge.errors import RunError
from frami_edge.io import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    json_text,
    plain,
    read_small,
    sha256_file,
)

log = logging.getLogger("frami_edge")

# --- One process a folder: a lock that the system releases with the process, however it ends
# Some file systems that hosts share have no locks. There the lock file itself is the lock: it names
# its holder, who touches it again and again; one that has not been touched for `STALE_S` is of a
# process that is gone.

NAME = ".lock"
BEAT_S = 20.0
"""Between two touches."""
STALE_S = 120.0
"""Without a touch for so long, a holder on another host is gone."""


class FolderLock:
    """Held from construction to `release`.

    The lock file stays, because removing it would let two processes lock two files of one name.

    Args:
        folder: An existing folder.

    Raises:
        RunError: Another process holds it.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._released = threading.Event()
        self._descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _locked(self._descriptor)
            holder, host = _holder(self._descriptor)
            elsewhere = bool(host) and host != _host()
            if locked is None and holder:
                held = self._silence(folder) < STALE_S if elsewhere else _alive(holder)
            else:
                held = locked is False
            if held:
                raise _in_use(folder, holder, elsewhere=elsewhere)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()} {_host()}\n".encode(), 0)
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = -1
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if self._descriptor >= 0:
            self._released.set()
            descriptor, self._descriptor = self._descriptor, -1
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)

    def _silence(self, folder: Path) -> float:
        """Seconds since the last touch, by the clock of the file system."""
        with tempfile.TemporaryFile(dir=folder) as now:
            return os.fstat(now.fileno()).st_mtime - os.fstat(self._descriptor).st_mtime


def _locked(descriptor: int) -> bool | None:
    """Whether the system gave the lock; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _holder(descriptor: int) -> tuple[int | None, str]:
    """Process and host that the file names."""
    words = os.pread(descriptor, 64, 0).decode(errors="replace").split()
    if not words or not words[0].isdecimal():
        return None, ""
    return int(words[0]), words[1] if len(words) > 1 else ""


def _host() -> str:
    """A number for this host: its name is nobody's business."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return process != os.getpid()


def _in_use(folder: Path, holder: int | None, *, elsewhere: bool) -> RunError:
    who = f" (process {holder}{' on another host' if elsewhere else ''})" if holder else ""
    wait = f"Wait for it (if it was killed, {STALE_S:.0f} s)" if elsewhere else "Wait for it"
    return RunError(
        f"{folder} is in use by another run{who}.", fix=f"{wait}, or give another --out."
    )


# --- metrics.jsonl: one JSON object a line, written through at once, readable after any crash


class MetricsFile:
    """Appends rows; each is on disk's way when `append` returns.

    Args:
        path: The file; made by the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; NaN and infinities become null."""
        if self._file is None:
            self._drop_torn_line()
            self._file = self.path.open("a", encoding="utf-8")
        try:
            self._file.write(json_text(row, indent=None) + "\n")
            self._file.flush()
        except OSError as error:
            error.filename = str(self.path)
            raise

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a last line that a crash has torn is ignored.

        Raises:
            RunError: A damaged line before the last.
        """
        if not self.path.exists():
            return []
        if not self.path.is_file():
            raise RunError(f"{self.path} is no regular file.", fix="Take it out of the run.")
        *lines, torn = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        del torn
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise RunError(
                    f"{self.path} is damaged: line {number} is no JSON object.",
                    fix="Delete that line, or start the run again.",
                )
            rows.append(row)
        return rows

    def rewind(self, step: int, match: dict[str, Any]) -> None:
        """Drop the rows after `step` among those that have all of `match`."""
        rows = self.rows()
        kept = [
            row
            for row in rows
            if row.get("step", 0) <= step or any(row.get(k) != v for k, v in match.items())
        ]
        if len(kept) == len(rows):
            return
        self.close()
        atomic_write_text(self.path, "".join(json_text(row, indent=None) + "\n" for row in kept))

    def close(self) -> None:
        """Release the file; a later `append` opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _drop_torn_line(self) -> None:
        """Without its newline a torn line would swallow the next row."""
        if not self.path.is_file():  # a device has no end to look for
            return
        with self.path.open("r+b") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)


# --- What a result was made with: versions, commit, machine; never user, host or folders

PACKAGES = ("frami-edge", "frami-edge-runtime", "torch", "torchaudio", "numpy", "onnxruntime")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide numbers; None for what is absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_commit(package: Path = Path(__file__).parent) -> dict[str, str | bool] | None:
    """The commit of the checkout that `package` lies in, and whether tracked files differ from it.

    None for an installed wheel, also where the user's own repository surrounds it.
    """
    root = package.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(changed)}


def machine() -> dict[str, str | int]:
    """Operating system, processor and the number of cores that this process may use."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {"system": system, "cpu": _cpu_model(), "cores": cores}


def command_line() -> list[str]:
    """What the user typed, with the program by its name alone."""
    return ["frami-edge", *sys.argv[1:]]


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def record_compute(run: RunFolder, compute: Compute, *, deterministic: bool = False) -> None:
    """Write what decides the last bits of a result into the manifest.

    A resumed run that computes otherwise than before gets a warning.
    """
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
            "This run was started with other hardware or settings, so its last bits may differ: %s",
            ", ".join(
                f"{k} {before.get(k)} -> {v}" for k, v in facts.items() if before.get(k) != v
            ),
        )
    run.record(compute=facts)


# --- Whether a folder may become a run: it is empty, or a run to resume or to overwrite

SCHEMA = 1
MAX_BYTES = 64 << 20
"""Of manifest.json."""
MANIFEST, CONFIG = "manifest.json", "config.yaml"

# The lock, and what a writer leaves that was killed half-way (`frami_edge.io.atomic_path`).
_LEFT = re.compile(r"\.[0-9a-f]{8}\.tmp\.")
_UNSEEN = re.compile(rf"\.lock$|{_LEFT.pattern}")


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        RunError: The folder holds none, or it is damaged.
    """
    file = Path(folder) / MANIFEST
    try:
        manifest = json.loads(read_small(file, MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{folder} holds no run: {MANIFEST} is missing.", fix="Check the path."
        ) from None
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise RunError(
            f"{file} is damaged or not of this version.",
            fix=f"Delete {folder} and start again, or give the folder of another run.",
        )
    return manifest


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a file, a folder with content that is no run, and to resume where there is nothing.

    Raises:
        RunError: It may not become a run.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder.", fix="Give another --out.")
    if resume and not _content(folder):
        raise RunError(f"{folder} holds no run to resume.", fix="Start without --resume.")
    if _content(folder) and not (folder / MANIFEST).is_file():
        raise RunError(
            f"{folder} is not empty and holds no run of frami-edge.", fix="Give another --out."
        )


def _content(folder: Path) -> list[Path]:
    """What lies in the folder, the lock and the leftovers of killed writers aside."""
    if not folder.is_dir():
        return []
    return [entry for entry in folder.iterdir() if not _UNSEEN.match(entry.name)]


def clear_leftovers(folder: Path) -> None:
    """Delete what killed writers have left in a locked run, one folder deep."""
    for entry in [*folder.glob(".*"), *folder.glob("*/.*")]:
        if _LEFT.match(entry.name) and entry.is_file() and not entry.is_symlink():
            entry.unlink(missing_ok=True)


def old_run(
    folder: Path, command: str, config: Any, *, overwrite: bool, resume: bool, way_on: str
) -> dict[str, Any] | None:
    """The manifest to go on from; None to begin anew, in a folder that is empty by then.

    Args:
        folder: An existing folder that `check_folder` let pass, locked.
        command: What wants to run.
        config: Its config as plain values.
        overwrite: Delete an old run.
        resume: Go on with an old run.
        way_on: What the command offers where a run lies in the way.

    Raises:
        RunError: There is a run in the way, another run, or none to resume.
    """
    if not _content(folder):
        return None
    old = read_manifest(folder)
    if resume:
        _check_same(folder, old, command, config)
        return old
    if not overwrite:
        state = "a finished" if old.get("status") == "finished" else "an unfinished"
        raise RunError(
            f"{folder} already holds {state} run of {old.get('command')}.",
            fix=f"Give another --out, or {way_on}." if way_on else "Give another --out.",
        )
    for entry in _content(folder):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return None


def check_inputs(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A resumed run reads the same files as before, wherever they lie now.

    Raises:
        RunError: One has another content, or one is missing or new.
    """
    for name in [*before, *(name for name in now if name not in before)]:
        hashes = [(side.get(name) or {}).get("sha256", "none") for side in (before, now)]
        if hashes[0] != hashes[1]:
            raise RunError(
                f"{folder} was begun with another {name} file.",
                fix="Resume with the same one, or give another --out.",
            )


def _check_same(folder: Path, old: dict[str, Any], command: str, config: Any) -> None:
    if old.get("command") != command:
        raise RunError(
            f"{folder} holds a run of {old.get('command')}, not of {command}.",
            fix="Give another folder.",
        )
    if [entry.name for entry in _content(folder)] == [MANIFEST]:
        return  # killed before the config was written, and before any work was done
    try:
        before = _yaml.parse((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder / CONFIG} cannot be read: {error}.",
            fix=f"Delete {folder} and start again, or give another --out.",
        ) from None
    changed = _differences(before, _yaml.parse(_yaml.dump(config)))
    if changed:
        raise RunError(
            f"{folder} was begun with another config: {', '.join(changed[:8])}.",
            fix="Resume with the same config, or give another --out.",
        )


def _differences(a: Any, b: Any, key: str = "") -> list[str]:
    """`key: before -> after` for every leaf that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(k for k in b if k not in a)]
        return [
            line for k in keys for line in _differences(a.get(k), b.get(k), f"{key}.{k}".strip("."))
        ]
    return [] if a == b else [f"{key or 'config'}: {a!r} -> {b!r}"]


# --- Ctrl-C and SIGTERM let a long loop finish its step: it saves, then the run ends as interrup
# A service manager or a cluster that takes its machine back sends SIGTERM; both are treated alike.
# The second signal is not waited for.

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked a loop to end; a context manager around the loop.

    Inside, the first signal is only remembered; it also puts the former handlers back, so that the
    second one acts at once. Outside the main thread, where Python allows no handlers, signals act
    at once as ever.

    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Wait for signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Signals act at once again; one that came too late for the last step still ends the run.

        Raises:
            KeyboardInterrupt: As `leave`.
        """
        self._restore()
        if error is None:
            self.leave()

    def asked(self) -> bool:
        """Whether the loop shall end now, which all processes of a run answer alike.

        Every process has to ask after the same step.
        """
        self._agreed = self._signal is not None
        return self._agreed

    def leave(self) -> None:
        """End the run if this process was asked to; everything is saved by now.

        Raises:
            KeyboardInterrupt: After SIGINT.
            Terminated: After SIGTERM, and where another process of the run was signalled.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None or self._agreed:
            raise Terminated

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore()
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        # Not through `sys.stderr`, in whose midst the signal may have come.
        with contextlib.suppress(OSError):
            os.write(
                2, f"\n{name}: stopping after this step; a second one stops at once.\n".encode()
            )

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class _Never(Stop):
    """For loops that nobody may stop between steps, and scripts."""

    def asked(self) -> bool:
        """No, without asking the other processes."""
        return False


NEVER = _Never()
"""The default of every loop."""


# --- What a long job saves to go on from: tensors and plain values, checked by a hash when read

_MAGIC = b"frami-edge state 1\n"


@dataclass
class Trail:
    """Where a job that is a part of another one leaves its state, and who may stop it.

    Attributes:
        path: Of the state.
        stop: Asked after steps.
        warn: Told of a state that cannot be used.
    """

    path: Path
    stop: Stop = NEVER
    warn: Callable[[str], None] = lambda _: None

    def load(self) -> dict[str, Any] | None:
        """The state to go on from; None to begin."""
        if not self.path.exists():
            return None
        state = load_state(self.path)
        if state is None:
            self.warn(damaged(self.path, "this part"))
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        save_state(self.path, state)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` whole or not at all; the one that lay there stays until then.

    Raises:
        OSError: The place cannot be written; see `frami_edge.io.atomic_path`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    atomic_write_bytes(path, _MAGIC + hashlib.sha256(data).digest() + data)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote; None where the file is damaged, in however small a way.

    Nothing in the file is executed.

    Raises:
        OSError: It cannot be read.
    """
    data = path.read_bytes()
    body = data[len(_MAGIC) + 32 :]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) :][:32] != hashlib.sha256(body).digest():
        return None
    try:
        state: Any = torch.load(io.BytesIO(body), weights_only=True)
    except Exception:  # a hash that fits says nothing of who wrote the file
        return None
    return state if isinstance(state, dict) else None


def damaged(path: Path, what: str) -> str:
    """The sentence for a checkpoint that `load_state` gave None for.

    Args:
        path: Of the checkpoint.
        what: What is done again from its first step, to the same result.
    """
    return (
        f"The checkpoint {path} is damaged: {what} is done again from its first step, to the same "
        "result."
    )


# --- The folder of a run: its config, what it was made with, its metrics and its status

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
        "command_line": command_line(),
        "started": _now(),
        "finished": None,
        "versions": versions(),
        "git": git_commit(),
        "machine": machine(),
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
