"""`frami-edge verify`: whether two model files give the same answers."""

from __future__ import annotations

from dataclasses import asdict, astuple
from pathlib import Path
from typing import Annotated

import typer

from frami_edge.cli import _options as opt
from frami_edge.cli._app import command, command_app
from frami_edge.cli._output import Output

app = command_app()


@command(
    app,
    "frami-edge verify student.safetensors student.fp32.onnx --max-difference 1e-4",
    "frami-edge verify student.fp32.onnx student.int8.cpu.onnx --bank runs/student/bank",
    "frami-edge verify teacher.safetensors student.int8.cpu.onnx --data esc10 --min-agreement 0.9",
    "frami-edge verify student.fp32.onnx student.int8.engine --json",
)
def verify(
    output: Output,
    a: Annotated[Path, typer.Argument(help="Reference model: a checkpoint, ONNX file or engine.")],
    b: Annotated[Path, typer.Argument(help="Model to compare with the reference.")],
    bank: Annotated[
        Path | None, typer.Option("--bank", help="Compare on clips of this bank.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Compare on real clips of this data set, or folder:PATH."),
    ] = None,
    fold: opt.Fold = None,
    data_root: opt.DataRoot = None,
    clips: Annotated[
        int, typer.Option("--clips", min=1, help="Largest number of clips of each kind.")
    ] = 256,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            min=0,
            max=1,
            help="Gate: share of clips with the same predicted class.",
        ),
    ] = 0.98,
    max_difference: Annotated[
        float | None,
        typer.Option("--max-difference", min=0, help="Gate: largest difference of a logit."),
    ] = None,
    backend: opt.Backend = "auto",
    seed: opt.Seed = 0,
) -> None:
    """Compare two model files: first their facts, then their answers to the same clips.

    The clips come from a bank, from a data set, or from both; otherwise they are procedural. Clips
    of many lengths are always added, and every streaming file is compared with its own answer to
    the whole clip. Exit code 3 when a gate fails.
    """
    from frami_edge.comparing import bank_clips, compare, procedural_clips, real_clips
    from frami_edge.errors import ConfigError, GateFailed
    from frami_edge.opening import open_model

    if data is None and (fold or data_root):
        raise ConfigError("--fold and --data-root need --data.", fix="Add --data NAME.")
    first, second = open_model(a, backend=backend), open_model(b, backend=backend)
    clip_sets = []
    if bank:
        clip_sets.append(bank_clips(bank, clips))
    if data:
        trained_on = first.trained_on or second.trained_on
        clip_sets.append(real_clips(data, data_root, fold, trained_on, clips))
    if not clip_sets:
        clip_sets.append(procedural_clips(first.mel, clips, seed))
    found = compare(
        first,
        second,
        clip_sets,
        min_agreement=min_agreement,
        max_difference=max_difference,
        seed=seed,
    )
    models = {
        key: {"path": str(model.path), "kind": model.kind, "sha256": model.sha256}
        for key, model in (("a", first), ("b", second))
    }
    output.result({**models, **asdict(found), "passed": bool(found)})
    for fact in found.facts:
        if fact.same is False:
            output.warn(f"{fact.fact} differs: {fact.a} and {fact.b}.")
    output.table(
        f"a: {a}, b: {b}", ("fact", "a", "b", "same"), [astuple(fact) for fact in found.facts]
    )
    output.table(
        "Answers of b compared with a",
        ("clips", "number", "agreement", "max. difference", "KL, nats", "SQNR, dB", "worst clip"),
        [(name, *astuple(difference)) for name, difference in found.answers.items()],
    )
    if found.streams:
        output.table(
            "Stream in random chunks compared with the whole clip",
            ("file", "clips", "chunks", "classify()", "one run"),
            [astuple(stream) for stream in found.streams],
            caption="Largest difference of a logit.",
        )
    limits = {
        g: f"{'at most' if g.better == 'lower' else 'at least'} {g.limit:.4g}" for g in found.gates
    }
    output.table(
        "Gates",
        ("gate", "value", "limit", "passed"),
        [(g.name, g.value, limit, g.passed) for g, limit in limits.items()],
    )
    if not found:
        failed = (
            f"{g.name} is {g.value:.4g}, not {limit}" for g, limit in limits.items() if not g.passed
        )
        raise GateFailed(
            f"{b} does not answer like {a}: {'; '.join(failed)}.",
            fix="Check that both files come from the same student, and look at the worst clips.",
        )
    output.note(f"{b} answers like {a}: {len(limits)} gates passed.")
