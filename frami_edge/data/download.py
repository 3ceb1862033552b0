"""`get_set`: fetch a set that may be fetched, check it, and move it into place whole."""

from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import stat
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from frami_edge.data.sets import SetInfo, SoundSet, find_folder, load_known, set_info
from frami_edge.errors import DataError, IncompleteSetError

# --- One file over HTTP(S), bounded, resumed where the server can, complete or not there

_CHUNK = 1 << 18
_TIMEOUT_S = 30.0
_TRIES = 3

Report = Callable[[int, int | None], None]


class _SameSecurity(urllib.request.HTTPRedirectHandler):
    """Follow redirects to HTTP(S) only, and never from HTTPS down to HTTP."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise DataError(
                f"{req.full_url} redirects to {newurl}, which is not secure.", fix="Do not use it."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, target: Path, *, max_bytes: int, report: Report | None = None) -> Path:
    """Download to ``target``; what was interrupted is continued, here or by the next call.

    The bytes lie in ``TARGET.part`` until they are complete. A part is continued only if the
    server proves by its validator (ETag or date) that the file is still the same; otherwise the
    download starts afresh.

    Args:
        url: ``http`` or ``https``.
        target: Final path; its folder exists.
        max_bytes: Larger files are refused.
        report: Called with (bytes so far, bytes in all or None).

    Raises:
        DataError: No such file, no connection, too large, no space left, or still incomplete
            after three tries.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is no http or https address.", fix="Correct --url.")
    download = _Download(url, target, max_bytes, report or (lambda done, total: None))
    problem = ""
    for _ in range(_TRIES):
        try:
            if download.attempt():
                os.replace(download.part, target)
                download.note.unlink(missing_ok=True)
                return target
            problem = "the connection closed early"
        except urllib.error.HTTPError as error:
            raise DataError(
                f"{url} answered {error.code} {error.reason}.",
                fix="Check the address, or try later.",
            ) from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                download.drop()
                raise DataError(
                    f"No space is left in {target.parent}.",
                    fix="Free some, or use another data root.",
                ) from None
            problem = error.strerror or str(error)
    raise DataError(
        f"{url} could not be fetched: {problem}.",
        fix="Run the command again: it goes on where it stopped if the server allows.",
    )


@dataclass
class _Download:
    url: str
    target: Path
    max_bytes: int
    report: Report

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def note(self) -> Path:
        return self.target.with_name(self.target.name + ".part.json")

    def drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def attempt(self) -> bool:
        """Ask once, from where the part ends; True when the file is complete."""
        start, validator = self._resumable()
        headers = {"User-Agent": "frami-edge", "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        opener = urllib.request.build_opener(_SameSecurity)
        try:
            answer = opener.open(
                urllib.request.Request(self.url, headers=headers), timeout=_TIMEOUT_S
            )
        except urllib.error.HTTPError as error:
            if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                self.drop()
                return False
            raise
        with answer:
            if answer.status != http.client.PARTIAL_CONTENT:
                start = 0
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                self.drop()
                return False
            total = self._total(answer.headers, start)
            self._remember(answer.headers)
            with self.part.open("ab" if start else "wb") as file:
                done = self._copy(answer, file, start, total)
        return total is None or done == total

    def _total(self, headers: Any, start: int) -> int | None:
        length = headers.get("Content-Length", "")
        if not length.isdecimal():
            return None
        self._bound(start + int(length))
        return start + int(length)

    def _copy(self, answer: IO[bytes], file: IO[bytes], done: int, total: int | None) -> int:
        self.report(done, total)
        while data := answer.read(_CHUNK):
            self._bound(done + len(data))
            file.write(data)
            done += len(data)
            self.report(done, total)
        return done

    def _bound(self, size: int) -> None:
        if size > self.max_bytes:
            self.drop()
            raise DataError(
                f"{self.url} is larger than {self.max_bytes / 1e6:.0f} MB, the bound for this set.",
                fix="Check the address.",
            )

    def _remember(self, headers: Any) -> None:
        etag = headers.get("ETag", "")
        # A weak ETag does not promise equal bytes, so it cannot guard a range.
        validator = headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
        self.note.write_text(json.dumps({"url": self.url, "validator": validator}))

    def _resumable(self) -> tuple[int, str]:
        with suppress(OSError, ValueError, AttributeError):
            note = json.loads(self.note.read_text())
            if note.get("url") == self.url and isinstance(note.get("validator"), str):
                return (
                    (self.part.stat().st_size, note["validator"]) if note["validator"] else (0, "")
                )
        return 0, ""


# --- A downloaded zip to a folder, trusting nothing that it says

_MAX_ENTRIES = 200_000
_UNPACK_CHUNK = 1 << 20

UnpackReport = Callable[[int, int | None], None]


def unpack(
    archive: Path,
    target: Path,
    *,
    keep: Sequence[str],
    max_bytes: int,
    report: UnpackReport | None = None,
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
                    shutil.copyfileobj(source, sink, _UNPACK_CHUNK)
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


# --- `get_set`: fetch a set that may be fetched, check it, and move it into place whole

DOWNLOADS = ".frami-edge-downloads"

DownloadReport = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Arrival:
    """A set that is there now."""

    sound_set: SoundSet
    fetched: bool
    """False when it was there already."""


def get_set(
    name: str, root: Path, *, url: str | None = None, report: DownloadReport | None = None
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


def _install(
    info: SetInfo, package: SetInfo, archive: Path, root: Path, tell: DownloadReport
) -> SoundSet:
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
