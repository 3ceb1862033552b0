"""What is in the wheels, what is not, and that they find their own files where no checkout is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = ("pyproject.toml", "export/pyproject.toml", "runtime/pyproject.toml")
REQUIRES = {
    "frami_edge": ">=3.11",
    "frami_edge_export": ">=3.10",
    "frami_edge_runtime": ">=3.10",
}
COMMANDS = {
    "frami_edge": "[console_scripts]\nframi-edge = frami_edge.cli:main",
    "frami_edge_runtime": ("[console_scripts]\nframi-edge-listen = frami_edge_runtime.listen:main"),
}
KINDS = {".py", ".typed", ".yaml", ".md", ".safetensors"}
HOSTS = {  # all that a wheel may name: licences, data sets and an example
    "github.com",
    "mirror.example",
    "reproducible-builds.org",
    "urbansounddataset.weebly.com",
    "www.apache.org",
}
NO_PLACE = re.compile(r"(^|/)(tests?|__pycache__|benchmarks|runs|\.[^/]*)(/|$)|test_[^/]*$|\.pyc$")


def package_files(distribution: Any) -> dict[str, bytes]:
    return {n: data for n, data in distribution.members.items() if ".dist-info/" not in n}


def test_the_package_whole_and_nothing_else(distribution: Any) -> None:
    files = package_files(distribution)
    assert {name.partition("/")[0] for name in files} == {distribution.package}
    assert {PurePosixPath(name).suffix for name in files} <= KINDS
    assert not [name for name in files if NO_PLACE.search(name)]
    source = distribution.folder / distribution.package
    wanted = {path.relative_to(distribution.folder).as_posix() for path in source.rglob("*.py")}
    assert {name for name in files if name.endswith(".py")} == wanted
    assert f"{distribution.package}/py.typed" in files


def test_presets_teacher_and_its_card_are_inside(distributions: dict[str, Any]) -> None:
    files = package_files(distributions["frami_edge"])
    for path in (ROOT / "configs").rglob("*.yaml"):
        inside = files[f"frami_edge/configs/{path.relative_to(ROOT / 'configs').as_posix()}"]
        assert inside == path.read_bytes()
    for name in ("digits-teacher.safetensors", "digits-teacher.md"):
        assert (
            files[f"frami_edge/assets/{name}"] == (ROOT / "frami_edge/assets" / name).read_bytes()
        )
    weights = {name for name in files if name.endswith(".safetensors")}
    assert weights == {"frami_edge/assets/digits-teacher.safetensors"}


def test_it_tells_nothing_of_the_machine_and_names_no_registry(distribution: Any) -> None:
    for name, data in distribution.members.items():
        assert str(ROOT).encode() not in data, name
        for url in re.findall(rb"https?://[^\s<>\"')\]]+", data):
            host = urlsplit(url.decode()).hostname
            assert host in HOSTS or name.endswith("/METADATA"), f"{name} names {host}"


def test_metadata(distribution: Any) -> None:
    about, package = distribution.metadata, distribution.package
    assert about["Name"] == package.replace("_", "-")
    assert about["Requires-Python"] == REQUIRES[package]
    assert about["License-Expression"].startswith("Apache-2.0")
    assert any(name.endswith("/licenses/LICENSE") for name in distribution.members)
    commands = [d.decode().strip() for n, d in distribution.members.items() if "entry_p" in n]
    assert commands == ([COMMANDS[package]] if package in COMMANDS else [])


def test_the_three_have_one_version_and_ask_for_it(distributions: dict[str, Any]) -> None:
    versions = {d.metadata["Version"] for d in distributions.values()}
    assert len(versions) == 1
    for distribution in distributions.values():
        for text in distribution.metadata.get_all("Requires-Dist"):
            needed = Requirement(text)
            if needed.name.startswith("frami-edge-") and not needed.marker:
                assert str(needed.specifier) == f"=={next(iter(versions))}"


def test_the_teachers_licence_is_named(distributions: dict[str, Any]) -> None:
    trainer = distributions["frami_edge"]
    assert trainer.metadata["License-Expression"] == "Apache-2.0 AND CC-BY-SA-4.0"
    (card,) = (
        d
        for n, d in trainer.members.items()
        if n.endswith("licenses/frami_edge/assets/digits-teacher.md")
    )
    assert b"CC BY-SA 4.0" in card


def test_the_long_description_stands_without_the_repository(distribution: Any) -> None:
    about = distribution.metadata
    assert about["Description-Content-Type"] == "text/markdown"
    text = about.get_payload()
    title = (distribution.folder / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert text.startswith(title)
    tokens = [t for block in MarkdownIt().parse(text) for t in block.children or []]
    links = [
        str(t.attrGet("href") or t.attrGet("src"))
        for t in tokens
        if t.type in {"link_open", "image"}
    ]
    assert [link for link in links if not link.startswith("https://")] == []


def test_every_extra_that_a_sentence_names_exists(distributions: dict[str, Any]) -> None:
    extras = {
        d.metadata["Name"]: set(d.metadata.get_all("Provides-Extra") or ())
        for d in distributions.values()
    }
    named = set()
    for distribution in distributions.values():
        for name, data in distribution.members.items():
            if name.endswith((".py", "/METADATA")):
                named |= set(re.findall(rb"(frami-edge(?:-\w+)?)\[(\w+)\]", data))
    assert (b"frami-edge", b"hub") in named
    for name, extra in named:
        assert extra.decode() in extras[name.decode()], f"{name.decode()}[{extra.decode()}]"


def test_the_source_archive_builds_the_same_wheel(distribution: Any) -> None:
    made = {
        re.sub(r"^frami_edge/configs/", "configs/", name) for name in package_files(distribution)
    }
    assert made <= distribution.source_names
    assert not [n for n in distribution.source_names if NO_PLACE.search(n) and n != ".gitignore"]
    assert {"pyproject.toml", "README.md", "LICENSE"} <= distribution.source_names


def test_an_installed_copy_finds_its_presets_and_its_teacher(
    installed: Path, tmp_path: Path
) -> None:
    code = """
import json, sys
import frami_edge, frami_edge_export, frami_edge_runtime
from frami_edge.assets import DIGITS_TEACHER
from frami_edge.config import load_config, presets
from frami_edge.distillation.config import JourneyConfig
from safetensors import safe_open
print(json.dumps({
    "files": [m.__file__ for m in (frami_edge, frami_edge_export, frami_edge_runtime)],
    "presets": {name: str(path) for name, path in presets().items()},
    "steps": load_config(JourneyConfig, "fsdd-student").distill.steps,
    "tensors": len(safe_open(DIGITS_TEACHER, "np").keys()),
    "torch": "torch" in sys.modules,
}))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert all(Path(file).is_relative_to(installed) for file in answer["files"])
    assert all(Path(file).is_relative_to(installed) for file in answer["presets"].values())
    assert {"fsdd-student", "mel/log-mel-16k-64"} <= set(answer["presets"])
    assert answer["steps"] > 0
    assert answer["tensors"] > 0
    assert not answer["torch"], "only for this test's speed: it takes seconds"


def test_constraints_pin_every_direct_dependency_and_name_no_host() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in pins)
    pinned = {Requirement(line).name: Requirement(line) for line in pins}
    for path in PROJECTS:
        project = tomllib.loads((ROOT / path).read_text(encoding="utf-8"))
        groups = project.get("dependency-groups", {})
        for text in (*project["project"]["dependencies"], *(t for g in groups.values() for t in g)):
            needed = Requirement(text)
            name = needed.name.replace("_", "-")
            if not name.startswith("frami-edge"):
                assert pinned[name].specifier.__str__().removeprefix("==") in needed.specifier, name


@pytest.mark.parametrize("path", PROJECTS)
def test_no_project_names_an_index(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not re.search(r"index-url|find-links|https?://(?!arxiv)[^?]", text)
