"""From a protocol to its tasks: teachers, banks, students, and what needs what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from frami_edge.config import BUDGET, BankConfig, JourneyConfig, TeacherConfig, load_config
from frami_edge.errors import ConfigError
from frami_edge.io import json_text
from frami_edge.protocol.config import Method, Protocol

CLIPS_OF = {
    "white_noise": "control_clips",
    "smooth_noise": "control_clips",
    "procedural": "procedural_clips",
}
"""Key of the bank that says how many clips a control has."""


@dataclass(frozen=True)
class Task:
    """One thing to make, once.

    Attributes:
        kind: A teacher, a bank, or a student with its score.
        key: Name of its folder; ends in a digest of everything that decides the result.
        fold: Test fold.
        seed: Of a bank or a student.
        method: Name of a student's method; of the bank's, where it is a bank.
        needs: Keys of the tasks that come first: the teacher, then the bank if there is one.
    """

    kind: Literal["teacher", "bank", "student"]
    key: str
    fold: str
    seed: int
    method: str
    needs: tuple[str, ...]


class Plan:
    """Every task of a protocol, each before those that need it.

    Args:
        protocol: What to make.

    Attributes:
        tasks: By key, in the order in which they are tried.

    Raises:
        ConfigError: The teacher's or a method's config has a mistake.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._journeys: dict[str, JourneyConfig] = {}
        for name, method in protocol.methods.items():
            changes = _overrides(protocol.set | method.set)
            self._journeys[name] = load_config(JourneyConfig, protocol.student, changes)
        self._check_sources()
        self.tasks: dict[str, Task] = {}
        for name, method in protocol.methods.items():
            for seed in protocol.seeds if method.seeds is None else method.seeds:
                for fold in protocol.folds if method.folds is None else method.folds:
                    self._add(name, method, fold, seed)

    @property
    def students(self) -> list[Task]:
        """The rows of the table to be."""
        return [task for task in self.tasks.values() if task.kind == "student"]

    def teacher_config(self, fold: str) -> TeacherConfig:
        """Of the teacher that holds out `fold`."""
        changes = self.protocol.teacher_set | {"data.name": self.protocol.data, "data.fold": fold}
        return load_config(TeacherConfig, self.protocol.teacher, _overrides(changes))

    def journey(self, task: Task) -> JourneyConfig:
        """Of a bank or a student, with its seed."""
        return self._journeys[task.method].model_copy(update={"seed": task.seed})

    def method(self, task: Task) -> Method:
        """What the protocol says of it."""
        return self.protocol.methods[task.method]

    def _check_sources(self) -> None:
        """Who borrows a bank takes what is in it."""
        for name, method in self.protocol.methods.items():
            if method.bank_of is None:
                continue
            lent = self._journeys[method.bank_of].bank.shares
            missing = sorted(set(self._journeys[name].bank.shares) - set(lent))
            if missing:
                raise ConfigError(
                    f"methods.{name}: the bank of {method.bank_of} has no {', '.join(missing)}.",
                    fix=f"Name some of {', '.join(lent)} in bank.sources, or leave out bank_of.",
                )

    def _add(self, name: str, method: Method, fold: str, seed: int) -> None:
        teacher_facts = self.teacher_config(fold).model_dump(mode="json")
        teacher = self._task("teacher", f"teacher-{fold}", teacher_facts, fold, 0, "", ())
        needs: tuple[str, ...] = (teacher.key,)
        facts: dict[str, Any] = {"teacher": teacher.key}
        if not method.control:
            maker = method.bank_of or name
            bank_seed = seed if self.protocol.bank_seeds == "each" else self.protocol.seeds[0]
            bank_facts = facts | {"bank": _what_counts(self._journeys[maker].bank)}
            place = f"bank-{maker}-{fold}-{bank_seed}"
            bank = self._task("bank", place, bank_facts, fold, bank_seed, maker, needs)
            needs = (*needs, bank.key)
        made = self._journeys[name]
        counts = (
            _what_a_control_counts(method, made.bank) if method.control else _what_counts(made.bank)
        )
        journey = made.model_dump(mode="json") | {"seed": seed, "bank": counts}
        told = {"control", "unrelated", "mels"}
        facts |= {"needs": needs, "journey": journey, "method": method.model_dump(include=told)}
        facts["data"] = self.protocol.data
        self._task("student", f"{name}-{fold}-{seed}", facts, fold, seed, name, needs)

    def _task(
        self,
        kind: Literal["teacher", "bank", "student"],
        place: str,
        facts: dict[str, Any],
        fold: str,
        seed: int,
        method: str,
        needs: tuple[str, ...],
    ) -> Task:
        digest = hashlib.sha256(json_text(facts, indent=None).encode()).hexdigest()[:10]
        key = f"{place}-{digest}"
        return self.tasks.setdefault(key, Task(kind, key, fold, seed, method, needs))


def load_protocol(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Protocol:
    """Read a protocol: a YAML file, or a preset such as `protocols/esc10-cpu`.

    Raises:
        ConfigError: With every mistake.
    """
    return load_config(Protocol, name_or_path, list(overrides))


def _what_counts(bank: BankConfig) -> dict[str, Any]:
    """The config of a bank without the sections of sources that it does not have.

    A new source with new keys, or another default of one, must not make the results of all others
    look out of date.
    """
    facts = bank.model_dump(mode="json")
    shares = facts["sources"] = bank.shares
    others = facts.pop("baselines", {})
    named = {name: section for name, section in others.items() if name in shares}
    if "inversion" not in shares:
        facts["inversion"] = {key: facts["inversion"][key] for key in BUDGET}
    if not {"translator", "procedural"} & set(shares):
        facts.pop("procedural_clips")
    if "translator" not in shares:
        facts.pop("translator")
    if not {"smooth_noise", "white_noise"} & set(shares):
        facts.pop("control_clips")
    return facts | ({"baselines": named} if named else {})


def _what_a_control_counts(method: Method, bank: BankConfig) -> dict[str, Any]:
    """What a control, which has no bank, takes of the bank's config: how long, and how many."""
    clips = CLIPS_OF.get(method.control or "")
    return {"frames": bank.frames} | ({"clips": getattr(bank, clips)} if clips else {})


def _overrides(changes: dict[str, Any]) -> list[str]:
    return [f"{key}={json_text(value, indent=None)}" for key, value in changes.items()]
