"""Every shipped config is valid, complete and explained."""

import re

import pytest

from frami_edge.config import JourneyConfig, TeacherConfig
from frami_edge.data.sets import KNOWN_SETS
from frami_edge.yaml_config import load_config, parse, presets, read_mapping
from frami_edge_runtime.melspec import MelSpec

MODELS = {"-teacher": TeacherConfig, "-student": JourneyConfig}
FRONT_ENDS = [name for name in presets() if name.startswith("mel/")]
SHIPPED = {n: path for n, path in presets().items() if n not in FRONT_ENDS}
TEACHERS = [name for name in SHIPPED if name.endswith("-teacher")]


def model_of(name):
    return next(model for suffix, model in MODELS.items() if name.endswith(suffix))


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_valid_by_its_name(name):
    assert name.endswith(tuple(MODELS)), "call it NAME-teacher.yaml or NAME-student.yaml"
    assert load_config(model_of(name), name) == load_config(model_of(name), SHIPPED[name])


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_it_is_a_front_end(name):
    spec = MelSpec.from_dict(read_mapping(name)[1])
    assert f"-{spec.sample_rate // 1000}k-{spec.n_mels}" in name


@pytest.mark.parametrize("name", TEACHERS)
def test_the_set_and_the_fold_exist(name):
    config = load_config(TeacherConfig, name)
    info = next(info for info in KNOWN_SETS if info.name == config.data.name)
    assert config.data.fold in info.folds
    assert name == f"{info.name}-teacher"


@pytest.mark.parametrize("name", TEACHERS)
def test_every_key_is_there_and_explained(name):
    text = SHIPPED[name].read_text()
    config = load_config(TeacherConfig, name)
    assert parse(text).keys() == config.model_dump().keys()
    for section, value in config.model_dump().items():
        if isinstance(value, dict):
            assert parse(text)[section].keys() == value.keys(), section
    bare = [
        line
        for line in text.splitlines()
        if re.match(r"\s*\w+: *\S", line) and not re.search(r" # \S", line)
    ]
    assert bare == []
