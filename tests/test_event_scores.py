"""Events in long recordings, compared with labels; thresholds for a place."""

import numpy as np
import pytest

from frami_edge.errors import DataError
from frami_edge.event_scores import Sound, StreamEvaluation, audio_files, read_sounds, score_events
from frami_edge.plots import detection_error
from frami_edge_runtime.events import EventSpec
from frami_edge_runtime.stream import Result, scores_of

LABELS = ("dog", "bell")


class Heard:
    """A model whose results are written down: logit 3 for what is on, 0 for nothing."""

    labels = LABELS

    def __init__(self, on):
        self.on = on

    def results(self, seconds):
        found = []
        for t1 in np.arange(1.0, seconds, 0.25).tolist():
            z_K = np.zeros(2, np.float32)
            for begin, end, k in self.on:
                z_K[k] = 3.0 if begin < t1 - 0.5 < end else z_K[k]
            y_K, k = scores_of(z_K, "softmax"), int(z_K.argmax())
            found.append(Result(LABELS[k], k, float(y_K[k]), y_K, z_K, LABELS, t1 - 1, t1))
        return found


def test_hits_false_alarms_and_latency(monkeypatch):
    def results(model, samples, rate):
        return model.results(len(samples) / rate)

    monkeypatch.setattr("frami_edge.event_scores.window_results", results)
    model = Heard([(10, 14, 0), (30, 34, 0), (50, 54, 1)])
    # Labels of the recording and of the model in two forms of Unicode are one label.
    monkeypatch.setattr(f"{__name__}.LABELS", ("cafe\u0301", "bell"))
    model.labels = LABELS
    sounds = [Sound(10, 14, "caf\u00e9"), Sound(50, 54, "caf\u00e9"), Sound(70, 71, "cat")]
    recording = (np.zeros(36_000, np.float32), 300, sounds)  # 120 s
    found = score_events(model, [recording], EventSpec(on=0.7, min_on_s=0.5))
    # The dog at 10 s is found; one event is nothing, one has the wrong label; cats are background.
    assert (found.hits, found.sounds, found.false_alarms) == (1, 2, 2)
    assert found.hit_rate == 0.5
    assert found.false_alarms_per_hour == pytest.approx(60)
    assert found.latency_s == pytest.approx(0.9, abs=0.4)
    assert found.curve[-1][:2] == (0.0, 0.0)  # no score reaches such thresholds
    half = found.at_hit_rate(0.5)
    assert half.highest == max(p.highest for p in found.curve if p.hit_rate and p.hit_rate >= 0.5)
    assert found.at_hit_rate(1.1) is None
    text = "\n".join(map(str, StreamEvaluation(found).tables()))
    assert "Events in 0.03 h" in text


def test_the_curve_goes_through_the_model_s_thresholds_and_ends_as_one_for_all(monkeypatch):
    monkeypatch.setattr("frami_edge.event_scores.window_results", lambda *_: model.results(120))
    model = Heard([(10, 14, 0), (30, 34, 0), (50, 54, 1)])  # each with a score of 0.95
    recording = (np.zeros(36_000, np.float32), 300, [Sound(10, 14, "dog"), Sound(50, 54, "bell")])

    def scored(**on):
        spec = EventSpec(min_on_s=0.5, overrides={name: {"on": x} for name, x in on.items()})
        return score_events(model, [recording], spec)

    own = scored(dog=0.7, bell=0.99)
    assert (own.hits, own.false_alarms) == (1, 1)
    highest = [point.highest for point in own.curve]
    assert highest == sorted(highest)
    through = highest.index(pytest.approx(0.99))
    assert own.curve[through][:2] == (own.false_alarms_per_hour, own.hit_rate)
    # Below, only the bell's threshold falls, until both are one.
    assert own.at_hit_rate(1.0).highest < 0.96
    assert own.at_hit_rate(1.0).false_alarms_per_hour == own.false_alarms_per_hour
    never = scored(dog=1.0, bell=0.9)
    (at_own,) = [p for p in never.curve if p.highest == 1][:1]
    assert at_own[:2] == (0, 0.5) == (never.false_alarms_per_hour, never.hit_rate)
    lowest = own.curve[0]
    assert lowest[:2] == scored(dog=lowest.highest, bell=lowest.highest).curve[-17][:2]
    assert "highest threshold" in str(StreamEvaluation(own).tables()[1])


def test_labels_and_files_are_read_and_refused(tmp_path):
    labels = tmp_path / "sounds.csv"
    labels.write_text("file,onset,offset,label\nday.wav,1.5,2.0,dog\nx/day.wav,4,5,bell\n")
    assert read_sounds(labels) == {"day.wav": [Sound(1.5, 2.0, "dog"), Sound(4.0, 5.0, "bell")]}
    labels.write_text("file,onset,offset,label\nday.wav,1,2,dog\n", "utf-8-sig")  # as Excel does
    assert list(read_sounds(labels)) == ["day.wav"]
    labels.write_text("file,onset,offset,label\ncafe\u0301.wav,1,2,cafe\u0301\n")
    assert read_sounds(labels) == {"caf\u00e9.wav": [Sound(1.0, 2.0, "caf\u00e9")]}
    for text, says in (
        ("file,start\nday.wav,1\n", "the column 'onset' is missing"),
        ("file,onset,offset,label\nday.wav,2,1,dog\n", "line 2 ends before it starts"),
        ("file,onset,offset,label\nday.wav,nan,1,dog\n", "line 2 ends before it starts"),
        ("file,onset,offset,label\nday.wav,1\n", "could not convert string to float: ''"),
    ):
        labels.write_text(text)
        with pytest.raises(DataError, match=says) as refused:
            read_sounds(labels)
        assert "file,onset,offset,label" in refused.value.fix
    with pytest.raises(DataError, match="no audio"):
        audio_files([tmp_path])
    (tmp_path / "b.wav").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.flac").touch()
    assert audio_files([tmp_path]) == [tmp_path / "a" / "c.flac", tmp_path / "b.wav"]


def test_the_trade_off_is_drawn(tmp_path):
    curves = {"model": [(100.0, 0.9), (1.0, 0.5), (0.0, 0.1)], "teacher": [(50.0, 0.9)]}
    detection_error(tmp_path / "det.png", curves, "student.onnx, 2 h")
    assert (tmp_path / "det.png").read_bytes().startswith(b"\x89PNG")
