"""Links, places and options that the pages name exist, and the packages keep their direction."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from frami_edge.cli import app
from frami_edge_runtime.listen import make_parser as listen_parser

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name / "README.md" for name in ("runtime", "export")),
]
PACKAGES = {
    "runtime/frami_edge_runtime": {"frami_edge_runtime"},
    "export/frami_edge_export": {"frami_edge_runtime", "frami_edge_export"},
    "frami_edge": {"frami_edge_runtime", "frami_edge_export", "frami_edge"},
}
_PLACE = re.compile(
    r"`((?:frami_edge|export|runtime|configs|tests|docs|examples|experiments|benchmarks)/[\w./-]+)`"
)
_COMMAND = re.compile(r"(?:^|`|[$|] )(frami-edge(?:-listen)?)(?: ([a-z-]+))?((?: [^`\n|]*)?)", re.M)
a_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@a_page
def test_links_and_places_exist(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]+)?(#[^)\s]+)?\)", text):
        if target.startswith(("http:", "https:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8").lower(), re.M)
            anchors = [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles]
            assert anchor[1:] in anchors, target + anchor
    if page.name != "LOG.md" and page.parent.name != "results":  # records may name what is gone
        named = [place for place in _PLACE.findall(text) if "NAME" not in place]
        assert [place for place in named if not (ROOT / place).exists()] == []


@cache
def options_of(program, command):
    """Every option of a command, and of its subcommands."""
    if program == "frami-edge-listen" or command == "listen":
        return set(listen_parser()._option_string_actions)
    found = get_command(app).get_command(None, command)
    assert found is not None, f"there is no command {command}"
    params = [
        *found.params,
        *(p for c in getattr(found, "commands", {}).values() for p in c.params),
    ]
    return {"--help", *(name for p in params for name in (*p.opts, *p.secondary_opts))}


@a_page
def test_commands_and_options_exist(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for program, command, rest in _COMMAND.findall(text):
        options = set(re.findall(r"(?<= )--[a-z][a-z0-9-]*", rest))
        if options:
            assert options <= options_of(program, command), f"{program} {command}{rest}"


def test_the_reference_is_fresh():
    page = (ROOT / "docs/CLI.md").read_text(encoding="utf-8")
    made = subprocess.run([sys.executable, ROOT / "docs/reference.py"], capture_output=True)
    assert page == made.stdout.decode(), "python docs/reference.py > docs/CLI.md"


@pytest.mark.parametrize(("package", "allowed"), PACKAGES.items())
def test_dependence_has_one_direction(package, allowed):
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = (
                [getattr(node, "module", None) or ""] if isinstance(node, ast.ImportFrom) else []
            )
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            ours = {m.partition(".")[0] for m in modules if m.startswith("frami_edge")}
            assert ours <= allowed, (path, ours)
            below = path.parent.name != "cli" and path.name != "__main__.py"
            assert not (below and any(m.startswith("frami_edge.cli") for m in modules)), path
