"""`load_set`: a set by name, checked against what its authors published."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from frami_edge.data.catalogue import SetInfo, data_root, find_folder, set_info
from frami_edge.data.clips import Clip, SoundSet
from frami_edge.data.errors import DataError, IncompleteSetError
from frami_edge.data.folders import load_folder
from frami_edge.data.layouts import Entry, Layout, read_layout
from frami_edge.data.reading import AUDIO_SUFFIXES

_EXAMPLES = 3


def load_set(name: str, root: Path | None = None) -> SoundSet:
    """A data set in its official layout, complete.

    Args:
        name: A known set (`frami_edge.data.known_sets`), or ``folder:PATH`` for a plain tree with a
            folder per class.
        root: The data root; None for $FRAMI_EDGE_DATA. Not used by ``folder:PATH``.

    Raises:
        DataError: No such set, no data root, or the set is not under it.
        IncompleteSetError: Clips are missing or too many; says which, per fold and class.
    """
    if name.startswith("folder:"):
        return load_folder(Path(name.removeprefix("folder:")).expanduser())
    info = set_info(name)
    base = data_root(root)
    folder = find_folder(info, base)
    if folder is None:
        get = f"frami-edge data get {info.part_of or info.name}"
        raise DataError(
            f"{info.name} is not under {base}: there is no folder {info.folders[0]}.",
            fix=f"Run `{get}`, or put the folder there.",
        )
    return load_known(info, folder)


def load_known(info: SetInfo, folder: Path) -> SoundSet:
    """A known set from its own folder; raises as `load_set`."""
    layout = read_layout(info, folder)
    check = compare(layout, folder)
    if check.missing or check.unknown:
        raise IncompleteSetError(
            _sentence(info, layout, check, folder), fix=_fix(info, check, folder)
        )
    return as_sound_set(info, layout, folder)


def as_sound_set(info: SetInfo, layout: Layout, folder: Path) -> SoundSet:
    """The set that a layout promises, without looking whether the files are there."""
    entries = sorted(layout.entries, key=lambda e: e.name)
    return SoundSet(
        name=info.name,
        labels=layout.labels,
        clips=tuple(Clip(folder / e.name, e.label, e.fold, e.name) for e in entries),
        folds=info.folds,
        licence=info.licence,
        source=info.source,
        root=folder,
        validation_of=layout.validation_of,
    )


@dataclass(frozen=True)
class Comparison:
    """What is there against what should be."""

    found: int
    missing: tuple[Entry, ...]
    unknown: tuple[str, ...]


def compare(layout: Layout, folder: Path) -> Comparison:
    """Look for every file of a layout, and for audio files that do not belong to it."""
    parents = {entry.name.rpartition("/")[0] for entry in layout.entries}
    there: set[str] = set()
    for parent in parents:
        try:
            with os.scandir(folder / parent) as files:
                there.update(f"{parent}/{file.name}" for file in files if file.is_file())
        except OSError:
            continue
    expected = {entry.name for entry in layout.entries}
    return Comparison(
        found=len(expected & there),
        missing=tuple(entry for entry in layout.entries if entry.name not in there),
        unknown=tuple(
            sorted(
                name
                for name in there - expected
                if name.rpartition("/")[0] in layout.audio_folders
                and Path(name).suffix.lower() in AUDIO_SUFFIXES
                and not Path(name).name.startswith(".")
            )
        ),
    )


def _sentence(info: SetInfo, layout: Layout, check: Comparison, folder: Path) -> str:
    parts = [
        f"{info.name} in {folder} has {check.found + len(check.unknown)} clips, not {info.clips}"
    ]
    if check.missing:
        folds = Counter(e.fold for e in check.missing)
        per_fold = ", ".join(f"fold {fold}: {folds[fold]}" for fold in sorted(folds, key=_natural))
        classes = Counter(f"class {layout.labels[e.label]}" for e in check.missing)
        parts.append(
            f"{len(check.missing)} missing ({per_fold}; {_counts(classes)}), "
            f"for example {_some([e.name for e in check.missing])}"
        )
    if check.unknown:
        parts.append(
            f"{len(check.unknown)} not of this set, for example {_some(list(check.unknown))}"
        )
    return "; ".join(parts) + "."


def _fix(info: SetInfo, check: Comparison, folder: Path) -> str:
    if not check.missing:
        return "Move the clips that are not of this set out of its folder."
    if info.form:
        return f"Unpack the set again from {info.form}."
    get = f"frami-edge data get {info.part_of or info.name}"
    return f"Move {folder.name} away and run `{get}`, or add the missing files."


def _counts(counter: Counter[str]) -> str:
    shown = [f"{name}: {n}" for name, n in counter.most_common(_EXAMPLES)]
    return ", ".join(shown) + (
        f" and {len(counter) - _EXAMPLES} more" if len(counter) > _EXAMPLES else ""
    )


def _natural(fold: str) -> tuple[int, str]:
    return (int(fold), "") if fold.isdecimal() else (0, fold)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_EXAMPLES])
