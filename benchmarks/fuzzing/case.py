"""One case: a folder of its own, and a watch over everything outside it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fuzz_material import WrongAnswerError

from fuzzing.material import Material
from fuzzing.program import Said, call, judge

_TEMPORARY: Final = re.compile(r"\.[0-9a-f]{8}\.tmp\.|\.tmp$|\.part$")


@dataclass
class Case:
    """What a case may use.

    Attributes:
        folder: Its own; the current folder while it runs.
        material: Intact files; reading them is all that is allowed.
    """

    folder: Path
    material: Material

    def write(self, name: str, data: bytes | str) -> Path:
        """A file in the case's folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        return path

    def copy(self, source: Path, name: str = "") -> Path:
        """A copy of intact material in the case's folder."""
        target = self.folder / (name or source.name)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return target

    def cli(self, *words: object) -> Said:
        """Run the program and judge how it ended; returns where it succeeded."""
        said = call(words)
        judge(said, json_wanted="--json" in words)
        return said

    def cli_json(self, *words: object) -> dict[str, Any]:
        """The one JSON object of a command that succeeded."""
        found: dict[str, Any] = json.loads(self.cli(*words, "--json").out)
        return found


class Sandbox:
    """A folder with a home, a place for temporary files, and one folder a case.

    Args:
        root: Must be empty.
        material: Intact files, watched too.
    """

    def __init__(self, root: Path, material: Material) -> None:
        self.root, self.material = root, material
        for name, variable in (("home", "HOME"), ("tmp", "TMPDIR"), ("cache", "FRAMI_EDGE_CACHE")):
            (root / name).mkdir(parents=True, exist_ok=True)
            os.environ[variable] = str(root / name)
        os.environ.pop("FRAMI_EDGE_DATA", None)

    def open(self, name: str) -> Case:
        """A fresh case, its folder the current one."""
        folder = self.root / "cases" / name
        folder.mkdir(parents=True)
        os.chdir(folder)
        self._before = self._outside()
        return Case(folder, self.material)

    def check(self, case: Case) -> None:
        """Nothing new or changed outside of the case, nothing half-written inside.

        Raises:
            WrongAnswerError: With the path.
        """
        after = self._outside()
        for path in sorted(set(self._before) ^ set(after)):
            raise WrongAnswerError(f"{path} came or went, outside of the case's folder")
        for path, facts in after.items():
            if facts != self._before[path]:
                raise WrongAnswerError(f"{path} was changed, outside of the case's folder")
        check_whole(case.folder)

    def close(self, case: Case) -> None:
        """Remove the case's folder."""
        os.chdir(self.root)
        shutil.rmtree(case.folder, ignore_errors=True)

    def _outside(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for top in (self.root, self.material.root):
            for folder, _, files in os.walk(top):
                if folder == str(self.root):
                    _[:] = [name for name in _ if name not in ("cases", "cache")]
                found[folder] = (0, 0)
                # ONNX Runtime's own habit, wherever it runs; docs/SECURITY.md says how to end it.
                if folder == str(self.root / "home"):
                    _[:] = [name for name in _ if name != ".cache"]
                files = [name for name in files if name != ".ses"]
                for name in files:
                    facts = os.lstat(os.path.join(folder, name))
                    found[os.path.join(folder, name)] = (facts.st_size, facts.st_mtime_ns)
        return found


def check_whole(folder: Path, made: Sequence[str] = ("out",)) -> None:
    """Nothing half-written lies in what a command made.

    Raises:
        WrongAnswerError: A temporary file, or a result that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    for path in folder.rglob("*"):
        if _TEMPORARY.search(path.name) and not path.name.startswith("case-"):
            raise WrongAnswerError(f"{path.name} was left behind")
    for name in made:
        for path in (folder / name).rglob("*"):
            try:
                if path.suffix == ".json" and path.is_file():
                    json.loads(path.read_text(encoding="utf-8"))
                elif path.suffix == ".safetensors":
                    with safe_open(path, framework="np"):
                        pass
            except (ValueError, SafetensorError) as error:
                raise WrongAnswerError(f"{path.name} is half-written: {error}") from None
