"""docs/ARCHITECTURE.md, and what other pages say of the tree: every place that they name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from docs_pages import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/CPP.md", "docs/MY_DATA.md")
_PLACE = re.compile(
    r"`((?:frami_edge|export|runtime|configs|tests|docs|examples|benchmarks)/[\w./-]*)`"
)
_LINK = re.compile(r"\]\(([^)#\s]+)?(#[^)\s]+)?\)")
PACKAGES = {
    "runtime/frami_edge_runtime": {"frami_edge_runtime"},
    "export/frami_edge_export": {"frami_edge_runtime", "frami_edge_export"},
    "frami_edge": {"frami_edge_runtime", "frami_edge_export", "frami_edge"},
}


def markdown() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [*found, ROOT / "runtime" / "README.md", ROOT / "export" / "README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_places_exist(page: str) -> None:
    named = _PLACE.findall((ROOT / page).read_text(encoding="utf-8"))
    made_by_the_reader = re.compile(r"/(NAME|cosine)\.py$")
    missing = [p for p in named if not (ROOT / p).exists() and not made_by_the_reader.search(p)]
    assert not missing


def test_every_room_of_the_packages_is_on_the_page() -> None:
    page = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = [p.parent.relative_to(ROOT) for p in (ROOT / "frami_edge").glob("*/__init__.py")]
    assert len(rooms) >= 10
    assert [str(room) for room in rooms if f"{room}/" not in page] == []


def test_the_contracts_are_where_the_page_says() -> None:
    page = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    table = page.partition("## Contracts")[2].partition("##")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|.*\| `([\w/.]+)` \|$", table, re.MULTILINE)
    assert len(rows) == 7
    for names, path in rows:
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert f"class {name}" in text, (name, path)


@pytest.mark.parametrize(("package", "allowed"), PACKAGES.items())
def test_dependence_has_one_direction(package: str, allowed: set[str]) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            else:
                continue
            ours = {m.partition(".")[0] for m in modules if m.startswith("frami_edge")}
            assert ours <= allowed, (path, ours)


@pytest.mark.parametrize("page", markdown(), ids=lambda path: path.name + path.parent.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in _LINK.findall(text):
        if target.startswith(("http:", "https:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor[1:] in anchors(file), f"{page.name}: {target}{anchor}"


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            title = line.lstrip("#").strip().lower()
            found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found
