"""README.md and the pages in docs/, followed from top to bottom by a reader in an empty folder.

A block is ```` ```sh ````, ```` ```bash ```` or ```` ```python ````; with `file=NAME` behind the
language it is a file that the reader saves. An HTML comment above it, invisible in the rendered
page, may contain `test: skip because REASON` or `test: prints A | B`. Everything else is run as
printed, except for the shorter settings in `CHANGES`, beside the files that the page expects.
"""

import csv
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("programs.py")
NOT_FOLLOWED = {"docs/LOG.md", "docs/CLI.md", "docs/JETPACK.md"}
"""Commands that take hours, the generated reference, and what needs a Jetson."""
_BLOCK = re.compile(
    r"(?P<above>(?:^<!-- test: [^\n]*-->\n)*)"
    r"^```(?P<language>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_DIRECTIVE = re.compile(r"<!-- test: (skip because|prints) (.+?) -->")

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
    "--set train.epochs=1 --set train.crop_s=0.32 --set 'arch={channels: [8, 16, 32], blocks: 1}'"
)
TINY = (
    "--set 'teacher_set={train.epochs: 1, train.crop_s: 0.32, arch: {channels: [8, 16, 32], "
    "blocks: 1}}' --set 'set={bank.procedural_clips: 48, bank.control_clips: 48, "
    "bank.inversion: {steps: 3, burn_in: 1, batch_size: 16, width: 16}, bank.translator: "
    "{steps: 3, burn_in: 1, batch_size: 16}, student: {channels: [8, 16, 16], time_kernels: "
    "[3, 3, 3], out_channels: 32}, distill.steps: 4, distill.batch_size: 16}'"
)
TAGGER = (
    "--set bank.procedural_clips=24 --set distill.steps=8 --set distill.batch_size=8 "
    "--set 'bank.breeding={steps: 3, burn_in: 1, founders: 60, batch_size: 12}' "
    "--set 'bank.refinement={steps: 1, batch_size: 6, iterations: 2}' "
    "--set 'bank.inversion={steps: 3, burn_in: 1, batch_size: 12, width: 16}'"
)
PYTHON = """
SMALL = {
    "bank.procedural_clips": 48,
    "bank.inversion": {"steps": 3, "burn_in": 1, "batch_size": 16, "width": 16},
    "bank.translator": {"steps": 3, "burn_in": 1, "batch_size": 16},
}
STUDENT = {
    "student": {"channels": [8, 16, 16], "time_kernels": [3, 3, 3], "out_channels": 64},
    "distill.batch_size": 16,
    "distill.steps": 40,
}
"""
CHANGES = {
    "README.md": {
        "quickstart --out runs/quickstart": f"quickstart --out runs/quickstart --no-fetch {INT8}",
        "distill --teacher net:Net": f"distill {INT8} --allow-weak --teacher net:Net",
        "esc10-student --teacher runs": f"esc10-student {QUICK} --allow-weak --teacher runs",
        # One clip of the few is more than the gates allow.
        "--int8 --with-frontend": "--int8 --with-frontend --min-agreement 0.8",
        "student.int8.cpu.onnx --bank": "student.int8.cpu.onnx --min-agreement 0.8 --bank",
        "train-teacher esc10-teacher": f"train-teacher esc10-teacher {TEACHER}",
    },
    "docs/MY_TEACHER.md": {
        "torch.arange(240)": "torch.arange(96)",
        "{steps: 30, burn_in: 10, batch_size: 24, width: 16}": "{steps: 3, burn_in: 1, width: 16}",
        "{steps: 20, burn_in: 5, batch_size: 24}": "{steps: 3, burn_in: 1}",
        "procedural_clips: 200": "procedural_clips: 64",
        "steps: 60, batch_size: 32": "steps: 12, batch_size: 32",
    },
    "docs/TAGGER.md": {
        "distill efficientat-student": f"distill efficientat-student {TAGGER}",
    },
    "docs/MY_DATA.md": {"steps: 40, batch_size: 16": "steps: 8, batch_size: 16"},
    "docs/MY_MICROPHONE.md": {},
    "docs/CPP.md": {},
    "docs/PYTHON.md": {
        "steps=150, seed=0": "steps=3, seed=0, overrides=SMALL",
        "steps=400": "steps=40, overrides=STUDENT",
        'config="fsdd-student"': 'config="fsdd-student", overrides=SMALL | STUDENT',
        "import frami_edge as fe\n": f"import frami_edge as fe\n{PYTHON}",
    },
    "docs/PROTOCOL.md": {
        "compare.py mine.yaml": f"compare.py mine.yaml {TINY}",
        'folds: ["1", "2"]': 'folds: ["1"]',
        "seeds: [0, 1]": "seeds: [0]",
    },
}


class Block(NamedTuple):
    """A fenced block and its directives."""

    where: str
    language: str
    file: str
    text: str
    skipped: str
    prints: list[str]

    @property
    def runs(self):
        """Whether the tests run or save it."""
        return not self.skipped and (self.language in ("sh", "bash", "python") or bool(self.file))


def blocks(page):
    """Every fenced block of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        where = f"{page}:{text.count(chr(10), 0, match.start('language')) + 1}"
        directives = dict(_DIRECTIVE.findall(match["above"]))
        assert len(directives) == match["above"].count("\n"), f"{where}: unknown directive"
        prints, skipped = directives.get("prints"), directives.get("skip because", "")
        parts = prints.split(" | ") if prints else []
        found.append(
            Block(where, match["language"], match["file"] or "", match["text"], skipped, parts)
        )
    return found


class Reader:
    """Runs blocks in `work`; variables, `cd` and files last from block to block."""

    def __init__(self, home, programs, changes):
        self.home, self.programs, self.changes = home, programs, changes
        self.used = set()
        self.work = home / "work"
        self.work.mkdir(parents=True)

    def follow(self, block):
        """Save or run a block; it must end well and print what the page promises."""
        text = block.text
        for printed, typed in self.changes.items():
            if printed in text:
                self.used.add(printed)
                text = text.replace(printed, typed)
        if block.file:
            (self.work / block.file).parent.mkdir(parents=True, exist_ok=True)
            (self.work / block.file).write_text(text, encoding="utf-8")
            return
        if block.language == "python":
            (self.home / "block.py").write_text(text, encoding="utf-8")
            text = 'python "$HOME/block.py"'
        session = self.home / ".session"  # variables and folder of the blocks before
        done = subprocess.run(
            ["bash", "-c", f'set -euo pipefail; [ ! -f "{session}" ] || . "{session}"\n{text}\n'
             f'{{ export -p; printf "cd %q\\n" "$PWD"; }} > "{session}"\n'],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=self._environment(), cwd=self.work, text=True, timeout=600,
        )  # fmt: skip
        end = f"{block.where} ended with {done.returncode}\n{done.stdout[-4000:]}"
        assert done.returncode == 0, end
        assert "Traceback" not in done.stdout, end
        assert [words for words in block.prints if words.strip() not in done.stdout] == [], end

    def _environment(self):
        path = [self.home / "bin", self.programs, os.environ.get("PATH", os.defpath)]
        return {
            "HOME": str(self.home), "PATH": os.pathsep.join(map(str, path)),
            "PYTHONPATH": str(self.home / "bin"), "FRAMI_EDGE_CACHE": str(self.home / "cache"),
            "MPLCONFIGDIR": str(self.home / "matplotlib"), "OMP_NUM_THREADS": "1", "COLUMNS": "120",
            "LC_ALL": "C.UTF-8",
        }  # fmt: skip


# Files that a page expects its reader to have: small and synthetic.


def keyword_net(reader):
    """The network of MY_TEACHER.md, with its weights, front end and labels, under other names."""
    files = {b.file: b.text for b in blocks("docs/MY_TEACHER.md") if b.file}
    changes = {k: v for k, v in CHANGES["docs/MY_TEACHER.md"].items() if "arange" in k}
    maker = Reader(reader.home / "trained", reader.programs, changes)
    for name in ("my_nets.py", "train.py"):
        maker.follow(Block("docs/MY_TEACHER.md", "python", name, files[name], "", []))
    maker.follow(Block("docs/MY_TEACHER.md", "sh", "", "python train.py\n", "", []))
    (reader.work / "net.py").write_text(files["my_nets.py"].replace("KeywordNet", "Net"))
    for name, suffix in (("weights", ".pt"), ("labels", ".txt"), ("mel", "-mel.yaml")):
        theirs = maker.work / f"keywords{suffix}"
        theirs.rename(reader.work / f"{name}{suffix.removeprefix('-mel')}")


def esc50(reader):
    """ESC-50 in its official layout; the clips of the ESC-10 subset are half a second of sound."""
    folder = reader.home / "sounds" / "ESC-50-master"
    for name in ("audio", "meta"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for fold, target, take in np.ndindex(5, 50, 8):
            name, ten = f"{fold + 1}-{target}{take}-A-{target}.wav", target % 5 == 0
            label = {0: "dog", 20: "crying_baby", 40: "siren"}.get(target, f"class{target:02d}")
            writer.writerow([name, fold + 1, target, label, ten, 1, "A"])
            if ten:
                tone = np.sin(2 * np.pi * (200 + 60 * target + 5 * take) * np.arange(9000) / 16000)
                soundfile.write(
                    folder / "audio" / name, 0.3 * tone + 0.02 * rng.normal(size=9000), 16000
                )
            else:
                (folder / "audio" / name).write_bytes(b"x")


def checkout(reader):
    """The folders that are in the repository only."""
    for name in ("benchmarks", "experiments"):
        (reader.work / name).symlink_to(ROOT / name)


def tagger(reader):
    """A network of random weights that is built like an EfficientAT tagger, and its description."""
    import torch

    (reader.home / "bin").mkdir()
    module = reader.home / "bin" / "tiny_tagger.py"
    module.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Tagger(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        torch.manual_seed(0)\n"
        "        layers = [nn.Sequential(nn.Conv2d(8 if i else 1, 8, 3, 1 if i % 4 else 2, 1),\n"
        "                                nn.BatchNorm2d(8), nn.Hardswish()) for i in range(14)]\n"
        "        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(8, 5)\n\n"
        "    def forward(self, x):\n"
        "        return self.classifier(self.features(x).mean((2, 3)))\n"
    )
    (reader.work / "tagger").mkdir()
    net = runpy.run_path(str(module))["Tagger"]()
    for _ in range(30):  # BatchNorm statistics of something
        net(3 * torch.randn(4, 1, 128, 1) + torch.randn(4, 1, 1, 64))
    torch.save(net.state_dict(), reader.work / "tagger" / "weights.pt")
    (reader.work / "tagger" / "teacher.yaml").write_text(
        "{factory: 'tiny_tagger:Tagger', mel: mel/efficientat-32k-128, layout: B1MT,\n"
        "weights: weights.pt, output: sigmoid,\n"
        "labels: [Speech, Dog, Siren, 'Baby cry, infant cry', Rain]}"
    )


def model(reader):
    """Exports of a student whose weights are random, and a clip."""
    import torch
    from kit import QUICK
    from torch import nn

    from frami_edge.config import StudentArch
    from frami_edge.models import StudentNet
    from frami_edge_export.exporter import export_student
    from frami_edge_export.graph import StudentFacts
    from frami_edge_runtime.melspec import MelSpec

    torch.manual_seed(0)
    arch = StudentArch(channels=(8, 16, 16), time_kernels=(3, 3, 3), out_channels=32)
    student = StudentNet(arch, 32, 3, teacher_head=nn.Linear(64, 3))
    with torch.no_grad():
        student(torch.randn(16, 1, 32, 64))  # BatchNorm statistics of something
    labels = ("glass breaking", "rain", 'a "quoted" word')
    facts = StudentFacts(MelSpec(sample_rate=16000, n_mels=32, mean=-6.0, std=4.0), labels)
    export_student(
        student.eval().collapse(), facts, reader.work,
        int8=False, calibration=None, source="", waveform=True, options=QUICK(),
    )  # fmt: skip
    (reader.work / "student.onnx").write_bytes((reader.work / "student.fp32.onnx").read_bytes())
    samples = np.random.default_rng(0).normal(0, 3000, 20_800).clip(-32768, 32767)
    with wave.open(str(reader.work / "clip.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def microphone(reader):
    """An `arecord` that plays noise for some seconds, first on the PATH, and no sounddevice."""
    (reader.home / "bin").mkdir()
    path = reader.home / "bin" / "arecord"
    path.write_text(
        '#!/bin/sh\nfor rate; do :; done; echo "  rate         : $rate" >&2  # the last argument\n'
        "for _ in $(seq 50); do head -c 3200 /dev/urandom; sleep 0.02; done\nsleep 60\n"
    )
    path.chmod(0o755)
    (path.parent / "sounddevice.py").write_text("raise ImportError")


GIVEN = {
    "README.md": (keyword_net, esc50, checkout),
    "docs/MY_MICROPHONE.md": (model, microphone),
    "docs/CPP.md": (model,),
    "docs/TAGGER.md": (tagger, esc50),
    "docs/PROTOCOL.md": (esc50, checkout),
}


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """A folder for the PATH with `frami-edge`, `frami-edge-listen` and `python`."""
    folder = tmp_path_factory.mktemp("programs")
    with subprocess.Popen([sys.executable, str(SERVER), str(folder)]) as process:
        until = time.monotonic() + 120
        while not (folder / "socket").exists() and process.poll() is None:
            assert time.monotonic() < until, "the server of programs did not start"
            time.sleep(0.05)
        yield folder
        process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("page", CHANGES)
def test_a_page_runs_from_top_to_bottom(page, programs, tmp_path):
    reader = Reader(tmp_path / "home", programs, CHANGES[page])
    for give in GIVEN.get(page, ()):
        give(reader)
    for block in blocks(page):
        if block.runs:
            reader.follow(block)
    assert reader.used == set(CHANGES[page]), "a change that changes nothing"


def test_no_page_goes_unrun():
    pages = {"README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))}
    running = {page for page in pages - NOT_FOLLOWED if any(block.runs for block in blocks(page))}
    assert running == set(CHANGES)
    reasons = [b.skipped for page in pages for b in blocks(page) if b.skipped]
    assert all(len(reason) > 15 for reason in reasons)


@pytest.mark.slow
def test_the_cpp_example_gives_pythons_answer(programs, tmp_path):
    """Needs a compiler, CMake and ONNX Runtime's headers, in the system or under $ORT_ROOT."""
    import onnxruntime

    from frami_edge_runtime.classifier import Classifier

    roots = [Path(os.environ.get("ORT_ROOT", "/opt/onnxruntime")), Path("/usr/local"), Path("/usr")]
    headers = [path for root in roots for path in root.glob("include/**/onnxruntime_cxx_api.h")]
    if not (headers and shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("the C++ example is not built: no compiler, CMake or ONNX Runtime headers")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    options = [
        f"-DORT_INCLUDE={headers[0].parent}",
        f"-DORT_LIBRARY={tmp_path / 'libonnxruntime.so'}",
    ]
    build = tmp_path / "build"
    for words in (["-S", ROOT / "examples/cpp", "-B", build, *options], ["--build", build]):
        subprocess.run(["cmake", *map(str, words)], check=True, capture_output=True)
    reader = Reader(tmp_path / "home", programs, {})
    model(reader)
    command = [build / "classify", reader.work / "student.wave.onnx", reader.work / "clip.wav"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^[\d.]+ s  (.+)  ([\d.]+)$", printed, re.MULTILINE)
    assert found, printed
    samples = soundfile.read(reader.work / "clip.wav", dtype="float32")[0]
    expected = Classifier(reader.work / "student.fp32.onnx").classify(samples)
    assert found[1] == expected.label
    assert float(found[2]) == pytest.approx(expected.score, abs=1e-4)
