"""README.md of a distilled student: a model card that hubs and people can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frami_edge.cards.header import Result, model_header
from frami_edge.cards.parts import classes, mel_contract, provenance, sections, share, table
from frami_edge.cards.snippets import install, runtime_code, student_code
from frami_edge.models.checkpoint import Card, TrainedOn
from frami_edge.models.student import Student
from frami_edge_runtime.melspec import MelSpec

DATA_FREE = "data-free with a procedural prior"


def student_readme(
    card: Card,
    student: Student,
    parameters: int,
    sha256: str,
    health: Mapping[str, Any],
    pictures: Mapping[str, str],
    manifest: Mapping[str, Any],
) -> str:
    """The model card.

    Args:
        card: Of the student.
        student: For its receptive field and stride.
        parameters: Number of weights.
        sha256: Of student.safetensors.
        health: Figures of each source of the bank.
        pictures: Paths inside the run, by what they show.
        manifest: Of the run.
    """
    heard, spec, recipe = card.teacher_trained_on, MelSpec.from_dict(card.mel), card.recipe
    field = student.receptive_field * spec.hop_s
    header = model_header(
        name=f"{_word(heard)}-student",
        licence=card.licence,
        tags=["knowledge-distillation", "data-free", "statistics-pooling"],
        results=_results(card, heard),
    )
    sources = [(name, str(h.get("clips", ""))) for name, h in health.items()]
    prior = "procedural" in health or "translator" in health
    free = DATA_FREE if prior else _alone(health)
    lines = [
        header,
        "# Student, distilled without data",
        f"A depthwise-separable CNN, {parameters:,} parameters, {len(card.labels)} classes. "
        "**No audio was used to make it**: it learned from its teacher's answers to synthetic "
        f"log-mels, {recipe['distill']['steps']} steps, seed {recipe['seed']}, last step. It "
        f"streams: one output frame sees {field:.2f} s and comes every "
        f"{1000 * student.stride * spec.hop_s:g} ms.",
        "## Classes",
        classes(card.labels),
        "## Figures",
        _figures(card),
        "## Run it",
        "Export it, then any device runs it without torch (`--int8 --bank bank` adds int8):",
        "```sh\nframi-edge export student.safetensors --out export\n```",
        install(),
        runtime_code("export/student.fp32.onnx", spec.sample_rate),
        "Or the checkpoint itself:",
        student_code(spec.sample_rate),
        "## What it wants",
        mel_contract(spec),
        "## What it learned from",
        table(["source", "clips"], sources) if sources else "",
        f"This is {free}. Procedural clips are synthesised by hand-written rules, not recorded."
        if prior
        else f"This is {free}.",
        "## Limits",
        _limits(card, heard),
        "## Pictures" if pictures else "",
        "\n\n".join(f"![{name}]({path})" for name, path in pictures.items()),
        "## Provenance",
        provenance(
            [
                ("student.safetensors", f"SHA-256 `{sha256}`"),
                ("teacher", f"SHA-256 `{card.teacher_sha256}`" if card.teacher_sha256 else ""),
                ("the teacher heard", _heard(heard)),
                ("licence", card.licence or "not known"),
            ],
            manifest,
        ),
        "`config.yaml` holds every setting.",
    ]
    return sections(*lines)


def _alone(health: Mapping[str, Any]) -> str:
    """What made a bank without procedural clips."""
    if set(health) == {"inversion"}:
        return "data-free, by inversion alone"
    return f"data-free, by {' and '.join(name.replace('_', ' ') for name in health)} alone"


def _word(heard: TrainedOn | None) -> str:
    return heard.data.rpartition(":")[2] if heard else "frami-edge"


def _heard(heard: TrainedOn | None) -> str:
    if heard is None:
        return "its card does not say"
    return f"{heard.clips} clips of {heard.data}, all but fold {heard.test_fold}"


def _results(card: Card, heard: TrainedOn | None) -> list[Result]:
    """Accuracy on real clips; agreement on synthetic ones is no result on a data set."""
    accuracy = card.metrics.get("accuracy")
    if not isinstance(accuracy, float) or heard is None:
        return []
    return [Result(heard.data, heard.test_fold, "accuracy", accuracy, "accuracy, student fp32")]


def _figures(card: Card) -> str:
    on = str(card.metrics.get("scored_on") or "held-out synthetic clips")
    names = {
        "accuracy": ("accuracy", on),
        "agreement": ("same answer as the teacher", on),
        "synthetic_agreement": ("same answer as the teacher", "held-out synthetic clips"),
    }
    rows = [
        (*names[key], share(value))
        for key, value in card.metrics.items()
        if key in names and isinstance(value, float)
    ]
    if not rows:
        return "None was measured."
    note = "Last step of one seed; nothing was chosen on these clips."
    return table(["figure", "measured on", "value"], rows) + f"\n\n{note}"


def _limits(card: Card, heard: TrainedOn | None) -> str:
    real = isinstance(card.metrics.get("accuracy"), float)
    points = [
        "It knows these classes only: every sound gets one of them, silence and noise too. Set a "
        "threshold on the score.",
        "Scores are a softmax and were not calibrated.",
        "It inherits its teacher's errors and biases.",
    ]
    if not real:
        points.insert(
            0,
            "**Not validated on real audio**: agreement on synthetic clips says how well it copies "
            "its teacher there, not how well it hears. Measure it: `frami-edge evaluate`.",
        )
    if heard is not None:
        points.append(
            f"Its teacher heard all of {heard.data} but fold {heard.test_fold}: do not score the "
            "student on any other fold."
        )
    return "\n".join(f"- {point}" for point in points)
