"""A machine that is made up: files below a root, commands and child processes that answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from frami_edge_runtime.doctor import Answer, Check, Machine

MakeMachine = Callable[..., Machine]
ORIN = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
R36_4_3 = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n"
)


@pytest.fixture
def machine(tmp_path: Path) -> MakeMachine:
    """`machine(files=..., commands=..., asks=..., versions=...)`; nothing else is there."""

    def make(
        *,
        files: Mapping[str, str] | None = None,
        commands: Mapping[str, str | Answer] | None = None,
        asks: Mapping[str, dict[str, Any] | Answer] | None = None,
        versions: Mapping[str, str] | None = None,
        **others: Any,
    ) -> Machine:
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        for name, text in (files or {}).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def run(command: Sequence[str], limit_s: float) -> Answer:
            assert 0 < limit_s <= 70
            if command[0] == sys.executable:
                missing = {"error": "ModuleNotFoundError", "message": "No module named 'it'"}
                told = (asks or {}).get(command[-1], missing)
                if isinstance(told, Answer):
                    return told
                return Answer(0, f"noise of a library\nframi-doctor: {json.dumps(told)}\n")
            said = (commands or {}).get(command[0])
            if said is None:
                return Answer(None, trouble=f"{command[0]}: not found")
            return said if isinstance(said, Answer) else Answer(0, said)

        settings = {"environ": {}, "arch": "x86_64", "run": run, **others}
        return Machine(root=root, versions=({} if versions is None else versions).get, **settings)

    return make


@pytest.fixture
def by_name() -> Callable[[Sequence[Check]], dict[str, Check]]:
    """Lines by their names, which must differ; whatever is wrong must name its fix."""

    def index(checks: Sequence[Check]) -> dict[str, Check]:
        found = {check.name: check for check in checks}
        assert len(found) == len(checks)
        assert all(check.fix for check in checks if check.status in ("warn", "fail"))
        return found

    return index


@pytest.fixture
def jetson_files() -> dict[str, str]:
    return {"etc/nv_tegra_release": R36_4_3, "proc/device-tree/model": ORIN}
