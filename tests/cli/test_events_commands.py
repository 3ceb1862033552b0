"""`frami-edge evaluate --stream` and `frami-edge tune` on a file of an export."""

import json

import numpy as np
import soundfile

from frami_edge_runtime import Classifier


def test_tuned_to_a_room_the_model_is_quiet_in_it(exported, call, tmp_path):
    model, room = exported / "student.fp32.onnx", tmp_path / "room" / "day.wav"
    room.parent.mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(room, 0.05 * rng.standard_normal(40 * 8000), 8000)
    out = tmp_path / "room.onnx"
    target = ("--false-alarms-per-hour", "10")
    said = json.loads(
        call("tune", model, "--audio", room.parent, "--out", out, *target, "--json").stdout
    )
    assert said["target"] == 10
    assert "background" in said["background"]
    assert len(said["on"]) == len(Classifier(out).labels) == 2
    scores = []
    for file in (model, out):
        found = json.loads(call("evaluate", file, "--stream", room, "--json").stdout)
        scores.append(found["model"]["false_alarms"])
    assert scores[1] <= scores[0]
    assert found["model"]["hit_rate"] is None
    assert "Events in 0.01 h" in call("evaluate", out, "--stream", room).stdout


def test_recordings_that_cannot_be_read_are_left_out_and_named(exported, call, tmp_path):
    model, day, out = exported / "student.fp32.onnx", tmp_path / "day", tmp_path / "tuned.onnx"
    day.mkdir()
    for name in ("a.wav", "b.mp3"):
        (day / name).write_bytes(b"no audio")
    commands = ("evaluate", model, "--stream", day), ("tune", model, "--audio", day, "--out", out)
    for command in commands:
        refused = call(*command, code=1).stderr
        assert "None of the 2 recordings can be used" in refused
        assert "a.wav is no audio file that can be read" in refused
        assert "b.mp3 is no audio file that can be read: Format not recognised" in refused
    noise = np.random.default_rng(0).standard_normal(40 * 8000)
    soundfile.write(day / "c.wav", 0.05 * noise, 8000)
    for command in commands:
        done = call(*command, "--json")
        assert json.loads(done.stdout)["left_out"] == [str(day / "a.wav"), str(day / "b.mp3")]
        assert done.stderr.count("It is left out.") == 2
        assert "2 recordings were left out" in " ".join(call(*command).stdout.split())


def test_clips_or_recordings(exported, call):
    model = exported / "student.fp32.onnx"
    for more in (
        (),
        ("--data", "fsdd", "--stream", "day.wav"),
        ("--data", "fsdd", "--labels", "x"),
        ("--stream", "day.wav", "--controls", "white_noise"),
    ):
        result = call("evaluate", model, *more, code=1)
        assert "whether clips or long recordings" in result.output


def test_checkpoints_teachers_and_labels_of_recordings(student, teacher, call, tmp_path):
    model, short = student["student"], tmp_path / "short.wav"
    soundfile.write(short, np.zeros(800), 8000)
    found = json.loads(call("evaluate", model, "--stream", short, "--json").stdout)
    assert found["model"]["false_alarms"] == 0, "there is not one window"
    (tmp_path / "sounds.csv").write_text("file,onset,offset,label\nshort.wav,0,1,nothing\n")
    labelled = ("--stream", short, "--labels", tmp_path / "sounds.csv")
    warned = call("evaluate", model, *labelled, "--teacher", teacher).stderr
    assert "every event counts as a false alarm" in warned
    assert "after its end" not in warned
    (tmp_path / "ms.csv").write_text("file,onset,offset,label\nshort.wav,40,90,high\n")
    milliseconds = call("evaluate", model, "--stream", short, "--labels", tmp_path / "ms.csv")
    assert "1 of the 1 sounds labelled in short.wav begin after its end" in milliseconds.stderr
    refused = call("evaluate", model, *labelled, "--teacher", model, code=1)
    assert "is not a teacher" in refused.stderr
    (tmp_path / "b").mkdir()
    soundfile.write(tmp_path / "b" / "short.wav", np.zeros(800), 8000)
    refused = call("evaluate", model, *labelled, "--stream", tmp_path / "b", code=1)
    assert "short.wav is there twice" in refused.stderr
