"""Configs as YAML: read with overrides and with all mistakes reported at once, and written."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from frami_edge.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses a key given twice, and reads `1e-3` as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    # YAML 1.1, which PyYAML follows, takes 1e-3 for a string because it has no dot.
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+"),
        list("-+0123456789"),
    )


def parse(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        ValueError: What is wrong and, where known, in which line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def dump(value: Any) -> str:
    """YAML that `parse` reads back to an equal value; keys keep their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def load_config(
    model: type[M], source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> M:
    """Read a config of a class.

    Args:
        model: The class.
        source: A path that ends in .yaml or .yml, a preset's name, or the keys and values.
        overrides: `a.b=c` each: a dotted key and a YAML value. Later ones win.

    Raises:
        ConfigError: With all mistakes in the file and in the overrides, one per line.
    """
    if isinstance(source, Mapping):
        name, data = f"The {model.__name__}", copy.deepcopy(dict(source))
    else:
        name, data = read_mapping(source)
    problems = [problem for text in overrides if (problem := _override(data, text))]
    try:
        config = model.model_validate(data)
    except ValidationError as error:
        problems += describe(error, model, data)
    if problems:
        count = "a mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        lines = "".join(f"\n  {problem}" for problem in problems)
        where = f"{name} with its overrides" if overrides else name
        raise ConfigError(f"{where} has {count}:{lines}", fix="Correct the keys named above.")
    return config


def read_mapping(name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """A YAML file or preset as plain keys and values, and its name for messages.

    Raises:
        ConfigError: It is missing, cannot be read, or is not a mapping.
    """
    name, path, known = str(name_or_path), Path(name_or_path), presets()
    if path.suffix not in (".yaml", ".yml"):
        if name not in known:
            listed = ", ".join(known) or "none is installed"
            raise ConfigError(
                f"There is no config called '{name}'{did_you_mean(name, known) or '.'}",
                fix=f"Give a .yaml file, or one of: {listed}.",
            )
        path = known[name]
    try:
        data = parse(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        near = difflib.get_close_matches(path.stem, known, n=1)
        raise ConfigError(
            f"The config file {name} cannot be read: {error.strerror}.",
            fix=f"Use the shipped config by its name: {near[0]}." if near else "Check the path.",
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{name} is not valid YAML: {error}.", fix="Correct it, and save it as UTF-8."
        ) from None
    if not isinstance(data, dict | None):
        raise ConfigError(
            f"{name} holds {_shown(data)}, not a mapping of keys to values.",
            fix="Write it as `key: value` lines.",
        )
    return name, data or {}


def presets() -> dict[str, Path]:
    """The shipped configs by name: `configs/` of the installed package, or of the repository."""
    package = Path(str(resources.files("frami_edge")))
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            files = sorted(folder.rglob("*.yaml"))
            return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    return {}


def describe(
    error: ValidationError, model: type[BaseModel] | None = None, data: Any = None
) -> list[str]:
    """One line per mistake: the dotted key, what is wrong, and a near name where there is one.

    The model that was validated gives the names of its fields; `data`, from which it was validated,
    tells keys from pydantic's own path elements.
    """
    lines = []
    for item in error.errors(include_url=False):
        loc, kind = item["loc"], item["type"]
        if kind == "extra_forbidden":
            what = "there is no such key" + did_you_mean(str(loc[-1]), _fields_at(model, loc[:-1]))
        elif kind == "missing":
            what = "is required and missing"
        else:
            what = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            what = re.sub(r"^Input should", "should", what)
            what = what.replace("a valid tuple", "a list, as [a, b]")  # YAML has no tuples
            if kind != "value_error":
                what += f", not {_shown(item['input'])}"
            if isinstance(item["input"], str):
                expected = str(item.get("ctx", {}).get("expected", ""))
                what += did_you_mean(item["input"], re.findall(r"'([^']*)'", expected))
        lines.append(f"{_dotted(loc, data) or '(the whole file)'}: {what}")
    return lines


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def parse_override(text: str) -> tuple[str, Any]:
    """Dotted key and value of one `a.b=c`.

    Raises:
        ValueError: What is wrong with it.
    """
    dotted, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not all(dotted.split(".")):
        raise ValueError(f"--set {text}: should look like key.key=value")
    try:
        return dotted, parse(value)
    except ValueError as error:
        raise ValueError(f"--set {text}: the value is not valid YAML: {error}") from None


def _override(data: dict[str, Any], text: str) -> str:
    """Apply one `a.b=c` to `data`; returns what is wrong with it, or an empty string."""
    try:
        dotted, parsed = parse_override(text)
    except ValueError as error:
        return str(error)
    keys = dotted.split(".")
    for depth, key in enumerate(keys[:-1], start=1):
        if data.get(key) is None:
            data[key] = {}
        data = data[key]
        if not isinstance(data, dict):
            return f"--set {text}: {'.'.join(keys[:depth])} is {_shown(data)} and has no keys"
    data[keys[-1]] = parsed
    return ""


def _dotted(loc: Sequence[int | str], data: Any) -> str:
    """The path as the user wrote it: pydantic puts the tags of unions between the keys."""
    kept = []
    for place, element in enumerate(loc):
        try:
            data = data[element]
        except (KeyError, IndexError, TypeError):
            missing = isinstance(data, Mapping) and place == len(loc) - 1
            if data is not None and not missing:
                continue
        kept.append(str(element))
    return ".".join(kept)


def _fields_at(model: type[BaseModel] | None, loc: Sequence[int | str]) -> list[str]:
    """Names of the fields of every model that can stand at `loc`."""
    models = [model] if model else []
    for element in loc:
        if fields := [m.model_fields[element] for m in models if element in m.model_fields]:
            models = [found for field in fields for found in _models_in(field.annotation)]
    return [name for m in models for name in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
