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

Tone = Callable[..., np.ndarray]
Wav = Callable[..., Path]
FILES = 3000 + 2000 + 1 + 8732 + 1


def _tone(seconds: float, rate: int, hz: float = 440.0, level: float = 0.3) -> np.ndarray:
    times = np.arange(int(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def _wav(path: Path, samples: np.ndarray, rate: int = 16_000, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def _csv(path: Path, columns: str, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(), *rows])


def _fsdd(root: Path) -> None:
    folder = root / "free-spoken-digit-dataset" / "recordings"
    folder.mkdir(parents=True)
    for speaker in set_info("fsdd-speaker").folds:
        for digit in range(10):
            for take in range(50):
                (folder / f"{digit}_{speaker}_{take}.wav").write_bytes(b"x")


def _esc(root: Path) -> None:
    (root / "ESC-50-master" / "audio").mkdir(parents=True)
    rows: list[list[object]] = []
    for fold in range(1, 6):
        for target in range(50):
            for take in range(8):
                name = f"{fold}-{target}{take}-A-{target}.wav"
                rows.append([name, fold, target, f"class{target:02d}", target % 5 == 0])
                (root / "ESC-50-master" / "audio" / name).write_bytes(b"x")
    columns = "filename fold target category esc10"
    _csv(root / "ESC-50-master" / "meta" / "esc50.csv", columns, rows)


def _urbansound(root: Path) -> None:
    rows: list[list[object]] = []
    for i in range(8732):
        fold, label = 1 + i % 10, (i // 10) % 10
        rows.append([f"{i}-{label}-0-0.wav", fold, label, f"kind{label}"])
        path = root / "UrbanSound8K" / "audio" / f"fold{fold}" / f"{i}-{label}-0-0.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    columns = "slice_file_name fold classID class"
    _csv(root / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv", columns, rows)


@pytest.fixture(scope="session")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """FSDD, ESC-50 and UrbanSound8K, once per session: 14 000 files are slow to make."""
    root = tmp_path_factory.mktemp("sets")
    for make in (_fsdd, _esc, _urbansound):
        make(root)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def root(_whole: Path) -> Iterator[Path]:
    """A data root with three whole sets, checked afterwards to be unchanged."""
    yield _whole
    assert sum(len(files) for _, _, files in os.walk(_whole)) == FILES


@pytest.fixture
def without(root: Path) -> Callable[[str], AbstractContextManager[Path]]:
    """`with without("FOLDER/FILE"):` hides a file of the data root."""

    @contextmanager
    def hide(name: str) -> Iterator[Path]:
        path = root / name
        path.rename(root / "aside")
        try:
            yield path
        finally:
            (root / "aside").rename(path)

    return hide


@pytest.fixture
def make_tone() -> Tone:
    return _tone


@pytest.fixture
def make_wav() -> Wav:
    return _wav
