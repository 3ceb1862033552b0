"""README.md and the how-tos, followed from top to bottom by a reader who starts in an empty folder.

Every shell and Python block is run as it is printed, but for what `CHANGES` lists (shorter runs),
what `GIVEN` lays there first (what the page says that the reader has), and blocks whose page names
a reason to skip them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import given
import pytest
from docs_pages import ROOT, blocks
from page_shell import Reader

FEW = (
    "--set bank.procedural_clips=48 --set bank.control_clips=48 "
    "--set 'bank.inversion={steps: 3, burn_in: 1, batch_size: 16, width: 16}' "
    "--set 'bank.translator={steps: 3, burn_in: 1, batch_size: 16}' "
    "--set 'student={channels: [8, 16, 16], time_kernels: [3, 3, 3], out_channels: 64}' "
    "--set distill.batch_size=16 "
)
# Fewer than 40 steps leave BatchNorm statistics that int8 rightly refuses.
INT8, QUICK = FEW + "--set distill.steps=40", FEW + "--set distill.steps=8"
TEACHER = (
    "--set train.epochs=1 --set train.crop_frames=32 "
    "--set 'arch={channels: [8, 16, 32], blocks: 1}'"
)
TINY = (
    "--set 'teacher_set={train.epochs: 1, train.crop_frames: 32, arch: {channels: [8, 16, 32], "
    "blocks: 1}}' --set 'set={bank.procedural_clips: 48, bank.control_clips: 48, "
    "bank.inversion: {steps: 3, burn_in: 1, batch_size: 16, width: 16}, bank.translator: "
    "{steps: 3, burn_in: 1, batch_size: 16}, student: {channels: [8, 16, 16], time_kernels: "
    "[3, 3, 3], out_channels: 32}, distill.steps: 4, distill.batch_size: 16}'"
)
CHANGES: dict[str, dict[str, str]] = {
    "README.md": {
        "quickstart --out runs/quickstart": f"quickstart --out runs/quickstart {INT8}",
        "esc10-student --teacher net:Net": f"esc10-student {INT8} --teacher net:Net",
        "esc10-student --teacher runs": f"esc10-student {QUICK} --teacher runs",
        # One clip of the few is more than the gates allow.
        "--int8 --with-frontend": "--int8 --with-frontend --min-agreement 0.8",
        "student.int8.cpu.onnx --bank": "student.int8.cpu.onnx --min-agreement 0.8 --bank",
        "train-teacher esc10-teacher": f"train-teacher esc10-teacher {TEACHER}",
        "esc10-cpu --dry-run": f"esc10-cpu --dry-run --methods smooth-noise {TINY}",
        "--workers 2": f"--workers 1 --methods smooth-noise --folds 1 {TINY}",
    },
    "docs/MY_TEACHER.md": {
        "{steps: 30, burn_in: 10, batch_size: 24, width: 16}": "{steps: 3, burn_in: 1, width: 16}",
        "{steps: 20, burn_in: 5, batch_size: 24}": "{steps: 3, burn_in: 1}",
        "procedural_clips: 200": "procedural_clips: 64",
        "steps: 60, batch_size: 32": "steps: 12, batch_size: 32",
    },
    "docs/MY_DATA.md": {"steps: 40, batch_size: 16": "steps: 8, batch_size: 16"},
    "docs/MY_MICROPHONE.md": {},
    "docs/CPP.md": {},
    "docs/PROTOCOL.md": {"protocol mine.yaml": f"protocol mine.yaml {TINY}"},
}


def model(reader: Reader) -> None:
    """An exported student and a clip."""
    folder = given.exported(reader.home / "export")
    for name in ("student.fp32.onnx", "student.wave.onnx"):
        shutil.copy(folder / name, reader.work / name)
    shutil.copy(folder / "student.fp32.onnx", reader.work / "student.onnx")
    given.clip_wav(reader.work / "clip.wav")


GIVEN: dict[str, tuple[Callable[[Reader], None], ...]] = {
    "README.md": (given.keyword_net, given.esc50),
    "docs/MY_MICROPHONE.md": (model, given.microphone),
    "docs/CPP.md": (model,),
    "docs/PROTOCOL.md": (given.esc50,),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", CHANGES)
def test_a_page_runs_from_top_to_bottom(page: str, programs: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path, programs, CHANGES[page])
    for give in GIVEN.get(page, ()):
        give(reader)
    ran = [reader.follow(block) for block in blocks(page) if block.runs]
    assert ran
    assert reader.used == set(CHANGES[page]), "a change that changes nothing"


def test_no_page_goes_unrun() -> None:
    """A page of how-to is followed, or each of its blocks says why it is not."""
    pages = {"README.md", "docs/CPP.md", "docs/PROTOCOL.md"}
    pages |= {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("MY_*.md")}
    unrun = pages - set(CHANGES)
    assert set(CHANGES) <= pages
    assert [block.line for page in unrun for block in blocks(page) if block.runs] == []
    reasons = [b.skipped for page in pages for b in blocks(page) if b.skipped]
    assert all(len(reason) > 15 for reason in reasons)
