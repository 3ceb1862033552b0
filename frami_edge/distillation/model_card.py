"""README.md of a distilled student: a model card that hubs and people can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frami_edge import _yaml
from frami_edge.models.checkpoint import Card
from frami_edge.training.model_card import licence_id


def student_readme(
    card: Card, parameters: int, health: Mapping[str, Any], pictures: Mapping[str, str]
) -> str:
    """The model card.

    Args:
        card: Of the student.
        parameters: Number of weights.
        health: Figures of each source of the bank.
        pictures: Paths inside the run, by what they show.
    """
    header = _yaml.dump(
        {
            "license": licence_id(card.licence),
            "library_name": "frami-edge",
            "pipeline_tag": "audio-classification",
            "tags": ["audio-classification", "knowledge-distillation", "data-free"],
        }
    )
    heard, mel, recipe = card.teacher_trained_on, card.mel, card.recipe
    origin = (
        f"Its teacher was trained on {heard.clips} clips of {heard.data}, all but fold "
        f"{heard.test_fold}: do not score the student on any other fold."
        if heard
        else "Its teacher does not say what it was trained on."
    )
    sources = [f"| {name} | {h['clips']} |" for name, h in health.items()]
    figures = [
        f"| {name.replace('_', ' ')} | {100 * value:.2f} % |"
        for name, value in card.metrics.items()
        if isinstance(value, float)
    ]
    lines = [
        f"---\n{header}---",
        "# Student, distilled without data",
        f"A depthwise-separable CNN, {parameters:,} parameters, {len(card.labels)} classes. "
        "**No audio was used to make it**: it learned from its teacher's answers to synthetic "
        f"log-mels, {recipe['distill']['steps']} steps, seed {recipe['seed']}, last step. {origin}",
        f"Teacher: SHA-256 `{card.teacher_sha256}`.",
        "## What it learned from",
        "\n".join(["| source | clips |", "| --- | --- |", *sources]),
        "Procedural clips are written by hand, not recorded: a bank that holds them is data-free "
        "with a procedural prior.",
        "## What it wants",
        f"Mono audio at {mel['sample_rate']} Hz, as log-mels of {mel['n_mels']} bands every "
        f"{mel['hop_length']} samples; the front end is in the checkpoint.",
        "\n".join(["| figure | value |", "| --- | --- |", *figures]) if figures else "",
        "\n\n".join(f"![{name}]({path})" for name, path in pictures.items()),
        f"Written by frami-edge {card.version}; `config.yaml` and `manifest.json` say how.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"
