"""What a page says that its reader has: made up, small, and real files all the same."""

from __future__ import annotations

import csv
import sys
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from docs_pages import Block, blocks
from page_shell import Reader

RATE = 16_000
_ARECORD = """import random, sys, time
random.seed(0)
for _ in range(50):
    sys.stdout.buffer.write(random.randbytes(3200))
    sys.stdout.buffer.flush()
    time.sleep(0.02)
time.sleep(60)
"""


def keyword_net(reader: Reader) -> None:
    """The network of MY_TEACHER.md, with its weights, front end and labels, under other names."""
    files = {b.file: b.text for b in blocks("docs/MY_TEACHER.md") if b.file}
    made = Reader(reader.home / "trained", reader.programs)
    for name in ("my_nets.py", "train.py"):
        (made.work / name).write_text(files[name], encoding="utf-8")
    made.follow(Block("docs/MY_TEACHER.md", 0, "sh", "", "python train.py\n", "", ()))
    (reader.work / "net.py").write_text(files["my_nets.py"].replace("KeywordNet", "Net"))
    for given, name in (
        ("weights.pt", "keywords.pt"), ("labels.txt", "keywords.txt"),
        ("mel.yaml", "keywords-mel.yaml"),
    ):  # fmt: skip
        (made.work / name).rename(reader.work / given)


def esc50(reader: Reader) -> None:
    """ESC-50 in its official layout; the clips of the ESC-10 subset are half a second of sound."""
    folder = reader.home / "sounds" / "ESC-50-master"
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    rng = np.random.default_rng(0)
    rows: list[list[object]] = []
    for fold in range(1, 6):
        for target in range(50):
            for take in range(8):
                path = folder / "audio" / f"{fold}-{target}{take}-A-{target}.wav"
                ten = target % 5 == 0
                rows.append([path.name, fold, target, f"class{target:02d}", ten, 1, "A"])
                if ten:
                    hz = 200 + 60 * target + 5 * take
                    tone = np.sin(2 * np.pi * hz * np.arange(9000) / RATE)
                    soundfile.write(path, 0.3 * tone + 0.02 * rng.normal(size=9000), RATE)
                else:
                    path.write_bytes(b"x")
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        writer.writerows(rows)


def exported(folder: Path) -> Path:
    """`student.fp32.onnx` and `student.wave.onnx` of a student whose weights are random."""
    import torch
    from torch import nn

    from frami_edge.config import StudentArch
    from frami_edge.models import StudentNet
    from frami_edge_export.exporter import export_student
    from frami_edge_export.graph import StudentFacts
    from frami_edge_export.options import ExportOptions
    from frami_edge_runtime.melspec import MelSpec

    torch.manual_seed(0)
    arch = StudentArch(channels=(8, 16, 16), time_kernels=(3, 3, 3), out_channels=32)
    student = StudentNet(arch, 32, 3, teacher_head=nn.Linear(64, 3))
    with torch.no_grad():
        student(torch.randn(16, 1, 32, 64))  # BatchNorm statistics of something
    labels = ("glass breaking", "rain", 'a "quoted" word')
    facts = StudentFacts(MelSpec(sample_rate=RATE, n_mels=32, mean=-6.0, std=4.0), labels)
    export_student(
        student.eval().collapse(), facts, folder,
        int8=False, calibration=None, source="", waveform=True,
        options=ExportOptions(bench_budget_s=0.02, bench_rounds=15),
    )  # fmt: skip
    return folder


def noise(seconds: float) -> npt.NDArray[np.int16]:
    """(N,) at 16 kHz."""
    loud = np.random.default_rng(0).normal(0, 3000, int(seconds * RATE))
    return loud.clip(-32768, 32767).astype(np.int16)


def clip_wav(path: Path, seconds: float = 1.3) -> Path:
    """A mono 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(noise(seconds).astype("<i2").tobytes())
    return path


def microphone(reader: Reader) -> None:
    """An `arecord` that plays noise for five seconds, first on the PATH, and no sounddevice."""
    path = reader.home / "bin" / "arecord"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable} -SE\n{_ARECORD}")
    path.chmod(0o755)
    (path.parent / "sounddevice.py").write_text("raise ImportError")
