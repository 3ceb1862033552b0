from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from frami_edge.data.sets import set_info

FILES = 3000 + 2000 + 1 + 8732 + 2


def tone(seconds: float, rate: int, hz: float = 440.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def make_fsdd(root: Path, content: bytes = b"x") -> Path:
    folder = root / "free-spoken-digit-dataset"
    (folder / "recordings").mkdir(parents=True)
    for speaker in set_info("fsdd-speaker").folds:
        for digit in range(10):
            for take in range(50):
                (folder / "recordings" / f"{digit}_{speaker}_{take}.wav").write_bytes(content)
    return folder


def make_esc(root: Path) -> Path:
    folder = root / "ESC-50-master"
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    rows = []
    for fold in range(1, 6):
        for target in range(50):
            for take in range(8):
                name = f"{fold}-{target}{take}-A-{target}.wav"
                rows.append([name, fold, target, f"class{target:02d}", target % 5 == 0, 1, "A"])
                (folder / "audio" / name).write_bytes(b"x")
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        writer.writerows(rows)
    return folder


def make_urbansound(root: Path) -> Path:
    folder = root / "UrbanSound8K"
    (folder / "metadata").mkdir(parents=True)
    rows = []
    for i in range(8732):
        fold, label = 1 + i % 10, (i // 10) % 10
        rows.append([f"{i}-{label}-0-0.wav", 1, 0.0, 4.0, 1, fold, label, f"kind{label}"])
        path = folder / "audio" / f"fold{fold}" / rows[-1][0]
        if i < 10:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    (folder / "audio" / "fold1" / ".DS_Store").write_bytes(b"x")
    with (folder / "metadata" / "UrbanSound8K.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = "slice_file_name fsID start end salience fold classID class"
        writer.writerow(columns.split())
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="session")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """FSDD, ESC-50 and UrbanSound8K, once a session: 14 000 files are slow to make and delete."""
    root = tmp_path_factory.mktemp("sets")
    for make in (make_fsdd, make_esc, make_urbansound):
        make(root)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def root(_whole: Path) -> Iterator[Path]:
    """A data root with three whole sets, checked afterwards to be as it was."""
    yield _whole
    assert sum(len(files) for _, _, files in os.walk(_whole)) == FILES, (
        "a test left the sets changed"
    )


@pytest.fixture
def without(root: Path) -> Callable[[str], AbstractContextManager[Path]]:
    """`with without("FOLDER/FILE"):` hides a file of the data root."""

    @contextmanager
    def hide(name: str) -> Iterator[Path]:
        path = root / name
        aside = root / "aside"
        path.rename(aside)
        try:
            yield path
        finally:
            aside.rename(path)

    return hide


@pytest.fixture
def make_tone() -> Callable[..., np.ndarray]:
    return tone


@pytest.fixture
def make_wav() -> Callable[..., Path]:
    return write_wav
