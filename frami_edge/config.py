"""Typed configs: strict models, read from YAML with overrides, every mistake told at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from frami_edge import _yaml
from frami_edge.errors import ConfigError

MAX_BYTES = 200_000
"""Size of a config file that is still read: parsing takes 20 s a megabyte, and real ones have a few
kilobytes."""

MANY = 10_000_000
"""Most steps, clips or rows that a config may ask for: a slip of the finger is told at once, not by
a full memory."""
WIDE = 1 << 16
"""Largest batch or layer."""

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Base of every config: unknown keys are errors, values frozen, docs below the fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def load_config(model: type[M], name_or_path: str | Path, overrides: Sequence[str] = ()) -> M:
    """Read a config.

    Args:
        model: What it must be.
        name_or_path: A file if it ends in .yaml or .yml, otherwise a preset by name.
        overrides: `a.b=c` each: the dotted key, and a YAML value. Later ones win.

    Raises:
        ConfigError: With every mistake in the file and in the overrides, one a line.
    """
    source, data = read_mapping(name_or_path)
    problems = [problem for text in overrides if (problem := _override(data, text))]
    try:
        config = model.model_validate(data)
    except ValidationError as error:
        problems += describe(error, model, data)
    if problems:
        count = "a mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        lines = "".join(f"\n  {problem}" for problem in problems)
        where = f"{source} with its overrides" if overrides else source
        raise ConfigError(f"{where} has {count}:{lines}", fix="Correct the keys named above.")
    return config


def read_mapping(name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """A YAML file or preset as plain keys and values, and what to call it.

    Raises:
        ConfigError: It is missing, too large, or no mapping.
    """
    source, text = _read(name_or_path)
    try:
        data = _yaml.parse(text)
    except ValueError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}.", fix="Correct it.") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source} holds {_kind(data)}, not a mapping of keys to values.",
            fix="Write it as `key: value` lines.",
        )
    return source, data


def dump_config(model: BaseModel) -> str:
    """The config as YAML that `load_config` reads back to an equal model."""
    return _yaml.dump(model.model_dump(mode="json"))


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
    """One line a mistake: the dotted key, what is wrong, and a near name where there is one.

    Args:
        error: What pydantic said.
        model: What was validated, to know the names of its fields.
        data: What it was validated from, to tell keys from pydantic's own path elements.
    """
    lines = []
    for item in error.errors(include_url=False):
        loc, kind = item["loc"], item["type"]
        key = _dotted(loc, data) or "(the whole file)"
        if kind == "extra_forbidden":
            known = _field_names(model, loc[:-1])
            what = "there is no such key" + did_you_mean(str(loc[-1]), known)
        elif kind == "missing":
            what = "is required and missing"
        else:
            what = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            what = re.sub(r"^Input should", "should", what)
            if kind != "value_error":
                what += f", not {_shown(item['input'])}"
            if isinstance(item["input"], str):
                expected = str(item.get("ctx", {}).get("expected", ""))
                what += did_you_mean(item["input"], re.findall(r"'([^']*)'", expected))
        lines.append(f"{key}: {what}")
    return lines


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def _read(name_or_path: str | Path) -> tuple[str, str]:
    """What to call the source in messages, and its text."""
    name = str(name_or_path)
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        known = presets()
        if name not in known:
            listed = ", ".join(known) or "none is installed"
            raise ConfigError(
                f"There is no config called '{name}'{did_you_mean(name, known) or '.'}",
                fix=f"Give a .yaml file, or one of: {listed}.",
            )
        path = known[name]
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ConfigError(
                f"{name} is larger than {MAX_BYTES:,} bytes; it cannot be a config.",
                fix="Give the path of a config file.",
            )
        return name, raw.decode("utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, presets(), n=1, cutoff=0.6)
        fix = f"Use the shipped config by its name: {near[0]}." if near else "Check the path."
        raise ConfigError(f"There is no config file {name}.", fix=fix) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not text in UTF-8.", fix="Save it as UTF-8.") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{name} cannot be read: {reason}.", fix="Check the path.") from None


def _override(data: dict[str, Any], text: str) -> str:
    """Apply one `a.b=c` to `data`; returns what is wrong with it, or an empty string."""
    dotted, equals, value = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        return f"--set {text}: should look like key.key=value"
    try:
        parsed = _yaml.parse(value)
    except ValueError as error:
        return f"--set {text}: the value is not valid YAML: {error}"
    for depth, key in enumerate(keys[:-1], start=1):
        child = data.get(key)
        if child is None:
            child = data[key] = {}
        if not isinstance(child, dict):
            return f"--set {text}: {'.'.join(keys[:depth])} is {_kind(child)} and has no keys"
        data = child
    data[keys[-1]] = parsed
    return ""


def _dotted(loc: Sequence[int | str], data: Any) -> str:
    """The path as the user wrote it: pydantic puts the tags of unions between the keys."""
    if data is None:
        return ".".join(str(element) for element in loc)
    kept = []
    for place, element in enumerate(loc):
        try:
            data = data[element]
        except (KeyError, IndexError, TypeError):
            missing = isinstance(data, Mapping) and place == len(loc) - 1
            if not missing:
                continue
        kept.append(str(element))
    return ".".join(kept)


def _field_names(model: type[BaseModel] | None, loc: Sequence[int | str]) -> list[str]:
    """Names of the fields of every model that can stand at `loc`."""
    models = [model] if model else []
    for element in loc:
        fields = [m.model_fields[element] for m in models if element in m.model_fields]
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
    return [name for m in models for name in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "a list"
    return "a mapping" if isinstance(value, dict) else _shown(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
