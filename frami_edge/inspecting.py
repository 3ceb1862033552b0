"""Describe files and folders: models, engines, checkpoints, banks, exports, runs and teachers.

Nothing is executed, except a teacher in Python code, which has to be built.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto
from safetensors import SafetensorError, safe_open

from frami_edge.bank import Bank, health_warnings
from frami_edge.checkpoint import load_checkpoint, parameters
from frami_edge.errors import CheckpointError, TeacherError
from frami_edge.io import read_small, sha256_file
from frami_edge.losses import live_batch_norms
from frami_edge.models import ReusedHead, StudentNet, macs_per_second
from frami_edge.opening import ENGINES, ORT, open_model, read_info, read_onnx, read_ort
from frami_edge.runs import MANIFEST, read_manifest
from frami_edge.sources.procedural import procedural_mels
from frami_edge.teachers.front_end_fit import (
    DOUBTFUL_FRONT_END,
    front_end_error,
    front_ends_like,
    wrong_front_end,
)
from frami_edge.teachers.hugging_face import PREFIX
from frami_edge.teachers.inheriting import inheritable
from frami_edge.teachers.opening import (
    DESCRIPTIONS,
    TeacherDescription,
    build_teacher,
    describe_hugging_face,
    is_hugging_face,
    open_module,
    read_description,
    read_labels,
    read_mel,
    refuse_foreign_file,
)
from frami_edge_export.exporter import REPORT
from frami_edge_export.lint import lint_tensorrt
from frami_edge_runtime.errors import FramiEdgeError, ModelFileError
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import ModelInfo
from frami_edge_runtime.tensorrt import read_plan_version, read_sidecar

Facts = dict[str, Any]

_MAX_REPORT_BYTES: Final = 64 << 20
_WEIGHT_TYPES: Final = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8")
_NO_TRAINED_ON: Final = (
    "It does not name the real clips that it or its teacher was trained on, so no check can keep "
    "those clips out of a score: add trained_on to a teacher's description."
)


@dataclass
class Description:
    """What `describe` found.

    Attributes:
        kind: Kind of the file or folder, for programs, such as ``streaming``.
        title: The kind in words.
        sections: Facts by section and name; plain values, as JSON holds them.
        findings: Warnings: damage, what is missing, assumptions to confirm.
        notes: Facts about it in sentences.
    """

    kind: str
    title: str
    sections: dict[str, Facts]
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: one object per section."""
        named = {"kind": self.kind, "title": self.title}
        return {**named, **self.sections, "findings": self.findings, "notes": self.notes}


def describe(path: Path) -> Description:
    """Describe a file or folder.

    Raises:
        FramiEdgeError: It is missing, damaged, or of an unknown kind.
    """
    if not path.exists():
        raise CheckpointError(f"There is no file {path}.", fix="Check the path.")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return _describe_onnx(path)
    if suffix == ORT:
        return _describe_ort(path)
    if suffix in ENGINES:
        return _describe_engine(path)
    if suffix == ".safetensors":
        return _describe_safetensors(path)
    if suffix in DESCRIPTIONS:
        return describe_teacher(read_description(path))
    if is_hugging_face(path):
        return describe_teacher(describe_hugging_face(f"{PREFIX}{path}", {}))
    folder = path.parent if path.is_file() else path
    for marker, describer in (
        ("bank.json", _describe_bank),
        (REPORT, _describe_export),
        (MANIFEST, _describe_run),
    ):
        if path.name == marker or (path / marker).is_file():
            return describer(folder)
    refuse_foreign_file(path)
    raise CheckpointError(
        f"{path} is of no known kind.",
        fix="Give an .onnx, .ort, .engine or .safetensors file, a teacher's .yaml, or the folder "
        "of a bank, an export or a run.",
    )


def _file(path: Path) -> Facts:
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _geometry(mel: MelSpec, receptive_field: int, stride: int, right: int) -> Facts:
    """Receptive field and stride of trunk frames in mel frames, and their delay.

    The delay is that of a frame behind the sound at its centre: the mel frames after it, and half
    the span of the last of them. Computing and buffering add to it.
    """
    hop_ms = 1000 * mel.hop_s
    return {
        "receptive_field": receptive_field,
        "receptive_field_ms": receptive_field * hop_ms,
        "stride": stride,
        "stride_ms": stride * hop_ms,
        "delay_ms": right * hop_ms + 500 * mel.span / mel.sample_rate,
    }


def _info_facts(info: ModelInfo) -> Facts:
    head_parameters = (info.pooled_size + 1) * len(info.labels)
    geometry = _geometry(info.mel, info.receptive_field, info.stride, info.context.right)
    return {**json.loads(info.to_json()), **geometry, "head_parameters": head_parameters}


def _describe_onnx(path: Path) -> Description:
    model = read_onnx(path)
    found = _described(path, model, _graph_facts(model))
    graph, findings = found.sections["graph"], found.findings
    try:
        onnx.checker.check_model(model)
        # TensorRT's static rules make sense for a sound graph only.
        graph["tensorrt_lint"] = Counter(finding.rule for finding in lint_tensorrt(model))
    except Exception as error:  # the checker raises half a dozen types
        findings.append(f"The ONNX checker objects: {str(error).strip()[:200]}")
    return found


def _describe_ort(path: Path) -> Description:
    session = read_ort(path)
    ports = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    graph: Facts = {
        kind: [f"{p.name} {p.type} ({', '.join(map(str, p.shape))})" for p in found]
        for kind, found in ports.items()
    }
    found = _described(path, session, graph)
    found.notes.append("It is in ONNX Runtime's own format: its graph is not described here.")
    return found


def _described(path: Path, model: Any, graph: Facts) -> Description:
    """Kind and description of a file that ONNX Runtime loads."""
    sections = {"file": _file(path), "graph": graph}
    try:
        kind, info = read_info(model)
    except ModelFileError as error:
        unknown = f"frami-edge-runtime cannot run it: {error}"
        note = "To inspect it as a teacher, add --labels, and --mel or --sample-rate."
        return Description("onnx", "ONNX file of another exporter", sections, [unknown], [note])
    sections["model"] = _info_facts(info)
    return Description(kind, f"{kind} model of frami-edge export", sections)


def _graph_facts(model: onnx.ModelProto) -> Facts:
    # Names are strings except in a damaged file, where protobuf returns bytes.
    weights: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        kind, size = _type_name(tensor.data_type), math.prod(tensor.dims)
        if kind.upper() in _WEIGHT_TYPES and size > 1:
            weights[kind] += size
    stored = {t.name for t in model.graph.initializer}
    operators = Counter(str(node.op_type) for node in model.graph.node)
    return {
        "opset": {str(o.domain or "ai.onnx"): o.version for o in model.opset_import},
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": [_port(p) for p in model.graph.input if p.name not in stored],
        "outputs": [_port(p) for p in model.graph.output],
        "parameters": sum(weights.values()),
        "parameters_by_type": dict(weights.most_common()),
        "operators": dict(operators.most_common()),
    }


def _port(port: onnx.ValueInfoProto) -> str:
    tensor = port.type.tensor_type
    sizes = (str(d.dim_param or d.dim_value or "?") for d in tensor.shape.dim)
    return f"{port.name} {_type_name(tensor.elem_type)} ({', '.join(sizes)})"


def _type_name(number: int) -> str:
    known = number in TensorProto.DataType.values()
    return TensorProto.DataType.Name(number).lower() if known else f"type {number}"


def _describe_safetensors(path: Path) -> Description:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}.", fix="Copy it again."
        ) from None
    if "frami.card" not in metadata:
        count = sum(math.prod(shape) for shape in shapes.values())
        weights = {"parameters": count, "shapes": shapes, "metadata": metadata}
        return Description(
            "safetensors",
            "safetensors file without a card of frami-edge",
            {"file": _file(path), "weights": weights},
            ["Network, labels and front end are unknown: it cannot be scored or distilled as is."],
        )
    loaded = load_checkpoint(path)
    card, network = loaded.card, loaded.model
    facts: Facts = {
        "parameters": parameters(network),
        "macs_per_second": macs_per_second(network, loaded.mel),
    }
    if isinstance(network, StudentNet):
        facts["exported_parameters"] = parameters(network.collapse())
        reused = isinstance(network.head, ReusedHead)
        facts["head"] = "the teacher's, with a projector" if reused else "its own"
        right = network.context[1]
        facts |= _geometry(loaded.mel, network.receptive_field, network.stride, right)
    written = card.model_dump(mode="json")
    for known in (written["trained_on"], written["teacher_trained_on"]):
        if known:  # one line, however many clips there were
            known["audio"] = f"hashes of {known['clips']} clips" if known["audio"] else "no hashes"
    sections = {"file": _file(path), "network": facts, "card": written}
    findings = [] if card.real_clips else [_NO_TRAINED_ON]
    return Description(card.kind, f"{card.kind} of frami-edge", sections, findings)


def _describe_engine(path: Path) -> Description:
    version = ".".join(map(str, read_plan_version(path)))
    sections: dict[str, Facts] = {"file": {**_file(path), "tensorrt": version}}
    try:
        card = read_sidecar(path)
        built = asdict(card)
        del built["model"], built["head_onnx"]
        sections |= {"built": built, "model": _info_facts(card.info)}
        open_model(path)  # compares the sidecar with the engine, then loads and probes it
        sections["this_machine"] = {"loads": True, "reason": "it was loaded and answered a probe"}
    except FramiEdgeError as error:
        sections["this_machine"] = {"loads": False, "reason": str(error)}
    return Description("engine", "TensorRT engine", sections)


def _describe_bank(folder: Path) -> Description:
    bank = Bank.open(folder)  # checks the hash of every shard
    index = bank.index
    clips = {
        "path": str(folder),
        "clips": len(bank),
        "clips_by_source": bank.sources,
        "hours": len(bank) * index.frames * bank.spec.hop_s / 3600,
        "bytes": sum((folder / shard.file).stat().st_size for shard in index.shards),
    }
    sections = {
        "clips": clips,
        "health": index.health,
        "index": index.model_dump(mode="json", exclude={"shards", "health"}),
    }
    findings = health_warnings(index.health, index.labels)
    if not index.health:
        findings.append("bank.json holds no health figures.")
    return Description("bank", "bank of synthetic clips", sections, findings)


def _describe_export(folder: Path) -> Description:
    path = folder / REPORT
    shown = ("path", "bytes", "p50_ms", "chunk_p50_ms", "agreement", "accuracy", "verdict")
    try:
        report = json.loads(read_small(path, _MAX_REPORT_BYTES))
        findings = [f"Gate failed: {g['name']}." for g in report["gates"] if not g["passed"]]
        files = {}
        for artifact in report["artifacts"]:
            file = folder / Path(artifact["path"]).name
            if not file.is_file():
                findings.append(f"{file.name} is missing from the folder.")
            elif sha256_file(file) != artifact["sha256"]:
                findings.append(f"{file.name} is not the file of the report: its hash differs.")
            files[artifact["name"]] = {key: artifact.get(key) for key in shown}
        summary = {
            "path": str(folder),
            "student": report["name"],
            "recommended": report["recommended"] or None,
            "reason": report["reason"],
            "gates": len(report["gates"]),
            "calibration": report["calibration"],
            "measured_on": report["bench"].get("cpu"),
            "notes": report["notes"],
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise ModelFileError(
            f"{path} is damaged or of another version.",
            fix="Export the student again: frami-edge export.",
        ) from None
    sections = {"export": summary, "files": files}
    return Description("export", "folder of frami-edge export", sections, findings)


def _describe_run(folder: Path) -> Description:
    manifest = read_manifest(folder)
    inside = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix in (".safetensors", ".onnx", *ENGINES)
        or (entry / "bank.json").is_file()
        or (entry / REPORT).is_file()
    )
    status = manifest.get("status")
    return Description(
        "run",
        f"run folder of frami-edge {manifest.get('command')}",
        {"run": {"path": str(folder), "contains": inside, **manifest}},
        [] if status == "finished" else [f"The run is {status}."],
    )


def describe_teacher(source: TeacherDescription) -> Description:
    """Build a teacher in Python code, and describe its layers and hidden states.

    Raises:
        CheckpointError: The weights are missing, damaged or do not fit.
        ConfigError: The front end is missing or has mistakes.
        TeacherError: It cannot be built.
    """
    labels, mel = read_labels(source.labels), read_mel(source.mel) if source.mel else None
    module, sha256 = build_teacher(source)
    layers = Counter(type(m).__name__ for m in module.modules() if not list(m.children()))
    network: Facts = {
        "parameters": parameters(module),
        "layers": dict(layers.most_common()),
        "batch_norms": {name: layer.num_features for name, layer in live_batch_norms(module)},
    }
    states: Facts = {"found": False}
    findings: list[str] = []
    notes: list[str] = []
    try:
        teacher, mel = open_module(source, module, labels, mel)
    except TeacherError as error:
        findings.append(str(error))
    else:
        anatomy = asdict(teacher.anatomy)
        states = {"found": True, "takes": teacher.takes, **anatomy.pop("states"), **anatomy}
        findings += teacher.doubts
        notes += teacher.notes
        network["front_end_error"] = front_end_error(teacher, mel)
        if network["front_end_error"] > DOUBTFUL_FRONT_END:
            ranking = front_ends_like(teacher, mel)
            network["front_ends"] = ranking
            findings.append(wrong_front_end(network["front_end_error"], ranking))
        if mel and teacher.takes == "mel":
            frames = teacher.anatomy.clip_length or 256
            found = inheritable(teacher, procedural_mels(mel, 4, frames, 0))
            network["inheritable"] = found
            if found:
                notes.append(
                    "A student can inherit its first layers: student.inherit, up to one of "
                    f"{', '.join(f'{path} ({size:,} parameters)' for path, size in found.items())}."
                )
        if teacher.head is None:
            notes.append(
                "The map from pooled state to logits is not affine: the student gets a head of its "
                "own instead of the teacher's."
            )
    if not network["batch_norms"]:
        findings.append(
            "It has no BatchNorm with running statistics, so inversion borrows those of a small "
            "student that is distilled on procedural clips first: expect a poorer bank. Use the "
            "checkpoint from before folding, if there is one."
        )
    if source.trained_on is None:
        findings.append(_NO_TRAINED_ON)
    sections = {
        "file": {"weights": source.weights or source.arguments.get("source"), "sha256": sha256},
        "network": network,
        "hidden_states": states,
        "model": {
            "labels": list(labels),
            "mel": mel.to_dict() if mel else None,
            "mel_sha256": mel.digest if mel else None,
        },
    }
    title = f"teacher {source.factory or source.weights}"
    return Description("foreign-teacher", title, sections, findings, notes)
