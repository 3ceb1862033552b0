"""Files are whole or absent, and errors name the path that the user gave."""

from pathlib import Path

import pytest
import torch

from frami_edge import io


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(interruption), io.atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise interruption
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_large_files_and_pipes_are_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert io.read_small(tmp_path / "a", 5) == b"12345"
    for path in (tmp_path / "a", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=str(path)):
            io.read_small(path, 4)


def test_tensor_hash_depends_on_names_types_shapes_and_values_only():
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
