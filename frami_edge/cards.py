"""Model cards: README.md with the header that hubs read, for every run and export."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from frami_edge import config as _yaml
from frami_edge.checkpoint import Card, Student, TrainedOn
from frami_edge.config import presets
from frami_edge.evaluation import class_rows
from frami_edge.models import StudentNet
from frami_edge_export.report import ExportReport, markdown_card
from frami_edge_runtime.melspec import MelSpec

if TYPE_CHECKING:
    from frami_edge.training import TrainedTeacher


# --- The YAML header of a model card, as Hugging Face's hub defines it (its docs, "Model Cards")

TASK: Final = "audio-classification"
LIBRARY: Final = "frami-edge"
# The ids that the hub knows, as far as sounds and weights use them.
_HUB_LICENCES: Final = frozenset(
    {
        "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0",
        "mpl-2.0", "unlicense", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
        "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
        "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
    }
)  # fmt: skip
_HEADER: Final = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_MOST_HEADER: Final = 1 << 20


@dataclass(frozen=True)
class Result:
    """One measured figure, for the card's model-index.

    Attributes:
        data: Name of the data set that it was measured on.
        split: Fold or split.
        metric: Such as `accuracy`.
        value: A share, 0 to 1.
        name: In words, with the file or the condition that it belongs to.
    """

    data: str
    split: str
    metric: str
    value: float
    name: str


def licence_id(licence: str) -> str:
    """A licence as hubs write it: `CC BY-SA 4.0` is `cc-by-sa-4.0`; empty where none is known."""
    if licence.strip().lower() in ("", "not stated", "unknown"):
        return ""
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")


def model_header(
    *,
    name: str,
    licence: str,
    tags: Sequence[str],
    datasets: Sequence[str] = (),
    results: Sequence[Result] = (),
) -> str:
    """The header with both of its fences.

    Args:
        name: Of the model, for the model-index.
        licence: As the data set or card states it; without one the field is left out.
        tags: Beside the task.
        datasets: On which it was trained; a student heard none. Folders of one's own are left out.
        results: Measured on real clips.
    """
    fields: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": TASK}
    known = licence_id(licence)
    if known in _HUB_LICENCES:
        fields["license"] = known
    elif known:
        fields |= {"license": "other", "license_name": known}
    fields["tags"] = [TASK, *tags]
    named = [data for data in datasets if ":" not in data]
    if named:
        fields["datasets"] = named
    if results:
        fields["metrics"] = sorted({result.metric for result in results})
        fields["model-index"] = [{"name": name, "results": [_entry(one) for one in results]}]
    return f"---\n{_yaml.dump(fields)}---"


def read_header(text: str) -> dict[str, Any]:
    """The header of a card.

    Raises:
        ValueError: There is none, or it is no YAML mapping; says where.
    """
    found = _HEADER.match(text[:_MOST_HEADER])
    if found is None:
        raise ValueError("it does not begin with a YAML header between two lines of ---")
    fields = _yaml.parse(found[1])
    if not isinstance(fields, Mapping):
        raise ValueError("its header is no YAML mapping")
    return {str(key): value for key, value in fields.items()}


def _entry(result: Result) -> dict[str, Any]:
    return {
        "task": {"type": TASK},
        "dataset": {"type": result.data, "name": result.data, "split": result.split},
        "metrics": [{"type": result.metric, "value": round(result.value, 6), "name": result.name}],
    }


# --- Sections that cards share: front end, classes, provenance

CLASSES_SHOWN: Final = 60
_VERSIONS: Final = ("frami-edge", "python", "torch", "torchaudio", "numpy", "onnxruntime")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in row) + " |" for row in lines)


def classes(labels: Sequence[str]) -> str:
    """Their names in the order of the outputs."""
    shown = ", ".join(f"`{label}`" for label in labels[:CLASSES_SHOWN])
    rest = len(labels) - CLASSES_SHOWN
    return shown + (f" and {rest} more, all of them in the file" if rest > 0 else "")


def mel_contract(spec: MelSpec) -> str:
    """What must be fed, exactly: every field of the front end."""
    top = spec.f_max or spec.sample_rate / 2
    rows = [
        ("audio", f"mono, {spec.sample_rate} Hz; int16, or float with full scale 1"),
        ("frames", f"FFT {spec.n_fft}, Hann window {spec.win_length}, hop {spec.hop_length} samples"
         f" ({1000 * spec.hop_s:g} ms), {'centred' if spec.center else 'from sample 0'}"),
        ("mel", f"{spec.n_mels} bands, {spec.f_min:g} to {top:g} Hz, {spec.mel_scale} scale, "
         f"norm {spec.norm}, power {spec.power:g}"),
        ("logarithm", f"{spec.log}, eps {spec.log_eps:g} ({spec.log_floor})"),
        ("normalisation", f"(log-mel - mean) / std, fixed: mean {_statistic(spec.mean)}, std "
         f"{_statistic(spec.std)}"),
        ("digest", f"`{spec.digest}`"),
    ]  # fmt: skip
    return table(["front end", "value"], rows)


def provenance(rows: Sequence[tuple[str, str]], manifest: Mapping[str, Any] | None = None) -> str:
    """Hashes and what it was made with; never a path, a user or a host.

    Args:
        rows: Of this model.
        manifest: Of the run.
    """
    made: list[tuple[str, str]] = [(name, text) for name, text in rows if text]
    if manifest:
        versions = manifest.get("versions") or {}
        shown = [f"{name} {versions[name]}" for name in _VERSIONS if versions.get(name)]
        made.append(("versions", ", ".join(shown)))
        git = manifest.get("git") or {}
        if git.get("commit"):
            changed = ", with changes" if git.get("modified") else ""
            made.append(("commit", f"`{git['commit']}`{changed}"))
        seeds = manifest.get("seeds") or {}
        made += [(name, str(value)) for name, value in seeds.items()]
        made.append(("computed on", str(manifest.get("device") or "")))
        machine = manifest.get("machine") or {}
        made.append(("machine", f"{machine.get('cpu', '')}, {machine.get('cores', '?')} cores"))
        seconds = manifest.get("seconds") or {}
        parts = [f"{name} {value:.0f}" for name, value in seconds.items() if name != "total"]
        made.append(("seconds", ", ".join(parts)))
        made.append(("started", str(manifest.get("started") or "")))
    return table(["", ""], [(name, text) for name, text in made if text])


def share(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.2f} %"


def sections(*parts: str) -> str:
    """Blocks with an empty line between them; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def _statistic(value: float | tuple[float, ...]) -> str:
    return f"{len(value)} values in the file" if isinstance(value, tuple) else f"{value:.6g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# --- Code that runs as it stands, in the folder of the card: a test runs it


def runtime_code(file: str, sample_rate: int) -> str:
    """A clip and a stream through the runtime.

    Args:
        file: Path from the card's folder.
        sample_rate: Hz of the model.
    """
    return f"""```python
import numpy as np
from frami_edge_runtime import Classifier

clf = Classifier({json.dumps(file)})
samples = np.zeros({sample_rate}, np.float32)  # your audio: mono, int16 or float
result = clf.classify(samples, sample_rate={sample_rate})
print(result.label, result.score)

stream = clf.stream(sample_rate={sample_rate}, window_s=1.0)
for chunk in np.array_split(samples, 10):  # your microphone: chunks of any length
    for result in stream.push(chunk):
        print(f"{{result.t1:.2f}} s  {{result.label}}  {{result.score:.2f}}")
```"""


def install() -> str:
    """What running takes."""
    return "```sh\npip install frami-edge-runtime\n```"


def listen_commands(file: str) -> str:
    """The same on a command line."""
    name = shlex.quote(file)
    return f"""```sh
frami-edge-listen {name} some.wav
frami-edge-listen {name} mic
```"""


def student_code(sample_rate: int) -> str:
    """A checkpoint of a student, without exporting it."""
    return _checkpoint_code("student", sample_rate)


def teacher_code(sample_rate: int) -> str:
    """Likewise of a teacher."""
    return _checkpoint_code("teacher", sample_rate)


def _checkpoint_code(kind: str, sample_rate: int) -> str:
    return f"""```python
from pathlib import Path

import numpy as np
import torch
from frami_edge.models.checkpoint import load_checkpoint
from frami_edge_runtime import log_mel

{kind} = load_checkpoint(Path("{kind}.safetensors"), "{kind}")
samples = np.zeros({sample_rate}, np.float32)  # your audio: mono, int16 or float
mel_TM = torch.from_numpy(log_mel(samples, {kind}.spec))
with torch.no_grad():
    logits_BK = {kind}.model(mel_TM.T[None, None])
print({kind}.card.labels[int(logits_BK.argmax())])
```"""


# --- README.md of an export: what the files are, how they were proven, and how to run them

CARD = "README.md"


def export_readme(
    report: ExportReport,
    student: Student,
    data: Mapping[str, Any] | None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The model card of an export's folder.

    Args:
        report: Of the export.
        student: The checkpoint that was exported.
        data: Name, fold and clips that the accuracy was measured on; None where it was not.
        pictures: Paths inside the folder, by what they show.
    """
    card, spec, used = student.card, student.spec, report.calibration
    heard = card.heard
    precisions = sorted({a.precision for a in report.artifacts} - {"fp32"})
    header = model_header(
        name=report.name,
        licence=card.licence,
        tags=["onnx", *precisions, "knowledge-distillation", "data-free", "statistics-pooling"],
        results=_results(report, data),
    )
    rows = [
        ("classes", f"{len(card.labels)}: {classes(card.labels)}"),
        ("input", f"mono at {spec.sample_rate} Hz, any length; other rates with "
         "`frami-edge-runtime[resample]`"),
        ("the teacher heard",
         f"{heard.data} without fold {heard.test_fold}" if heard else "not said"),
        ("the student heard", "no recording"),
        ("calibration", f"{used.samples} synthetic clips ({used.source})" if used else "none"),
        ("accuracy measured on", _measured(data) if data else "nothing: no --data was given"),
        ("licence", card.licence or "not said"),
    ]  # fmt: skip
    usable = bool(report.recommended)
    origin = [
        *((a.path, f"SHA-256 `{a.sha256}`") for a in report.artifacts),
        ("student", f"SHA-256 `{student.sha256}`"),
        ("teacher", f"SHA-256 `{card.teacher_sha256}`" if card.teacher_sha256 else "not named"),
        ("calibration clips", f"SHA-256 `{used.sha256}`" if used else ""),
        ("seed of the export", str(report.options.get("seed", ""))),
        ("versions", ", ".join(f"{name} {v}" for name, v in report.versions.items())),
    ]
    lines = [
        header,
        markdown_card(report).rstrip(),
        "\n\n".join(f"![{name}]({path})" for name, path in (pictures or {}).items()),
        "## The model",
        table(["", ""], rows),
        "## Run it" if usable else "",
        install() if usable else "",
        runtime_code(report.recommended, spec.sample_rate) if usable else "",
        listen_commands(report.recommended) if usable else "",
        "## What it wants",
        "The runtime computes it; for `.model.onnx` your program does, normalised, (B, 1, M, T).",
        mel_contract(spec),
        "## Limits",
        _limits(data),
        "## Provenance",
        provenance(origin),
    ]
    return sections(*lines)


def _results(report: ExportReport, data: Mapping[str, Any] | None) -> list[Result]:
    if data is None:
        return []
    return [
        Result(
            str(data["name"]), str(data["fold"]), "accuracy", a.accuracy, f"accuracy of {a.path}"
        )
        for a in report.artifacts
        if a.accuracy is not None
    ]


def _measured(data: Mapping[str, Any]) -> str:
    return f"fold {data['fold']} of {data['name']}, {data['clips']} clips"


def _limits(data: Mapping[str, Any] | None) -> str:
    points = [
        "Every sound gets one of these classes, silence and noise too: set a threshold.",
        "Scores are a softmax and were not calibrated.",
        "Latency was measured on the machine named above and says little of another one: "
        "`frami-edge bench`.",
    ]
    if data is None:
        points.insert(
            0,
            "**Not validated on real audio here**: agreement compares files with each other on "
            "synthetic clips. Measure accuracy: `frami-edge evaluate FILE --data NAME`.",
        )
    return "\n".join(f"- {point}" for point in points)


# --- README.md of a distilled student: a model card that hubs and people can read

DATA_FREE = "data-free with a procedural prior"


def student_readme(
    card: Card,
    student: StudentNet,
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
        results=_model_card_results(card, heard),
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
        _model_card_limits(card, heard),
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


def _model_card_results(card: Card, heard: TrainedOn | None) -> list[Result]:
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


def _model_card_limits(card: Card, heard: TrainedOn | None) -> str:
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


# --- README.md of a trained teacher: a model card that hubs and people can read


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


# --- Model cards: README.md with the header that hubs read, for every run and export

__all__ = ["Result", "licence_id", "model_header", "read_header"]
