"""Moments at which a process may die, and a process that dies at one of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.optim.optimizer import register_optimizer_step_post_hook

from frami_edge import cli
from frami_edge._metrics import MetricsFile

PICTURE = b"\x89PNG\r\n\x1a\n" + 20 * b"picture" + b"IEND\xaeB`\x82"
"""Written in place of every picture, which takes longer to draw than the jobs take."""


class Points:
    """Counts points inside a job's process, and dies at one of them.

    Args:
        folder: Of the job's result; files elsewhere are no points.
        fatal: Number of the point at which to die; -1 for none.
    """

    def __init__(self, folder: Path, fatal: int) -> None:
        self.folder, self.fatal = str(folder), fatal
        self.seen: list[str] = []

    def at(self, label: str, before_death: Callable[[], None] = lambda: None) -> None:
        """A point; what `before_death` leaves behind is what a death in the midst would leave."""
        if len(self.seen) == self.fatal:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(label)

    def install(self) -> None:
        """Watch this process."""
        real_replace, real_write, real_append = os.replace, Path.write_bytes, MetricsFile.append

        def audit(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and self._ours(args[0]) and _writes(args[1], args[2]):
                self.at("open")
            elif event == "os.remove" and self._ours(args[0]):
                self.at("delete")

        def replace(source: Any, target: Any, **more: Any) -> None:
            ours = self._ours(target)
            if ours:
                self.at("rename")
            real_replace(source, target, **more)
            if ours:
                self.at("renamed")

        def write(path: Path, data: bytes) -> int:
            if self._ours(path):
                self.at("half a file", lambda: _ignore(real_write(path, data[: len(data) // 2])))
            return real_write(path, data)

        def append(file: MetricsFile, row: dict[str, Any]) -> None:
            self.at("row")

            def torn() -> None:
                with file.path.open("a") as half:
                    half.write('{"step": 1, "lo')

            self.at("half a row", torn)
            real_append(file, row)

        def savefig(_: Figure, path: Path, **__: Any) -> None:
            path.write_bytes(PICTURE)

        sys.addaudithook(audit)
        Figure.savefig = savefig  # type: ignore[assignment,method-assign]
        os.replace = replace
        Path.write_bytes = write  # type: ignore[assignment,method-assign]
        MetricsFile.append = append  # type: ignore[method-assign]
        register_optimizer_step_post_hook(lambda *_: self.at("step"))

    def _ours(self, path: Any) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(
            self.folder + os.sep
        )


def _writes(mode: Any, flags: Any) -> bool:
    asked = bool(set(mode) & set("wxa+")) if isinstance(mode, str) else False
    return asked or (isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR)))


def _ignore(_: object) -> None:
    pass


def start(words: list[str], folder: Path, fatal: int, log: Path) -> int:
    """Fork a process that runs the command; its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with (log.with_suffix(".out")).open("a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        points = Points(folder, fatal)
        points.install()
        sys.argv = ["frami-edge", *words]
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        log.write_text(json.dumps(points.seen))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child: int) -> int:
    """Its exit code; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
