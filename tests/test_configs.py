"""Every shipped config is valid, complete and explained."""

import re

import pytest

from frami_edge.config import JourneyConfig, TeacherConfig
from frami_edge.data.sets import KNOWN_SETS
from frami_edge.yaml_config import load_config, parse, presets, read_mapping
from frami_edge_runtime.melspec import MelSpec

MODELS = {"-teacher": TeacherConfig, "-student": JourneyConfig}


@pytest.mark.parametrize("name", presets())
def test_it_is_valid_by_its_name(name):
    if name.startswith("mel/"):
        spec = MelSpec.from_dict(read_mapping(name)[1])
        assert f"-{spec.sample_rate // 1000}k-{spec.n_mels}" in name
    else:
        assert name.endswith(tuple(MODELS)), "call it NAME-teacher.yaml or NAME-student.yaml"
        model = next(model for suffix, model in MODELS.items() if name.endswith(suffix))
        assert load_config(model, name) == load_config(model, presets()[name])


@pytest.mark.parametrize("name", [name for name in presets() if name.endswith("-teacher")])
def test_a_teacher_has_an_official_fold_and_every_key_explained(name):
    config, text = load_config(TeacherConfig, name), presets()[name].read_text()
    info = next(info for info in KNOWN_SETS if info.name == config.data.name)
    assert config.data.fold in info.folds
    assert name == f"{info.name}-teacher"
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
