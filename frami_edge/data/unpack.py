"""A downloaded zip to a folder, trusting nothing that it says."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from frami_edge.data.errors import DataError

_MAX_ENTRIES = 200_000
_CHUNK = 1 << 20

Report = Callable[[int, int | None], None]


def unpack(
    archive: Path,
    target: Path,
    *,
    keep: Sequence[str],
    max_bytes: int,
    report: Report | None = None,
) -> int:
    """Unpack what is kept of an archive with one top folder, without that folder.

    Args:
        archive: The zip.
        target: An empty folder.
        keep: Path prefixes inside the top folder; everything else is left out.
        max_bytes: Of all unpacked files together.
        report: Called with (bytes so far, bytes in all).

    Returns:
        Files written.

    Raises:
        DataError: No zip, damaged, encrypted, with a path that leaves the folder, a link, two
            entries of one name, too large, or no space left.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            entries = _chosen(file, keep, archive.name)
            total = sum(info.file_size for info, _ in entries)
            if total > max_bytes:
                raise DataError(
                    f"{archive.name} would unpack to {total / 1e6:.0f} MB, too much.",
                    fix="Do not use this archive.",
                )
            if total > shutil.disk_usage(target).free:
                raise DataError(
                    f"No space is left for {total / 1e6:.0f} MB in {target.parent}.",
                    fix="Free some, or use another data root.",
                )
            done = 0
            for info, name in entries:
                path = target.joinpath(*name.parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                # "x" never follows or overwrites what another entry put there.
                with file.open(info) as source, path.open("xb") as sink:
                    shutil.copyfileobj(source, sink, _CHUNK)
                done += info.file_size
                if report is not None:
                    report(done, total)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{archive.name} is no sound zip archive: {error}.", fix="Fetch it again."
        ) from None
    except OSError as error:
        raise DataError(
            f"{archive.name} cannot be unpacked: {error.strerror or error}.",
            fix="Check the data root and its free space.",
        ) from None
    return len(entries)


def _chosen(
    file: zipfile.ZipFile, keep: Sequence[str], archive: str
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    infos = file.infolist()
    if len(infos) > _MAX_ENTRIES:
        raise DataError(f"{archive} has {len(infos)} entries, too many.", fix="Check the address.")
    chosen: dict[str, tuple[zipfile.ZipInfo, PurePosixPath]] = {}
    for info in infos:
        name = _inside(info, archive)
        if info.is_dir() or not any(str(name).startswith(prefix) for prefix in keep):
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise DataError(
                f"{archive}: {info.filename} is a link or a device.", fix="Do not use it."
            )
        if info.flag_bits & 1:
            raise DataError(f"{archive}: {info.filename} is encrypted.", fix="Do not use it.")
        if str(name).casefold() in chosen:
            raise DataError(f"{archive}: {info.filename} is in it twice.", fix="Do not use it.")
        chosen[str(name).casefold()] = (info, name)
    return list(chosen.values())


def _inside(info: zipfile.ZipInfo, archive: str) -> PurePosixPath:
    """The path below the archive's top folder."""
    # zipfile rewrites separators and cuts at NUL, so the name as stored is what counts.
    raw = info.orig_filename
    parts = raw.split("/")
    if not info.filename:
        raise DataError(f"{archive} holds a file without a name.", fix="Do not use this archive.")
    if raw.startswith("/") or ".." in parts or any(c in raw for c in "\\:\0"):
        raise DataError(f"{archive}: {raw!r} leaves the folder.", fix="Do not use this archive.")
    return PurePosixPath(*parts[1:])
