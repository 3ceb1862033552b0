"""ONNX files as teachers, through `onnx2torch` (extra `onnx`).

Every operation of the graph becomes a module under the name of its node, with gradients, and with
the BatchNorm layers that the exporter left in. Its answers are compared with ONNX Runtime's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference
from torch import fx, nn

from frami_edge.errors import CheckpointError, ConfigError, TeacherError
from frami_edge.io import sha256_file, sha256_tensors
from frami_edge.teachers.calling import BATCH, Calling, answer, arrange, in_words
from frami_edge_runtime.backends import open_session

SUFFIX = ".onnx"
_OPSET = 17
"""The newest opset of which onnx2torch 1.5 knows the common operations."""
_TOLERANCE = 1e-3
"""Largest difference from ONNX Runtime's answers, relative to the largest of them."""
_FREE_BATCH = (
    "Export it again with a free batch axis: torch.onnx.export(..., dynamic_shapes=({0: "
    'torch.export.Dim("batch")},)).'
)


def read_network(path: Path) -> tuple[nn.Module, str]:
    """The network in an ONNX file, and the SHA-256 of the file or of weights outside of it.

    Raises:
        CheckpointError: The file is damaged, or its weights beside it are missing.
        ConfigError: onnx2torch is not installed.
        TeacherError: It does not take one float32 tensor, has operations that cannot be converted,
            or takes batches of one size alone.
    """
    model, inside = _read(path)
    taken = _inputs(model)
    if [value.type.tensor_type.elem_type for value in taken] != [TensorProto.FLOAT]:
        raise TeacherError(
            f"{path} does not take one tensor of float32: {', '.join(v.name for v in taken)}.",
            fix="Export a module that takes log-mels or audio alone, in float32.",
        )
    sha256, (batch, *sizes) = sha256_file(path), _sizes(model)
    if not inside:
        tensors = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
        sha256 = sha256_tensors({name: torch.from_numpy(t) for name, t in tensors.items()})
    network = _convert(model, path)
    if batch and all(sizes):
        try:
            with torch.no_grad():
                given = len(network(torch.zeros(2 * batch, *sizes)))
        except Exception:  # operations as the file describes them
            given = 0
        if given != 2 * batch:
            raise TeacherError(f"{path} takes batches of {batch} alone.", fix=_FREE_BATCH)
    return network, sha256


def declared_sizes(path: Path) -> tuple[int, ...]:
    """Sizes of the input's axes behind the batch, as the file states them; 0 for a free one."""
    return _sizes(_read(path)[0])[1:]


@torch.no_grad()
def check_answers(path: Path, network: nn.Module, calling: Calling) -> None:
    """Compare the answers to test signals with those of ONNX Runtime, which has the file as it is.

    Raises:
        TeacherError: They differ, or ONNX Runtime cannot run the file.
    """
    model, _ = _read(path)
    batch, *sizes = _sizes(model)
    batch = batch or BATCH
    length = sizes[calling.layout.index("T" if calling.input.n_mels else "N") - 1]
    probe = calling.input.probe(length or calling.lengths[0], batch * max(1, BATCH // batch))
    x = arrange(probe, calling.layout).contiguous()
    session = open_session(model.SerializeToString(), 1, path.name)
    name = session.get_inputs()[0].name
    try:
        runs = [session.run(None, {name: part.numpy()}) for part in x.split(batch)]
    except Exception as error:  # ONNX Runtime raises many types
        raise TeacherError(
            f"ONNX Runtime cannot run {path} on {calling.layout} of {tuple(x.shape)}: "
            f"{in_words(error)}.",
            fix=f"Check mel and layout: the file takes {_sizes(model)}, 0 for any size.",
        ) from None
    out = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*runs, strict=True)]
    theirs, ours = answer(out, calling.classes), answer(network(x), calling.classes)
    worst = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else np.inf
    if not worst <= _TOLERANCE * max(1.0, float(theirs.abs().max())):
        raise TeacherError(
            f"{path} answers otherwise in PyTorch than in ONNX Runtime, by up to {worst:.2g}.",
            fix=f"{_FREE_BATCH} Or use the code of its network.",
        )


_AGAIN = (
    f"Export it again: with opset_version={_OPSET}, without a Fourier transform (the log-mel goes "
    "into --mel), not quantised. Or name the code of its network: --teacher MODULE:CALLABLE."
)


def _read(path: Path) -> tuple[onnx.ModelProto, bool]:
    """The file with all its weights, and whether they are all inside of it."""
    try:
        model = onnx.load(path, load_external_data=False)
        outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        onnx.load_external_data_for_model(model, str(path.parent))  # refuses other folders
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise CheckpointError(
            f"{path} cannot be read: {in_words(error)}",
            fix="Copy it again, with the file of its weights (.onnx.data) where it has one.",
        ) from None
    if not (model.ir_version and model.graph.node):
        raise CheckpointError(f"{path} is not a whole ONNX file.", fix="Copy it again.")
    return model, not outside


def _inputs(model: onnx.ModelProto) -> list[Any]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _sizes(model: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(d.dim_value for d in _inputs(model)[0].type.tensor_type.shape.dim)


def _convert(model: onnx.ModelProto, path: Path) -> fx.GraphModule:
    try:
        import onnx2torch
    except ImportError:
        raise ConfigError(
            "Teachers in ONNX files need onnx2torch, which is not installed.",
            fix="pip install 'frami-edge[onnx]'",
        ) from None
    from onnxscript import optimizer

    try:
        optimizer.fold_constants(model)
        constants = _constants(model.graph)
        _free_batch(model, constants)
        _lower_opset(model, constants)
        _tidy_nodes(model)
        network: fx.GraphModule = onnx2torch.convert(model).eval()
    except Exception as error:
        found = re.search(r"operation_type='(\w+)'", str(error))
        reason = f"the operation {found[1]} is not known" if found else in_words(error)
        raise TeacherError(
            f"{path} cannot be converted to PyTorch: {reason}.", fix=_AGAIN
        ) from None
    return network


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """All constant tensors by name, as initializers: onnx2torch looks for them nowhere else."""
    for node in list(graph.node):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            node.attribute[0].t.name = node.output[0]
            graph.initializer.append(node.attribute[0].t)
            graph.node.remove(node)
    return {tensor.name: tensor for tensor in graph.initializer}


def _free_batch(model: onnx.ModelProto, constants: Mapping[str, TensorProto]) -> None:
    """Let `Reshape` copy the batch axis from its input where the exporter wrote down its size."""
    graph, batch = model.graph, _sizes(model)[0]  # 0 where it is free
    inferred = shape_inference.infer_shapes(model).graph
    known = [*inferred.value_info, *inferred.input]
    first = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][:1] for v in known}
    for node in graph.node:
        if node.op_type != "Reshape":
            continue
        tensor = constants.get(node.input[1])
        shape = [] if tensor is None else numpy_helper.to_array(tensor).tolist()
        if 0 in shape:
            continue
        # `allowzero`, which onnx2torch does not know, means nothing without a 0.
        del node.attribute[:]
        if batch and shape[:1] == [batch] == first.get(node.input[0]):
            free = np.array([0, *shape[1:]], np.int64)
            node.input[1] = f"{node.output[0]}/shape"
            graph.initializer.append(numpy_helper.from_array(free, node.input[1]))
    if batch:
        del graph.value_info[:]
        _inputs(model)[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def _lower_opset(model: onnx.ModelProto, constants: Mapping[str, TensorProto]) -> None:
    """Write operations of newer opsets as those of 17, where only their form has changed.

    Reductions have their axes as an input since; others take more types or options. Where an option
    is used, the answers differ, or the conversion fails.
    """
    for opset in model.opset_import:
        if opset.domain or opset.version <= _OPSET:
            continue
        opset.version = _OPSET
        for node in model.graph.node:
            reduces = node.op_type.startswith("Reduce") and node.op_type != "ReduceSum"
            if reduces and len(node.input) > 1:
                axes = numpy_helper.to_array(constants[node.input.pop()])
                node.attribute.append(helper.make_attribute("axes", axes.tolist()))


def _tidy_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own that is safe: torch.fx writes it into Python code.

    Inputs that are left out at the end go, because onnx2torch looks for their values.
    """
    taken = {"initializers", *dir(fx.GraphModule(nn.Module(), fx.Graph()))}
    for node in model.graph.node:
        while node.input and not node.input[-1]:
            node.input.pop()
        base = re.sub(r"[^\w/]", "_", node.name).strip("/") or node.op_type
        name, number = base, 1
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        node.name = name
