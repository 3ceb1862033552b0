"""README.md of a trained teacher: a model card that hubs and people can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from frami_edge.cards.header import Result, model_header
from frami_edge.cards.parts import classes, mel_contract, provenance, sections, share, table
from frami_edge.cards.snippets import teacher_code
from frami_edge.config import presets
from frami_edge.evaluation import class_rows
from frami_edge_runtime.melspec import MelSpec

if TYPE_CHECKING:
    from frami_edge.training.run import TrainedTeacher


def teacher_readme(
    trained: TrainedTeacher, pictures: Mapping[str, str], manifest: Mapping[str, Any]
) -> str:
    """The model card.

    Args:
        trained: Card, score and size of the teacher.
        pictures: Paths inside the run, by what they show.
        manifest: Of the run.
    """
    card, score, spec = trained.card, trained.score, MelSpec.from_dict(trained.card.mel)
    heard = card.trained_on
    assert heard is not None
    result = Result(
        heard.data, heard.test_fold, "accuracy", score.accuracy, "accuracy on the held-out fold"
    )
    header = model_header(
        name=f"{heard.data.rpartition(':')[2]}-teacher",
        licence=card.licence,
        tags=["statistics-pooling"],
        datasets=[heard.data],
        results=[result],
    )
    rows = [(name, n, recall) for name, n, recall, _ in class_rows(card.labels, score, None)]
    recipe = f"{heard.data}-student"
    recipe = recipe if recipe in presets() else "student.yaml"
    lines = [
        header,
        f"# Teacher for {heard.data}",
        f"A ResNet with statistics pooling, {trained.parameters:,} parameters, "
        f"{len(card.labels)} classes, trained on real audio.",
        f"**Accuracy on fold {heard.test_fold}, which it never heard: {share(score.accuracy)}** "
        f"({score.clips} clips; last epoch, one seed, nothing was chosen on these clips).",
        "## Classes",
        classes(card.labels),
        "## Use it",
        "A student learns from it without data:",
        f"```sh\nframi-edge distill {recipe} --teacher teacher.safetensors --out student\n```",
        "It classifies, too:",
        teacher_code(spec.sample_rate),
        "## What it heard",
        f"{heard.clips} clips of {heard.data}, all but fold {heard.test_fold} "
        f"({heard.licence}; {heard.source}). SHA-256 over their names and contents: "
        f"`{heard.sha256}`.",
        "## What it wants",
        mel_contract(spec),
        "## Held-out fold by class",
        table(["class", "clips", "recall"], rows),
        "\n\n".join(f"![{name}]({path})" for name, path in pictures.items()),
        "## Limits",
        "- Every sound gets one of these classes, silence and noise too.\n"
        f"- It heard every fold but {heard.test_fold}: a score on any other fold says nothing.\n"
        "- Its licence follows that of its data; weights may allow conclusions about recordings.",
        "## Provenance",
        provenance(
            [
                ("teacher.safetensors", f"SHA-256 `{trained.sha256}`"),
                ("licence", card.licence or "not known"),
            ],
            manifest,
        ),
        "`config.yaml` holds every setting.",
    ]
    return sections(*lines)
