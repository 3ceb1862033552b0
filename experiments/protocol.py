"""A protocol: one YAML file that names the methods to compare, the folds and the seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from frami_edge.config import JourneyConfig, Strict, TeacherConfig
from frami_edge.errors import ConfigError
from frami_edge.evaluation import EVERY
from frami_edge.yaml_config import load_config


def _text(value: Any) -> Any:
    """Fold names as text: YAML reads a bare 1 as a number."""
    return tuple(map(str, value)) if isinstance(value, list | tuple) else value


class Method(Strict):
    """One row of the table: the student's config with a few keys changed, or a control."""

    what: str = ""
    """Description for the table."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values of the student's config by dotted key."""
    control: (
        Literal["white_noise", "smooth_noise", "procedural", "real", "unrelated", "scratch"] | None
    ) = None
    """A control instead of a bank."""
    unrelated: str | None = None
    """Data set of the control `unrelated`."""
    bank_of: str | None = None
    """Another method whose bank is used; `bank.sources` of this one picks from it."""
    mels: int | None = Field(None, ge=1)
    """Distil on this many clips of the bank, with the same number of steps."""
    folds: tuple[str, ...] | None = Field(None, min_length=1)
    """Fewer folds than the protocol's."""
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """Fewer seeds than the protocol's."""

    _folds = field_validator("folds", mode="before")(_text)

    @model_validator(mode="after")
    def _consistent(self) -> Method:
        if (self.control == "unrelated") != (self.unrelated is not None):
            raise ValueError("`control: unrelated` and `unrelated: SET` go together")
        if self.control and (self.bank_of or self.mels):
            raise ValueError("a control has no bank: leave out bank_of and mels")
        if "seed" in self.set:
            raise ValueError("set.seed: seeds are listed under `seeds`")
        return self


class Protocol(Strict):
    """A table to make."""

    title: str
    data: str
    """A known set (`frami-edge data`) or `folder:PATH`."""
    teacher: str | None = None
    """Preset or YAML file of `train-teacher`; `data` and fold are replaced by this protocol's."""
    trained: str | None = None
    """Instead of `teacher`: one that exists, for every fold. A checkpoint, a YAML description, an
    `hf:` folder or a preset, as `frami_edge.load_teacher` takes it."""
    student: str
    """Preset or YAML file of `distill`."""
    folds: tuple[str, ...] = Field(min_length=1)
    """Test folds; each has a teacher of its own, which is not trained on it. `all`, for a teacher
    that exists: every clip is a test clip."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of the student, its batches and its augmentation."""
    bank_seeds: Literal["first", "each"] = "first"
    """`first`: all seeds of a fold share the bank of the first one; `each`: one bank per seed."""
    teacher_set: dict[str, Any] = Field(default_factory=dict)
    """Values of the teacher's config by dotted key."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values of the student's config by dotted key, for all methods."""
    methods: dict[str, Method] = Field(min_length=1)
    """By name, in the order of the table."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs (method, other) for the table of paired differences."""

    _folds = field_validator("folds", mode="before")(_text)

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if (self.teacher is None) == (self.trained is None):
            raise ValueError("give either teacher or trained")
        if self.trained is None and EVERY in self.folds:
            raise ValueError("folds: a teacher that is trained here needs a fold to leave out")
        if self.trained and self.teacher_set:
            raise ValueError("teacher_set: the teacher in `trained` is not trained here")
        if EVERY in self.folds and len(self.folds) > 1:
            raise ValueError("folds: `all` holds the clips of the others")
        for key in ("folds", "seeds"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key}: one is there twice")
        for name, method in self.methods.items():
            lender = method.bank_of
            if lender is not None:
                other = self.methods.get(lender)
                if other is None or other.control or other.bank_of:
                    raise ValueError(f"methods.{name}.bank_of: {lender} makes no bank")
                keys = [key for key in method.set if key.startswith("bank.")]
                if any(key != "bank.sources" for key in keys):
                    raise ValueError(f"methods.{name}.set: {keys[0]} is that of {lender}'s bank")
            if method.control in ("real", "scratch") and EVERY in (method.folds or self.folds):
                raise ValueError(f"methods.{name}: of the fold `all` no clip is left to learn from")
            for key in ("folds", "seeds"):
                odd = set(getattr(method, key) or ()) - set(getattr(self, key))
                if odd:
                    raise ValueError(f"methods.{name}.{key}: not in the protocol's {key}: {odd}")
        unknown = {name for pair in self.compare for name in pair} - set(self.methods)
        if unknown:
            raise ValueError(f"compare: no method {', '.join(sorted(unknown))}")
        return self


@dataclass(frozen=True)
class Run:
    """One student of the table, and what it needs.

    Attributes:
        method: Name of the method.
        fold: Test fold.
        seed: Seed of the student.
        teacher: Folder of the teacher; ends in a digest of its config. Empty for one that exists.
        bank: Folder of the bank; empty for controls.
        bank_method: The method whose config makes the bank.
        bank_seed: Seed of the bank.
        recipe: Digest of everything that decides the result.
    """

    method: str
    fold: str
    seed: int
    teacher: str
    bank: str
    bank_method: str
    bank_seed: int
    recipe: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies its row."""
        return self.method, self.fold, self.seed

    @property
    def name(self) -> str:
        """The key as one word."""
        return "-".join(map(str, self.key))


class Plan:
    """Every student of a protocol, with resolved configs.

    Args:
        protocol: The table to make.
        origin: Digest of the teacher that exists, where the protocol has one.

    Raises:
        ConfigError: A config has a mistake, or a method picks sources that its bank lacks.
    """

    def __init__(self, protocol: Protocol, origin: str = "") -> None:
        self.protocol, self.origin = protocol, origin
        self.journeys = {
            name: load_config(JourneyConfig, protocol.student, _overrides(protocol.set | m.set))
            for name, m in protocol.methods.items()
        }
        self.teachers: dict[str, TeacherConfig] = {}
        for fold in protocol.folds:
            if protocol.teacher is None:
                break
            changes = protocol.teacher_set | {"data.name": protocol.data, "data.fold": fold}
            self.teachers[fold] = load_config(TeacherConfig, protocol.teacher, _overrides(changes))
        for name, method in protocol.methods.items():
            lender = self.journeys[method.bank_of or name].bank.shares
            lacking = set(self.journeys[name].bank.shares) - set(lender)
            if lacking:
                raise ConfigError(
                    f"methods.{name}: the bank of {method.bank_of} lacks {', '.join(lacking)}.",
                    fix="Name sources of that bank in bank.sources, or leave out bank_of.",
                )
        self.runs = [
            self._run(name, method, fold, seed)
            for name, method in protocol.methods.items()
            for seed in method.seeds or protocol.seeds
            for fold in method.folds or protocol.folds
        ]

    def _run(self, name: str, method: Method, fold: str, seed: int) -> Run:
        journey = self.journeys[name].model_dump(mode="json")
        teacher, facts_of_it = "", self.origin
        if config := self.teachers.get(fold):
            teacher = facts_of_it = f"teachers/{fold}-{digest(config.model_dump(mode='json'))}"
        facts = [facts_of_it, journey, method.model_dump(include={"control", "unrelated", "mels"})]
        maker = method.bank_of or name
        seed_of_bank = seed if self.protocol.bank_seeds == "each" else self.protocol.seeds[0]
        bank = ""
        if not method.control:
            lent = self.journeys[maker].bank.model_dump(mode="json")
            bank = f"banks/{maker}-{fold}-{seed_of_bank}-{digest([facts_of_it, lent])}"
        recipe = digest([*facts, bank, seed])
        return Run(name, fold, seed, teacher, bank, maker, seed_of_bank, recipe)


def load_protocol(path: str | Path, overrides: Sequence[str] = ()) -> Protocol:
    """Read a protocol from YAML.

    Raises:
        ConfigError: With every mistake.
    """
    return load_config(Protocol, path, list(overrides))


def digest(facts: Any) -> str:
    """Eight hexadecimal digits that change with the facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def _overrides(changes: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]
