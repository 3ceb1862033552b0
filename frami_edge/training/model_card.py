"""README.md of a trained teacher: a model card that hubs and people can read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from frami_edge import _yaml
from frami_edge.evaluation import class_rows

if TYPE_CHECKING:
    from frami_edge.training.run import TrainedTeacher


def licence_id(licence: str) -> str:
    """A licence as hubs write it: `CC BY-SA 4.0` is `cc-by-sa-4.0`; without one, `unknown`."""
    if not licence or licence == "not stated":
        return "unknown"
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")


def teacher_readme(trained: TrainedTeacher, pictures: Mapping[str, str]) -> str:
    """The model card.

    Args:
        trained: Card, score and size of the teacher.
        pictures: Paths inside the run, by what they show.
    """
    card, score = trained.card, trained.score
    heard, mel = card.trained_on, card.mel
    assert heard is not None
    header = _yaml.dump(
        {
            "license": licence_id(card.licence),
            "library_name": "frami-edge",
            "pipeline_tag": "audio-classification",
            "tags": ["audio-classification", "statistics-pooling"],
            "metrics": ["accuracy"],
        }
    )
    rows = [
        f"| {name.replace('|', '/')} | {n} | {recall} |"
        for name, n, recall, _ in class_rows(card.labels, score, None)
    ]
    images = [f"![{name}]({path})" for name, path in pictures.items()]
    lines = [
        f"---\n{header}---",
        f"# Teacher for {heard.data}",
        f"A ResNet with statistics pooling, {trained.parameters:,} parameters, "
        f"{len(card.labels)} classes, trained on real audio.",
        f"**Accuracy on fold {heard.test_fold}, which it never heard: "
        f"{100 * score.accuracy:.2f} %** ({score.clips} clips; last epoch, one seed, nothing was "
        "chosen on these clips).",
        "## What it heard",
        f"{heard.clips} clips of {heard.data}, all but fold {heard.test_fold} "
        f"({heard.licence}; {heard.source}). SHA-256 over their names and contents: "
        f"`{heard.sha256}`.",
        "## What it wants",
        f"Mono audio at {mel['sample_rate']} Hz, as log-mels of {mel['n_mels']} bands every "
        f"{mel['hop_length']} samples; the front end, with its mean and standard deviation, is in "
        "the checkpoint.",
        "## Held-out fold by class",
        "\n".join(["| class | clips | recall |", "| --- | --- | --- |", *rows]),
        "\n\n".join(images),
        f"Written by frami-edge {card.version}; `config.yaml` and `manifest.json` say how.",
    ]
    return "\n\n".join(lines) + "\n"
