"""`python`, `frami-edge` and `frami-edge-listen`, forked from a process that has imported torch.

The pages start some forty programs, and importing torch takes seconds each time. On the PATH of a
page stands a client that hands its arguments, folder, environment and open files to this server,
which forks and runs the same entry point in a process of its own.
"""

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
sys.exit((s.recv(1) or b"\\x45")[0])
"""


def serve(folder):
    """Put a client for each program into a folder, and answer them until killed."""
    import matplotlib.pyplot  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch
    import torchaudio  # noqa: F401

    sys.path.append(str(Path(__file__).parents[1]))
    import kit

    kit.few_clips()
    kit.quick_exports()
    kit.no_pictures()
    # The first export imports what every other one needs: six seconds of CPU time.
    warm_up = torch.nn.Conv2d(1, 2, 3).eval()
    torch.onnx.export(warm_up, (torch.zeros(1, 1, 8, 8),), dynamo=True, verbose=False)
    address = str(folder / "socket")
    for program in ("python", "frami-edge", "frami-edge-listen"):
        path = folder / program
        path.write_text(CLIENT.format(python=sys.executable, address=address, program=program))
        path.chmod(0o755)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(8)
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                sys.executable = str(folder / "python")  # its own programs come back here
                answer(client)
            client.close()


def answer(client):
    """Run what a client asks for and send its exit code; a process that dies sends none."""
    length, files, _, _ = socket.recv_fds(client, 4, 3)
    job = b""
    while len(job) < int.from_bytes(length, "big"):
        job += client.recv(1 << 16)
    program, arguments, folder, environment = json.loads(job)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        run(program, arguments)
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    client.sendall(bytes([code % 256 if isinstance(code, int) else int(code is not None)]))
    os._exit(0)


def run(program, arguments):
    """Do as Python would: a script has its own folder first on the path, `-m` the current one."""
    sys.argv = [program, *arguments]
    sys.path[0] = ""
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if program == "frami-edge":
        from frami_edge.cli import main

        main()
    elif program == "frami-edge-listen":
        from frami_edge_runtime.listen import main as listen

        sys.exit(listen())
    elif arguments[0] == "-c":
        sys.argv = arguments[:1] + arguments[2:]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
