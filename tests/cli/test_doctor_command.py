"""`frami-edge doctor`: the runtime's checks, and what training adds."""

import json

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import frami_edge.doctor
from frami_edge.cli import app
from frami_edge.data.clips import FORMATS
from frami_edge.data.sets import load_set
from frami_edge.data.store import load_features
from frami_edge.doctor import check_formats, check_sets, check_torch
from frami_edge_runtime import doctor
from frami_edge_runtime.doctor import Check
from frami_edge_runtime.melspec import MelSpec

MISMATCH = "RuntimeError: PyTorch has CUDA version 13.2 whereas TorchAudio has CUDA version 13.0."


def test_text_json_and_exit_code(monkeypatch):
    checks = [Check("microphone", "ok", "[red]USB[/red]")]
    monkeypatch.setattr(frami_edge.doctor, "examine", lambda places, root: checks)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "[red]USB[/red]" in done.stdout  # names of devices are not markup
    assert "Ready for training." in done.stderr
    checks.append(Check("torchaudio", "fail", "another CUDA", "pip install x", needed=True))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 3
    assert "fix: pip install x" in done.stdout
    assert "Not ready for training: torchaudio." in done.stderr
    done = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(done.stdout)
    assert (done.exit_code, report["ready"], len(report["checks"])) == (3, False, 2)


def test_what_the_doctor_calls_decodable_is_decoded(tmp_path, monkeypatch):
    """As a clip of a folder; other audio files are clips that are named and left out."""
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    check, folder = check_formats(), tmp_path / "clips" / "tone"
    folder.mkdir(parents=True)
    suffixes = check.found.partition(" decodes ")[2].split(", ")
    assert {"wav", "opus", "mp3", "aiff"} <= set(suffixes)
    samples = 0.3 * np.sin(np.arange(16_000) * 0.1)
    formats = {suffix: name for name, names in FORMATS.items() for suffix in names.split()}
    for suffix in suffixes:
        how = {"subtype": "OPUS"} if suffix == "opus" else {}
        soundfile.write(folder / f"a.{suffix}", samples, 16_000, format=formats[suffix], **how)
    (folder / "b.m4a").write_bytes(b"\0\0\0 ftypM4A " * 40)
    found = load_features(MelSpec(), load_set(f"folder:{folder.parent}").clips)
    assert sorted(clip.path.suffix[1:] for clip in found.clips) == sorted(suffixes)
    (left_out,) = found.rejected
    assert left_out.name == "tone/b.m4a"
    assert "convert it" in left_out.reason
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "FLAC": ""})
    assert check_formats().status == "warn"


@pytest.mark.parametrize(
    ("facts", "statuses", "words"),
    [
        ({"torch": "2.14.1", "cuda": "13.0", "torchaudio": "2.11.0"}, ["ok", "ok"], "2.11.0"),
        ({"torch": "2.15.0", "cuda": "13.2", "error": MISMATCH}, ["ok", "fail"], MISMATCH),
        ({"error": "python did not end within 60 s"}, ["fail"], "did not end"),
    ],
)
def test_the_pair_of_torch_and_torchaudio(monkeypatch, facts, statuses, words):
    monkeypatch.setattr(doctor, "probe", lambda code, limit_s: facts)
    checks = check_torch()
    assert [check.status for check in checks] == statuses
    assert words in checks[-1].found
    assert all("--force-reinstall 'torch<" in c.fix for c in checks if c.status == "fail")


def test_data_sets(monkeypatch, tmp_path):
    monkeypatch.delenv("FRAMI_EDGE_DATA", raising=False)
    assert [check.status for check in check_sets()] == ["absent"]
    recordings = tmp_path / "free-spoken-digit-dataset" / "recordings"
    recordings.mkdir(parents=True)
    (recordings / "0_george_0.wav").write_bytes(b"RIFF")
    checks = {check.name: check for check in check_sets(tmp_path)}
    assert (checks["fsdd"].status, checks["esc50"].status) == ("warn", "absent")
    assert all(check.fix for check in checks.values())
