"""``python -m frami_edge_runtime.doctor``: is this device ready to listen."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from frami_edge_runtime import __version__
from frami_edge_runtime.doctor.check import examine
from frami_edge_runtime.doctor.machine import Machine
from frami_edge_runtime.doctor.probes import runtime_probes
from frami_edge_runtime.doctor.show import as_text, verdict

NOT_READY = 3


def main(arguments: Sequence[str] | None = None, machine: Machine | None = None) -> int:
    """Look, print, and say by the exit code whether the runtime can work: 0 or 3.

    Args:
        arguments: Those of the command line; None for `sys.argv`.
        machine: To look at; None for this one.
    """
    given = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A device's name may be in letters that this terminal lacks.
            stream.reconfigure(errors="backslashreplace")
    checks = examine(runtime_probes(given.places), machine or Machine())
    ready = not any(check.blocks for check in checks)
    if given.json:
        lines = [check.to_dict() for check in checks]
        print(json.dumps({"version": __version__, "ready": ready, "checks": lines}, indent=2))
    else:
        sys.stdout.write(as_text(checks, sys.stdout.encoding))
        what = "listening with these engines" if given.places else "listening"
        print(verdict(checks, what), file=sys.stderr)
    return 0 if ready else NOT_READY


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m frami_edge_runtime.doctor",
        description="What this device has and lacks, and the fix for each.",
        epilog="exit codes: 0 ready; 2 wrong usage; 3 something needed is broken",
    )
    parser.add_argument(
        "places", nargs="*", type=Path, metavar="ENGINE",
        help="engines, or folders that hold some, to compare with this machine",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
