"""The known data sets: where they come from, what they must hold, under which licence.

Folds follow each set's authors. ESC-50: K. Piczak, 2015. UrbanSound8K: J. Salamon et al., 2014.
AudioMNIST: S. Becker et al., 2018. Free Spoken Digit Dataset: Z. Jackson et al.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from frami_edge.data.errors import DataError

ROOT_VARIABLE = "FRAMI_EDGE_DATA"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Archive:
    """What `frami-edge data get` may fetch, and its bounds."""

    url: str
    max_bytes: int
    """Of the download."""
    max_unpacked_bytes: int
    keep: tuple[str, ...]
    """Path prefixes within the archive's top folder that are unpacked."""


@dataclass(frozen=True)
class SetInfo:
    """One known set."""

    name: str
    title: str
    folders: tuple[str, ...]
    """Accepted names under the data root; the first is the official one."""
    clips: int
    """Exactly so many."""
    classes: int
    folds: tuple[str, ...]
    licence: str
    source: str
    archive: Archive | None = None
    form: str = ""
    """Page with the form to fill in, for a set that may not be fetched by a program."""
    part_of: str = ""
    """The set whose download holds this one."""


_FSDD_FOLDERS = (
    "free-spoken-digit-dataset",
    "free-spoken-digit-dataset-master",
    "free-spoken-digit-dataset-1.0.10",
)
_FSDD_SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
_FSDD_SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
_ESC_FOLDERS = ("ESC-50-master", "ESC-50")
_ESC_SOURCE = "https://github.com/karolpiczak/ESC-50"
_FIVE = ("1", "2", "3", "4", "5")

_SETS = (
    SetInfo(
        name="fsdd",
        title="Free Spoken Digit Dataset, official test takes 0-4",
        folders=_FSDD_FOLDERS,
        clips=3000,
        classes=10,
        folds=("test",),
        licence="CC BY-SA 4.0",
        source=_FSDD_SOURCE,
        archive=Archive(
            url=f"{_FSDD_SOURCE}/archive/refs/heads/master.zip",
            max_bytes=100 * MEGABYTE,
            max_unpacked_bytes=200 * MEGABYTE,
            keep=("recordings/", "README.md"),
        ),
    ),
    SetInfo(
        name="fsdd-speaker",
        title="Free Spoken Digit Dataset, one speaker left out (our own folds)",
        folders=_FSDD_FOLDERS,
        clips=3000,
        classes=10,
        folds=_FSDD_SPEAKERS,
        licence="CC BY-SA 4.0",
        source=_FSDD_SOURCE,
        part_of="fsdd",
    ),
    SetInfo(
        name="esc50",
        title="ESC-50: environmental sounds",
        folders=_ESC_FOLDERS,
        clips=2000,
        classes=50,
        folds=_FIVE,
        licence="CC BY-NC 3.0",
        source=_ESC_SOURCE,
        archive=Archive(
            url=f"{_ESC_SOURCE}/archive/refs/heads/master.zip",
            max_bytes=1000 * MEGABYTE,
            max_unpacked_bytes=1500 * MEGABYTE,
            keep=("audio/", "meta/", "README.md", "LICENSE"),
        ),
    ),
    SetInfo(
        name="esc10",
        title="ESC-10: ten classes of ESC-50",
        folders=_ESC_FOLDERS,
        clips=400,
        classes=10,
        folds=_FIVE,
        licence="CC BY 3.0",
        source=_ESC_SOURCE,
        part_of="esc50",
    ),
    SetInfo(
        name="esc40",
        title="The 40 classes of ESC-50 that are not in ESC-10 (control data)",
        folders=_ESC_FOLDERS,
        clips=1600,
        classes=40,
        folds=_FIVE,
        licence="CC BY-NC 3.0",
        source=_ESC_SOURCE,
        part_of="esc50",
    ),
    SetInfo(
        name="urbansound8k",
        title="UrbanSound8K: street sounds",
        folders=("UrbanSound8K",),
        clips=8732,
        classes=10,
        folds=tuple(str(i) for i in range(1, 11)),
        licence="CC BY-NC 3.0",
        source="https://urbansounddataset.weebly.com/urbansound8k.html",
        form="https://urbansounddataset.weebly.com/download-urbansound8k.html",
    ),
    SetInfo(
        name="audiomnist",
        title="AudioMNIST: digits of 60 speakers",
        folders=("AudioMNIST", "AudioMNIST-master"),
        clips=30_000,
        classes=10,
        folds=_FIVE,
        licence="MIT",
        source="https://github.com/soerenab/AudioMNIST",
        archive=Archive(
            url="https://github.com/soerenab/AudioMNIST/archive/refs/heads/master.zip",
            max_bytes=3000 * MEGABYTE,
            max_unpacked_bytes=5000 * MEGABYTE,
            keep=("data/", "README.md", "LICENSE"),
        ),
    ),
)


def known_sets() -> tuple[SetInfo, ...]:
    """Every set that `load_set` knows by name."""
    return _SETS


def set_info(name: str) -> SetInfo:
    """One known set by name.

    Raises:
        DataError: No set has that name.
    """
    key = name.strip().lower()
    for info in _SETS:
        if info.name == key:
            return info
    import difflib

    names = [info.name for info in _SETS]
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise DataError(
        f"There is no data set {name!r}.",
        fix=f"{hint}Known: {', '.join(names)}; or folder:PATH, with one sub-folder per class.",
    )


def data_root(cli_value: Path | None) -> Path:
    """The folder that holds the sets by their official names: the option, or $FRAMI_EDGE_DATA.

    Raises:
        DataError: Neither is given, or it is no folder.
    """
    value = cli_value if cli_value is not None else os.environ.get(ROOT_VARIABLE) or None
    if value is None:
        raise DataError(
            "No data root is given.",
            fix=f"Pass --data-root PATH or set {ROOT_VARIABLE}: the folder that holds the sets.",
        )
    root = Path(value).expanduser()
    if not root.is_dir():
        where = "--data-root" if cli_value is not None else ROOT_VARIABLE
        raise DataError(
            f"The data root {root} ({where}) is no folder.", fix="Create it or correct the path."
        )
    return root


def find_folder(info: SetInfo, root: Path) -> Path | None:
    """The set's own folder under the data root, or the root itself where it is that folder."""
    for folder in info.folders:
        if (root / folder).is_dir():
            return root / folder
    if root.resolve().name in info.folders:
        return root
    return None
