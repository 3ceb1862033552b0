"""``python -m frami_edge_export.tensorrt FOLDER``: engines from an export, on the device.

Exit codes: 0 ok, 1 known error, 2 usage, 3 an engine failed its check.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from frami_edge_export.tensorrt.engines import rebuild
from frami_edge_export.tensorrt.options import (
    COMPATS,
    PRECISIONS,
    TYPINGS,
    EngineOptions,
    Seconds,
)
from frami_edge_export.tensorrt.report import EngineReport
from frami_edge_runtime.errors import FramiEdgeError


def main(argv: Sequence[str] | None = None) -> int:
    """Build, print a table or JSON, give the exit code."""
    args = _parser().parse_args(argv)
    try:
        low, usual, high = (int(n) for n in args.batch.split(":"))
    except ValueError:
        print(f"--batch {args.batch!r} is not MIN:OPT:MAX.", file=sys.stderr)
        return 2
    try:
        options = EngineOptions(
            seconds=Seconds.parse(args.seconds) if args.seconds else None,
            batch=(low, usual, high),
            precisions=tuple(args.precision or PRECISIONS),
            workspace_mb=args.workspace_mb,
            typing=args.typing,
            compat=args.compat,
        )
        report = rebuild(args.folder, out_dir=args.out, options=options, say=_say)
    except FramiEdgeError as error:
        print(error.message, file=sys.stderr)
        if error.fix:
            print(error.fix, file=sys.stderr)
        return error.exit_code
    if args.json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        print(table(report))
    return 0 if report.ok else 3


def table(report: EngineReport) -> str:
    """Plain text: a device has no rich."""
    head = ("engine", "kB", "p50 ms", "1 frame", "x fp32", "agree", "int8 conv", "verdict")
    rows = [head]
    for e in report.engines:
        layers = e.card.layers or {}
        convolutions = f"{layers.get('int8_convolutions', 0)}/{layers.get('convolutions', 0)}"
        rows.append(
            (
                e.path,
                f"{e.bytes / 1e3:.0f}",
                f"{e.p50_ms:.3f}",
                f"{e.chunk_p50_ms:.3f}",
                "" if e.speedup is None else f"{e.speedup:.2f}",
                f"{e.agreement:.1%}",
                convolutions if layers else "unknown",
                e.verdict,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines += [f"{precision}: {why}" for precision, why in report.failures.items()]
    return "\n".join([*(line.rstrip() for line in lines), *report.notes, report.reason])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m frami_edge_export.tensorrt",
        description="Build TensorRT engines from a folder of frami-edge export, on this device.",
        epilog="example: python -m frami_edge_export.tensorrt export/ --seconds 0:1:10",
    )
    parser.add_argument("folder", type=Path, help="holds export_report.json and the ONNX files")
    parser.add_argument("--out", type=Path, help="for the engines; default: the same folder")
    parser.add_argument(
        "--precision", action="append", choices=PRECISIONS, help="repeatable; default: all three"
    )
    parser.add_argument(
        "--seconds", metavar="MIN:OPT:MAX", help="audio in one call; default: what streams need"
    )
    parser.add_argument("--batch", default="1:1:8", metavar="MIN:OPT:MAX", help="streams in a call")
    parser.add_argument("--workspace-mb", type=int, default=256, help="scratch memory, MiB")
    parser.add_argument("--typing", choices=TYPINGS, default="auto")
    parser.add_argument("--compat", choices=COMPATS, default="none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
