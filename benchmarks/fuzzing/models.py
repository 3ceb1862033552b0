"""Exported models and engines through the commands, and classes with hostile names."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import fuzz_models
import onnx
import torch
from fuzz_material import Material as RuntimeMaterial
from fuzz_material import Rng, WrongAnswerError
from onnx import TensorProto, helper

from frami_edge.candidate import open_candidate
from fuzzing.case import Case
from fuzzing.material import SPEC, make_teacher
from fuzzing.texts import LABELS

PLACES = ("/etc/passwd", "../../etc/passwd", "weights.bin", "", "file:///etc/passwd", "~/x", ".")


def onnx_command(rng: Rng, case: Case) -> None:
    """A model with another graph, other weights or description: inspected, scored, verified."""
    kept: dict[str, Path] = {}

    class Written(RuntimeMaterial):
        def use(self, _: Rng, data: bytes) -> None:
            kept["path"] = case.write("case.onnx", data)

    material = Written.__new__(Written)
    material.models, material.folder = case.material.models, case.folder
    way = int(rng.integers(0, 6))
    if way < 4:
        list(fuzz_models.MODELS.values())[way](rng, material)
    else:
        model = onnx.load_from_string(material.models[int(rng.integers(0, len(material.models)))])
        (_elsewhere if way == 4 else _bomb)(rng, model)
        material.use(rng, model.SerializeToString())
    _use(rng, case, kept["path"], external=way == 4)


def _elsewhere(rng: Rng, model: Any) -> None:
    """Weights outside of the file."""
    tensors = list(model.graph.initializer)
    tensor = tensors[int(rng.integers(0, len(tensors)))]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    place = PLACES[int(rng.integers(0, len(PLACES)))]
    for key, value in (("location", place), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)


def _bomb(rng: Rng, model: Any) -> None:
    """A few bytes that ask for much memory, or for code."""
    graph = model.graph
    huge = [1 << 40] if rng.random() < 0.5 else [1 << 20, 1 << 20]
    way = int(rng.integers(0, 5))
    if way == 0:
        graph.initializer.add(name="huge", data_type=1, dims=huge)
    elif way == 1:
        shape = helper.make_tensor("huge_shape", TensorProto.INT64, [len(huge)], huge)
        graph.initializer.append(shape)
        graph.node.append(helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"]))
        graph.node.append(helper.make_node("ReduceMax", ["huge"], ["most"], keepdims=0))
    elif way == 2:
        node = helper.make_node("PyOp", [graph.input[0].name], ["x"], domain="ai.onnx.contrib")
        graph.node.append(node)
        model.opset_import.add(domain="ai.onnx.contrib", version=1)
    elif way == 3:
        graph.name = "x" * 2_000_000
        graph.doc_string = "/home/somebody/secret " * 1000
    else:
        for i in range(3000):
            graph.node.append(helper.make_node("Identity", [graph.input[0].name], [f"i{i}"]))


def _use(rng: Rng, case: Case, path: Path, *, external: bool) -> None:
    act = rng.random()
    if act < 0.45:
        found = case.cli_json("inspect", path)
        if external and "another file" not in json.dumps(found):
            raise WrongAnswerError("weights elsewhere, and inspect says nothing")
        return
    if act < 0.55:
        case.cli("inspect", path)
        return
    if act < 0.62:
        case.cli_json("verify", case.material.student, path, "--clips", "2")
        return
    if act < 0.7:
        words = ["--data", f"folder:{case.material.sounds}", "--fold", "test"]
        found = case.cli_json("evaluate", path, *words)
        if not 0 <= found["accuracy"] <= 1:
            raise WrongAnswerError(f"accuracy {found['accuracy']}")
        return
    candidate = open_candidate(path)
    if external:
        raise WrongAnswerError("a model with weights elsewhere was loaded")
    result = candidate.model.classify(case.material.clip)  # type: ignore[union-attr]
    if not torch.isfinite(torch.from_numpy(result.scores.copy())).all():
        raise WrongAnswerError("scores that are not finite")


def engine(rng: Rng, case: Case) -> None:
    """An engine and its sidecar, damaged, inspected without TensorRT."""
    import fuzz_files

    kept: list[Path] = []

    class Stop(Exception):  # noqa: N818 - not an error
        pass

    class Written(RuntimeMaterial):
        def write(self, name: str, data: bytes) -> Path:
            kept.append(case.write(name, data))
            if len(kept) == 2:
                raise Stop
            return kept[-1]

    material = Written.__new__(Written)
    material.models, material.folder = case.material.models, case.folder
    with contextlib.suppress(Stop):
        fuzz_files.engine_files(rng, material)
    words = ["evaluate", kept[0], "--data", f"folder:{case.material.sounds}"]
    if rng.random() < 0.9:
        case.cli_json("inspect", kept[0])
    else:
        case.cli_json(*words)


def class_names(rng: Rng, case: Case) -> None:
    """Classes called ``../../x``, ``$x`` or ``[link=...]``: files, pictures, cards, tables."""
    k = int(rng.integers(2, 5))
    names = [LABELS[int(rng.integers(0, len(LABELS)))] for _ in range(k)]
    names = [name.encode("utf-8", "replace").decode() for name in names]
    act = int(rng.integers(0, 8))
    if act < 3:
        _names_alone(rng, case, names)
        return
    teacher = case.folder / "teacher.safetensors"
    make_teacher(teacher, tuple(names))
    if act < 7:
        case.cli(*(["inspect", teacher] + (["--json"] if rng.random() < 0.5 else [])))
        return
    words = ["invert", case.material.config, "--teacher", teacher, "--out", "out", "--listen",
             "wav", "--set", "bank.sources={procedural: 1}", "--device", "cpu"]  # fmt: skip
    case.cli(*words)


def _names_alone(rng: Rng, case: Case, names: list[str]) -> None:
    """What puts class names into files, without a network."""
    from frami_edge.inversion.listen import write_wavs
    from frami_edge.plots import confusion, mel_grid

    out = case.folder / "out"
    out.mkdir()
    way = int(rng.integers(0, 3))
    if way == 0:
        mels = [torch.randn(SPEC.n_mels, 12) for _ in names]
        files = write_wavs(out, mels, [f"procedural-{name}-0" for name in names], SPEC)
        if any(path.parent != out or not path.is_file() for path in files):
            raise WrongAnswerError(f"files {files}")
        if len({str(path).casefold() for path in files}) != len(names):
            raise WrongAnswerError("two clips share a file")
    elif way == 1:
        confusion(out / "c.png", torch.eye(len(names)), names, "Confusion")
    else:
        clips = {name: torch.randn(2, SPEC.n_mels, 12) for name in names}
        mel_grid(out / "m.png", clips, SPEC, "Mels")


MODELS = {"onnx-command": onnx_command, "engine-command": engine, "class-names": class_names}
