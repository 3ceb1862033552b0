"""One warm server of programs for all pages."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest's importlib mode puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

import fork_server


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the PATH with `frami-edge`, `frami-edge-listen` and `python`."""
    folder = tmp_path_factory.mktemp("programs")
    address = folder / "s"
    fork_server.write_clients(folder / "bin", str(address))
    with subprocess.Popen([sys.executable, fork_server.__file__, str(address)]) as server:
        until = time.monotonic() + 120
        while not address.exists() and server.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert address.exists(), "the server of programs did not start"
        yield folder / "bin"
        server.terminate()
