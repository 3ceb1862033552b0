"""Download a known data set, check that it is complete, and move it into place whole."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from frami_edge.data.clips import SoundSet
from frami_edge.data.sets import SetInfo, find_folder, load_known, set_info
from frami_edge.errors import DataError, IncompleteSetError
from frami_edge.progress import Progress, ProgressCallback


@dataclass(frozen=True)
class Arrival:
    """A set that is in the data root now."""

    sound_set: SoundSet
    fetched: bool  # false when it was there already


def get_set(
    name: str,
    root: Path,
    *,
    url: str | None = None,
    limit_s: float = math.inf,
    progress: ProgressCallback | None = None,
) -> Arrival:
    """Put a complete set into the data root; a complete set that is there is left alone.

    The archives have no published hash: what proves a download is that every clip is there. `url`
    is another address of the same archive. `limit_s` ends a fetch that takes longer. `progress`
    counts bytes in `fetch` and `unpack`.

    Raises:
        DataError: The set may not be fetched by a program (names the form to fill in), an
            incomplete folder is in its place, or fetching failed. The data root then holds no new
            folder.
    """
    info = set_info(name)
    package = set_info(info.part_of) if info.part_of else info
    folder = find_folder(package, root) if root.is_dir() else None
    if folder is not None:
        try:
            load_known(package, folder)
        except IncompleteSetError as error:
            raise IncompleteSetError(
                error.message, fix=f"Move {folder} away and run this command again."
            ) from None
        return Arrival(load_known(info, folder), fetched=False)
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
    return Arrival(load_known(info, target), fetched=True)


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
