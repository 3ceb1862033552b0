"""One file over HTTP(S), bounded, resumed where the server can, complete or not there."""

from __future__ import annotations

import errno
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from frami_edge.data.errors import DataError

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
