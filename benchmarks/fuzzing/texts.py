"""YAML configs, teacher descriptions, labels and front ends: bombs, tags, odd types and numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import yaml
from fuzz_material import ODD, Rng, WrongAnswerError, change, damage

from frami_edge import _yaml
from frami_edge.config import load_config, presets
from frami_edge.distillation.config import JourneyConfig
from frami_edge.protocol.config import Protocol
from frami_edge.teachers.description import labels_of, mel_of, read_description
from frami_edge.training.config import TeacherConfig
from fuzzing.case import Case

BOMBS: Final = (
    "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]\n",
    "!!python/object/apply:os.system ['touch RAN']\n", "a: !!python/name:os.system\n",
    "a: !!python/object/new:type [x, [], {}]\n", "seed: !!binary aGVsbG8=\n", "? [a, b]\n: c\n",
    "seed: 1\nseed: 2\n", "a: !!set {x, y}\n", "<<: {seed: 1}\n", "<<: [{seed: 1}, {seed: 2}]\n",
    "seed: 2026-13-99\n", "seed: 2026-01-01\n", "seed: 0x" + "f" * 3000 + "\n", "null: 1\n",
    "seed: " + "9" * 5000 + "\n", "seed: .nan\n", "seed: 1e999\n", "seed: 1:2:3:4:5\n", "1: 2\n",
    "[" * 3000 + "]" * 3000, "{a: " * 3000, "a:\n" + " a:\n" * 50, "\t- x", "%YAML 9.9\n---\na",
    "a: b: c", "--- 1\n--- 2\n", "\ufeffseed: 1\n", "seed: \x00", "- seed", "seed", "", "~",
    "seed: 'x\n", "x: " * 5000, "seed: !!int x\n", "seed: !!float x\n", "seed: !!timestamp x\n",
    "seed: !!bool x\n", "&a seed: 1\n", "seed: !!null x\n", "!!omap [a: 1]\n", ".inf: 1\n",
    "!!pairs [a: 1]\n", "bank: {frames: 99999999999999}\n", "seed: -1\n", "seed: 1_0\n",
    "\n".join(f"key{i}: {i}" for i in range(9000)), "a: " + "x" * 300_000, "#" * 900_000,
    "a: |\n  " + "y" * 90_000, "{" + ",".join(f"k{i}: 1" for i in range(8000)) + "}",
)  # fmt: skip
VALUES: Final = (
    "-1", "0", "1", "1e400", "nan", ".nan", ".inf", "9" * 30, "9" * 5000, "true", "null", "[]",
    "{}", "'x'", "0.5", "1e-400", "[1, 2, 3]", "{a: 1}", "2026-01-01", "!!binary aGk=", "*a",
    "&a 1",
    "1" * 400, "-0.0", "1e9", "1000000000000", "../../x", "/etc/passwd", "\x1b[2J", "[[[[[[", "{",
)  # fmt: skip
LABELS: Final = (
    "../../escape", "/tmp/escape", "..", ".", "", " ", "a/b", "a\\b", "con", "x" * 5000, "\x1b[2J",
    "\u202etxt", "[bold]", "[/bold]", "[link=file:///etc/passwd]x", "$\\frac{", "$x", "_{", "%s",
    "{0}", "</td>", "|a|b|", "# x", "\N{SNOWMAN}", "\U0001f600", "a\nb", "a\tb", "\u0000", "\ud800",
    "---", "```", "<script>", "![x](file:///etc/passwd)", "$HOME", "`id`", "-rf", "'", '"',
    "\u2028",
    "~", "CON.wav", "a:b", "\x7f", "\x85", "null", "1", "\u0301",
)  # fmt: skip


def config(rng: Rng, case: Case) -> None:
    """A config file, damaged, bombed, or with a value that no config holds; read or refused."""
    models = ((JourneyConfig, "esc10-student"), (TeacherConfig, "esc10-teacher"),
              (Protocol, "protocols/esc10-cpu"))  # fmt: skip
    model, preset = models[int(rng.integers(0, 3))]
    text = presets()[preset].read_text()
    way = int(rng.integers(0, 5))
    overrides: list[str] = []
    if way == 0:
        bomb = BOMBS[int(rng.integers(0, len(BOMBS)))]
        text = bomb if rng.random() < 0.7 else text + "\n" + bomb
    elif way == 1:
        text = damage(rng, text.encode(), [b"a: b"]).decode("utf-8", "replace")
    elif way == 2:
        values = _yaml.parse(text)
        for _ in range(int(rng.integers(1, 4))):
            change(rng, values)
        text = json.dumps(values, default=str)
    else:
        keys = list(_keys(_yaml.parse(text), ""))
        for _ in range(int(rng.integers(1, 4))):
            key = keys[int(rng.integers(0, len(keys)))]
            overrides.append(f"{key}={VALUES[int(rng.integers(0, len(VALUES)))]}")
        if rng.random() < 0.2:
            odd = ("=", "a", ".=1", "a..b=1", "a.b.c.d.e=1", "seed.x=1", "=1", "a=b=c", "\x00=1")
            overrides.append(odd[int(rng.integers(0, len(odd)))])
    path = case.write("case.yaml", text)
    found = load_config(model, path, overrides)
    if load_config(model, case.write("again.yaml", dump(found))) != found:
        raise WrongAnswerError("the config that was read is not the one that is written")


def dump(config: Any) -> str:
    """As a run writes it."""
    from frami_edge.config import dump_config

    return dump_config(config)


def _keys(values: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def description(rng: Rng, case: Case) -> None:
    """A teacher's description with odd values, its labels and its front end."""
    values = _yaml.parse(case.material.description.read_text())
    case.copy(case.material.weights)
    way = int(rng.integers(0, 4))
    if way == 0:
        change(rng, values["mel"])
    elif way == 1:
        key = str(rng.choice(sorted(values)))
        odd = [*ODD, "../x", "/etc/passwd", "/dev/zero", "os:system", "os:path.join", "a:b:c",
               "fuzznet:nothing", "builtins:exec", "sys:exit", ".", "~", "\0"]  # fmt: skip
        values[key] = odd[int(rng.integers(0, len(odd)))]
    else:
        for _ in range(int(rng.integers(1, 3))):
            change(rng, values)
    text = json.dumps(values) if rng.random() < 0.8 else yaml.safe_dump(values)
    if rng.random() < 0.2:
        text = damage(rng, text.encode(), [b"- x"]).decode("utf-8", "replace")
    path = case.write("case.yaml", text)
    if rng.random() < 0.3:
        case.cli_json("inspect", path)
        return
    found = read_description(path)
    labels_of(found)
    mel_of(found)


def labels(rng: Rng, case: Case) -> None:
    """A file of class names: huge, binary, with twins, separators or control characters."""
    names = [LABELS[int(rng.integers(0, len(LABELS)))] for _ in range(int(rng.integers(0, 5)))]
    text = str(rng.choice(["\n", "\r\n", "\x85", "\u2028"])).join(names)
    data = text.encode("utf-8", "surrogatepass")
    way = rng.random()
    if way < 0.1:
        data = b"\n".join(b"%d" % i for i in range(int(rng.choice([2, 3, 100_001]))))
    elif way < 0.2:
        data = bytes(rng.integers(0, 256, 999, dtype="u1"))
    elif way < 0.25:
        data = b"x" * 10_000_001
    name = str(rng.choice(["labels.txt", "labels.yaml", "labels"]))
    case.write(name, data)
    weights = case.copy(case.material.weights)
    values = _yaml.parse(case.material.description.read_text())
    path = case.write("case.yaml", json.dumps(values | {"labels": name, "weights": weights.name}))
    found = labels_of(read_description(path))
    if len(set(found)) != len(found) or not 2 <= len(found) <= 100_000 or not all(found):
        raise WrongAnswerError(f"{len(found)} labels")


TEXTS = {"config": config, "description": description, "labels": labels}
