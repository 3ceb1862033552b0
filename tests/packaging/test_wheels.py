"""The three wheels as users get them: contents, metadata, and a runtime that needs no trainer."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "frami_edge": ROOT,
    "frami_edge_export": ROOT / "export",
    "frami_edge_runtime": ROOT / "runtime",
}
KINDS = {".py", ".typed", ".yaml", ".md", ".safetensors", ".html", ".js"}
NOT_SHIPPED = re.compile(r"(^|/)(tests?|__pycache__|benchmarks|experiments|runs|\.[^/]*)(/|$)")
COMMANDS = {
    "frami_edge": "frami-edge = frami_edge.cli:main",
    "frami_edge_runtime": "frami-edge-listen = frami_edge_runtime.listen:main",
}
every_wheel = pytest.mark.parametrize("package", FOLDERS)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Built without a network, by the name that is imported."""
    for module in ("hatchling", "hatch_fancy_pypi_readme"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"building the wheels needs {module}: make setup brings it")
    out = tmp_path_factory.mktemp("dist")
    found = {}
    for package, folder in FOLDERS.items():
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        (found[package],) = out.glob(f"{package}-*.whl")
    return found


def members(wheel):
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def metadata(wheel):
    (text,) = (data for name, data in members(wheel).items() if name.endswith("/METADATA"))
    return Parser().parsestr(text.decode())


@every_wheel
def test_the_whole_package_and_nothing_else(wheels, package):
    files = {n: data for n, data in members(wheels[package]).items() if ".dist-info/" not in n}
    assert {name.partition("/")[0] for name in files} == {package}
    assert {PurePosixPath(name).suffix for name in files} <= KINDS
    assert [name for name in files if NOT_SHIPPED.search(name)] == []
    source = FOLDERS[package]
    wanted = {path.relative_to(source).as_posix() for path in (source / package).rglob("*.py")}
    assert {name for name in files if name.endswith(".py")} == wanted
    assert f"{package}/py.typed" in files
    for name, data in files.items():
        assert str(ROOT).encode() not in data, f"{name} names a path of this machine"


def test_presets_the_page_and_the_embedded_teacher_are_inside(wheels):
    page = members(wheels["frami_edge_export"])
    assert {"frami_edge_export/page/index.html", "frami_edge_export/page/page.js"} <= set(page)
    files = members(wheels["frami_edge"])
    for path in (ROOT / "configs").rglob("*.yaml"):
        inside = f"frami_edge/configs/{path.relative_to(ROOT / 'configs').as_posix()}"
        assert files[inside] == path.read_bytes()
    for path in (ROOT / "frami_edge/assets").iterdir():
        if path.suffix in KINDS - {".py"}:
            assert files[f"frami_edge/assets/{path.name}"] == path.read_bytes()
    licence = next(
        d for n, d in files.items() if n.endswith("licenses/frami_edge/assets/digits-teacher.md")
    )
    assert b"CC BY-SA 4.0" in licence


@every_wheel
def test_metadata(wheels, package):
    about, files = metadata(wheels[package]), members(wheels[package])
    versions = {metadata(wheel)["Version"] for wheel in wheels.values()}
    assert len(versions) == 1, "one version for all three"
    assert about["Requires-Python"] == (">=3.11" if package == "frami_edge" else ">=3.10")
    assert about["License-Expression"].startswith("Apache-2.0")
    assert about["Project-URL"]
    assert about["Author"]
    assert any(name.endswith("/licenses/LICENSE") for name in files)
    commands = b"".join(d for n, d in files.items() if n.endswith("/entry_points.txt")).decode()
    assert COMMANDS.get(package, "") in commands
    for needed in map(Requirement, about.get_all("Requires-Dist") or ()):
        if needed.name.startswith("frami-edge-") and not needed.marker:
            assert str(needed.specifier) == f"=={about['Version']}"
    links = re.findall(r"\]\(([^)]*)\)", str(about.get_payload()))
    assert [link for link in links if not link.startswith("https://")] == [], "no repository there"


RUNTIME_ALONE = """
import pkgutil, sys, importlib, frami_edge_runtime as r
assert r.__file__.startswith(sys.argv[1]), r.__file__
sys.modules |= dict.fromkeys(('torch', 'frami_edge', 'frami_edge_export', 'onnx'))
for module in pkgutil.iter_modules(r.__path__, r.__name__ + '.'):
    importlib.import_module(module.name)
"""
PRESETS = """
import sys
from frami_edge.yaml_config import presets
paths = presets()
assert 'fsdd-student' in paths and 'mel/log-mel-16k-64' in paths, paths
assert all(str(p).startswith(sys.argv[1]) for p in paths.values()), paths
"""


@pytest.mark.parametrize(
    ("packages", "code"), [(["frami_edge_runtime"], RUNTIME_ALONE), (list(FOLDERS), PRESETS)]
)
def test_installed_copies_are_complete(wheels, tmp_path, packages, code):
    for package in packages:
        with zipfile.ZipFile(wheels[package]) as opened:
            opened.extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_constraints_pin_every_direct_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {Requirement(x).name: Requirement(x) for x in lines if not x.startswith("#")}
    for folder in FOLDERS.values():
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        groups = project.get("dependency-groups", {}).values()
        for text in (*project["project"]["dependencies"], *(t for group in groups for t in group)):
            needed = Requirement(text)
            name = needed.name.replace("_", "-")
            if not name.startswith("frami-edge"):
                pinned = str(pins[name].specifier).removeprefix("==")
                assert pinned in needed.specifier, f"{name}: {pinned} is not in {needed}"
