"""Describe files and folders: models, engines, checkpoints, banks, exports, runs and teachers.

Nothing is executed, except a teacher in Python code, which has to be built.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
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
from frami_edge.opening import ENGINES, open_model, read_info, read_onnx
from frami_edge.runs import MANIFEST, read_manifest
from frami_edge.teachers.foreign import ForeignTeacher
from frami_edge.teachers.opening import (
    DESCRIPTIONS,
    TeacherDescription,
    build_teacher,
    read_description,
    read_labels,
    read_mel,
)
from frami_edge.teachers.tracing import find_layout, trace
from frami_edge_export.lint import Finding, lint_tensorrt
from frami_edge_runtime.errors import FramiEdgeError, ModelFileError
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import ModelInfo, read_head
from frami_edge_runtime.tensorrt import read_plan_version, read_sidecar

Facts = dict[str, Any]

REPORT: Final = "export_report.json"
_MAX_REPORT_BYTES: Final = 64 << 20
_WEIGHT_TYPES: Final = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
)
_TRACED_MODULES = 10
"""Modules of a teacher that are shown, up to the last: the pooling is among them."""


@dataclass
class Description:
    """What `describe` found.

    Attributes:
        kind: Kind of the file or folder, for programs, such as ``streaming``.
        title: The kind in words.
        sections: Facts by section and name; plain values, as JSON holds them.
        findings: What a user should know before using it: damage, what is missing.
    """

    kind: str
    title: str
    sections: dict[str, Facts]
    findings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: one object per section."""
        named = {"kind": self.kind, "title": self.title}
        return {**named, **self.sections, "findings": self.findings}


def describe(path: Path) -> Description:
    """Describe a file or folder.

    Raises:
        FramiEdgeError: It is missing, damaged, or of an unknown kind.
    """
    folder, name, suffix = path, path.name, path.suffix.lower()
    if path.is_file():
        folder = path.parent
        if suffix == ".onnx":
            return _describe_onnx(path)
        if suffix in ENGINES:
            return _describe_engine(path)
        if suffix == ".safetensors":
            return _describe_safetensors(path)
        if suffix in DESCRIPTIONS:
            return describe_teacher(read_description(path))
    known: dict[str, Callable[[Path], Description]] = {
        "bank.json": _describe_bank,
        REPORT: _describe_export,
        MANIFEST: _describe_run,
    }
    for marker, describer in known.items():
        if name == marker or (path.is_dir() and (path / marker).is_file()):
            return describer(folder)
    if not path.exists():
        raise CheckpointError(f"There is no file {path}.", fix="Check the path.")
    if suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt"):
        raise CheckpointError(
            f"{path} may be a pickle, which can run code when it is read.",
            fix="Save the weights as .safetensors.",
        )
    raise CheckpointError(
        f"{path} is of no known kind.",
        fix="Give an .onnx, .engine or .safetensors file, a teacher's .yaml, or the folder of a "
        "bank, an export or a run.",
    )


def _file(path: Path) -> Facts:
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _geometry(mel: MelSpec, receptive_field: int, stride: int, right: int) -> Facts:
    """Receptive field and stride of trunk frames in mel frames, and their delay.

    The delay is that of a frame behind the sound at its centre: the mel frames after it, and half
    the FFT of the last of them. Computing and buffering add to it.
    """
    hop_ms = 1000 * mel.hop_s
    return {
        "receptive_field": receptive_field,
        "receptive_field_ms": receptive_field * hop_ms,
        "stride": stride,
        "stride_ms": stride * hop_ms,
        "delay_ms": right * hop_ms + 500 * mel.n_fft / mel.sample_rate,
    }


def _info_facts(info: ModelInfo) -> Facts:
    geometry = _geometry(info.mel, info.receptive_field, info.stride, info.context.right)
    return {**json.loads(info.to_json()), **geometry}


def _describe_onnx(path: Path) -> Description:
    model = read_onnx(path)
    findings: list[str] = []
    kind, title = "onnx", "ONNX file of another exporter"
    sections: dict[str, Facts] = {}
    try:
        found = read_info(model)
    except ModelFileError as error:
        findings.append(f"Its description cannot be read: {error}")
    else:
        if found is None:
            findings.append(
                "It carries no description of frami-edge: labels and front end are unknown, and "
                "frami-edge-runtime cannot run it."
            )
        else:
            kind, info = found
            title = f"{kind} model of frami-edge export"
            sections = {"model": _info_facts(info)}
    lint: list[Finding] = []
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises half a dozen types
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        findings.append(f"The ONNX checker objects: {first[:200]}")
    else:  # TensorRT's static rules make sense for a sound graph only
        lint += lint_tensorrt(model)
    findings += [f"{f.message} {f.fix}" for f in lint if f.rule in ("opset", "ir", "external-data")]
    graph = {**_graph_facts(model), "tensorrt_lint": Counter(f.rule for f in lint)}
    sections = {"file": _file(path), "graph": graph, **sections}
    return Description(kind, title, sections, findings)


def _graph_facts(model: onnx.ModelProto) -> Facts:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    types = _parameters_by_type(model.graph)
    stored = {t.name for t in model.graph.initializer}
    return {
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": [_port(p) for p in model.graph.input if p.name not in stored],
        "outputs": [_port(p) for p in model.graph.output],
        "parameters": sum(types.values()),
        "head_parameters": _head_parameters(metadata),
        "parameters_by_type": dict(types.most_common()),
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
    }


def _parameters_by_type(graph: onnx.GraphProto) -> Counter[str]:
    """Number of weights by type; an int8 graph's include its scales and zero points."""
    types: Counter[str] = Counter()
    for tensor in graph.initializer:
        if tensor.data_type in _WEIGHT_TYPES and math.prod(tensor.dims) > 1:
            types[_type_name(tensor.data_type)] += math.prod(tensor.dims)
    return types


def _port(port: onnx.ValueInfoProto) -> str:
    tensor = port.type.tensor_type
    sizes = (d.dim_param or (str(d.dim_value) if d.dim_value else "?") for d in tensor.shape.dim)
    return f"{port.name} {_type_name(tensor.elem_type)} ({', '.join(sizes)})"


def _type_name(number: int) -> str:
    known = number in TensorProto.DataType.values()
    return TensorProto.DataType.Name(number).lower() if known else f"type {number}"


def _head_parameters(metadata: dict[str, str]) -> int | None:
    head = onnx.ModelProto()
    try:
        head.ParseFromString(read_head(metadata))
    except Exception:  # absent or damaged; protobuf's exceptions differ between implementations
        return None
    return sum(_parameters_by_type(head.graph).values())


def _describe_safetensors(path: Path) -> Description:
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: list(s.get_shape()) for name, s in slices.items()}
            types = Counter(s.get_dtype() for s in slices.values())
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}.", fix="Copy it again."
        ) from None
    file_facts = {**_file(path), "tensors": dict(types)}
    if "frami.card" not in metadata:
        weights = {
            "parameters": sum(math.prod(shape) for shape in shapes.values()),
            "shapes": shapes,
            "metadata": metadata,
        }
        return Description(
            "safetensors",
            "safetensors file without a card of frami-edge",
            {"file": file_facts, "weights": weights},
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
    sections = {"file": file_facts, "network": facts, "card": card.model_dump(mode="json")}
    findings = [] if card.real_clips else [_NO_TRAINED_ON]
    return Description(card.kind, f"{card.kind} of frami-edge", sections, findings)


_NO_TRAINED_ON: Final = (
    "It does not name the real clips that it or its teacher was trained on, so no check can keep "
    "those clips out of a score: add trained_on to a teacher's description."
)


def _describe_engine(path: Path) -> Description:
    version = ".".join(map(str, read_plan_version(path)))
    file = {**_file(path), "tensorrt": version}
    sections: dict[str, Facts] = {"file": file}
    findings: list[str] = []
    try:
        card = read_sidecar(path)
    except FramiEdgeError as error:
        findings.append(str(error))
    else:
        built = asdict(card)
        del built["model"], built["head_onnx"]
        sections |= {"built": built, "model": _info_facts(card.info)}
        if (card.engine_sha256, card.engine_bytes) != (file["sha256"], file["bytes"]):
            findings.append(
                "The sidecar describes another engine: its size or hash differs. Copy both files "
                "again, or rebuild: frami-edge export --tensorrt."
            )
        elif card.tensorrt != version:
            findings.append(f"The sidecar names TensorRT {card.tensorrt}, the engine {version}.")
    reason = findings[0] if findings else "TensorRT is not installed in this Python environment"
    loads = False
    if not findings and find_spec("tensorrt") is not None:
        try:
            open_model(path)
            loads, reason = True, "it was loaded and answered a probe"
        except FramiEdgeError as error:
            reason = str(error)
    sections["this_machine"] = {"loads": loads, "reason": reason}
    return Description("engine", "TensorRT engine", sections, findings)


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
    findings = ["bank.json holds no health figures."]
    if index.health:
        findings = health_warnings(index.health)
    return Description("bank", "bank of synthetic clips", sections, findings)


def _describe_export(folder: Path) -> Description:
    path = folder / REPORT
    try:
        report = json.loads(read_small(path, _MAX_REPORT_BYTES))
        if report["schema"] != 1:
            raise ValueError(report["schema"])
        failed = [gate["name"] for gate in report["gates"] if not gate["passed"]]
        files = {a["name"]: a for a in report["artifacts"]}
        findings = [f"Gate failed: {name}." for name in failed]
        for name, artifact in files.items():
            file = folder / Path(artifact["path"]).name
            if not file.is_file():
                findings.append(f"{file.name} is missing from the folder.")
            elif sha256_file(file) != artifact["sha256"]:
                findings.append(f"{file.name} is not the file of the report: its hash differs.")
            shown = ("path", "bytes", "p50_ms", "chunk_p50_ms", "agreement", "accuracy", "verdict")
            files[name] = {key: artifact.get(key) for key in shown}
        summary = {
            "path": str(folder),
            "student": report["name"],
            "recommended": report["recommended"] or None,
            "reason": report["reason"],
            "gates_passed": len(report["gates"]) - len(failed),
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
    return Description(
        "export", "folder of frami-edge export", {"export": summary, "files": files}, findings
    )


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
        [] if status in (None, "finished") else [f"The run is {status}."],
    )


def describe_teacher(source: TeacherDescription) -> Description:
    """Build a teacher in Python code, and describe its layers and hidden states.

    Where its hidden states are ambiguous, the shapes of its last modules show what to choose from.

    Raises:
        CheckpointError: The weights are missing, damaged or do not fit.
        ConfigError: The front end is missing or has mistakes.
        TeacherError: It cannot be built, or takes no log-mels of this front end.
    """
    mel, labels = read_mel(source.mel), read_labels(source.labels)
    module, sha256 = build_teacher(source)
    module.float().eval().requires_grad_(False)
    layout = find_layout(module, mel.n_mels, len(labels), source.layout)
    events = [e for e in trace(module, mel.n_mels, layout) if not e.name.endswith("@in")]
    layers = Counter(type(m).__name__ for m in module.modules() if not list(m.children()))
    network: Facts = {
        "parameters": parameters(module),
        "input_layout": layout,
        "layers": dict(layers.most_common()),
        "batch_norms": {name: layer.num_features for name, layer in live_batch_norms(module)},
        "last_modules": {
            e.name: f"{e.kind} {tuple(e.tensor.shape)}, "
            + ("no time axis" if e.time_axis is None else f"time on axis {e.time_axis}")
            for e in events[-_TRACED_MODULES:]
        },
    }
    findings = []
    states: Facts = {"found": False}
    try:
        teacher = ForeignTeacher(
            module,
            mel.n_mels,
            len(labels),
            layout=source.layout,
            frames=source.frames,
            pooled=source.pooled,
        )
    except TeacherError as error:
        findings.append(f"{error.message} {error.fix}")
    else:
        anatomy = asdict(teacher.anatomy)
        states = {"found": True, **anatomy.pop("states"), **anatomy}
        findings += teacher.doubts
        if not live_batch_norms(teacher):
            findings.append(
                "It has no BatchNorm with running statistics: invert with --set "
                "bank.inversion.batch_norm=0 --set bank.translator.batch_norm=0, and expect a "
                "poorer bank."
            )
        if teacher.head is None:
            findings.append(
                "The map from pooled state to logits is not affine: the student gets a head of its "
                "own instead of the teacher's."
            )
    if source.trained_on is None:
        findings.append(_NO_TRAINED_ON)
    sections = {
        "file": {"weights": source.weights, "sha256": sha256},
        "network": network,
        "hidden_states": states,
        "model": {"labels": list(labels), "mel": mel.to_dict(), "mel_sha256": mel.digest},
    }
    return Description("foreign-teacher", f"teacher {source.factory}", sections, findings)
