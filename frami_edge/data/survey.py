"""What is under the data root: every known set, found or not, complete or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frami_edge.data.catalogue import SetInfo, find_folder, known_sets
from frami_edge.data.errors import DataError
from frami_edge.data.layouts import read_layout
from frami_edge.data.sets import compare, load_known


@dataclass(frozen=True)
class SetStatus:
    """One known set, as it is on this disk."""

    info: SetInfo
    folder: Path | None
    clips: int
    """Of this set, found."""
    problem: str
    """Why it is not complete; empty when it is."""

    @property
    def complete(self) -> bool:
        """Exactly the published clips are there."""
        return self.folder is not None and not self.problem

    @property
    def how(self) -> str:
        """How to get it."""
        if self.info.form:
            return f"form: {self.info.form}"
        return f"frami-edge data get {self.info.part_of or self.info.name}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.info.name,
            "title": self.info.title,
            "found": self.folder is not None,
            "complete": self.complete,
            "clips": self.clips,
            "clips_expected": self.info.clips,
            "classes": self.info.classes,
            "folds": list(self.info.folds),
            "folder": str(self.folder) if self.folder else None,
            "problem": self.problem or None,
            "licence": self.info.licence,
            "source": self.info.source,
            "get": self.how,
        }


def survey(root: Path | None) -> list[SetStatus]:
    """The state of every known set; without a data root none is found."""
    return [status(info, root) for info in known_sets()]


def status(info: SetInfo, root: Path | None) -> SetStatus:
    """The state of one known set; without a data root it is not found."""
    folder = find_folder(info, root) if root is not None else None
    if folder is None:
        return SetStatus(info, None, 0, "not found")
    try:
        return SetStatus(info, folder, len(load_known(info, folder).clips), "")
    except DataError as error:
        problem = error.message
    try:
        clips = compare(read_layout(info, folder), folder).found
    except DataError:
        clips = 0
    return SetStatus(info, folder, clips, problem)
