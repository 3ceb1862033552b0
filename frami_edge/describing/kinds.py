"""Which describer knows a file: by suffix for files, by what lies inside for folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from frami_edge.describing.description import Description
from frami_edge.errors import CheckpointError

Describer = Callable[[Path], Description]

_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


def describe(path: Path) -> Description:
    """Describe a file or folder; nothing in it is executed.

    Raises:
        FramiEdgeError: It is missing, damaged, or of a kind that nobody here knows.
    """
    if path.is_dir():
        return _folder(path)(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.", fix="Check the path.")
    return _file(path)(path)


def _file(path: Path) -> Describer:
    # One import a kind: each needs libraries that take a while to load, and only its own.
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from frami_edge.describing.onnx_file import describe_onnx

        return describe_onnx
    if suffix in (".engine", ".plan", ".trt"):
        from frami_edge.describing.engine import describe_engine

        return describe_engine
    if suffix == ".safetensors":
        from frami_edge.describing.checkpoint import describe_checkpoint

        return describe_checkpoint
    if suffix in (".yaml", ".yml"):
        from frami_edge.describing.foreign_teacher import describe_teacher
        from frami_edge.teachers.description import read_description

        return lambda file: describe_teacher(read_description(file))
    if path.name == "bank.json":
        return lambda file: _bank(file.parent)
    if path.name == "export_report.json":
        return lambda file: _export(file.parent)
    if suffix in _PICKLES:
        raise CheckpointError(
            f"{path} is named like a pickle of torch, which can run code when it is read.",
            fix="Save the weights as .safetensors, and give that file.",
        )
    raise CheckpointError(
        f"{path} is of no known kind: {suffix or 'no suffix'}.",
        fix="Give an .onnx, .engine or .safetensors file, a teacher's .yaml, a bank's folder or an "
        "export's folder.",
    )


def _folder(path: Path) -> Describer:
    if (path / "bank.json").is_file():
        return _bank
    if (path / "export_report.json").is_file():
        return _export
    inside = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.suffix in (".onnx", ".engine", ".safetensors")
        or (entry / "bank.json").is_file()
        or (entry / "export_report.json").is_file()
    )
    raise CheckpointError(
        f"{path} is a folder, but neither a bank nor an export.",
        fix=f"Inspect one of the things in it: {', '.join(inside[:8])}."
        if inside
        else "Give a model file, or the folder of a bank or an export.",
    )


def _bank(path: Path) -> Description:
    from frami_edge.describing.bank import describe_bank

    return describe_bank(path)


def _export(path: Path) -> Description:
    from frami_edge.describing.export_folder import describe_export

    return describe_export(path)
