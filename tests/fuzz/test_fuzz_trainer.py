"""The short form of `benchmarks/fuzz.py`, and the proof that it would see what it looks for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frami_edge import config as _yaml
from frami_edge.data.sets import decode
from frami_edge.errors import UnusableClipError

DEAR = {"class-names": 4, "arguments": 6, "onnx-command": 4, "dataset": 3, "metadata": 2}
"""Cases of the kinds that take long."""


def test_bad_input_is_refused_or_answered_right(fuzz: Any, sandbox: Any) -> None:
    counts = {"accepted": 0, "refused": 0}
    for kind in fuzz.SHARES:
        for number in range(DEAR.get(kind, 8)):
            outcome, said = fuzz.run_case(kind, number, 77, sandbox)
            sandbox.close(sandbox.last)
            assert outcome in counts, (kind, number, said)
            counts[outcome] += 1
    assert min(counts.values()) > 20, counts


def _planted(fuzz: Any, sandbox: Any, monkeypatch: pytest.MonkeyPatch, case: Any) -> str:
    monkeypatch.setattr(fuzz, "functions", lambda: {"planted": case})
    outcome: str = fuzz.run_case("planted", 0, 0, sandbox)[0]
    sandbox.close(sandbox.last)
    return outcome


def test_the_fuzzer_sees_what_it_looks_for(
    fuzz: Any, sandbox: Any, material: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from frami_edge.errors import DataError

    def traceback(rng: Any, case: Any) -> None:
        raise KeyError("labels")

    def escape(rng: Any, case: Any) -> None:
        (sandbox.root / "RAN").write_text("x")

    def changed(rng: Any, case: Any) -> None:
        material.config.write_text(material.config.read_text() + "\n")

    def left(rng: Any, case: Any) -> None:
        (case.folder / ".0123abcd.tmp.x.json").write_text("{")

    def half(rng: Any, case: Any) -> None:
        case.write("out/bank.json", "{")

    def no_fix(rng: Any, case: Any) -> None:
        raise DataError("It is damaged.")

    def memory(rng: Any, case: Any) -> None:
        raise MemoryError

    def fine(rng: Any, case: Any) -> None:
        case.write("out/bank.json", "{}")

    found = {c.__name__: _planted(fuzz, sandbox, monkeypatch, c)
             for c in (traceback, escape, changed, left, half, no_fix, memory, fine)}  # fmt: skip
    assert found.pop("traceback") == "traceback"
    assert found.pop("fine") == "accepted"
    assert set(found.values()) == {"wrong"}, found


def test_a_payload_would_run_where_pickles_are_read(fuzz: Any, tmp_path: Path) -> None:
    import pickle

    payload = importlib.import_module("fuzzing.weights").Payload(tmp_path / "RAN", 0)
    pickle.loads(pickle.dumps(payload))
    assert (tmp_path / "RAN").exists()


def test_the_table_counts_every_case(fuzz: Any) -> None:
    rows = [fuzz.new_row("wav") | {"cases": 3, "accepted": 1, "refused": 2},
            fuzz.new_row("bank") | {"cases": 2, "hang": 2}]  # fmt: skip
    lines = fuzz.table(rows).splitlines()
    assert lines[2].startswith("| wav | 3 | 1 | 2 | 0 |")
    assert lines[-1].startswith("| **all** | 5 | 1 | 2 | 0 | 0 | 2 |")
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("kind", ["flac", "ogg"])
def test_sound_under_a_checksum_is_the_same_or_refused(fuzz: Any, material: Any, kind: str) -> None:
    data = importlib.import_module("fuzzing.material").audio(material.clip[:4000], kind)
    intact = decode(data)[0].tolist()

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(at=st.integers(0, len(data) - 1), bit=st.integers(0, 7))
    def check(at: int, bit: int) -> None:
        bad = bytearray(data)
        bad[at] ^= 1 << bit
        try:
            samples, rate = decode(bytes(bad))
        except UnusableClipError:
            return
        assert rate != 8000 or samples.tolist() == intact

    check()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=" \n:-[]{}&*!?|>'\"#%@`,abc019.~<=\t", max_size=60))
def test_any_text_is_yaml_or_refused_in_one_line(text: str) -> None:
    found: Any = None
    said = ""
    try:
        found = _yaml.parse(text)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
    assert said or _yaml.parse(_yaml.dump(found)) == found
