"""The program around its commands: output, progress, errors, exit codes, help."""

import errno
import io
import json
import logging
import subprocess
import sys
import textwrap

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from frami_edge.cli import _app
from frami_edge.cli._app import LINE_SECONDS, Bars, Lines, Output
from frami_edge.cli._options import Json, Overrides, Precision, Quiet
from frami_edge.errors import DataError, GateFailed, Terminated
from frami_edge.progress import Progress

log = logging.getLogger("frami_edge")


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


FAILURES = {
    "known": DataError("no such set: [esc].", fix="Use one of [a, b]."),
    "gate": GateFailed("agreement 0.91 is below 0.95."),
    "full": OSError(errno.ENOSPC, "x", "bank.safetensors"),
    "missing": FileNotFoundError(errno.ENOENT, "x", "teacher.safetensors"),
    "denied": PermissionError(errno.EACCES, "x", b"a"),
    "library": OSError("libsndfile.so: cannot open"),
    "memory": OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    "bug": ZeroDivisionError("division by zero\nsecond line"),
    "terminated": Terminated(),
    "interrupt": KeyboardInterrupt(),
}


@pytest.fixture
def broken(monkeypatch):
    """A program whose command raises the given error."""
    monkeypatch.delenv("FRAMI_DEBUG", raising=False)
    command = _app.command_app()

    @command.command(epilog=_app.examples("frami-edge broken known"))
    def run(
        kind: str,
        json: Json = False,
        quiet: Quiet = False,
        overrides: Overrides = None,
        precision: Precision = "auto",
    ) -> None:
        """Fail in a chosen way."""
        output = Output(json=json, quiet=quiet)
        if kind in ("well", "late"):
            log.info("a note")
            output.result({"overrides": overrides})
        if kind != "well":
            error = FAILURES.get(kind, GateFailed("late."))
            error.add_note("The unfinished run is in runs/a")
            raise error

    @command.command()
    def other() -> None:
        """Do nothing."""

    program = typer.Typer(cls=_app.CommandGroup, context_settings=_app.HELP_NAMES)
    program.callback()(lambda: None)
    program.add_typer(command)
    return program


def invoke(program, *arguments):
    return CliRunner().invoke(program, list(arguments))


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("known", 1, "no such set: [esc]."),
        ("gate", 3, "agreement 0.91 is below 0.95."),
        ("full", 1, "bank.safetensors: no space is left on the disk."),
        ("missing", 1, "teacher.safetensors: no such file or folder."),
        ("denied", 1, "a: permission denied."),
        ("library", 1, "Internal error: OSError: libsndfile.so: cannot open"),
        ("memory", 1, "There is not enough GPU memory."),
        ("bug", 1, "Internal error: ZeroDivisionError: division by zero"),
        ("terminated", 143, "The run was terminated."),
        ("interrupt", 130, "Interrupted."),
    ],
)
def test_a_failure_is_a_sentence_and_an_exit_code(broken, kind, code, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/frami-edge", "distill", "--out", "a b"])
    result = invoke(broken, "run", kind)
    assert result.exit_code == code
    assert result.stdout == ""
    assert f"error: {message}" in result.stderr
    assert "The unfinished run is in runs/a" in result.stderr
    assert "continue with: frami-edge distill --out 'a b' --resume" in result.stderr
    assert "Traceback" not in result.stderr
    failure = json.loads(invoke(broken, "run", kind, "--json").stdout)
    assert failure["schema"] == 1
    assert (failure["error"]["message"], failure["error"]["exit_code"]) == (message, code)
    assert code != 1 or failure["error"]["fix"]


def test_one_json_object_whatever_happens(broken):
    late = invoke(broken, "run", "late", "--json")
    assert (late.exit_code, json.loads(late.stdout)["overrides"]) == (3, None)
    wrong = invoke(broken, "run", "well", "--json", "--precision", "fp16")
    assert wrong.exit_code == 2
    assert json.loads(wrong.stdout)["error"]["kind"] == "UsageError"
    assert "Usage" in wrong.stderr
    well = invoke(broken, "run", "well", "--json", "-q", "--set", "a=1", "--set", "b.c=[1, 2]")
    assert json.loads(well.stdout) == {"schema": 1, "overrides": ["a=1", "b.c=[1, 2]"]}
    assert well.stderr == ""
    assert invoke(broken, "run", "well").stderr == "a note\n"


def test_every_command_has_help_without_torch():
    code = """
        import sys
        from typer.main import get_command
        from typer.testing import CliRunner
        from frami_edge.cli import app

        for name in (*get_command(app).commands, "--version"):
            result = CliRunner().invoke(app, [name, "-h"] if name[0] != "-" else [name])
            assert result.exit_code == 0, (name, result.output)
            assert "$ frami-edge" in result.stdout or name in ("--version", "listen"), name
        heavy = {"torch", "torchaudio", "matplotlib", "onnx"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- Output


def test_people_get_tables_on_stdout_and_the_rest_on_stderr(capsys):
    output = Output()
    output.result({"a": 1})
    output.table("Scores [x]", ["class", "accuracy"], [["[dog]", 0.98765], ["cat", None]], "[30]")
    output.hint("frami-edge distill " + "x" * 200)
    log.warning("mind the %s", "[gap]")
    captured = capsys.readouterr()
    for text in ("Scores [x]", "[dog]", "0.9877", "[30]"):
        assert text in captured.out
    assert "{" not in captured.out
    assert "\x1b" not in captured.out
    assert captured.err == f"next: frami-edge distill {'x' * 200}\nwarning: mind the [gap]\n"


def test_a_pipe_gets_a_line_per_tenth_and_per_minute():
    now, said = [0.0], list[str]()
    lines = Lines(said.append, clock=lambda: now[0])
    for step in range(1, 201):
        lines(Progress("invert", step, 200, {"loss": step / 7}))
    assert len(said) == 10
    assert said[0] == "invert 20/200 (10%), 0:00 elapsed, 0:00 left, loss 2.857"
    said.clear()
    lines(Progress("distill", 51, 100))
    now[0] = 3661.0
    lines(Progress("distill", 60, 100))
    assert said == ["distill 60/100 (60%), 1:01:01 elapsed, 4:04:04 left"]
    said.clear()
    lines(Progress("distill", 1, 10))  # of the next student
    now[0] += 10
    lines(Progress("distill", 2, 10))
    assert said[-1] == "distill 2/10 (20%), 0:10 elapsed, 0:40 left"
    said.clear()
    lines(Progress("read", 1))
    now[0] += LINE_SECONDS
    lines(Progress("read", 2))
    assert said == ["read 2, 1:00 elapsed"]


def test_a_terminal_gets_one_bar_per_phase_and_its_cursor_back():
    file = io.StringIO()
    bars = Bars(Console(file=file, force_terminal=True, width=100, color_system=None))
    bars(Progress("invert [a]", 30, 40))
    bars(Progress("distill", 40, 40, {"loss": 0.5}))
    bars.close()
    shown = file.getvalue()
    for text in ("invert [a]", "30/40", "distill", "40/40", "loss 0.5"):
        assert text in shown
    assert shown.rstrip().endswith("\x1b[?25h")
