"""The three wheels and source archives, built once, without a network."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "frami_edge": ROOT,
    "frami_edge_export": ROOT / "export",
    "frami_edge_runtime": ROOT / "runtime",
}


@dataclass(frozen=True)
class Distribution:
    """One package as users get it."""

    package: str
    folder: Path
    """Where its pyproject.toml lies."""
    wheel: Path
    members: dict[str, bytes]
    """Name within the wheel -> content."""
    source_names: frozenset[str]
    """Names within the source archive, without its own folder."""

    @property
    def metadata(self) -> Message:
        """Of the wheel."""
        (name,) = (name for name in self.members if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(self.members[name].decode())


def build(package: str, folder: Path, out: Path) -> Distribution:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel"]
    run = subprocess.run(
        [*command, "-d", str(out)], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    (wheel,), (archive,) = out.glob(f"{package}-*.whl"), out.glob(f"{package}-*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    with tarfile.open(archive) as tar:
        names = frozenset(name.partition("/")[2] for name in tar.getnames())
    return Distribution(package, folder, wheel, members, names)


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Distribution]:
    """By the name that is imported."""
    for module in ("hatchling", "hatch_fancy_pypi_readme"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"building the wheels needs {module}: make setup brings it")
    out = tmp_path_factory.mktemp("dist")
    return {package: build(package, folder, out) for package, folder in FOLDERS.items()}


@pytest.fixture(params=list(FOLDERS))
def distribution(
    request: pytest.FixtureRequest, distributions: dict[str, Distribution]
) -> Distribution:
    """Each of the three in turn."""
    return distributions[request.param]


@pytest.fixture(scope="session")
def installed(
    distributions: dict[str, Distribution], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the three wheels unpacked, as pip would put them into site-packages."""
    target = tmp_path_factory.mktemp("site")
    for distribution in distributions.values():
        with zipfile.ZipFile(distribution.wheel) as opened:
            opened.extractall(target)
    return target
