"""Every command with odd arguments: unknown options, numbers out of range, wrong files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from fuzz_material import Rng
from typer.main import get_command

from frami_edge.cli import app
from fuzzing.case import Case
from fuzzing.program import Said, judge

NUMBERS: Final = (
    "0", "1", "-1", "2", "3", "0.5", "nan", "inf", "-inf", "1e30", "1e400", "9" * 30, "9" * 5000,
    "x", "", " ", "0x10", "1_0", "1,5", "-0", "\N{SUPERSCRIPT TWO}", "1e-30", "0:1:10", "1:0",
)  # fmt: skip
WORDS: Final = (
    "", "x", "auto", "cpu", "cuda", "cuda:99", "cuda:-1", "fp32", "bf16", "all-synthetic", "real",
    "--", "-", "=", "a=b", "a.b=c", "inversion", "inversion=nan", "inversion=-1,procedural", ",,",
    "unrelated=../../x", "folder:", "folder:/", "folder:..", "esc10", "fsdd", "os:system",
    "x" * 9000,
    "\x1b[2J", "\ud800", "a\nb", "[bold]", "$x", "%s", "1,2,3", "train", "test", "mixed,cmi", "~",
    "http://127.0.0.1:9/x.zip", "file:///etc/passwd", "ftp://127.0.0.1:9/", "a:b:c", "{}", "[]",
)  # fmt: skip
WRITTEN: Final = ("out", "write", "listen")
NUMERIC: Final = (
    "seed", "workers", "qat", "samples", "min_agreement", "max_drop", "clips", "max_difference",
    "threads", "rounds", "seconds", "chunk", "window", "forget", "hop", "top", "on", "off",
    "min_on",
    "min_off", "merge_gap", "cooldown", "smooth", "update", "min_level", "rate", "channels",
    "channel", "ring", "duration", "fold", "folds",
)  # fmt: skip
SUBPROCESS_SHARE: Final = 0.02


def commands() -> dict[str, Any]:
    """Name to command."""
    group: Any = get_command(app)
    return {name: group.get_command(None, name) for name in group.list_commands(None)}


def arguments(rng: Rng, case: Case) -> None:
    """One command line."""
    every = commands()
    name = str(rng.choice(list(every)))
    words: list[str] = [name]
    parameters = list(every[name].params)
    if name == "data" and rng.random() < 0.6:
        name = "get"
        words.append(name)
        parameters = every["data"].commands["get"].params
    for parameter in parameters:
        argument = parameter.param_type_name == "argument"
        wanted = 0.9 if parameter.required or argument else 0.18
        if rng.random() > wanted or parameter.name in ("help", "version"):
            continue
        value = _value(rng, case, name, parameter)
        if argument:
            words.append(value)
        elif getattr(parameter, "is_flag", False):
            words.append(parameter.opts[0])
        elif rng.random() < 0.8:
            words += [parameter.opts[0], value]
        else:
            words.append(f"{parameter.opts[0]}={value}")
    if rng.random() < 0.08:
        words.insert(1, str(rng.choice(["--nope", "-Z", "--out", "--json=1", "--help", "extra"])))
    words = bounded(words[0], words)
    if rng.random() < SUBPROCESS_SHARE:
        judge(_outside(case, words), json_wanted=False)
    else:
        case.cli(*words)


def bounded(name: str, words: list[str]) -> list[str]:
    """No case may train for minutes, use a microphone or the network's wide part."""
    if name == "quickstart":
        return [*words, "--set", "nope=1"]
    if name == "protocol":
        return [*words, "--dry-run"]
    if name == "data" and "get" in words and not any(w.startswith("--url") for w in words):
        return [*words, "--url", "http://127.0.0.1:9/x.zip"]
    if name in ("distill", "invert"):
        return [*words, "--set", "bank.sources={procedural: 1}"]
    return words


def _outside(case: Case, words: list[str]) -> Said:
    """The same in a process of its own, as a shell starts it."""
    words = [w.replace("\0", "0").encode("utf-8", "replace").decode() for w in words]
    done = subprocess.run(
        [sys.executable, "-m", "frami_edge", *words], cwd=case.folder, env=dict(os.environ),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=55, check=False,
        errors="replace",
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


def _value(rng: Rng, case: Case, command: str, parameter: Any) -> str:
    name = parameter.name or ""
    m = case.material
    likely: dict[str, list[Any]] = {
        "teacher": [m.teacher, m.description, m.student], "student": [m.student, m.export],
        "model": [m.student, m.teacher, *sorted(m.export.glob("*.onnx"))[:3]],
        "config": [m.config, "esc10-student", "protocols/esc10-cpu"], "bank": [m.bank],
        "data": [f"folder:{m.sounds}", "fsdd"], "out": ["out"], "listen": ["wav"],
        "weights": [m.weights], "data_root": [m.root, "data"], "audio": _clips(m.sounds),
        "reference": [m.student, m.teacher], "candidate": sorted(m.export.glob("*.onnx"))[:3],
        "path": [m.student, m.bank, m.export, *sorted(m.export.glob("*.onnx"))[:2]],
        "a": [m.student, m.teacher, *sorted(m.export.glob("*.onnx"))[:3]],
        "file": [m.student, m.bank],
        "b": sorted(m.export.glob("*.onnx"))[:3], "source": _clips(m.sounds),
        "overrides": ["seed=1", "bank.frames=24", "x=1", "seed=[["],
    }  # fmt: skip
    if name in likely and rng.random() < 0.6:
        options = likely[name]
        return str(options[int(rng.integers(0, len(options)))])
    if name in WRITTEN or (name == "data_root" and command == "get"):
        # What a user names as the place of a result is written: only places in the case's folder.
        places = [
            "out",
            "out/deeper/still",
            "case-file",
            "case-file/x",
            "/proc/x",
            "/dev/null/x",
            "",
        ]
        (case.folder / "case-file").write_text("not yours")
        return places[int(rng.integers(0, len(places)))]
    if name in NUMERIC and rng.random() < 0.8:
        return NUMBERS[int(rng.integers(0, len(NUMBERS)))]
    if rng.random() < 0.35:
        odd = [m.config, m.teacher, m.weights, m.root, "nowhere", "nowhere/x.onnx", "/dev/null",
               "/etc/passwd", "/proc/self/mem", ".", "..", "/", "", "/dev/full", "~", "a\0b",
               m.sounds / "train" / "high" / "0.wav", "x" * 300, m.description]  # fmt: skip
        return str(odd[int(rng.integers(0, len(odd)))])
    pool = WORDS if rng.random() < 0.7 else NUMBERS
    return pool[int(rng.integers(0, len(pool)))]


def _clips(sounds: Path) -> list[Path]:
    return sorted(sounds.rglob("*.wav"))[:2]


COMMANDS = {"arguments": arguments}
