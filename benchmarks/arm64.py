"""The runtime on an emulated Cortex-A76: its own tests, and the same answers as this machine.

Real aarch64 wheels of NumPy, ONNX Runtime and the rest run under qemu-user on Debian's arm64
Python 3.11; no root file system image, container or root access is needed. What is proven: the
runtime's tests pass on arm64, int8 models give the very bits that they give here, fp32 models the
same within rounding. Speed under emulation means nothing and is not reported.

Needs: qemu-aarch64-static, apt-get and dpkg (Debian or Ubuntu: `apt-get install qemu-user-static`),
an index of Python wheels, 600 MB in --work. The first run downloads, later ones reuse it.

Run: python benchmarks/arm64.py [--model FILE.onnx ...] [--work DIR] [--json FILE] [-- PYTEST ARGS]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
QEMU = "qemu-aarch64-static"
CPU = "cortex-a76"  # has the dot product instructions of Jetson Orin's A78AE, which qemu lacks
PACKAGES = ["python3.11", "python3-distutils", "libstdc++6", "zlib1g", "libgomp1"]
WHEELS = ["numpy", "onnxruntime", "onnx", "soxr", "soundfile", "pytest", "hypothesis", "rich"]
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in (17, 26, 27, 28, 34, 35)]
# Speed means nothing under emulation.
LEFT_OUT = ["--ignore=tests/runtime/test_runtime_benchmarks.py"]
# onnxruntime reads it to know the CPU; without one qemu shows the x86 host's, and it crashes.
CPUINFO = "".join(
    f"processor\t: {core}\nBogoMIPS\t: 243.75\n"
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "lrcpc dcpop asimddp ssbs\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
    for core in range(4)
)
FP32_TOLERANCE = 1e-4
SECONDS = (0.3, 1.0, 4.0)


def main() -> int:
    """Set up, run the tests, compare the answers; 3 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="files of export")
    parser.add_argument("--work", type=Path, default=Path("build/arm64"), help="kept between runs")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)  # used under emulation
    parser.add_argument("pytest", nargs="*", default=["tests/runtime", "-q"], help="after --")
    args = parser.parse_args()
    if args.record:
        record(args.model[0], args.record)
        return 0
    for tool in (QEMU, "apt-get", "dpkg"):
        if shutil.which(tool) is None:
            print(f"{tool} is missing: apt-get install qemu-user-static", file=sys.stderr)
            return 1
    work = args.work.resolve()
    python = set_up(work)
    result: dict[str, Any] = {"cpu": CPU, "python": version_of(python), "models": {}}
    for model in args.model:
        result["models"][model.name] = compare(python, model.resolve(), work)
    result["pytest"] = run_tests(python, args.pytest)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    same = all(row["passed"] for row in result["models"].values())
    return 0 if same and result["pytest"]["exit_code"] == 0 else 3


def set_up(work: Path) -> Path:
    """Debian's arm64 Python and the wheels, unpacked; gives a launcher that emulates it."""
    rootfs, site = work / "rootfs", work / "site"
    ready = work / ".ready"
    if not ready.exists():
        started = time.perf_counter()
        _unpack_debian(work, rootfs)
        _unpack_wheels(work, site)
        (rootfs / "proc").mkdir(exist_ok=True)
        (rootfs / "proc" / "cpuinfo").write_text(CPUINFO)
        ready.touch()
        print(f"set up in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    # Tests start sys.executable: the launcher stands for it, so that children are emulated too.
    launcher = work / "python-arm64"
    launcher.write_text(
        # Whole paths: tests narrow PATH down.
        f"#!/bin/sh\nexec {shutil.which('env')} -u PYTHONHOME "
        f'PYTHONPATH="{site}:{ROOT / "runtime"}" '
        f'FRAMI_EDGE_ARM64="{launcher}" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 '
        f'{shutil.which(QEMU)} -cpu {CPU} -L "{rootfs}" "{rootfs}/usr/bin/python3.11" "$@"\n'
    )
    launcher.chmod(0o755)
    (site / "sitecustomize.py").write_text(
        "import os, sys\nsys.executable = os.environ.get('FRAMI_EDGE_ARM64', sys.executable)\n"
    )
    return launcher


def _unpack_debian(work: Path, rootfs: Path) -> None:
    state = work / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial", "dpkg"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "dpkg" / "status").touch()
    apt = [
        "apt-get", "-qq", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64",
        "-o", f"Dir::State={state / 'state'}", "-o", f"Dir::Cache={state / 'cache'}",
        "-o", f"Dir::State::status={state / 'dpkg' / 'status'}", "-o", "Debug::NoLocking=1",
        "-o", "APT::Install-Recommends=0", "-o", "APT::Sandbox::User=",
    ]  # fmt: skip
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "--download-only", "-y", "install", *PACKAGES], check=True)
    rootfs.mkdir(parents=True, exist_ok=True)
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(rootfs)], check=True)


def _unpack_wheels(work: Path, site: Path) -> None:
    wheels = work / "wheels"
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:",
            "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi",
            "abi3", "--abi", "none", *platforms, "-c", str(ROOT / "constraints.txt"), "-d",
            str(wheels), *WHEELS,
        ],
        check=True,
    )  # fmt: skip
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def version_of(python: Path) -> str:
    """Versions of the emulated interpreter and its packages."""
    code = (
        "import platform, numpy, onnxruntime as o; print(platform.machine(), "
        "platform.python_version(), 'numpy', numpy.__version__, 'onnxruntime', o.__version__)"
    )
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def compare(python: Path, model: Path, work: Path) -> dict[str, Any]:
    """The same mels and the same audio through one file, here and there."""
    answers = {}
    for name, interpreter in (("here", sys.executable), ("arm64", str(python))):
        answers[name] = work / f"{model.name}.{name}.npz"
        command = [interpreter, __file__, "--record", str(answers[name]), "--model", str(model)]
        subprocess.run(command, check=True)
    return difference(answers["here"], answers["arm64"])


def record(model: Path, out: Path) -> None:
    """Frames of seeded mels, and results of seeded audio, whole and streamed."""
    import numpy as np

    from frami_edge_runtime.backends import OrtModel
    from frami_edge_runtime.classifier import Classifier

    rng = np.random.default_rng(0)
    trunk, classifier = OrtModel(model), Classifier(model)
    spec = classifier.info.mel
    mels = rng.uniform(-2, 3, (4, 1, spec.n_mels, classifier.info.receptive_field + 96))
    answers: dict[str, Any] = {"frames": trunk.frames(mels.astype(np.float32))}
    for seconds in SECONDS:
        t = np.arange(int(seconds * spec.sample_rate)) / spec.sample_rate
        x = 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.05 * rng.standard_normal(len(t))
        answers[f"logits_{seconds}"] = classifier.classify(x.astype(np.float32)).logits
        stream = classifier.stream(window_s=0.25)
        parts = np.array_split(x.astype(np.float32), 7)
        answers[f"stream_{seconds}"] = np.stack(
            [r.logits for part in parts for r in stream.push(part)]
            or [np.zeros(len(classifier.labels), np.float32)]
        )
    answers["int8"] = np.array(classifier.info.precision == "int8")
    np.savez(out, **answers)


def difference(here: Path, there: Path) -> dict[str, Any]:
    """int8 frames must be the same bits: their mels are the same; the rest within rounding."""
    import numpy as np

    with np.load(here) as a, np.load(there) as b:
        int8 = bool(a["int8"])
        names = [name for name in a.files if name != "int8"]
        differences = {
            name: float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in names
        }
    identical = differences["frames"] == 0.0
    # Mels differ in the last bit, and int8 may round such a bit to the next step.
    close = all(d <= FP32_TOLERANCE for d in differences.values())
    return {
        "precision": "int8" if int8 else "fp32",
        "frames_identical": identical,
        "max_difference": differences,
        "passed": identical if int8 else close,
    }


def run_tests(python: Path, arguments: list[str]) -> dict[str, Any]:
    """The runtime's tests under emulation, shown as they go: they take minutes."""
    started = time.perf_counter()
    command = [
        str(python), "-u", "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-o",
        "xfail_strict=true", "--import-mode=importlib", "-ra", *LEFT_OUT, *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "FRAMI_EDGE_DATA": ""}
    last = ""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    seconds = round(time.perf_counter() - started)
    return {"exit_code": tests.returncode, "summary": last, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
