"""CITATION.cff names the paper, our version, and every data set with the catalogue's licence."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from docs_pages import ROOT

from frami_edge import __version__
from frami_edge.data.sets import set_info


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return found


def test_the_paper_and_our_version(citation: dict[str, Any]) -> None:
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert (paper["year"], paper["conference"]["name"]) == (2023, "ICASSP 2023")
    assert {"cff-version", "title", "message", "authors"} <= set(citation)


@pytest.mark.parametrize("name", ["fsdd", "esc50", "urbansound8k", "audiomnist"])
def test_data_sets_have_the_catalogues_licence(citation: dict[str, Any], name: str) -> None:
    info = set_info(name)
    (found,) = (r for r in citation["references"] if info.source.split("//")[-1] in r["url"])
    assert found["license"].replace("-", " ") == info.licence.replace("-", " ")


def test_esc10_differs(citation: dict[str, Any]) -> None:
    esc = next(r for r in citation["references"] if "ESC-10" in r["title"])
    assert f"the ESC-10 subset {set_info('esc10').licence}" in esc["notes"]
