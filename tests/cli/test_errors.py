from __future__ import annotations

import errno
import os
import resource
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from frami_edge.cli import _app
from frami_edge.cli._app import Terminated, catch_sigterm, explain, report
from frami_edge.config import Strict
from frami_edge.errors import BankError, GateFailed

FAILURES = '''
import os, errno
import typer
from frami_edge.cli._app import Json, Overrides, Precision, Quiet, command_app, examples
from frami_edge.cli._output import Output
from frami_edge.errors import DataError, GateFailed

app = command_app()

class OutOfMemoryError(RuntimeError):
    pass

KINDS = {
    "known": DataError("no such set: [esc].", fix="Use one of [a, b]."),
    "gate": GateFailed("agreement 0.91 is below 0.95."),
    "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/bank.safetensors"),
    "missing": FileNotFoundError(errno.ENOENT, "x", "teacher.safetensors"),
    "interrupt": KeyboardInterrupt(),
    "memory": OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    "bug": ZeroDivisionError("division by zero"),
    "exit": typer.Exit(7),
}

@app.command(epilog=examples("frami-edge broken-command known"))
def run(
    kind: str,
    json: Json = False,
    quiet: Quiet = False,
    overrides: Overrides = None,
    precision: Precision = "auto",
) -> None:
    """Fail in a chosen way."""
    out = Output(json=json, quiet=quiet)
    if kind == "well":
        out.result({"overrides": overrides})
        return
    error = KINDS[kind]
    error.add_note("Continue with: frami-edge distill --resume runs/a")
    raise error
'''

GROUP = '''
from frami_edge.cli._app import command_app

app = command_app(no_args_is_help=True, help="Many things.")

@app.command()
def one() -> None:
    """The first."""
    print("one ran")

@app.command()
def two() -> None:
    """The second."""
'''


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    (tmp_path / "broken_command.py").write_text(FAILURES)
    (tmp_path / "many.py").write_text(GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("broken_command", "many"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delenv("FRAMI_DEBUG", raising=False)

    class Group(_app.CommandGroup):
        modules = ("broken_command", "many", "absent_module")

    app = typer.Typer(cls=Group, no_args_is_help=True, context_settings=_app.HELP_NAMES)
    app.callback()(lambda: None)
    return app


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("known", 1, ["error: no such set: [esc].", "fix: Use one of [a, b]."]),
        ("gate", 3, ["error: agreement 0.91 is below 0.95."]),
        ("full", 1, ["error: runs/a/bank.safetensors could not be written: no space is left"]),
        ("missing", 1, ["error: teacher.safetensors does not exist."]),
        ("interrupt", 130, ["error: Interrupted."]),
        ("memory", 1, ["error: There is not enough GPU memory."]),
        ("bug", 1, ["Internal error: ZeroDivisionError: division by zero", "FRAMI_DEBUG=1"]),
    ],
)
def test_every_failure_is_sentences_and_an_exit_code(
    app: typer.Typer, kind: str, code: int, says: list[str]
) -> None:
    result = CliRunner().invoke(app, ["broken-command", kind, "--json"])
    assert result.exit_code == code
    assert result.stdout == ""
    for text in [*says, "Continue with: frami-edge distill --resume runs/a"]:
        assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMI_DEBUG", "1")
    result = CliRunner().invoke(app, ["broken-command", "known"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "broken_command.py" in result.stderr
    monkeypatch.setenv("FRAMI_DEBUG", "0")
    assert "Traceback" not in CliRunner().invoke(app, ["broken-command", "known"]).stderr


def test_a_commands_own_exit_code_stays(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["broken-command", "exit"]).exit_code == 7


def test_usage_errors_are_typers(app: typer.Typer) -> None:
    for args in (
        ["broken-command"],
        ["broken-command", "well", "--nope"],
        ["broken-command", "well", "--precision", "fp16"],
    ):
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Usage" in result.stderr


def test_shared_options_work(app: typer.Typer) -> None:
    args = ["broken-command", "well", "--json", "-q", "--set", "a=1", "--set", "b.c=[1, 2]"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0
    assert '"a=1",\n    "b.c=[1, 2]"' in result.stdout
    assert result.stderr == ""


def test_modules_are_imported_when_they_are_used(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["many", "one"])
    assert result.stdout == "one ran\n"
    assert "broken_command" not in sys.modules


def test_a_missing_module_is_an_error_and_never_skipped(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["absent-module"])
    assert result.exit_code == 1
    assert "No module named 'absent_module'" in result.stderr
    assert isinstance(CliRunner().invoke(app, ["--help"]).exception, ModuleNotFoundError)


def test_help_shows_examples_and_groups(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["broken-command", "-h"])
    assert "Fail in a chosen way." in result.stdout
    assert "$ frami-edge broken-command known" in result.stdout
    assert "install-completion" not in result.stdout
    assert "The second." in CliRunner().invoke(app, ["many", "--help"]).stdout


def test_the_near_command_is_suggested(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "absent_module.py").write_text(GROUP)
    result = CliRunner().invoke(app, ["broken-comand"])
    assert result.exit_code == 2
    assert "broken-command" in result.stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EROFS, "x", "a"), "a lies on a read-only file system."),
        (PermissionError(errno.EACCES, "x", "a"), "a may not be read or written by this user."),
        (IsADirectoryError(errno.EISDIR, "x", b"a"), "a is a folder, not a file."),
        (NotADirectoryError(errno.ENOTDIR, "x", "a"), "a is no folder, or lies below a file."),
        (OSError(errno.EMFILE, "Too many open files"), "A file: Too many open files."),
        (OSError("libsndfile.so: cannot open"), "Internal error: OSError: libsndfile.so: cannot"),
        (MemoryError(), "There is not enough memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), "There is not enough mem"),
        (ValueError("first\nsecond"), "Internal error: ValueError: first"),
        (KeyError(), "Internal error: KeyError: no message"),
    ],
)
def test_the_table(error: BaseException, says: str) -> None:
    explanation = explain(error)
    assert explanation.message.startswith(says)
    assert explanation.fix
    assert explanation.exit_code == 1


def test_a_config_that_pydantic_refuses_names_its_keys() -> None:
    class Inner(Strict):
        steps: int

    class Outer(Strict):
        inner: Inner

    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {"stepz": 1}})
    message = explain(caught.value).message
    assert message.startswith("Outer is not valid:\n")
    assert "inner.steps: is required and missing" in message
    assert "inner.stepz: there is no such key" in message


def test_exit_codes_of_the_family() -> None:
    assert BankError("x").exit_code == 1
    assert GateFailed("x").exit_code == 3
    assert explain(Terminated()).exit_code == 143


def test_report_returns_the_code_and_ends_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(BankError("x [y].", fix="Do z.")) == 1
    assert capsys.readouterr().err == "error: x [y].\nfix: Do z.\n"


def test_sigterm_ends_a_run_once_like_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        catch_sigterm()
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_closed_pipe_is_silent() -> None:
    done = subprocess.run(
        f"{sys.executable} -m frami_edge --help | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "1")


def test_help_and_version_never_import_torch_and_are_quick() -> None:
    code = """
        import sys
        from frami_edge.cli import main
        sys.argv = ["frami-edge", {argument!r}]
        try:
            main()
        finally:
            heavy = sorted({{"torch", "torchaudio", "matplotlib", "onnx"}} & set(sys.modules))
            print("heavy:", heavy, file=sys.stderr)
    """
    for argument, shows in (("--help", "Usage"), ("--version", "frami-edge 0")):
        done = python(code.format(argument=argument))
        assert done.returncode == 0
        assert shows in done.stdout
        assert done.stderr.strip() == "heavy: []"
    # Processor time, and the least of three, because other work on the machine only adds to it.
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "frami_edge", "--help"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.5


def test_a_pipe_that_broke_in_a_command_is_silent_until_the_end() -> None:
    done = python("""
        from frami_edge.cli._errors import report
        print("before", flush=True)
        code = report(BrokenPipeError())
        print("after")
        raise SystemExit(code)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (1, "before\n", "")


def test_every_command_of_the_program_has_help_without_torch() -> None:
    done = python("""
        import sys
        from typer.testing import CliRunner
        from frami_edge.cli import _Commands, app

        modules = list(_Commands.modules)
        assert modules
        for module in modules:
            name = module.rpartition(".")[2].replace("_", "-")
            result = CliRunner().invoke(app, [name, "-h"])
            assert result.exit_code == 0, (name, result.output)
            assert "Usage" in result.stdout, name
            assert "install-completion" not in result.stdout, name
            assert "torch" not in sys.modules, name
    """)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_do_not_end_a_command(closed: str) -> None:
    code = "from frami_edge.cli import main; main()"
    line = shlex.join([sys.executable, "-c", code, "data"])
    done = subprocess.run(f"{line} --help {closed}", shell=True, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert b"rror" not in done.stderr
