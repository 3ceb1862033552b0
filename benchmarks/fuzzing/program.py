"""The program in this process: what it said and how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from fuzz_material import WrongAnswerError
from typer.testing import CliRunner

from frami_edge.cli import app
from frami_edge_runtime.errors import FramiEdgeError

CODES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Said:
    """Exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def call(words: Sequence[object]) -> Said:
    """``frami-edge WORDS`` without a process of its own."""
    os.environ["COLUMNS"] = "200"
    done = CliRunner().invoke(app, [os.fspath(w) if isinstance(w, os.PathLike) else str(w)
                                    for w in words])  # fmt: skip
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.exit_code, done.stdout, done.stderr)


def judge(said: Said, *, json_wanted: bool = False) -> None:
    """What holds for every ending.

    Raises:
        FramiEdgeError: The program refused, with a reason and a fix (or the usage).
        WrongAnswerError: It ended in another way, or JSON is not one object.
        RuntimeError: An error escaped.
    """
    text = said.out + said.err
    if "Traceback" in text or "Internal error" in text:
        at = max(text.find("Internal error"), text.find("Traceback"), 0)
        raise RuntimeError(text[at : at + 2000])
    if "not enough memory" in text:
        raise WrongAnswerError(f"memory was taken before numbers were checked: {text[-300:]}")
    if said.code not in CODES:
        raise WrongAnswerError(f"exit code {said.code}: {text[-300:]}")
    if said.code == 1 and ("error:" not in said.err or "fix:" not in said.err):
        raise WrongAnswerError(f"no reason or no fix: {text[-500:]}")
    if json_wanted and (said.out.strip() or said.code == 0):
        try:
            found = json.loads(said.out, parse_constant=_no_constant)
        except ValueError:
            raise WrongAnswerError(f"no JSON: {said.out[:200]!r}") from None
        if not isinstance(found, dict):
            raise WrongAnswerError(f"no JSON object: {said.out[:200]!r}")
    if said.code in (1, 2):
        raise FramiEdgeError(text.strip()[-160:] or "no reason", fix="see above")


def _no_constant(name: str) -> float:
    raise WrongAnswerError(f"{name} in JSON output")
