"""Installed packages against what this project's own metadata asks for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.machine import Machine

OURS: Final = ("frami-edge", "frami-edge-export", "frami-edge-runtime")
_FIRST: Final = "frami-edge"


def requirements(start: str = _FIRST) -> dict[str, Requirement]:
    """What the project asks for on this platform, by canonical name; ours are followed.

    The extras that one of our packages asks of another are part of it. A package that is asked for
    twice must satisfy both.
    """
    wanted: dict[str, Requirement] = {}
    for requirement in _walk(start, frozenset(), set()):
        name = canonicalize_name(requirement.name)
        if name in wanted:
            wanted[name].specifier &= requirement.specifier
        else:
            wanted[name] = requirement
    return wanted


def command(requirement: Requirement) -> str:
    """A requirement as pip takes it on a command line: ``'torch<2.15,>=2.11'``."""
    return f"'{requirement.name}{requirement.specifier}'"


def packages(machine: Machine) -> list[Check]:
    """A line for each package that is missing or out of its range, or one for all."""
    lines: list[Check] = []
    wanted = requirements()
    if not wanted:
        fix = "pip install -e ./runtime -e ./export -e . (in a checkout: make setup)"
        return [Check("packages", "fail", "frami-edge is not installed as a package", fix,
                      needed=True)]  # fmt: skip
    for name, requirement in wanted.items():
        found = machine.version(name)
        if found is not None and _fits(found, requirement):
            continue
        fix = f"pip install {command(requirement)}"
        text = "not installed" if found is None else f"{found}, needs {requirement.specifier}"
        lines.append(Check(requirement.name, "fail", text, fix, needed=True))
    good = len(wanted) - len(lines)
    if good:
        text = f"{good} of {len(wanted)} required packages are in their tested ranges"
        lines.insert(0, Check("packages", "ok", text, needed=True))
    versions = {name: machine.version(name) for name in OURS}
    if len(set(versions.values())) > 1:
        shown = ", ".join(f"{name} {version}" for name, version in versions.items())
        fix = "pip install --upgrade frami-edge frami-edge-export frami-edge-runtime"
        lines.append(Check("one version", "fail", shown, fix, needed=True))
    return lines


def _walk(
    name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]
) -> Iterator[Requirement]:
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    try:
        texts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        if marker is not None and not any(
            marker.evaluate({"extra": extra}) for extra in (*extras, "")
        ):
            continue
        if canonicalize_name(requirement.name) in OURS:
            yield from _walk(requirement.name, frozenset(requirement.extras), seen)
        else:
            yield requirement


def _fits(version: str, requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
