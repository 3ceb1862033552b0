"""Damaged and hostile files are refused with a sentence and its fix, or read soundly."""

import json
import pickle
import struct
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frami_edge.checkpoint import load_checkpoint
from frami_edge.config import TeacherConfig
from frami_edge.errors import CheckpointError, ConfigError, FramiEdgeError
from frami_edge.runs import load_state, save_state
from frami_edge.teachers.opening import read_weights
from frami_edge.yaml_config import load_config
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return fuzz.make_material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("kind", fuzz.OPEN)
def test_damaged_files_are_refused_or_read_soundly(kind, material, tmp_path_factory):
    intact = material[kind].read_bytes()
    outcomes = set()

    @settings(
        max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed):
        data = fuzz.damage(intact, np.random.default_rng(seed))
        outcome = fuzz.run_case(kind, material[kind], data, tmp_path_factory.mktemp("case"))
        assert outcome in ("accepted", "refused")
        outcomes.add(outcome)

    check()
    assert kind in ("state", "manifest") or "refused" in outcomes
    folder = tmp_path_factory.mktemp("intact")
    assert fuzz.run_case(kind, material[kind], intact, folder) == "accepted"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet=" \n:-[]{}&*!?|>'\"#%@`,abc019.~<=\t", max_size=60))
def test_any_text_as_a_config_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(TeacherConfig, tmp_path / "c.yaml")
    assert caught.value.fix


class Payload:
    """Creates a file where a pickle of it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_weights_and_states_does_not_run(tmp_path):
    ran = tmp_path / "RAN"
    for name, reader in (("w.pt", read_weights), ("w.pt", load_checkpoint),
                         ("w.safetensors", load_checkpoint)):  # fmt: skip
        torch.save({"head.weight": Payload(ran)}, tmp_path / name)
        with pytest.raises(FramiEdgeError):
            reader(tmp_path / name)
    save_state(tmp_path / "state", {"step": Payload(ran)})
    assert load_state(tmp_path / "state") is None
    assert not ran.exists()
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.exists(), "the payload itself works"


def test_a_card_that_asks_for_a_huge_network(material, tmp_path):
    data = material["checkpoint"].read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    card = json.loads(header["__metadata__"]["frami.card"])
    card["arch"]["channels"] = [1024] * 500
    header["__metadata__"]["frami.card"] = json.dumps(card)
    text = json.dumps(header).encode()
    (tmp_path / "huge.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + data[8 + size :]
    )
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "huge.safetensors")


@pytest.mark.parametrize("place", ["w.bin", "../w.bin", "/etc/passwd"])
def test_an_onnx_file_with_weights_elsewhere(material, tmp_path, monkeypatch, place):
    import onnx

    monkeypatch.chdir(tmp_path)
    model = onnx.load(material["onnx"])
    tensor = model.graph.initializer[0]
    Path("w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    with pytest.raises(ModelFileError, match="another file"):
        Classifier(model.SerializeToString())
