import csv
import os
import shutil
from contextlib import contextmanager

import pytest

from frami_edge.data.sets import set_info

FILES = 3000 + 2000 + 1 + 8732 + 1


def _csv(path, columns, rows):
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(), *rows])


def _fsdd(root):
    folder = root / "free-spoken-digit-dataset" / "recordings"
    folder.mkdir(parents=True)
    for speaker in set_info("fsdd-speaker").folds:
        for digit in range(10):
            for take in range(50):
                (folder / f"{digit}_{speaker}_{take}.wav").write_bytes(b"x")


def _esc(root):
    (root / "ESC-50-master" / "audio").mkdir(parents=True)
    rows = []
    for fold in range(1, 6):
        for target in range(50):
            for take in range(8):
                name = f"{fold}-{target}{take}-A-{target}.wav"
                rows.append([name, fold, target, f"class{target:02d}", target % 5 == 0])
                (root / "ESC-50-master" / "audio" / name).write_bytes(b"x")
    columns = "filename fold target category esc10"
    _csv(root / "ESC-50-master" / "meta" / "esc50.csv", columns, rows)


def _urbansound(root):
    rows = []
    for i in range(8732):
        fold, label = 1 + i % 10, (i // 10) % 10
        rows.append([f"{i}-{label}-0-0.wav", fold, label, f"kind{label}"])
        path = root / "UrbanSound8K" / "audio" / f"fold{fold}" / f"{i}-{label}-0-0.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    columns = "slice_file_name fold classID class"
    _csv(root / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv", columns, rows)


@pytest.fixture(scope="session")
def _whole(tmp_path_factory):
    """FSDD, ESC-50 and UrbanSound8K, once per session: 14 000 files are slow to make."""
    root = tmp_path_factory.mktemp("sets")
    for make in (_fsdd, _esc, _urbansound):
        make(root)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def root(_whole):
    """A data root with three whole sets, checked afterwards to be unchanged."""
    yield _whole
    assert sum(len(files) for _, _, files in os.walk(_whole)) == FILES


@pytest.fixture
def without(root):
    """`with without("FOLDER/FILE"):` hides a file of the data root."""

    @contextmanager
    def hide(name):
        path = root / name
        path.rename(root / "aside")
        try:
            yield path
        finally:
            (root / "aside").rename(path)

    return hide
