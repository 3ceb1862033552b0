"""`get_set`: fetch a set that may be fetched, check it, and move it into place whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from frami_edge.data.catalogue import SetInfo, find_folder, set_info
from frami_edge.data.clips import SoundSet
from frami_edge.data.errors import DataError, IncompleteSetError
from frami_edge.data.fetch import fetch
from frami_edge.data.sets import load_known
from frami_edge.data.unpack import unpack

DOWNLOADS = ".frami-edge-downloads"

Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Arrival:
    """A set that is there now."""

    sound_set: SoundSet
    fetched: bool
    """False when it was there already."""


def get_set(
    name: str, root: Path, *, url: str | None = None, report: Report | None = None
) -> Arrival:
    """Put a set under the data root, complete; a set that is there and complete is left alone.

    Args:
        name: A known set; one that is part of another fetches that one.
        root: The data root; made if it does not exist.
        url: Another address of the same archive, such as a mirror.
        report: Called with (stage, bytes so far, bytes in all or None).

    Raises:
        DataError: The set may not be fetched by a program (says which form to fill in), an
            incomplete folder is in the way, or fetching failed. The data root then holds no new
            folder.
    """
    info = set_info(name)
    package = set_info(info.part_of) if info.part_of else info
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"The data root {root} cannot be made: {error.strerror}.", fix="Choose another."
        ) from None
    folder = find_folder(package, root)
    if folder is not None:
        try:
            load_known(package, folder)
        except IncompleteSetError as error:
            raise IncompleteSetError(
                error.message, fix=f"Move {folder} away and run this command again."
            ) from None
        return Arrival(load_known(info, folder), fetched=False)
    if package.archive is None:
        raise DataError(
            f"{package.name} may not be fetched by a program.",
            fix=f"Fill in the form at {package.form}, and unpack the archive so that "
            f"{root / package.folders[0]} holds its audio and metadata folders.",
        )
    tell = report or (lambda stage, done, total: None)
    downloads = root / DOWNLOADS
    downloads.mkdir(exist_ok=True)
    archive = fetch(
        url or package.archive.url,
        downloads / f"{package.name}.zip",
        max_bytes=package.archive.max_bytes,
        report=lambda done, total: tell("fetch", done, total),
    )
    try:
        return Arrival(_install(info, package, archive, root, tell), fetched=True)
    finally:
        archive.unlink(missing_ok=True)
        if not any(downloads.iterdir()):
            downloads.rmdir()


def _install(info: SetInfo, package: SetInfo, archive: Path, root: Path, tell: Report) -> SoundSet:
    assert package.archive is not None
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=f".frami-edge-{package.name}-"))
    try:
        unpack(
            archive,
            temporary,
            keep=package.archive.keep,
            max_bytes=package.archive.max_unpacked_bytes,
            report=lambda done, total: tell("unpack", done, total),
        )
        try:
            load_known(package, temporary)
        except IncompleteSetError as error:
            raise IncompleteSetError(
                error.message.replace(str(temporary), "the archive"),
                fix="Nothing was kept. Check the address, or try later.",
            ) from None
        target = root / package.folders[0]
        temporary.chmod(0o755)  # mkdtemp makes it private to this user
        try:
            os.rename(temporary, target)
        except OSError as error:
            raise DataError(
                f"{target} cannot be put in place: {error.strerror}.", fix="Is it there already?"
            ) from None
        return load_known(info, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
