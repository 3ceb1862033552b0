"""Paths of this machine, which tell a stranger names of users, projects and disks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_ROOTS: Final = (
    b"home|Users|root|tmp|mnt|media|srv|scratch|workspace|work|data|var|opt|private|Volumes"
)
_KNOWN: Final = re.compile(
    rb"(?<![\w.])/(?:" + _ROOTS + rb")/[\w.@+-]{1,80}|[A-Za-z]:\\{1,2}Users\\{1,2}[\w.-]{1,80}"
)
# Two levels at least; what follows a word, a dot or a slash is no beginning of a path but of a URL.
_PATH: Final = re.compile(r"(?<![\w./])/(?!/)[^\s/'\",]+(?:/[^\s/'\",]+)+/?")
_WINDOWS: Final = re.compile(r"(?<!\w)[A-Za-z]:\\+(?:[^\s\\'\",]+\\+)*[^\s\\'\",]*")


def find_path(data: bytes, folder: Path) -> str:
    """The first absolute path in a file's bytes; empty where there is none.

    Args:
        data: The file.
        folder: That it lies in: its own path is looked for too, wherever it begins.
    """
    for place in (Path.home(), Path.cwd(), folder.resolve()):
        raw = os.fsencode(place)
        if len(place.parts) > 2 and raw in data:
            return str(place)
    found = _KNOWN.search(data)
    return found[0].decode("utf-8", "replace") if found else ""


def shortened(value: Any) -> Any:
    """JSON values with every absolute path cut to its last part."""
    if isinstance(value, str):
        short = _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], value)
        return _WINDOWS.sub(lambda found: found[0].rstrip("\\").rpartition("\\")[2], short)
    if isinstance(value, list):
        return [shortened(item) for item in value]
    if isinstance(value, Mapping):
        return {shortened(key): shortened(item) for key, item in value.items()}
    return value
