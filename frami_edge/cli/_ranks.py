"""A command under torchrun: every process runs it, rank 0 alone speaks and writes."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

Command = TypeVar("Command", bound=Callable[..., None])

SILENCE_S = 3.0
"""How long a process that failed lets rank 0 say why; if rank 0 fails too, torchrun ends us."""


def on_every_rank(command: Command) -> Command:
    """Let a command with an option ``device`` run under torchrun; alone it is as it was."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return command(**options)
        if os.environ.get("RANK") == "0":
            return _joined(command, options)
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(nothing),
        ):
            try:
                return _joined(command, options)
            except KeyboardInterrupt:
                # Torchrun ends this process because of another, which has said why.
                pass
            except Exception as error:
                # A sentence that rank 0 has said, too, is not repeated: torchrun ends us first.
                with contextlib.suppress(KeyboardInterrupt):
                    if type(error).__name__ != "LostProcessError":
                        _say(error)
        # Without the clean-up of a group of which a part is gone.
        os._exit(1)

    return cast(Command, run)


def _joined(command: Callable[..., None], options: dict[str, Any]) -> None:
    from frami_edge.distributed.world import joined, lost_processes, rank_device

    with joined(rank_device(options["device"])), lost_processes():
        command(**options)


def _say(error: Exception) -> None:
    from frami_edge.cli._errors import report

    time.sleep(SILENCE_S)
    with contextlib.redirect_stderr(sys.__stderr__):
        sys.stderr.write(f"process {os.environ.get('RANK')} of the run: ")
        sys.stderr.flush()
        report(error)
        sys.stderr.flush()
