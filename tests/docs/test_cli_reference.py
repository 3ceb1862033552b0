"""docs/CLI.md is what the program says of itself, and pages use options that exist."""

from __future__ import annotations

import re
from functools import cache

import pytest
from docs_pages import ROOT, SHELL, blocks, commands
from typer.main import get_command

from frami_edge.cli import app
from frami_edge.cli.reference import reference
from frami_edge_runtime.listen import make_parser as listen_parser

PAGES = [
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "runtime/README.md", ROOT / "export/README.md",
    )
]  # fmt: skip


def test_the_reference_is_fresh() -> None:
    page = (ROOT / "docs/CLI.md").read_text(encoding="utf-8")
    assert page == reference(), "python -m frami_edge.cli.reference > docs/CLI.md"


@cache
def options_of(name: str) -> frozenset[str]:
    if name == "listen":
        return frozenset(listen_parser()._option_string_actions)
    command = get_command(app).get_command(None, name)
    assert command is not None, f"there is no command {name}"
    params = [*command.params, *(p for c in getattr(command, "commands", {}).values()
                                 for p in c.params)]  # fmt: skip
    names = {n for p in params if p.param_type_name == "option" for n in p.opts}
    return frozenset(names | {"--help", "-h"})


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    """Also in blocks that are not run here, and in text."""
    listen = set(listen_parser()._option_string_actions)
    for block in blocks(page):
        if block.language not in (*SHELL, "console", "text"):
            continue
        for words in commands(block):
            given = {w.partition("=")[0] for w in words[1:] if re.match(r"--?[a-z]", w)}
            if words[0] == "frami-edge-listen":
                assert given <= listen, f"{page}:{block.line}"
            elif words[1] == "--version":
                continue
            else:
                assert given <= options_of(words[1]), f"{page}:{block.line}: {words}"
    text = (ROOT / page).read_text(encoding="utf-8")
    for code in re.findall(r"`frami-edge ([a-z][a-z-]*)((?: [^`]*)?)`", text):
        given = set(re.findall(r"(?<= )--[a-z][a-z0-9-]*", code[1]))
        assert given <= options_of(code[0]), f"{page}: frami-edge {code[0]}{code[1]}"
