"""`frami-edge verify`: whether two files of one model still say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frami_edge.cli._app import Json, Quiet, Seed, command_app, examples
from frami_edge.cli._output import Output

if TYPE_CHECKING:
    from frami_edge.comparing import Answers, Batch, Side, StreamCheck
    from frami_edge_export.report import Gate

app = command_app()

FIELD, STRIDE = 31, 4
"""Mel frames: lengths to try where neither model has a receptive field (two teachers)."""

_BOUND = {"lower": "at most", "higher": "at least"}


@app.command(
    epilog=examples(
        "frami-edge verify student.safetensors student.fp32.onnx --max-difference 1e-4",
        "frami-edge verify student.fp32.onnx student.int8.cpu.onnx --bank runs/s/bank --layers",
        "frami-edge verify teacher.safetensors student.int8.cpu.onnx --data esc10 "
        "--min-agreement 0.9",
        "frami-edge verify student.fp32.onnx student.int8.engine --json",
    )
)
def verify(
    a: Annotated[Path, typer.Argument(help="The reference: a checkpoint, ONNX file or engine.")],
    b: Annotated[Path, typer.Argument(help="What is held against it.")],
    bank: Annotated[
        Path | None, typer.Option("--bank", help="Compare on clips of this bank.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Compare on real clips of this set, or folder:PATH."),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option("--fold", help="Of --data.", show_default="the one the teacher held out"),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Folder that holds the sets; else $FRAMI_EDGE_DATA."),
    ] = None,
    clips: Annotated[
        int, typer.Option("--clips", min=1, help="At most so many of each kind.")
    ] = 256,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement", min=0, max=1, help="Gate: share of clips with the same answer."
        ),
    ] = 0.98,
    max_difference: Annotated[
        float | None,
        typer.Option("--max-difference", min=0, help="Gate: largest difference of a logit."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also the noise after each layer of two ONNX files.")
    ] = False,
    backend: Annotated[
        str,
        typer.Option(
            "--backend", help="auto, cpu, cuda, tensorrt-ep or tensorrt; for files that stream."
        ),
    ] = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare names, shapes, then values of two files: any of checkpoint, ONNX and engine.

    On a bank, on real clips, or on both; without either on procedural clips. Always on many
    lengths too, and every file that streams against itself. Exit code 3 when a gate fails.
    """
    from frami_edge.comparing import (
        check_stream,
        compare_answers,
        compare_facts,
        compare_layers,
        open_side,
        sentences,
    )
    from frami_edge.errors import ConfigError

    output = Output(json=json, quiet=quiet)
    if data is None and (fold or data_root):
        raise ConfigError("--fold and --data-root need --data.", fix="Add --data NAME.")
    first, second = open_side(a, backend), open_side(b, backend)
    sides = (first, second)
    facts = compare_facts(first, second)
    for line in sentences(first, second, facts):
        output.warn(line)
    batches = _batches(sides, bank, data, fold, data_root, clips, seed)
    found: dict[str, Answers] = {}
    with output.progress("Comparing", len(batches), fields=()) as bar:
        for batch in batches:
            logits = [side.answer(batch) for side in sides]
            found[batch.name] = compare_answers(logits[0], logits[1], batch.names)
            bar.update()
    streams = [check for side in sides if (check := check_stream(side, batches[-1], seed))]
    noise = compare_layers(first, second, batches[0]) if layers else []
    gates = _gates(found, min_agreement, max_difference, streams)
    output.result(
        {
            "a": _side(sides[0]),
            "b": _side(sides[1]),
            "facts": [asdict(fact) for fact in facts],
            "answers": {name: asdict(answers) for name, answers in found.items()},
            "streams": [asdict(check) for check in streams],
            "layers": [asdict(layer) for layer in noise],
            "gates": [asdict(gate) for gate in gates],
            "passed": all(gate.passed for gate in gates),
        }
    )
    names = _names(a, b)
    output.table(
        f"a {names[0]}, b {names[1]}",
        ("", "a", "b", "same"),
        [(f.fact, _word(f.first), _word(f.second), f.same) for f in facts],
    )
    output.table(
        "Answers of b against a",
        ("on", "clips", "agree", "max diff.", "KL, nats", "SQNR dB", "worst clip"),
        [_row(name, answers) for name, answers in found.items()],
    )
    if streams:
        output.table(
            "Stream against the whole clip",
            ("file", "clips", "chunks", "classify", "one run"),
            [(c.file, c.clips, c.chunks, f"{c.stream_vs_classify:.1e}",
              f"{c.stream_vs_whole_run:.1e}") for c in streams],
            caption="Largest difference of a logit, pushed in random chunks.",
        )  # fmt: skip
    if noise:
        rows = [(n.layer, "equal" if n.sqnr_db is None else f"{n.sqnr_db:.1f}") for n in noise]
        output.table("Layers, from the input on", ("after convolution", "SQNR dB"), rows)
    output.table(
        "Gates",
        ("gate", "value", "limit", "passed"),
        [(g.name, g.value, f"{_BOUND[g.better]} {g.limit:.4g}", g.passed) for g in gates],
    )
    _conclude(found, gates, names, output)


def _batches(
    sides: tuple[Side, Side],
    bank: Path | None,
    data: str | None,
    fold: str | None,
    root: Path | None,
    clips: int,
    seed: int,
) -> list[Batch]:
    from frami_edge.comparing import bank_batch, length_batch, made_batch, real_batch

    batches = []
    if bank:
        batches.append(bank_batch(bank, clips))
    if data:
        heard = next((side.heard for side in sides if side.heard), None)
        batches.append(real_batch(data, root, fold, heard, clips))
    spec = sides[0].spec
    if not batches:
        batches.append(made_batch(spec, clips, seed))
    field = next((side.receptive_field for side in sides if side.receptive_field), FIELD)
    stride = next((side.stride for side in sides if side.stride), STRIDE)
    return [*batches, length_batch(spec, field, stride, seed)]


def _gates(
    found: dict[str, Answers],
    min_agreement: float,
    max_difference: float | None,
    streams: Sequence[StreamCheck],
) -> list[Gate]:
    from frami_edge.comparing import TOLERANCE
    from frami_edge_export.report import Gate

    gates = []
    for name, answers in found.items():
        # A clip of one frame is no evidence about classes: lengths are judged by values alone.
        if name != "lengths":
            gates.append(Gate.at_least(f"agreement, {name}", answers.agreement, min_agreement))
        if max_difference is not None:
            apart = answers.max_abs_difference
            gates.append(Gate.at_most(f"difference, {name}", apart, max_difference))
    for check in streams:
        gates.append(
            Gate.at_most(f"stream = whole, {check.file}", check.stream_vs_classify, TOLERANCE)
        )
    return gates


def _row(name: str, answers: Answers) -> list[object]:
    return [
        name,
        answers.clips,
        f"{100 * answers.agreement:.1f} %",
        f"{answers.max_abs_difference:.1e}",
        f"{answers.kl_nats:.1e}",
        "equal" if answers.sqnr_db is None else f"{answers.sqnr_db:.1f}",
        answers.worst_clip,
    ]


def _side(side: Side) -> dict[str, object]:
    from frami_edge.io import sha256_file

    return {
        "path": str(side.path),
        "kind": side.kind,
        "precision": side.precision,
        "sha256": sha256_file(side.path),
    }


def _names(a: Path, b: Path) -> tuple[str, str]:
    """As short as tells them apart."""
    if a.name != b.name:
        return a.name, b.name
    if a.parent.name != b.parent.name:
        return f"{a.parent.name}/{a.name}", f"{b.parent.name}/{b.name}"
    return str(a), str(b)


def _word(value: object) -> object:
    return " + ".join(map(str, value)) if isinstance(value, tuple) else value


def _conclude(
    found: dict[str, Answers], gates: list[Gate], names: tuple[str, str], output: Output
) -> None:
    from frami_edge.errors import GateFailed

    for name, answers in found.items():
        if answers.disagreeing and name != "lengths":
            output.note(f"Other answers on {name} clips: {', '.join(answers.disagreeing)}.")
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        worst = "; ".join(
            f"{g.name} is {g.value:.4g}, {'above' if g.better == 'lower' else 'below'} "
            f"{g.limit:.4g}"
            for g in failed
        )
        raise GateFailed(
            f"{names[1]} does not say what {names[0]} says: {worst}.",
            fix="Look at the worst clips named above; --layers shows where two ONNX files part.",
        )
    output.note(f"{names[1]} says what {names[0]} says: {len(gates)} gates passed.")
