"""Open a teacher: one of our checkpoints, a module in memory, or somebody's Python code."""

from __future__ import annotations

import copy
import csv
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import nn

from frami_edge.checkpoint import Card, Teacher, TrainedOn, load_checkpoint, teacher_assets
from frami_edge.config import Strict
from frami_edge.errors import CheckpointError, ConfigError, TeacherError
from frami_edge.io import atomic_write_text, nfc, read_small, sha256_file, sha256_tensors
from frami_edge.teachers import hugging_face, onnx_graph
from frami_edge.teachers.calling import AUDIO_LAYOUTS, Input, find_calling, in_words, takes
from frami_edge.teachers.foreign import ForeignTeacher
from frami_edge.teachers.frontends import LogMelInput, NotFound, find_front_end
from frami_edge.teachers.selection import Keep, select_classes
from frami_edge.teachers.weights import is_torchscript, load_weights, read_weights
from frami_edge.yaml_config import dump, load_config, presets, read_mapping
from frami_edge_runtime.errors import FramiEdgeError, MelSpecError
from frami_edge_runtime.melspec import MelSpec

log = logging.getLogger("frami_edge")

DESCRIPTIONS = (".yaml", ".yml")
MAX_LABELS = 100_000
"""As in a checkpoint's card."""

PathLike = str | os.PathLike[str]
Layout = Literal["auto", "B1MT", "BMT", "B1TM", "BTM", "B3MT", "B3TM", "BN", "B1N"]
Output = Literal["softmax", "sigmoid"]


class TeacherDescription(Strict):
    """A foreign teacher: how to build it, where its weights are, its front end."""

    factory: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
    """`module:callable` that gives the `nn.Module`; the module is imported, so it runs as code.
    Left out where `weights` is an ONNX file, which holds the network."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the callable."""
    weights: str | None = None
    """safetensors, a torch file of tensors, or ONNX; relative to the description's folder."""
    weights_under: str | None = None
    """Where in the file, such as `ema` or `state_dict.teacher`, where several sets would fit."""
    mel: str | dict[str, Any] | None = None
    """Front end: keys of MelSpec, a YAML file of them, or a preset such as `mel/log-mel-16k-64`."""
    sample_rate: int | None = Field(default=None, ge=1000, le=768_000)
    """Sample rate in Hz of a module that takes audio; instead of `mel`."""
    labels: str | tuple[str, ...]
    """Class names in the order of the logits, or a file with one name per line."""
    layout: Layout = "auto"
    """Axes of the input: B batch, 1 a channel (3: the same mel thrice), M mel bands, T frames; N
    samples."""
    frames: str | None = None
    """Module whose output is the last hidden state over time (`NAME@in` for its input)."""
    pooled: str | None = None
    """Module whose output (`NAME@in`: input) is the first hidden state without time."""
    output: Output | None = None
    """How its logits become scores: `softmax` or `sigmoid`; guessed where missing."""
    keep: dict[str, tuple[str, ...]] | None = None
    """Classes that the student shall know: each new label with the teacher's labels behind it."""
    trained_on: TrainedOn | None = None
    """Real clips that it was trained on, so that no student is scored on them."""
    licence: str = ""
    """Licence of the weights."""


def load_teacher(
    source: nn.Module | Teacher | PathLike,
    *,
    mel: MelSpec | Mapping[str, Any] | PathLike | None = None,
    labels: Sequence[str] | PathLike | None = None,
    sample_rate: int | None = None,
    weights: PathLike | None = None,
    arguments: Mapping[str, Any] | None = None,
    frames: str | None = None,
    pooled: str | None = None,
    layout: Layout | None = None,
    output: Output | None = None,
    keep: Keep | None = None,
) -> Teacher:
    """Open a trained classifier so that it can be inverted and distilled.

    Args:
        source: One of six things. A path: a checkpoint of `frami-edge train-teacher`, or a YAML
            description of a teacher. An `.onnx` file, which needs `labels`, `mel` or `sample_rate`,
            and the package `onnx2torch`. `"hf:FOLDER"` or `"hf:OWNER/NAME"`: an audio classifier of
            Hugging Face, which needs `transformers`. The name of a teacher that ships with the
            package (`digits-teacher`). `"module:callable"` that builds an `nn.Module`; it needs
            `weights`, `labels`, and `mel` or `sample_rate`. An `nn.Module` in memory with its
            trained weights; it needs `labels`, and `mel` or `sample_rate`, and stays unchanged: the
            teacher is a copy.
        mel: Front end of a module that takes log-mels: a MelSpec, its keys, a YAML file of them, or
            a preset.
        sample_rate: Sample rate in Hz of a module that takes audio. The log-mel inside it is
            searched for; where there is none, the teacher takes audio.
        labels: Class names in the order of the logits, or a file with one name per line.
        weights: safetensors, or a torch file of tensors.
        arguments: Keyword arguments of the callable.
        frames: Module whose output is the last hidden state over time (`NAME@in` for its input).
        pooled: Module whose output (`NAME@in`: input) is the first hidden state without time.
        layout: Axes of the input, such as `B1MT`; found where None.
        output: How its logits become scores: `softmax` for one of K classes, `sigmoid` for K
            detectors; guessed from its answers where None.
        keep: Classes that the student shall know, as `["Dog", "Baby cry"]`, or groups, as
            `{"alarm": ["Smoke detector, smoke alarm", "Fire alarm"]}`; None for all.

    Returns:
        The teacher in evaluation mode, without gradients.

    Raises:
        CheckpointError: Weights are missing, damaged, or do not fit.
        ConfigError: The arguments do not go together, or the description has mistakes.
        TeacherError: It cannot be built, or its hidden states are ambiguous.
    """
    given = {
        "mel": mel,
        "labels": labels,
        "sample_rate": sample_rate,
        "weights": weights,
        "arguments": arguments,
        "frames": frames,
        "pooled": pooled,
        "layout": layout,
        "output": output,
    }
    facts = {name: value for name, value in given.items() if value is not None}
    if isinstance(source, nn.Module):
        return _kept(_open_in_memory(source, facts), keep)
    if description := describe_code(source, facts):
        return _kept(open_teacher(description), keep)
    if not isinstance(source, Teacher):
        source = open_teacher(teacher_assets().get(os.fspath(source)) or Path(source))
    return _kept(source, keep)


def _open_in_memory(source: nn.Module, facts: Mapping[str, Any]) -> Teacher:
    _check_facts("module in memory", facts, ("labels",), ("weights", "arguments"))
    described = _describe("memory:module", facts)
    labels, mel = read_labels(described.labels), read_mel(described.mel) if described.mel else None
    try:
        module = copy.deepcopy(source)
    except Exception:  # the module is somebody else's code
        module = source
        log.warning(
            "The module cannot be copied, so it is used as it is: frozen, in evaluation mode, "
            "in float32."
        )
    model, spec = open_module(described, module, labels, mel)
    kind = type(source)
    card = Card(
        kind="teacher",
        arch={"module": f"{kind.__module__}.{kind.__qualname__}"},
        mel=spec.to_dict(),
        labels=labels,
        output=model.anatomy.output,
    )
    return Teacher(model.eval(), card, spec, sha256_tensors(source.state_dict()))


def describe_code(source: object, facts: Mapping[str, Any]) -> TeacherDescription | None:
    """The description of code or of an ONNX file with these facts; None for other sources.

    Raises:
        ConfigError: The facts do not fit the source, or have mistakes.
        FramiEdgeError: As `hugging_face.facts_of`.
    """
    if isinstance(source, str) and source.startswith(hugging_face.PREFIX):
        return describe_hugging_face(source, facts)
    if facts and isinstance(source, str | os.PathLike) and is_onnx(source):
        _check_facts(f"ONNX file {source}", facts, ("labels",), ("weights", "arguments"))
        return _describe(None, {**facts, "weights": source})
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        _check_facts(f"teacher {source}", facts, ("weights", "labels"))
        return _describe(source, facts)
    if facts:
        raise ConfigError(
            f"The teacher {source} carries these facts itself: {', '.join(facts)}.",
            fix="Leave them out, or name the teacher as MODULE:CALLABLE.",
        )
    return None


def describe_hugging_face(source: str, facts: Mapping[str, Any]) -> TeacherDescription:
    """The description of `hf:FOLDER` or `hf:OWNER/NAME`; facts replace what it says itself.

    Raises:
        ConfigError: The facts do not fit.
        FramiEdgeError: As `hugging_face.facts_of`.
    """
    _check_facts(f"teacher {source}", facts, (), ("mel", "sample_rate", "labels", "weights"))
    return _describe(hugging_face.FACTORY, {**hugging_face.facts_of(source), **facts})


def _describe(factory: str | None, facts: Mapping[str, Any]) -> TeacherDescription:
    plain = {name: _plain(value) for name, value in facts.items()}
    return load_config(TeacherDescription, {"factory": factory, **plain})


def _check_facts(
    what: str, facts: Mapping[str, Any], needed: Sequence[str], unfit: Sequence[str] = ()
) -> None:
    missing = [name for name in needed if name not in facts]
    if needed and not {"mel", "sample_rate"} & set(facts):
        missing.append("mel or sample_rate")
    given = [name for name in unfit if name in facts]
    if missing or given:
        problem = f"without {', '.join(missing)}" if missing else f"with {', '.join(given)}"
        raise ConfigError(
            f"The {what} was passed {problem}.",
            fix="It carries these facts itself: leave them out."
            if not needed
            else "Give --labels, and --mel where it takes log-mels or --sample-rate where it takes "
            "audio; for a callable also --weights, which other teachers have already.",
        )


def open_teacher(source: Path | TeacherDescription) -> Teacher:
    """A teacher from a checkpoint, a YAML description, or a description; see `load_teacher`."""
    if isinstance(source, Path):
        if source.suffix.lower() not in DESCRIPTIONS:
            refuse_foreign_file(source)
            return load_checkpoint(source, "teacher")
        source = read_description(source)
    labels, mel = read_labels(source.labels), read_mel(source.mel) if source.mel else None
    module, sha256 = build_teacher(source)
    model, spec = open_module(source, module, labels, mel)
    card = Card(
        kind="teacher",
        arch={"factory": source.factory or "onnx", "arguments": source.arguments},
        mel=spec.to_dict(),
        labels=labels,
        output=model.anatomy.output,
        trained_on=source.trained_on,
        licence=source.licence,
    )
    return _kept(Teacher(model.eval(), card, spec, sha256, source), source.keep)


_ROUTES = {
    (".onnx",): (
        "does not say which classes it knows and what it takes.",
        "Write a teacher.yaml beside it with three lines, `weights: {path.name}`, `labels: "
        "labels.txt` and `mel: mel/log-mel-16k-64` (`sample_rate: 16000` where it takes audio), "
        "and give that; or add --labels, and --mel or --sample-rate.",
    ),
    (".tflite", ".h5", ".keras", ".pb"): (
        "is a network of TensorFlow.",
        "Use a PyTorch port of it, or convert it to ONNX: docs/MY_TEACHER.md.",
    ),
    (".pt", ".pth", ".ckpt", ".bin", ".pkl"): (
        "holds weights and not their network.",
        "Name the code that builds the network as well: --teacher MODULE:CALLABLE --weights FILE "
        "--labels FILE, with --mel or --sample-rate.",
    ),
}
_TORCHSCRIPT = (
    "is a TorchScript archive, whose layers cannot be watched.",
    "Convert it to ONNX as docs/MY_TEACHER.md shows, or save its weights, torch.save(torch.jit.load"
    "(FILE).state_dict(), 'new.pt'), and name the code that built it: --teacher MODULE:CALLABLE "
    "--weights new.pt.",
)


def refuse_foreign_file(path: Path) -> None:
    """Say what a file of another program needs to become a teacher.

    Raises:
        TeacherError: It is one.
    """
    if is_hugging_face(path):
        raise TeacherError(f"{path} is a folder of Hugging Face.", fix=f"Give it as hf:{path}.")
    if not path.is_file():
        return
    for suffixes, route in _ROUTES.items():
        if path.suffix.lower() in suffixes:
            said, fix = _TORCHSCRIPT if is_torchscript(path) else route
            raise TeacherError(f"{path} {said}", fix=fix.format(path=path))


def is_onnx(path: PathLike) -> bool:
    """Whether a file is named as one of ONNX."""
    return Path(path).suffix.lower() == onnx_graph.SUFFIX


def is_hugging_face(path: Path) -> bool:
    """Whether a folder looks as if `save_pretrained` wrote it."""
    try:
        found = json.loads(read_small(path / "config.json", 10_000_000))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "model_type" in found


def open_module(
    source: TeacherDescription, module: nn.Module, labels: Sequence[str], mel: MelSpec | None
) -> tuple[ForeignTeacher, MelSpec]:
    """The described module behind our interface, and its front end.

    Without a sample rate it takes log-mels of `mel`, or, where it does not, audio at their rate.
    With one it takes audio. Where the log-mel inside it is proved equal to a MelSpec, the teacher
    takes that log-mel; otherwise it takes audio, and the front end is proposed for the student.

    Raises:
        ConfigError: Neither mel nor sample rate, or two different rates.
        TeacherError: As `ForeignTeacher`; or the log-mel inside belongs to another sample rate.
    """
    how: dict[str, Any] = {
        "frames": source.frames,
        "pooled": source.pooled,
        "output": source.output,
    }
    classes, sample_rate, layout = len(labels), source.sample_rate, source.layout
    graph = Path(source.weights) if source.weights and is_onnx(source.weights) else None
    known = onnx_graph.declared_sizes(graph) if graph else ()
    if mel is None and sample_rate is None:
        raise ConfigError(
            "The teacher has neither a mel front end nor a sample rate.",
            fix="Give --mel where it takes log-mels, --sample-rate where it takes audio.",
        )
    if mel and sample_rate not in (None, mel.sample_rate):
        raise ConfigError(
            f"The sample rate {sample_rate} Hz is not that of the mel, {mel.sample_rate} Hz.",
            fix="Give --sample-rate alone for a module that takes audio, --mel for one that takes "
            "log-mels.",
        )
    module = module.float().eval().requires_grad_(False)
    if mel and sample_rate is None and layout not in AUDIO_LAYOUTS:
        mels = Input(n_mels=mel.n_mels, known=known)
        audio = Input(sample_rate=mel.sample_rate, known=known)
        if (
            layout != "auto"
            or any(takes(module, mels, classes, order) for order in mels.layouts)
            or not any(takes(module, audio, classes, order) for order in audio.layouts)
        ):
            if graph:
                onnx_graph.check_answers(graph, module, find_calling(module, mels, classes, layout))
            return ForeignTeacher(module, mels, classes, layout=layout, **how), mel
    rate = sample_rate or (mel.sample_rate if mel else 0)
    if layout not in ("auto", *AUDIO_LAYOUTS):
        raise ConfigError(
            f"The layout {layout} is one of log-mels, and the teacher takes audio.",
            fix="Leave --layout out, or leave --sample-rate out and give --mel.",
        )
    audio = Input(sample_rate=rate, known=known)
    calling = find_calling(module, audio, classes, layout)
    if graph:
        onnx_graph.check_answers(graph, module, calling)
    found = find_front_end(module, rate, calling, mel)
    if isinstance(found, NotFound):
        if found.rate:
            raise TeacherError(
                f"The teacher was built for another sample rate than {rate} Hz: {found.reason}.",
                fix=f"Give --sample-rate {found.rate}.",
            )
        model = ForeignTeacher(module, audio, classes, layout=layout, **how)
        model.why_audio = found.reason
        return model, mel or proposed_mel(rate)
    how |= {name: f"net.{how[name]}" for name in ("frames", "pooled") if how[name]}
    inside = LogMelInput.shortened(module, found, calling)
    model = ForeignTeacher(inside, found.mel.n_mels, classes, layout="B1MT", **how)
    model.front_end = found
    return model, found.mel


def proposed_mel(sample_rate: int) -> MelSpec:
    """A front end for the student of a teacher that has none: windows of 25 ms, hop 10 ms."""
    window = sample_rate // 40
    return MelSpec(
        sample_rate=sample_rate,
        n_fft=1 << (window - 1).bit_length(),
        win_length=window,
        hop_length=sample_rate // 100,
        n_mels=40 if sample_rate < 16_000 else 64,
        mean=-6.0,
        std=4.0,
    )


def build_teacher(description: TeacherDescription) -> tuple[nn.Module, str]:
    """The described module with its weights, and the SHA-256 of the weights file.

    Raises:
        CheckpointError: The weights are missing, damaged, or do not fit.
        TeacherError: The module cannot be built.
    """
    factory = description.factory
    if description.weights is None:
        if factory != hugging_face.FACTORY:
            raise ConfigError(
                "The description of the teacher has no weights.", fix="Add `weights: FILE`."
            )
        module = build_module(factory, description.arguments)
        return module, sha256_tensors(module.state_dict())
    path = Path(description.weights)
    if not path.is_file():
        raise CheckpointError(f"There are no weights {path}.", fix="Check --weights.")
    if (factory is None) != is_onnx(path):
        raise ConfigError(
            f"{path} {'holds no network' if factory is None else 'holds its network itself'}.",
            fix="Add `factory: MODULE:CALLABLE` to the teacher's description."
            if factory is None
            else "Give the file itself as --teacher, or leave out `factory` in its description.",
        )
    if factory is None:
        return onnx_graph.read_network(path)
    tensors = read_weights(path)
    module = build_module(factory, description.arguments)
    load_weights(module, tensors, path, description.weights_under)
    return module, sha256_file(path)


def _kept(teacher: Teacher, keep: Keep | None) -> Teacher:
    """The teacher with selected classes; its description names them, so that runs reproduce it."""
    if keep is None:
        return teacher
    selected = select_classes(teacher, keep)
    if isinstance(teacher.description, TeacherDescription):
        update = {"keep": selected.card.keep, "output": teacher.output}
        selected.description = teacher.description.model_copy(update=update)
    return selected


def _plain(value: Any) -> Any:
    """As YAML would give it; what is of a wrong type stays, for the description to refuse."""
    if isinstance(value, MelSpec):
        return value.to_dict()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        return value
    return tuple(value)


def read_description(path: Path) -> TeacherDescription:
    """Read the YAML form; files that it names are found relative to it.

    Raises:
        ConfigError: With every mistake in it.
    """
    found = load_config(TeacherDescription, path)
    return _with_paths(found, lambda file: str(path.parent / file))


def write_description(path: Path, description: TeacherDescription) -> None:
    """The YAML form, with the files that it names relative to it."""
    moved = _with_paths(description, lambda f: Path(os.path.relpath(f, path.parent)).as_posix())
    atomic_write_text(path, dump(moved.model_dump(mode="json")))


def _with_paths(description: TeacherDescription, change: Any) -> TeacherDescription:
    """The description with `change` applied to every file that it names."""
    values = {name: getattr(description, name) for name in ("weights", "mel", "labels")}
    files = {k: v for k, v in values.items() if isinstance(v, str) and v not in presets()}
    return description.model_copy(update={name: change(file) for name, file in files.items()})


def read_mel(source: str | Mapping[str, Any]) -> MelSpec:
    """A front end from its keys, a YAML file of them, or a preset.

    Raises:
        ConfigError: The file is missing or not a YAML mapping.
        MelSpecError: A key is unknown or out of range.
    """
    where, values = read_mapping(source) if isinstance(source, str) else ("mel", dict(source))
    try:
        return MelSpec.from_dict(
            {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        )
    except MelSpecError as error:
        fix = error.fix or "Correct that key of the front end."
        raise MelSpecError(f"{where}: {error.message}", fix=fix) from None


def read_labels(source: str | Sequence[str]) -> tuple[str, ...]:
    """(K,) class names, given or from a file: one per line, or AudioSet's csv of its classes.

    Raises:
        TeacherError: The file cannot be read, or the names are fewer than two or not different.
    """
    labels = source
    if isinstance(source, str):
        try:
            lines = read_small(source, 10_000_000).decode("utf-8-sig").splitlines()
            rows = csv.DictReader(lines, restval="")
            if "display_name" in (rows.fieldnames or ()):  # AudioSet's class_labels_indices.csv
                labels = [row["display_name"].strip() for row in rows]
            else:
                labels = [line.strip() for line in lines if line.strip()]
        except (OSError, ValueError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise TeacherError(
                f"The labels {source} cannot be read: {reason}.",
                fix="Give a text file, one name per line.",
            ) from None
    labels = [nfc(label) for label in labels]
    names = set(labels) - {""}
    if not 2 <= len(labels) <= MAX_LABELS or len(names) != len(labels):
        raise TeacherError(
            f"The labels name {len(labels)} classes, {len(names)} of them different.",
            fix=f"Give every class one name: 2 to {MAX_LABELS} in all.",
        )
    return tuple(labels)


def build_module(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Import ``module:callable`` and call it.

    Raises:
        TeacherError: It cannot be imported, fails, or gives no `nn.Module`.
    """
    module_name, _, attribute = factory.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does: people keep their models in their project
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # SystemExit: a script runs when it is imported
        raise TeacherError(
            f"{factory} cannot be imported: {in_words(error)}.",
            fix="Give MODULE:CALLABLE, and run where `import MODULE` works, or set PYTHONPATH; "
            "a script needs `if __name__ == '__main__':`.",
        ) from None
    try:
        made = found(**arguments)
    except FramiEdgeError:
        raise
    except (Exception, SystemExit) as error:  # the factory is somebody else's code
        listed = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
        raise TeacherError(
            f"{factory}({listed}) fails: {in_words(error)}",
            fix="Give the arguments that the network was built with: --teacher-arg NAME=VALUE.",
        ) from None
    if not isinstance(made, nn.Module):
        raise TeacherError(
            f"{factory} gives {type(made).__name__}, not an nn.Module.",
            fix="Name the class of the network, or a function that returns it.",
        )
    return made
