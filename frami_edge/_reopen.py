"""Whether a folder may become a run: it is empty, or a run to resume or to overwrite."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from frami_edge import _yaml
from frami_edge.errors import RunError
from frami_edge.io import read_small

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
