"""Data sets by name: published ones with official folds, or a folder; and their download."""

from __future__ import annotations

import csv
import difflib
import math
import os
import re
import shutil
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from frami_edge.data.clips import Clip, SoundSet, is_audio, load_folder, readable
from frami_edge.errors import DataError, IncompleteSetError
from frami_edge.progress import Progress, ProgressCallback

ROOT_VARIABLE = "FRAMI_EDGE_DATA"
PART = "-part"
"""End of the name of a known set that is incomplete."""


def load_set(name: str, root: Path | None = None) -> SoundSet:
    """A data set, complete unless its name ends in ``-part``.

    Args:
        name: A known set (`KNOWN_SETS`), or ``folder:PATH`` for a tree with one folder per class.
            ``NAME-part`` stands for what is there of an incomplete set.
        root: The data root; None for $FRAMI_EDGE_DATA. Not used by ``folder:PATH``.

    Raises:
        DataError: No such set, no data root, or the set is not in it.
        IncompleteSetError: Clips are missing or too many; the message names some.
    """
    if name.startswith("folder:"):
        return load_folder(Path(os.path.expanduser(name.removeprefix("folder:"))))
    info = set_info(whole_name(name))
    base = data_root(root)
    folder = find_folder(info, base)
    if folder is None:
        raise DataError(
            f"{info.name} is not in {base}: there is no folder {info.folders[0]}.",
            fix=f"Run `{info.get}`, or put the folder there.",
        )
    return load_known(info, folder, allow_partial=name.strip().lower().endswith(PART))


def whole_name(name: str) -> str:
    """The name of a known set without the ending of a part of it; folders keep theirs."""
    if name.startswith("folder:"):
        return name
    return re.sub(f"{PART}$", "", name.strip(), flags=re.IGNORECASE)


def part_name(name: str) -> str:
    """The name under which an incomplete set may be used; a folder is never incomplete."""
    return name if name.startswith("folder:") else whole_name(name) + PART


def data_root(option: Path | None) -> Path:
    """The folder that holds the sets by their official names: the option, or $FRAMI_EDGE_DATA.

    Raises:
        DataError: Neither is given, or it is not a folder.
    """
    value = option or os.environ.get(ROOT_VARIABLE)
    if not value:
        raise DataError(
            "No data root is given.",
            fix=f"Pass --data-root PATH or set {ROOT_VARIABLE}: the folder that holds the sets.",
        )
    root = Path(os.path.expanduser(value))  # keeps the ~ of an unknown user
    if not root.is_dir():
        where = "--data-root" if option else ROOT_VARIABLE
        raise DataError(
            f"The data root {root} ({where}) is not a folder.", fix="Create it or correct the path."
        )
    return root


# --- The known sets
# Folds follow each set's authors. ESC-50: K. Piczak, 2015. UrbanSound8K: J. Salamon et al., 2014.
# AudioMNIST: S. Becker et al., 2018. Free Spoken Digit Dataset: Z. Jackson et al.


@dataclass(frozen=True)
class SetInfo:
    """A known set: where it comes from, what it must hold, and its licence."""

    name: str
    title: str
    folders: tuple[str, ...]
    """Accepted names in the data root; the first is the official one."""
    clips: int
    classes: int
    folds: tuple[str, ...]
    licence: str
    source: str
    url: str = ""
    """Zip archive that `frami-edge data get` may fetch."""
    keep: tuple[str, ...] = ()
    """Path prefixes within the archive's top folder that are unpacked."""
    form: str = ""
    """Page with the form to fill in, for a set that may not be fetched by a program."""
    part_of: str = ""
    """The set whose download holds this one."""

    @property
    def get(self) -> str:
        """The command that fetches it, or where its form is."""
        if self.form:
            return f"form: {self.form}"
        return f"frami-edge data get {self.part_of or self.name}"


_GITHUB = "https://github.com/"
_ZIP = "/archive/refs/heads/master.zip"
_FSDD = SetInfo(
    name="fsdd",
    title="Free Spoken Digit Dataset, official test takes 0-4",
    folders=(
        "free-spoken-digit-dataset",
        "free-spoken-digit-dataset-master",
        "free-spoken-digit-dataset-1.0.10",
    ),
    clips=3000,
    classes=10,
    folds=("test",),
    licence="CC BY-SA 4.0",
    source=f"{_GITHUB}Jakobovski/free-spoken-digit-dataset",
    url=f"{_GITHUB}Jakobovski/free-spoken-digit-dataset{_ZIP}",
    keep=("recordings/", "README.md"),
)
_FSDD_SPEAKER = replace(
    _FSDD,
    name="fsdd-speaker",
    title="Free Spoken Digit Dataset, one speaker left out (our own folds)",
    folds=("george", "jackson", "lucas", "nicolas", "theo", "yweweler"),
    part_of="fsdd",
)
_ESC50 = SetInfo(
    name="esc50",
    title="ESC-50: environmental sounds",
    folders=("ESC-50-master", "ESC-50"),
    clips=2000,
    classes=50,
    folds=("1", "2", "3", "4", "5"),
    licence="CC BY-NC 3.0",
    source=f"{_GITHUB}karolpiczak/ESC-50",
    url=f"{_GITHUB}karolpiczak/ESC-50{_ZIP}",
    keep=("audio/", "meta/", "README.md", "LICENSE"),
)
_ESC10 = replace(
    _ESC50,
    name="esc10",
    title="ESC-10: ten classes of ESC-50",
    clips=400,
    classes=10,
    licence="CC BY 3.0",
    part_of="esc50",
)
_ESC40 = replace(
    _ESC50,
    name="esc40",
    title="The 40 classes of ESC-50 that are not in ESC-10 (control data)",
    clips=1600,
    classes=40,
    part_of="esc50",
)
_URBANSOUND = SetInfo(
    name="urbansound8k",
    title="UrbanSound8K: street sounds",
    folders=("UrbanSound8K",),
    clips=8732,
    classes=10,
    folds=tuple(str(i) for i in range(1, 11)),
    licence="CC BY-NC 3.0",
    source="https://urbansounddataset.weebly.com/urbansound8k.html",
    form="https://urbansounddataset.weebly.com/download-urbansound8k.html",
)
_AUDIOMNIST = SetInfo(
    name="audiomnist",
    title="AudioMNIST: digits of 60 speakers",
    folders=("AudioMNIST", "AudioMNIST-master"),
    clips=30_000,
    classes=10,
    folds=("1", "2", "3", "4", "5"),
    licence="MIT",
    source=f"{_GITHUB}soerenab/AudioMNIST",
    url=f"{_GITHUB}soerenab/AudioMNIST{_ZIP}",
    keep=("data/", "README.md", "LICENSE"),
)
KNOWN_SETS = (_FSDD, _FSDD_SPEAKER, _ESC50, _ESC10, _ESC40, _URBANSOUND, _AUDIOMNIST)
"""Every set that `load_set` knows by name."""

# S. Becker et al., AudioMNIST, digit task: the test speakers of each split. The validation speakers
# of a split are the test speakers of the one before.
AUDIOMNIST_TEST_SPEAKERS: Mapping[str, tuple[int, ...]] = {
    "1": (26, 52, 60, 18, 32, 42, 5, 13, 22, 33, 45, 51),
    "2": (28, 56, 7, 19, 35, 1, 6, 16, 23, 34, 46, 53),
    "3": (36, 57, 9, 24, 37, 2, 8, 17, 29, 39, 48, 54),
    "4": (43, 58, 14, 25, 38, 3, 10, 20, 30, 40, 49, 55),
    "5": (12, 47, 59, 15, 27, 41, 4, 11, 21, 31, 44, 50),
}
AUDIOMNIST_VALIDATION = {"1": "5", "2": "1", "3": "2", "4": "3", "5": "4"}


def set_info(name: str) -> SetInfo:
    """One known set by name.

    Raises:
        DataError: No set has that name.
    """
    names = {info.name: info for info in KNOWN_SETS}
    key = name.strip().lower()
    if key in names:
        return names[key]
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    if Path(name).is_dir():
        hint = f"Did you mean folder:{name}? "
    raise DataError(
        f"There is no data set {name!r}.",
        fix=f"{hint}Known: {', '.join(names)}; or folder:PATH, with one sub-folder per class.",
    )


def find_folder(info: SetInfo, root: Path) -> Path | None:
    """The set's own folder in the data root, or the root itself where it is that folder."""
    for folder in info.folders:
        if (root / folder).is_dir():
            return root / folder
    return root if root.resolve().name in info.folders else None


def load_known(info: SetInfo, folder: Path, *, allow_partial: bool = False) -> SoundSet:
    """A known set from its own folder, complete unless `allow_partial`; raises as `load_set`."""
    found = expected_set(info, folder, allow_partial=allow_partial)
    expected = {clip.name for clip in found.clips}
    there: set[str] = set()
    for parent in {name.rpartition("/")[0] for name in expected}:
        if (folder / parent).is_dir():
            with os.scandir(folder / parent) as files:
                there.update(f"{parent}/{readable(file.name)}" for file in files if file.is_file())
    missing = [clip for clip in found.clips if clip.name not in there]
    # ESC-10 and ESC-40 share their folder with the rest of ESC-50.
    unknown = (
        ()
        if info in (_ESC10, _ESC40)
        else sorted(name for name in there - expected if is_audio(Path(name)))
    )
    present = tuple(clip for clip in found.clips if clip.name in there)
    if len(present) == info.clips and not unknown:
        return found
    if allow_partial and present:
        return _part(info, found, present, len(unknown))
    count = len(present) + len(unknown)
    parts = [f"{info.name} in {folder} has {count} clips, not {info.clips}"]
    if missing:
        folds = Counter(clip.fold for clip in missing)
        per_fold = ", ".join(f"fold {fold}: {n}" for fold, n in sorted(folds.items()))
        names = ", ".join(clip.name for clip in missing[:3])
        parts.append(f"{len(missing)} missing ({per_fold}), for example {names}")
    if unknown:
        parts.append(f"{len(unknown)} not of this set, for example {', '.join(unknown[:3])}")
    fix = (
        f"Move {folder.name} away and get the set again ({info.get}), or add the missing files. "
        f"{_USE_PART}"
    )
    if unknown and not missing:
        fix = "Move the clips that are not of this set out of its folder."
    raise IncompleteSetError("; ".join(parts) + ".", fix=fix)


_USE_PART = "Or use what is there: --allow-partial, or folder:PATH with one folder per class."


def _part(info: SetInfo, found: SoundSet, present: tuple[Clip, ...], unknown: int) -> SoundSet:
    """The clips of an incomplete set that are there, under a name that says so."""
    counts = Counter(clip.fold for clip in present)
    folds = tuple(fold for fold in found.folds if counts[fold])
    listed = ", ".join(f"fold {fold}: {counts[fold]}" for fold in folds)
    notes = [f"A part of {info.name}: {len(present)} of {info.clips} clips ({listed})."]
    kept = sorted({clip.label for clip in present})
    if lost := [label for i, label in enumerate(found.labels) if i not in kept]:
        notes.append(f"No clip is there of {', '.join(lost[:5])}.")
    if unknown:
        notes.append(f"Audio files that are not of {info.name}, which are not read: {unknown}.")
    return replace(
        found,
        name=info.name + PART,
        labels=tuple(found.labels[i] for i in kept),
        clips=tuple(replace(clip, label=kept.index(clip.label)) for clip in present),
        folds=folds,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class SetStatus:
    """Whether a known set is in the data root, and complete."""

    info: SetInfo
    folder: Path | None
    problem: str
    """Why it cannot be used; empty where it is complete."""

    @property
    def complete(self) -> bool:
        """Exactly the published clips are there."""
        return not self.problem

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        kept = ("name", "title", "clips", "classes", "folds", "licence", "source")
        return {key: getattr(self.info, key) for key in kept} | {
            "found": self.folder is not None,
            "folder": str(self.folder) if self.folder else None,
            "complete": self.complete,
            "problem": self.problem or None,
            "get": self.info.get,
        }


def survey(root: Path | None) -> list[SetStatus]:
    """The status of every known set; without a data root none is found."""
    found = []
    for info in KNOWN_SETS:
        folder = find_folder(info, root) if root else None
        problem = "not found"
        if folder:
            try:
                load_known(info, folder)
                problem = ""
            except DataError as error:
                problem = error.message
        found.append(SetStatus(info, folder, problem))
    return found


def expected_set(info: SetInfo, folder: Path, *, allow_partial: bool = False) -> SoundSet:
    """The clips that a set must hold, from its own metadata where it has any; files are not read.

    With `allow_partial` the metadata may list fewer clips.

    Raises:
        IncompleteSetError: The metadata file is missing or lists another number of clips.
        DataError: The metadata file cannot be parsed.
    """
    labels: Sequence[str] = tuple(str(digit) for digit in range(10))
    # Entries are (path in the folder, label, fold).
    entries: list[tuple[str, int, str]] = []
    if info in (_FSDD, _FSDD_SPEAKER):
        for speaker, digit, take in product(_FSDD_SPEAKER.folds, range(10), range(50)):
            fold = ("test" if take < 5 else "train") if info is _FSDD else speaker
            entries.append((f"recordings/{digit}_{speaker}_{take}.wav", digit, fold))
    elif info is _AUDIOMNIST:
        for fold, speakers in AUDIOMNIST_TEST_SPEAKERS.items():
            for s, digit, take in product(speakers, range(10), range(50)):
                entries.append((f"data/{s:02d}/{digit}_{s:02d}_{take}.wav", digit, fold))
    else:
        labels, entries = _from_metadata(info, folder, allow_partial=allow_partial)
    return SoundSet(
        name=info.name,
        labels=tuple(labels),
        clips=tuple(Clip(folder / name, lab, fold, name) for name, lab, fold in sorted(entries)),
        folds=info.folds,
        licence=info.licence,
        source=info.source,
        root=folder,
        validation_of=AUDIOMNIST_VALIDATION if info is _AUDIOMNIST else {},
    )


def _from_metadata(
    info: SetInfo, folder: Path, *, allow_partial: bool
) -> tuple[Sequence[str], list[tuple[str, int, str]]]:
    """Labels and entries of ESC-50 with its views, and of UrbanSound8K."""
    urban = info is _URBANSOUND
    path = folder / ("metadata/UrbanSound8K.csv" if urban else "meta/esc50.csv")
    columns = "slice_file_name classID class" if urban else "filename target category"
    file, number, label = columns.split()
    refetch = f"Fetch the set again from {info.source}."
    instead = refetch if allow_partial else f"{refetch} {_USE_PART}"
    if allow_partial and not path.exists():  # a part may come with a list of its own
        path = next(iter(sorted(path.parent.glob("*.csv"))), path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            rows = list(csv.DictReader(text))
        if not urban:
            wanted = {"esc10": ("True",), "esc40": ("False",)}.get(info.name, ("True", "False"))
            rows = [row for row in rows if row["esc10"] in wanted]
        ordered = sorted({(int(row[number]), row[label]) for row in rows})
        labels = [name for _, name in ordered]
        entries = [
            (
                f"audio/fold{row['fold']}/{row[file]}" if urban else f"audio/{row[file]}",
                labels.index(row[label]),
                row["fold"],
            )
            for row in rows
        ]
    except FileNotFoundError:
        raise IncompleteSetError(f"{info.name}: {path} is missing.", fix=instead) from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = f"{type(error).__name__}: {error}"  # the repr may hold the whole file
        raise DataError(f"{path} cannot be read: {reason}.", fix=refetch) from None
    folds = {fold for _, _, fold in entries}
    names = {name for name, _, _ in entries}
    whole = (len(names), len(labels), folds) == (info.clips, info.classes, set(info.folds))
    if not (whole or (allow_partial and folds <= set(info.folds))):
        raise IncompleteSetError(
            f"{info.name}: {path.name} lists {len(names)} clips of {len(labels)} classes in folds "
            f"{', '.join(sorted(folds))}, not {info.clips} of {info.classes} in "
            f"{', '.join(info.folds)}.",
            fix=instead,
        )
    return labels, entries


# --- Download: checked for completeness, and moved into place whole


def get_set(
    name: str,
    root: Path,
    *,
    url: str | None = None,
    limit_s: float = math.inf,
    progress: ProgressCallback | None = None,
) -> tuple[SoundSet, bool]:
    """Put a complete set into the data root; a complete set that is there is left alone.

    The archives have no published hash: what proves a download is that every clip is there. `url`
    is another address of the same archive. `limit_s` ends a fetch that takes longer. `progress`
    counts bytes in `fetch` and `unpack`.

    Returns:
        The set, and whether it was fetched now.

    Raises:
        DataError: The set may not be fetched by a program (names the form to fill in), an
            incomplete folder is in its place, or fetching failed. The data root then holds no new
            folder.
    """
    info = set_info(name)
    package = set_info(info.part_of) if info.part_of else info
    folder = find_folder(package, root) if root.is_dir() else None
    if folder is not None:
        load_known(package, folder)
        return load_known(info, folder), False
    target = root / package.folders[0]
    if not package.url:
        raise DataError(
            f"{package.name} may not be fetched by a program.",
            fix=f"Fill in the form at {package.form}, and unpack the archive so that {target} "
            "holds its audio and metadata folders.",
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".frami-edge-") as temporary:
            archive = Path(temporary) / "archive.zip"
            fetch(url or package.url, archive, limit_s=limit_s, progress=progress)
            fresh = Path(temporary) / "set"
            _unpack(archive, fresh, package, progress)
            try:
                load_known(package, fresh)
            except IncompleteSetError as error:
                raise IncompleteSetError(
                    error.message.replace(str(fresh), "the archive"),
                    fix="Nothing was kept. Check the address, or try later.",
                ) from None
            os.rename(fresh, target)
    except OSError as error:
        raise DataError(
            f"{package.name} cannot be put into {root}: {error.strerror or error}.",
            fix="Check the data root and its free space, or use another one.",
        ) from None
    return load_known(info, target), True


class _Bar:
    """What `pooch` expects of a progress bar."""

    def __init__(self, limit_s: float, progress: ProgressCallback | None) -> None:
        self.progress, self.total, self.done = progress, 0, 0
        self.limit_s, self.end = limit_s, time.monotonic() + limit_s

    def update(self, count: int) -> None:
        self.done += count
        if time.monotonic() > self.end:
            raise TimeoutError(f"it takes longer than {self.limit_s:g} s")
        if self.progress:
            done = min(self.done, self.total or self.done)  # pooch counts the last chunk as whole
            self.progress(Progress("fetch", done, self.total or None))

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def fetch(
    url: str, path: Path, *, limit_s: float = math.inf, progress: ProgressCallback | None = None
) -> None:
    """Download a file. What is at `path` after an error is no whole file.

    Raises:
        DataError: The address does not work, the connection broke, or it took longer than
            `limit_s` seconds.
    """
    import pooch  # type: ignore[import-untyped]

    download = pooch.HTTPDownloader(
        progressbar=_Bar(limit_s, progress), chunk_size=1 << 16, timeout=(10, 30)
    )
    try:
        download(url, str(path), None)
    except (OSError, ValueError) as error:  # requests raises subclasses of OSError
        # Without a connection, requests wraps the reason in the names of its own classes.
        inner = getattr(error.args[0], "reason", None) if error.args else None
        why = str(inner).partition("): ")[2] if inner else ""
        raise DataError(
            f"{url} could not be fetched: {' '.join((why or str(error)).split())[:300]}.",
            fix="Check the address and the connection, or try later.",
        ) from None


def _unpack(
    archive: Path, target: Path, package: SetInfo, progress: ProgressCallback | None
) -> None:
    """Unpack the kept part of an archive, without its top folder."""
    try:
        with zipfile.ZipFile(archive) as file:
            chosen = []
            for info in file.infolist():
                name = PurePosixPath(*PurePosixPath(info.filename).parts[1:])
                if ".." in name.parts:
                    raise DataError(
                        f"The archive's {info.filename!r} leaves its folder.",
                        fix="Do not use this archive.",
                    )
                if not info.is_dir() and str(name).startswith(package.keep):
                    chosen.append((info, target / name))
            total, done = sum(info.file_size for info, _ in chosen), 0
            for info, path in chosen:
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.open(info) as source, path.open("xb") as sink:
                    shutil.copyfileobj(source, sink)
                done += info.file_size
                if progress:
                    progress(Progress("unpack", done, total))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"It is not a sound zip archive: {error}.", fix="Fetch it again.") from None
