from __future__ import annotations

import enum
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from frami_edge import io


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if ".tmp" in entry.name)


def test_bytes_text_and_json_arrive_whole(tmp_path: Path) -> None:
    io.atomic_write_bytes(tmp_path / "deep" / "er" / "a.bin", b"\x00\x01")
    io.atomic_write_text(tmp_path / "a.txt", "naïve\n")
    io.atomic_write_json(tmp_path / "a.json", {"b": 1, "a": float("nan")})
    assert (tmp_path / "deep/er/a.bin").read_bytes() == b"\x00\x01"
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "naïve\n"
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": null\n}\n'
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail_half_way() -> None:
        with io.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise interruption

    with pytest.raises(interruption):
        fail_half_way()
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    with io.atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".png"
    assert target.read_text() == "half"


def test_a_block_that_writes_nothing_names_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, io.atomic_path(tmp_path / "a.txt"):
        pass
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_errors_name_the_users_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as caught:
        io.atomic_write_text(tmp_path / "file" / "a.txt", "x")
    assert ".tmp" not in str(caught.value)
    with pytest.raises(IsADirectoryError) as folder:
        io.atomic_write_text(tmp_path, "x")
    assert folder.value.filename == str(tmp_path)


def test_devices_are_never_replaced() -> None:
    with pytest.raises(OSError, match="Not a regular file"):
        io.atomic_write_text("/dev/null", "x")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    io.atomic_write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    io.atomic_write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "words",
    [
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "..." })',
        "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data",
        "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598",
    ],
)
def test_a_full_disk_is_an_oserror_whoever_reports_it(tmp_path: Path, words: str) -> None:
    with pytest.raises(OSError, match="No space left") as caught, io.atomic_path(tmp_path / "a"):
        raise RuntimeError(words)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "a")


def test_plain_understands_what_results_are_made_of() -> None:
    class Colour(enum.Enum):
        RED = "red"

    class Score(BaseModel):
        accuracy: float
        path: Path

    value = {
        "score": Score(accuracy=float("inf"), path=Path("a/b")),
        "array": np.array([1.0, np.nan]),
        "scalar": np.float32(0.5),
        "tensor": torch.tensor([1, 2]),
        "colour": Colour.RED,
        "set": {"b", "a"},
        3: (True, None),
    }
    assert json.loads(io.json_text(value)) == {
        "score": {"accuracy": None, "path": "a/b"},
        "array": [1.0, None],
        "scalar": 0.5,
        "tensor": [1, 2],
        "colour": "red",
        "set": ["a", "b"],
        "3": [True, None],
    }
    with pytest.raises(TypeError, match="object"):
        io.plain(object())


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert io.sha256_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_tensor_hash_ignores_order_and_layout_and_nothing_else() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    base = io.sha256_tensors({"a": weight, "n": torch.tensor(3)})
    assert base == io.sha256_tensors({"n": torch.tensor(3), "a": weight.clone()})
    assert base == io.sha256_tensors({"n": torch.tensor(3), "a": weight.t().contiguous().t()})
    changed = [
        {"b": weight, "n": torch.tensor(3)},
        {"a": weight.reshape(3, 2), "n": torch.tensor(3)},
        {"a": weight.double(), "n": torch.tensor(3)},
        {"a": weight + 1, "n": torch.tensor(3)},
        {"a": weight},
    ]
    hashes = {io.sha256_tensors(tensors) for tensors in changed}
    assert len(hashes) == len(changed)
    assert base not in hashes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_tensor_hash_takes_every_dtype(dtype: torch.dtype) -> None:
    ones = torch.ones(3, dtype=dtype)
    assert io.sha256_tensors({"a": ones}) != io.sha256_tensors({"a": torch.zeros_like(ones)})
    assert io.sha256_tensors({"a": ones[:0]}) != io.sha256_tensors({})


def test_tensor_hash_is_stable_across_versions() -> None:
    tensors = {"b": torch.tensor([1, 2], dtype=torch.int32), "a": torch.tensor(0.5)}
    assert io.sha256_tensors(tensors).startswith("58e8c27d11bf755e")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_names_the_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as caught:
        io.atomic_write_text(tmp_path / "a.txt", "x")
    assert caught.value.filename == str(tmp_path / "a.txt")
