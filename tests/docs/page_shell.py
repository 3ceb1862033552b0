"""A reader at a terminal: an empty folder, a home, and the blocks of one page in their order."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from docs_pages import PYTHON, Block

KEPT = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "TMPDIR")


@dataclass
class Reader:
    """Runs blocks in one folder; variables, `cd` and files last from block to block.

    Attributes:
        home: $HOME; the page is followed in `work` below it.
        programs: Folder with `frami-edge`, `frami-edge-listen` and `python`.
        changes: What is typed in place of what is printed, and why; each must occur.
    """

    home: Path
    programs: Path
    changes: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Make the folders."""
        self.work = self.home / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self._memory = self.home / ".session"

    def follow(self, block: Block) -> str:
        """Save or run a block; returns what it printed, stdout and stderr together."""
        text = block.text
        for printed, typed in self.changes.items():
            if printed in text:
                self.used.add(printed)
                text = text.replace(printed, typed)
        if block.file:
            path = self.work / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return ""
        if block.language == PYTHON:
            (self.home / "block.py").write_text(text, encoding="utf-8")
            text = 'python "$HOME/block.py"'
        done = subprocess.run(
            ["bash", "-c", self._session(text)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=self._environment(), cwd=self.work, text=True, timeout=900, check=False,
        )  # fmt: skip
        where = f"{block.page}:{block.line}"
        assert done.returncode == 0, f"{where} ended with {done.returncode}\n{done.stdout[-4000:]}"
        assert "Traceback" not in done.stdout, f"{where}\n{done.stdout[-4000:]}"
        for words in block.prints:
            assert words in done.stdout, f"{where} did not print {words!r}:\n{done.stdout[-4000:]}"
        return done.stdout

    def _session(self, text: str) -> str:
        memory = self._memory
        before = f'set -euo pipefail; [ ! -f "{memory}" ] || . "{memory}"'
        after = f'{{ export -p; printf "cd %q\\n" "$PWD"; }} > "{memory}"'
        return f"{before}\n{text}\n{after}\n"

    def _environment(self) -> dict[str, str]:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        return environment | {
            "HOME": str(self.home),
            "PATH": os.pathsep.join(
                [str(self.home / "bin"), str(self.programs), environment.get("PATH", os.defpath)]
            ),
            "PYTHONPATH": str(self.home / "bin"),
            "FRAMI_EDGE_CACHE": str(self.home / "cache"),
            "MPLCONFIGDIR": str(self.home / "matplotlib"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
        }
