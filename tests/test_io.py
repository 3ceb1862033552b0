"""Files are whole or absent, and errors name the path that the user gave."""

from __future__ import annotations

import enum
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from frami_edge import io


def test_files_arrive_whole_and_leave_nothing_behind(tmp_path: Path) -> None:
    io.atomic_write_bytes(tmp_path / "deep" / "er" / "a.bin", b"\x00\x01")
    io.atomic_write_json(tmp_path / "a.json", {"b": 1, "a": float("nan")})
    assert (tmp_path / "deep/er/a.bin").read_bytes() == b"\x00\x01"
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": null\n}\n'
    with io.atomic_path(tmp_path / "a.png") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "a.png").exists()
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".png")
    assert {file.name for file in tmp_path.iterdir()} == {"deep", "a.json", "a.png"}


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(interruption), io.atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise interruption
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_errors_name_the_users_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.txt", tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match=f"{tmp_path}|/dev/null") as caught:
            io.atomic_write_text(path, "x")
        assert ".tmp" not in str(caught.value)


def test_a_link_is_written_through_and_permissions_are_ordinary(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    io.atomic_write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "real.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_plain_understands_what_results_are_made_of() -> None:
    class Score(BaseModel):
        accuracy: float
        path: Path

    red = enum.Enum("Colour", {"RED": "red"}).RED  # type: ignore[attr-defined]
    score, array = Score(accuracy=float("inf"), path=Path("a/b")), np.array([1.0, np.nan])
    value = {"score": score, "array": array, "tensor": torch.tensor([1, 2]), "colour": red,
             "set": {"b", "a"}, "scalar": np.float32(0.5), 3: (True, None)}  # fmt: skip
    assert json.loads(io.json_text(value)) == {
        "score": {"accuracy": None, "path": "a/b"}, "array": [1.0, None], "tensor": [1, 2],
        "colour": "red", "set": ["a", "b"], "scalar": 0.5, "3": [True, None],
    }  # fmt: skip
    with pytest.raises(TypeError, match="object"):
        io.plain(object())


def test_large_files_and_pipes_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert io.read_small(tmp_path / "a", 5) == b"12345"
    for path in (tmp_path / "a", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=str(path)):
            io.read_small(path, 4)


def test_tensor_hash_depends_on_names_types_shapes_and_values_only() -> None:
    tensors = {"b": torch.tensor([1, 2], dtype=torch.int32), "a": torch.tensor(0.5)}
    assert io.sha256_tensors(tensors).startswith("58e8c27d11bf755e"), "stable across versions"
    weight = torch.arange(6.0).reshape(2, 3)
    base = io.sha256_tensors({"a": weight, "n": torch.tensor(3)})
    assert base == io.sha256_tensors({"n": torch.tensor(3), "a": weight.t().contiguous().t()})
    changed = [
        {"b": weight, "n": torch.tensor(3)},
        {"a": weight.reshape(3, 2), "n": torch.tensor(3)},
        {"a": weight.bfloat16(), "n": torch.tensor(3)},
        {"a": weight + 1, "n": torch.tensor(3)},
        {"a": weight[:0]},
    ]
    assert len({base, *map(io.sha256_tensors, changed)}) == len(changed) + 1
