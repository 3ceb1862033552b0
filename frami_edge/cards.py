"""Model cards: the README.md of a trained teacher, a distilled student and an export folder."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml

from frami_edge.checkpoint import Card, Student, TrainedOn, parameters
from frami_edge.tables import percent
from frami_edge.yaml_config import presets
from frami_edge_export.report import ExportReport, markdown_card
from frami_edge_runtime.melspec import MelSpec

if TYPE_CHECKING:
    from frami_edge.training import TrainedTeacher

CARD: Final = "README.md"
# Licences of sounds and weights among the identifiers of Hugging Face's hub.
_HUB_LICENCES: Final = re.compile(
    r"apache-2\.0|mit|isc|bsd-[23]-clause|l?gpl-3\.0|agpl-3\.0|mpl-2\.0|unlicense|odbl|odc-by"
    r"|cc0-1\.0|cc-by-2\.[05]|cc-by(-nc)?-[34]\.0|cc-by(-nc)?-sa-[34]\.0|cc-by-nc-nd-[34]\.0"
    r"|cc-by-nd-4\.0"
)
_CLASSES_SHOWN: Final = 60
_ANY_SOUND: Final = (
    "Every sound gets one of these classes, also silence and noise; events have thresholds."
)


class Measured(NamedTuple):
    """An accuracy on real clips, for a hub's table of results."""

    model: str
    data: str
    fold: str
    accuracy: float
    """0 to 1."""


def model_header(
    licence: str, tags: Sequence[str], trained_on: str = "", measured: Measured | None = None
) -> str:
    """The YAML header that model hubs read, as Hugging Face's documentation defines it.

    Unknown licences and a user's own ``folder:NAME`` are left out.
    """
    task = "audio-classification"
    fields: dict[str, Any] = {"library_name": "frami-edge", "pipeline_tag": task}
    name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")  # CC BY 4.0: cc-by-4.0
    if _HUB_LICENCES.fullmatch(name):
        fields["license"] = name
    elif name not in ("", "not-stated", "unknown"):
        fields |= {"license": "other", "license_name": name}
    fields["tags"] = [task, *tags]
    if trained_on and ":" not in trained_on:
        fields["datasets"] = [trained_on]
    if measured and ":" not in measured.data:
        dataset = {"type": measured.data, "name": measured.data, "split": measured.fold}
        metric = {"type": "accuracy", "value": measured.accuracy, "name": "accuracy on this fold"}
        result = {"task": {"type": task}, "dataset": dataset, "metrics": [metric]}
        fields["metrics"] = ["accuracy"]
        fields["model-index"] = [{"name": measured.model, "results": [result]}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def teacher_readme(
    trained: TrainedTeacher, pictures: Mapping[str, str], manifest: Mapping[str, Any]
) -> str:
    """The model card of a trained teacher; pictures are paths inside the run, by title."""
    card, score, mel = trained.card, trained.score, MelSpec.from_dict(trained.card.mel)
    trained_on = card.trained_on
    assert trained_on is not None
    data, fold = trained_on.data, trained_on.test_fold
    recipe = f"{data}-student " if f"{data}-student" in presets() else ""
    counts = score.confusion_KK.sum(dim=1).tolist()
    recall = [
        (label, str(int(n)), percent(share, 1) or "-")
        for label, n, share in zip(card.labels, counts, score.per_class(), strict=True)
    ]
    return _card(
        model_header(
            card.licence,
            ["statistics-pooling"],
            data,
            Measured(f"{data}-teacher", data, str(fold), score.accuracy),
        ),
        f"# Teacher for {data}",
        f"A ResNet with statistics pooling, {trained.parameters:,} parameters, trained on real "
        f"audio. **Accuracy on the held-out fold {fold}: {score.accuracy:.2%}** ({score.clips} "
        "clips; last epoch, one seed, nothing was chosen on these clips).",
        _classes(card.labels),
        "## Use it\n\nDistil a student without data:",
        f"```sh\nframi-edge distill {recipe}--teacher teacher.safetensors --out student\n```",
        "Classify a clip:",
        _checkpoint_code("teacher", mel),
        f"## Training data\n\n{_trained_on(trained_on)} ({trained_on.licence}; "
        f"{trained_on.source}). SHA-256 over the clips: `{trained_on.sha256}`.",
        " ".join(manifest.get("data", {}).get("notes", ())),
        _front_end(mel),
        f"## Held-out fold by class\n\n{table(['class', 'clips', 'recall'], recall)}",
        _pictures(pictures),
        _limits(
            _ANY_SOUND,
            f"It was trained on every fold but {fold}: a score on another fold means nothing.",
            "Its licence follows that of its data; weights may allow conclusions about recordings.",
        ),
        _provenance({"teacher.safetensors": f"SHA-256 `{trained.sha256}`"}, manifest),
    )


def student_readme(
    student: Student,
    health: Mapping[str, Any],
    pictures: Mapping[str, str],
    manifest: Mapping[str, Any],
) -> str:
    """The model card of a distilled student; health by source, pictures by title."""
    card, mel, network = student.card, student.mel, student.model
    trained_on = card.teacher_trained_on
    prior = not {"procedural", "translator", "breeding", "refinement"}.isdisjoint(health)
    real, agreement = card.recordings, card.metrics["synthetic_agreement"]
    detectors = card.output == "sigmoid"
    return _card(
        model_header(card.licence, _student_tags(card)),
        "# Student, distilled without " + ("labels" if real else "data"),
        f"A depthwise-separable CNN, {parameters(network):,} parameters. "
        + ("It " if real else "**No audio was used to make it**: it ")
        + f"learned from its teacher's answers to {'' if real else 'synthetic '}clips, "
        f"{card.recipe['distill']['steps']} steps, seed {card.recipe['seed']}, last step. It "
        f"streams: an output frame sees {network.receptive_field * mel.hop_s:.2f} s, and there is "
        f"one every {1000 * network.stride * mel.hop_s:g} ms.",
        "Hardly any held-out synthetic clip triggers a detector: there is no agreement to state."
        if agreement is None
        else "Agreement with the teacher on held-out synthetic clips"
        f"{' that trigger a detector' if detectors else ''}: **{agreement:.2%}**.",
        _verdict(card.metrics.get("readiness")),
        _classes(card.labels),
        "## Run it\n\nExport it, then a device runs it without torch (`--int8 --bank bank` adds "
        "int8 files):",
        "```sh\nframi-edge export student.safetensors --out export\n```",
        _runtime_code("export/student.fp32.onnx", mel),
        "Or use the checkpoint:",
        _checkpoint_code("student", mel),
        _front_end(mel),
        "## Training clips",
        table(["source", "clips"], [(n, str(h.get("clips", ""))) for n, h in health.items()]),
        f"**Real audio: {real} recordings of the user**, unlabelled; the teacher answered them."
        if real
        else "This is data-free with a procedural prior: clips synthesised by rules, not recorded."
        if prior
        else f"This is data-free, by {' and '.join(health)} alone.".replace("_", " "),
        _limits(
            "**Not validated on real audio**: agreement on synthetic clips shows how well it "
            "copies its teacher there. Measure it: `frami-edge evaluate`.",
            *_scores(card),
            "It inherits the errors and biases of its teacher.",
            f"Its teacher was trained on {trained_on.data} without fold "
            f"{trained_on.test_fold}: do not score the student on another fold."
            if trained_on
            else "",
        ),
        _pictures(pictures),
        _provenance(
            {"student.safetensors": f"SHA-256 `{student.sha256}`"} | _teacher_rows(card), manifest
        ),
    )


def export_readme(
    report: ExportReport,
    student: Student,
    data: Mapping[str, Any] | None,
    pictures: Mapping[str, str],
) -> str:
    """The model card of an export; `data` names the clips that accuracy was measured on."""
    card, mel, recommended = student.card, student.mel, report.recommended
    precisions = sorted({a.precision for a in report.artifacts} - {"fp32"})
    tags = ["onnx", *precisions, *_student_tags(card)]
    listen = f"frami-edge-listen {shlex.quote(recommended)}"
    scored = next((a for a in report.artifacts if a.path == (recommended or a.path)), None)
    measured = None
    if data and scored and scored.accuracy is not None:
        measured = Measured(report.name, data["name"], str(data["fold"]), scored.accuracy)
    rows = {a.path: f"SHA-256 `{a.sha256}`" for a in report.artifacts}
    rows |= {"student": f"SHA-256 `{student.sha256}`"} | _teacher_rows(card)
    return _card(
        model_header(card.licence, tags, measured=measured),
        markdown_card(report).rstrip(),
        _pictures(pictures),
        _classes(card.labels),
        f"## Run it\n\n{_runtime_code(recommended, mel)}" if recommended else "",
        f"```sh\n{listen} some.wav\n{listen} mic\n```" if recommended else "",
        _front_end(mel),
        "The runtime computes it; for `.model.onnx` your program does, as (B, 1, M, T).",
        _limits(
            f"Accuracy was measured on {data['clips']} clips: fold {data['fold']} of "
            f"{data['name']}."
            if data
            else "**Not validated on real audio here**: agreement compares files on synthetic "
            "clips. Measure accuracy: `frami-edge evaluate FILE --data NAME`.",
            *_scores(card),
            "Latency was measured on the machine named above. Measure yours: `frami-edge bench`.",
        ),
        _provenance(rows, {"versions": report.versions}),
    )


def _verdict(readiness: Mapping[str, Any] | None) -> str:
    """Whether the student is ready, as `frami_edge.readiness` judged it."""
    if not readiness:
        return ""
    if readiness["ready"]:
        return "**Ready**, judged on synthetic clips of every source and class."
    return f"**Not ready**, judged on synthetic clips: {' '.join(readiness['reasons'])}"


def _scores(card: Card) -> list[str]:
    """What a student's scores mean."""
    if card.output == "sigmoid":
        return ["Scores are a sigmoid per class, not calibrated; exports set thresholds."]
    return [_ANY_SOUND, "Scores are a softmax and were not calibrated."]


def _student_tags(card: Card) -> list[str]:
    """Tags of a student: data-free where it learned from no recording."""
    free = [] if card.recordings else ["data-free"]
    return ["knowledge-distillation", *free, "statistics-pooling"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells])


def _card(*blocks: str) -> str:
    return "\n\n".join(block for block in blocks if block) + "\n"


def _classes(labels: Sequence[str]) -> str:
    more = len(labels) - _CLASSES_SHOWN
    shown = ", ".join(f"`{label}`" for label in labels[:_CLASSES_SHOWN])
    return f"## Classes\n\n{len(labels)}: {shown}" + (f" and {more} more" if more > 0 else "")


def _front_end(mel: MelSpec) -> str:
    values = {name: json.dumps(value) for name, value in mel.to_dict().items()}
    rows = [(n, v if len(v) < 60 else "one value per band, in the file") for n, v in values.items()]
    return (
        f"## Input\n\nMono audio at {mel.sample_rate} Hz, int16 or float with full scale 1, of any "
        "length; other rates need `frami-edge-runtime[resample]`. The front end:\n\n"
        + table(["setting", "value"], rows)
    )


def _pictures(pictures: Mapping[str, str]) -> str:
    return "\n\n".join(f"![{title}]({path})" for title, path in pictures.items())


def _limits(*points: str) -> str:
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points if point)


def _trained_on(trained_on: TrainedOn) -> str:
    return f"{trained_on.clips} clips of {trained_on.data}, without fold {trained_on.test_fold}"


def _teacher_rows(card: Card) -> dict[str, str]:
    trained_on = card.teacher_trained_on
    return {
        "teacher": f"SHA-256 `{card.teacher_sha256}`",
        "its training data": _trained_on(trained_on) if trained_on else "not stated",
        "licence": card.licence or "not stated",
    }


def _provenance(rows: Mapping[str, str], manifest: Mapping[str, Any]) -> str:
    """Hashes, versions, commit, seeds and device; never a path, a user or a host."""
    versions = {name: v for name, v in manifest.get("versions", {}).items() if v}
    git = manifest.get("git") or {}
    made = dict(rows) | {
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": f"{git.get('commit') or ''}{', with changes' if git.get('modified') else ''}",
        **{name: str(seed) for name, seed in manifest.get("seeds", {}).items()},
        "computed on": manifest.get("device"),
        "started": manifest.get("started"),
    }
    return "## Provenance\n\n" + table(
        ["", ""], [(name, text) for name, text in made.items() if text]
    )


def _runtime_code(file: str, mel: MelSpec) -> str:
    """A clip and a stream through the runtime; a test runs it in the folder of the card."""
    return f"""```sh
pip install frami-edge-runtime
```

```python
import numpy as np
from frami_edge_runtime import Classifier

clf = Classifier({json.dumps(file)})
samples = np.zeros({mel.sample_rate}, np.float32)  # your audio: mono, int16 or float
result = clf.classify(samples, sample_rate={mel.sample_rate})
print(result.label, result.score)

stream = clf.stream(sample_rate={mel.sample_rate}, window_s=1.0)
for chunk in np.array_split(samples, 10):  # your microphone: chunks of any length
    for result in stream.push(chunk):
        print(f"{{result.t1:.2f}} s  {{result.label}}  {{result.score:.2f}}")
```"""


def _checkpoint_code(kind: str, mel: MelSpec) -> str:
    return f"""```python
from pathlib import Path

import numpy as np
import torch
from frami_edge.checkpoint import load_checkpoint
from frami_edge_runtime import log_mel

{kind} = load_checkpoint(Path("{kind}.safetensors"), "{kind}")
samples = np.zeros({mel.sample_rate}, np.float32)  # your audio: mono, int16 or float
mel_TM = torch.from_numpy(log_mel(samples, {kind}.mel))
logits_BK = {kind}(mel_TM.T[None, None])
print({kind}.labels[int(logits_BK.argmax())])
```"""
