from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from frami_edge.data.sets import load_set
from frami_edge.errors import DataError


def _tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def _many(prefix: str = "") -> list[str]:
    return [f"{prefix}{label}/{i}.wav" for label in ("cat", "dog") for i in range(40)]


def test_a_plain_tree_gets_stated_hash_folds(tmp_path: Path) -> None:
    _tree(tmp_path, *_many(), "cat/deep/er.FLAC", "cat/._1.wav", "cat/notes.txt", ".git/x/1.wav")
    pets = load_set(f"folder:{tmp_path}")
    assert pets.labels == ("cat", "dog")
    assert len(pets.clips) == 81
    assert pets.folds == ("1", "2", "3", "4", "5")
    for clip in pets.clips:
        digest = hashlib.sha256(clip.name.encode()).hexdigest()
        assert clip.fold == str(1 + int(digest[:8], 16) % 5)
    before = {c.name: c.fold for c in pets.clips}
    _tree(tmp_path, "dog/new.wav")
    after = {c.name: c.fold for c in load_set(f"folder:{tmp_path}").clips}
    assert before.items() <= after.items(), "adding a file moves no other"


def test_train_and_test_trees_are_kept(tmp_path: Path) -> None:
    _tree(tmp_path, *_many("train/"), *_many("Test/"), "valid/cat/1.wav", "other/cat/1.wav")
    pets = load_set(f"folder:{tmp_path}")
    train, test = pets.split("test")
    assert (len(train), len(test), len(pets.validation("test"))) == (80, 80, 1)
    assert pets.folds == ("test",)
    assert all(c.name.startswith("Test/") for c in test)


def test_fold_folders_are_kept(tmp_path: Path) -> None:
    _tree(tmp_path, *_many("fold1/"), *_many("fold2/"), *_many("fold10/"))
    pets = load_set(f"folder:{tmp_path}")
    assert pets.folds == ("1", "2", "10")
    assert all(c.name.startswith("fold10/") for c in pets.split(10)[1])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "0 class folders"),
        (["cat/1.wav"], "1 class folders"),
        (["cat/1.wav", "dog/1.txt"], "no audio in dog"),
    ],
)
def test_a_tree_without_classes_is_refused(tmp_path: Path, names: list[str], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        load_set(f"folder:{_tree(tmp_path, *names)}")
    assert "CLASS" in caught.value.fix


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_set(f"folder:{tmp_path / 'nowhere'}")


def test_a_fold_that_leaves_a_class_untrained_is_refused(tmp_path: Path) -> None:
    _tree(tmp_path, "fold1/cat/1.wav", "fold1/dog/1.wav", "fold2/dog/1.wav")
    with pytest.raises(DataError, match="no training clip of cat"):
        load_set(f"folder:{tmp_path}").split(1)
