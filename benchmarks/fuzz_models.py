"""Damaged model files for `fuzz_runtime`: bytes, description, weights and graphs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from fuzz_material import Material, Rng, WrongAnswerError, change, check_scores, damage, opened
from onnx import numpy_helper

from frami_edge_runtime import Classifier


def model_bytes(rng: Rng, material: Material) -> None:
    """An ONNX file with damaged bytes."""
    model = material.models[int(rng.integers(0, len(material.models)))]
    use_model(rng, material, damage(rng, model, material.models))


def model_metadata(rng: Rng, material: Material) -> None:
    """An ONNX file whose description was changed: one value, deep nesting, twins, or the head."""
    model, entries = opened(rng, material)
    text = entries["frami.model"]
    way = rng.integers(0, 8)
    if way < 5:
        values = json.loads(text)
        for _ in range(int(rng.integers(1, 3))):
            change(rng, values)
        text = json.dumps(values)
    elif way == 5:
        text = damage(rng, text.encode(), [text.encode()]).decode("utf-8", "replace")
    elif way == 6:
        depth = int(rng.choice([10, 500, 900, 990, 1000, 5000, 200_000]))
        text = text.replace('"licence":', '"licence":' + "[" * depth + "]" * depth + ',"x":', 1)
    else:
        text = text.replace("1", str(rng.choice(["NaN", "1e999", "-0", "1" * 5000])), 1)
    entries["frami.model"] = text
    if rng.random() < 0.2:
        head = base64.b64decode(entries["frami.head_onnx"])
        other = base64.b64decode(opened(rng, material)[1]["frami.head_onnx"])
        entries["frami.head_onnx"] = [
            base64.b64encode(damage(rng, head, [other])).decode(),
            base64.b64encode(other).decode(),
            "A" * 4_000_000,
            "\N{SNOWMAN}",
        ][int(rng.integers(0, 4))]
    onnx.helper.set_model_props(model, entries)
    use_model(rng, material, model.SerializeToString())


def model_weights(rng: Rng, material: Material) -> None:
    """An ONNX file whose weights are NaN, infinite, huge, permuted or another model's."""
    model, entries = opened(rng, material)
    head = onnx.load_from_string(base64.b64decode(entries["frami.head_onnx"]))
    chosen = model if rng.random() < 0.6 else head
    tensors = list(chosen.graph.initializer)
    tensor = tensors[int(rng.integers(0, len(tensors)))]
    values = np.array(numpy_helper.to_array(tensor))
    flat = values.reshape(-1)
    if flat.size and values.dtype.kind == "f":
        at = slice(0, int(rng.integers(1, flat.size + 1)))
        flat[at] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 0, 1e-45])
    elif flat.size:
        rng.shuffle(flat)
    if rng.random() < 0.2:
        values = values[..., :-1] if values.ndim else values
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    entries["frami.head_onnx"] = base64.b64encode(head.SerializeToString()).decode()
    onnx.helper.set_model_props(model, entries)
    use_model(rng, material, model.SerializeToString())


def model_graph(rng: Rng, material: Material) -> None:
    """An ONNX file with another graph: names, types, shapes, operators, versions, other files."""
    model, _ = opened(rng, material)
    graph = model.graph
    node = graph.node[int(rng.integers(0, len(graph.node)))]
    way = rng.integers(0, 11)
    if way == 0:
        node.op_type = str(
            rng.choice(["Relu", "Sigmoid", "Conv", "Nope", "If", "Transpose", "Neg"])
        )
    elif way == 1:
        port = graph.input[0] if rng.random() < 0.5 else graph.output[0]
        port.type.tensor_type.elem_type = int(rng.integers(0, 30))
    elif way == 2:
        port = graph.input[0] if rng.random() < 0.5 else graph.output[0]
        dims = port.type.tensor_type.shape.dim
        dims[int(rng.integers(0, len(dims)))].dim_value = int(rng.choice([0, 1, 7, 1 << 40, -1]))
    elif way == 3:
        model.opset_import[0].version = int(rng.choice([0, 1, 11, 21, 99, 1 << 40]))
        model.ir_version = int(rng.choice([0, 3, 8, 99]))
    elif way == 4:
        del graph.node[int(rng.integers(0, len(graph.node)))]
    elif way == 5:
        for attribute in node.attribute:
            if attribute.ints:
                attribute.ints[0] = int(rng.choice([0, -1, 2, 5, 1 << 30, 1 << 62]))
            attribute.i = int(rng.choice([0, -1, 2, 1 << 62])) if attribute.i else attribute.i
    elif way == 6 and graph.initializer:
        tensor = graph.initializer[int(rng.integers(0, len(graph.initializer)))]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = ["/etc/passwd", "../../etc/passwd", "weights.bin", "", "\0", "C:\\x", "file:///x"]
        for key, value in (
            ("location", place[int(rng.integers(0, len(place)))]),
            ("length", str(int(rng.choice([0, 16, 1 << 40])))),
        ):
            tensor.external_data.add(key=key, value=value)
    elif way == 7:
        node.input[0] = str(rng.choice(["", "nowhere", node.output[0], graph.output[0].name]))
    elif way == 8:
        graph.node.extend([node])
    elif way == 9:
        graph.node[-1].output[0], last = "before", graph.node[-1].output[0]
        kind = str(rng.choice(["CumSum", "Softmax", "ReverseSequence", "Exp", "Log", "Reciprocal"]))
        graph.node.append(onnx.helper.make_node(kind, ["before"], [last]))
    else:
        (graph.input if rng.random() < 0.5 else graph.output).append(graph.input[0])
    use_model(rng, material, model.SerializeToString())


def use_model(rng: Rng, material: Material, data: bytes) -> None:
    """Load the model, classify and stream: finite scores of sum 1, both alike."""
    if hasattr(material, "use"):  # `fuzz` has its own use for it
        material.use(rng, data)
        return
    path = material.write("case.onnx", data)
    classifier = Classifier(path if rng.random() < 0.5 else data)
    check_scores(classifier.classify(material.clip), len(classifier.labels))
    mel = classifier.info.mel
    for length in (1, mel.min_samples, len(material.clip)):
        x = material.clip[:length]
        stream = classifier.stream()
        cuts = np.sort(rng.integers(0, len(x) + 1, 3))
        for part in np.split(x, cuts):
            stream.push(part)
        last = stream.flush()
        whole = classifier.classify(x)
        if last is None or not np.array_equal(last.logits, whole.logits):
            raise WrongAnswerError(f"stream and whole clip differ for {length} samples")
        check_scores(last, len(classifier.labels))


MODELS: Final[dict[str, Callable[[Rng, Material], None]]] = {
    "onnx-bytes": model_bytes,
    "onnx-metadata": model_metadata,
    "onnx-weights": model_weights,
    "onnx-graph": model_graph,
}
