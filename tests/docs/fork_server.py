"""Runs Python programs in forks of one process that has imported torch already.

The pages start some forty programs, and importing torch takes seconds each time. `python` and our
two commands on the PATH of a page are a script that hands its arguments, folder, environment and
open files to this server, which forks and runs what would have run: the same entry points, in a
process of its own. Nothing of one program is seen by the next. With $FRAMI_EDGE_DOCS_TIMES it
writes down the processor time of each.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect({address!r})
job = json.dumps([{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(s, [len(job).to_bytes(4, "big")], [0, 1, 2])
s.sendall(job)
sys.exit(int.from_bytes(s.recv(1), "big"))
"""
PROGRAMS = ("python", "frami-edge", "frami-edge-listen")


def write_clients(folder: Path, address: str) -> None:
    """Put a script for each program into a folder for the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        path = folder / program
        path.write_text(CLIENT.format(python=sys.executable, address=address, program=program))
        path.chmod(0o755)


def serve(address: str) -> None:
    """Answer until killed."""
    import matplotlib.pyplot  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch  # noqa: F401
    import torchaudio  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(8)
        while True:
            asked, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(asked)
            asked.close()


def _answer(asked: socket.socket) -> None:
    length, files, _, _ = socket.recv_fds(asked, 4, 3)
    job = b""
    while len(job) < int.from_bytes(length, "big"):
        job += asked.recv(1 << 16)
    program, arguments, folder, environment = json.loads(job)
    # The program is a child of this one, which waits for it: it may end in any way.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        asked.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os._exit(_run(program, arguments))
    _, status, used = os.wait4(child, 0)
    if log := os.environ.get("FRAMI_EDGE_DOCS_TIMES"):
        with Path(log).open("a", encoding="utf-8") as file:
            seconds = used.ru_utime + used.ru_stime
            file.write(f"{seconds:6.1f} s  {program} {' '.join(arguments)[:90]}\n")
    code = os.waitstatus_to_exitcode(status)
    asked.sendall(bytes([code % 256]))
    os._exit(0)


def _run(program: str, arguments: list[str]) -> int:
    try:
        _start(program, arguments)
        code: object = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code if isinstance(code, int) else int(code is not None)


def _start(program: str, arguments: list[str]) -> None:
    # As Python itself would: a console script has its own folder first, `-m` and `-c` the current.
    sys.path[0] = "" if arguments[:1] in (["-m"], ["-c"]) else str(Path(sys.executable).parent)
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if program == "frami-edge":
        from frami_edge.cli import main

        sys.argv = ["frami-edge", *arguments]
        main()
    elif program == "frami-edge-listen":
        from frami_edge_runtime.listen import main as listen

        sys.argv = ["frami-edge-listen", *arguments]
        sys.exit(listen())
    elif arguments[:1] == ["-m"]:
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[:1] == ["-c"]:
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
