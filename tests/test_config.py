"""Reading configs: overrides, mistakes, presets."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from frami_edge.config import Strict
from frami_edge.errors import ConfigError
from frami_edge.yaml_config import dump, load_config, parse, presets


class Inversion(Strict):
    kind: Literal["inversion"] = "inversion"
    steps: int = Field(default=100, gt=0)
    """Optimiser steps."""
    learning_rate: float = 1e-3


class Noise(Strict):
    kind: Literal["noise"] = "noise"
    colour: Literal["white", "smooth"] = "white"


class Journey(Strict):
    seed: int
    name: str = "run"
    labels: tuple[str, ...] = ()
    inversion: Inversion = Inversion()
    fallback: Inversion | None = None
    sources: list[Annotated[Inversion | Noise, Field(discriminator="kind")]] = Field(default=[])

    @model_validator(mode="after")
    def _named(self):
        if self.name == "forbidden":
            raise ValueError("name may not be 'forbidden'")
        return self


def write(folder, text):
    path = folder / "journey.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(Journey, path, overrides)
    assert caught.value.fix
    return caught.value.message


def test_overrides_win_in_order_and_make_missing_mappings(tmp_path):
    path = write(tmp_path, "seed: 3\nfallback:\n")
    journey = load_config(
        Journey,
        path,
        ["seed=4", "seed=5", "fallback.steps=9", "labels=[a, b]", "inversion.learning_rate=1e-2"],
    )
    assert journey.seed == 5
    assert journey.fallback == Inversion(steps=9)
    assert journey.labels == ("a", "b")
    assert journey.inversion.learning_rate == 0.01


def test_all_mistakes_are_reported_at_once_with_their_keys(tmp_path):
    path = write(
        tmp_path,
        """
        inversion: {stepz: 5, steps: 0}
        sources:
          - {kind: noise, colour: whit}
          - {kind: inversion, stepz: 2}
        named: x
        """,
    )
    message = mistakes(
        path, "seed", "name.first=x", "inversion.learning_rate=[", "fallback.steps=a"
    )
    assert str(path) in message
    for line in [
        "inversion.stepz: there is no such key; did you mean 'steps'?",
        "inversion.steps: should be greater than 0, not 0",
        "sources.0.colour: should be 'white' or 'smooth', not 'whit'; did you mean 'white'?",
        "sources.1.stepz: there is no such key; did you mean 'steps'?",
        "named: there is no such key; did you mean 'name'?",
        "seed: is required and missing",
        "--set seed: should look like key.key=value",
        "--set inversion.learning_rate=[: the value is not valid YAML: line 1",
        "fallback.steps: should be a valid integer",
    ]:
        assert line in message, message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nseed: 2\n", "line 2: the key 'seed' is given twice"),
        ("- 1\n- 2\n", "[1, 2], not a mapping"),
        ("just words", "'just words', not a mapping"),
        ("seed: [1\n", "not valid YAML: line"),
        ("seed: 2024-13-45\n", "not valid YAML"),
        ("seed: !!python/object/apply:os.system [true]\n", "not valid YAML: line 1"),
        ("seed: \x00", "not valid YAML"),
        ("seed: .nan\n", "seed: should be"),
        ("seed: 1\nlabels: a\n", "labels: should be a list, as [a, b]"),
        ("", "seed: is required and missing"),
        ("seed: 1\nname: forbidden\n", "(the whole file): name may not be 'forbidden'"),
    ],
)
def test_damaged_files_are_one_clear_sentence(tmp_path, text, says):
    assert says in mistakes(write(tmp_path, text))


def test_presets_by_name_and_the_near_one(tmp_path, monkeypatch):
    package = tmp_path / "frami_edge"
    (package / "configs" / "teachers").mkdir(parents=True)
    (package / "configs" / "esc10.yaml").write_text("seed: 10\n")
    (package / "configs" / "teachers" / "fsdd.yaml").write_text("seed: 11\n")
    monkeypatch.setattr("frami_edge.yaml_config.resources.files", lambda _: package)
    assert list(presets()) == ["esc10", "teachers/fsdd"]
    assert load_config(Journey, "esc10").seed == 10
    assert load_config(Journey, "teachers/fsdd", ["seed=1"]).seed == 1
    assert "did you mean 'esc10'?" in mistakes("esc1O")
    with pytest.raises(ConfigError) as caught:
        load_config(Journey, "configs/esc10.yaml")
    assert caught.value.fix == "Use the shipped config by its name: esc10."


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20)


@given(
    st.builds(
        Journey,
        seed=st.integers(),
        name=(
            text | st.sampled_from(["1e-3", "no", "2024-01-01", "null", "0x1", "1:30", ""])
        ).filter(lambda name: name != "forbidden"),
        labels=st.lists(text, max_size=3).map(tuple),
        inversion=st.builds(
            Inversion,
            steps=st.integers(1, 10**9),
            learning_rate=st.floats(allow_nan=False, allow_infinity=False),
        ),
        sources=st.lists(st.builds(Noise) | st.builds(Inversion), max_size=2),
    )
)
def test_a_dumped_config_reads_back_equal(journey):
    data = parse(dump(journey.model_dump(mode="json")))
    assert Journey.model_validate(data) == journey
