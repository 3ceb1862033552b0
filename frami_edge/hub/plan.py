"""What of a folder is sent: an allow-list, so that nothing goes out by accident."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from frami_edge.cards.header import read_header
from frami_edge.data.reading import AUDIO_SUFFIXES
from frami_edge.describing.export_folder import REPORT, read_report
from frami_edge.hub.errors import PushError
from frami_edge.hub.private_paths import find_path, shortened
from frami_edge.io import json_text, sha256_file
from frami_edge.runs import read_manifest

CARD: Final = "README.md"
MANIFEST: Final = "manifest.json"
MOST_FILES: Final = 20_000
_MOST_JSON: Final = 64 << 20
_CHECKPOINTS: Final = ("student.safetensors", "teacher.safetensors")
_RUN_FILES: Final = frozenset({CARD, MANIFEST, "config.yaml", "metrics.jsonl", *_CHECKPOINTS})
_AUDIO_MAGIC: Final = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM", b"\xff\xfb")


@dataclass(frozen=True)
class Item:
    """One file to send."""

    name: str
    """Path in the repository, with slashes."""
    content: Path | bytes
    """The file, or what is sent in its place."""
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class LeftOut:
    """One file that stays here."""

    name: str
    why: str


@dataclass(frozen=True)
class Plan:
    """Everything that a push would do.

    Attributes:
        folder: As given.
        kind: `export`, `student` or `teacher`.
        items: In order of their names.
        left_out: Likewise.
        header: Of the card.
        warnings: What the user should know before it is public.
    """

    folder: Path
    kind: str
    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...]
    header: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(item.bytes for item in self.items)


def make_plan(folder: Path, *, with_bank: bool = False) -> Plan:
    """Look at an export or a run; nothing is sent and nothing is changed.

    Sent are model files that are what their report says, the card, the report or manifest, the
    settings, metrics and pictures. Never sent: audio, engines, links, states of a run. Paths in a
    run's manifest are cut to names in the copy that is sent; a path in any other file refuses it.

    Args:
        folder: Of `frami-edge export`, `distill`, `quickstart` or `train-teacher`.
        with_bank: Also the run's synthetic bank.

    Raises:
        PushError: It is no such folder, is not finished, was changed, lacks a card, or holds a path
            of this machine where none can be cut.
    """
    if not folder.is_dir():
        raise PushError(f"{folder} is no folder.", fix="Give the folder of an export or a run.")
    warnings: list[str] = []
    if (folder / REPORT).is_file():
        kind, wanted = "export", _of_export(folder, warnings)
    elif (folder / MANIFEST).is_file():
        kind, wanted = _of_run(folder, with_bank, warnings)
    else:
        raise PushError(
            f"{folder} holds neither {REPORT} nor {MANIFEST}: it is no export and no run.",
            fix="Give the folder that frami-edge export, distill or train-teacher wrote.",
        )
    items, left = [], []
    for name in _files(folder):
        why = _why_not(folder / name, name, wanted)
        if why:
            left.append(LeftOut(name, why))
        else:
            items.append(_item(folder, name))
    header = _header(folder)
    if "license" not in header:
        warnings.append(f"{CARD} names no licence: nobody may use the model until it does.")
    return Plan(folder, kind, tuple(items), tuple(left), header, tuple(warnings))


def _of_export(folder: Path, warnings: list[str]) -> Callable[[str], bool]:
    report = read_report(folder)
    failed = [gate["name"] for gate in report.get("gates", []) if not gate["passed"]]
    if failed:
        warnings.append(f"A gate of {folder.name} failed: {', '.join(failed)}. The card says it.")
    files = {CARD, REPORT, "calib.json"}
    for artifact in report["artifacts"]:
        name = artifact["path"]
        if Path(name).name != name:
            raise PushError(
                f"{folder / REPORT} names a file outside the folder.", fix="Export again."
            )
        _check_hash(folder / name, artifact.get("sha256"), REPORT)
        files.add(name)
    return lambda name: name in files or _is_picture(name)


def _of_run(
    folder: Path, with_bank: bool, warnings: list[str]
) -> tuple[str, Callable[[str], bool]]:
    manifest = read_manifest(folder)
    if manifest.get("status") != "finished":
        raise PushError(
            f"The run in {folder} is not finished, but {manifest.get('status')}.",
            fix="Continue it with --resume.",
        )
    main = next((name for name in _CHECKPOINTS if (folder / name).is_file()), None)
    if main is None:
        raise PushError(
            f"The run in {folder} holds neither a student nor a teacher.",
            fix="A bank alone is not sent; distil a student from it.",
        )
    kind = main.partition(".")[0]
    known = manifest.get("student", {}).get("sha256") if kind == "student" else None
    _check_hash(folder / main, known or manifest.get(f"{kind}_sha256"), MANIFEST)
    inner = folder / "export"
    exported = _of_export(inner, warnings) if (inner / REPORT).is_file() else None

    def wanted(name: str) -> bool:
        first, _, rest = name.partition("/")
        if first == "export" and rest:
            return exported is not None and exported(rest)
        if first == "bank" and rest:
            shard = rest.endswith(".safetensors") and "/" not in rest
            return with_bank and (rest == "bank.json" or shard)
        return name in _RUN_FILES or _is_picture(name)

    return kind, wanted


def _files(folder: Path) -> Iterator[str]:
    count = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted([*names, *(f for f in folders if Path(place, f).is_symlink())]):
            count += 1
            if count > MOST_FILES:
                raise PushError(
                    f"{folder} holds more than {MOST_FILES} files.", fix="Give a run's own folder."
                )
            yield Path(place, name).relative_to(folder).as_posix()


def _why_not(path: Path, name: str, wanted: Callable[[str], bool]) -> str:
    """Why a file stays here; empty where it is sent."""
    if path.is_symlink() or not path.is_file():
        return "a link, or no plain file"
    suffix = path.suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return "audio is never sent"
    if suffix in (".engine", ".plan") or name.endswith(".engine.json"):
        return "an engine belongs to one machine, and is code"
    if not wanted(name):
        bank = name.startswith("bank/") and suffix in (".safetensors", ".json")
        return "the bank; --with-bank sends it" if bank else "not part of the model"
    with path.open("rb") as file:
        if file.read(4).startswith(_AUDIO_MAGIC):
            return "audio under another name"
    return ""


def _item(folder: Path, name: str) -> Item:
    path = folder / name
    if name == MANIFEST:
        text = json_text(shortened(read_manifest(folder))) + "\n"
        data = text.encode()
        _refuse_paths(name, data, folder)
        return Item(name, data, len(data), "paths cut to names")
    _refuse_paths(name, _readable_part(path), folder)
    return Item(name, path, path.stat().st_size)


def _readable_part(path: Path) -> bytes:
    """The bytes that can hold text: of tensors their header alone."""
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            return file.read()
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, _MOST_JSON))


def _refuse_paths(name: str, data: bytes, folder: Path) -> None:
    found = find_path(data, folder)
    if found:
        raise PushError(
            f"{name} holds a path of this machine: {found}",
            fix="Make it again with relative paths, or cut the path in a copy of the folder.",
        )


def _check_hash(path: Path, expected: object, where: str) -> None:
    if not path.is_file():
        raise PushError(f"{path} is missing, and {where} names it.", fix="Export or run again.")
    if isinstance(expected, str) and expected and sha256_file(path) != expected:
        raise PushError(
            f"{path} is not the file that {where} describes: its hash differs.",
            fix="Export or run again, so that card and file belong together.",
        )


def _header(folder: Path) -> dict[str, Any]:
    try:
        return read_header((folder / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PushError(
            f"{folder} has no {CARD}.", fix="Export or run again; it is written last."
        ) from None
    except (OSError, ValueError) as error:
        raise PushError(
            f"{folder / CARD} is no model card: {error}.", fix="Restore its header, or run again."
        ) from None


def _is_picture(name: str) -> bool:
    return name.startswith("plots/") and name.count("/") == 1 and name.endswith((".png", ".svg"))
