"""The listening program: the same answers as the library, from any source, to any reader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from listen_kit import EASY, PROGRAM, RATE, Listen, as_int16, of, write_wav

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.events import EventDetector, EventSpec
from frami_edge_runtime.listen import Gap, LevelMeter, Losses, live_display, main


def test_a_file_says_what_the_library_says(
    listen: Listen, wav_path: Path, classifier: Classifier, clip: np.ndarray
) -> None:
    records = listen(wav_path, *EASY)
    assert [records[0]["type"], records[-1]["type"]] == ["start", "summary"]
    stream = classifier.stream(window_s=0.4, hop_s=0.1)
    detector = EventDetector(EventSpec(0.25, 0.2, 0.1), classifier.labels)
    results = stream.push(as_int16(clip))
    last = stream.flush()
    assert last is not None
    events = [e for r in [*results, last] for e in detector.push(r)] + detector.finish(last.t1)
    assert len(events) > 4
    heard = of(records, "event")
    assert [(e["kind"], e["label"], e["gap"]) for e in heard] == [
        (e.kind, e.label, e.gap) for e in events
    ]
    for key in ("t0", "t1", "at", "score", "last_score"):
        assert [e[key] for e in heard] == [round(getattr(e, key), 6) for e in events]
    shown = of(records, "result")
    assert [r["label"] for r in shown] == [r.label for r in [*results, last]]
    assert [r["t1"] for r in shown] == [round(r.t1, 6) for r in [*results, last]]
    assert all(len(r["top"]) == 3 and r["top"][r["label"]] == r["score"] for r in shown)
    assert all(-60 < r["level_db"] < 0 for r in shown)
    (summary,) = of(records, "summary")
    assert summary["results"] == len(shown)
    assert sum(summary["events"].values()) == len([e for e in events if e.kind == "start"])
    assert (summary["reason"], summary["lost"]) == ("end", 0)
    assert summary["audio_s"] == pytest.approx(len(clip) / RATE, abs=1e-6)
    (start,) = of(records, "start")
    assert (start["labels"], start["sample_rate"]) == (list(classifier.labels), RATE)
    assert start["events"]["on"] == 0.25


def test_files_and_pipes_give_the_same(
    listen: Listen, wav_path: Path, clip: np.ndarray, model_path: Path
) -> None:
    piped = subprocess.run(
        [*PROGRAM, str(model_path), "-", "--rate", str(RATE), "--json", *EASY],
        input=as_int16(clip).tobytes(), capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    records = [json.loads(line) for line in piped.stdout.splitlines()]
    from_file = listen(wav_path, *EASY)
    for kind in ("result", "event"):
        assert of(records, kind) == of(from_file, kind)
    assert piped.stderr == b""


def test_duration_and_once_stop_early(listen: Listen, wav_path: Path) -> None:
    (summary,) = of(listen(wav_path, *EASY, "--duration", 1.5), "summary")
    assert (summary["reason"], summary["audio_s"]) == ("duration", 1.5)
    records = listen(wav_path, *EASY, "--once")
    assert [e["kind"] for e in of(records, "event")] == ["start"]
    assert records[-1]["reason"] == "once"


def test_quiet_leaves_the_results_out(listen: Listen, wav_path: Path) -> None:
    kinds = {r["type"] for r in listen(wav_path, *EASY, "-q")}
    assert kinds == {"start", "event", "summary"}


def test_labels_and_levels_reach_the_detector(listen: Listen, wav_path: Path) -> None:
    everything = {e["label"] for e in of(listen(wav_path, *EASY), "event")}
    some = sorted(everything)[0]
    only = {e["label"] for e in of(listen(wav_path, *EASY, "--watch", some), "event")}
    rest = {e["label"] for e in of(listen(wav_path, *EASY, "--ignore", some), "event")}
    assert (only, rest) == ({some}, everything - {some})
    assert of(listen(wav_path, *EASY, "--min-level", -1), "event") == []
    assert of(listen(wav_path, *EASY, "--min-level", -60), "event") != []


def test_options_may_stand_anywhere(listen: Listen, wav_path: Path) -> None:
    assert of(listen("--top", 5, wav_path), "result")[0]["top"].keys() != {}
    with pytest.raises(SystemExit) as end:
        main(["model.onnx", "a.wav", "b.wav"])
    assert end.value.code == 2


def test_half_a_window_makes_an_event_by_default(listen: Listen, wav_path: Path) -> None:
    (start,) = of(listen(wav_path, "--window", 0.8), "start")
    assert (start["window_s"], start["events"]["min_on_s"]) == (0.8, 0.4)
    (start,) = of(listen(wav_path, "--forget", 0.5), "start")
    assert (start["window_s"], start["forget_s"]) == (None, 0.5)
    assert start["events"]["min_on_s"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "said", "fix"),
    [
        (["none.wav"], "none.wav does not exist", "Check the path"),
        (["-"], "do not say their rate", "--rate 16000"),
        (["{wav}", "--rate", "8000"], "--rate is for the microphone and `-`", "Leave --rate out"),
        (["{wav}", "--format", "s16le"], "--format is for `-`", "Leave --format out"),
        (["mic", "--channel", "2"], "--channel is for files", "Leave --channel out"),
        (["{wav}", "--channel", "2"], "has no channel 2", "1..1"),
        (["{wav}", "--channel", "left"], "no channel 'left'", "mix"),
        (["{wav}", "--on", "1.5"], "on must be a number in 0..1", ""),
        (["{wav}", "--window", "1", "--forget", "1"], "exclude each other", "choose one"),
        (["{wav}", "--window", "1", "--hop", "2"], "longer than window_s", "hop"),
        (["{wav}", "--window", "-1"], "--window must be a number of seconds above 0", "leave it"),
        (["{wav}", "--watch", "dgo"], "no label 'dgo'", "'dog'"),
        (["{wav}", "--min-on", "9", "--duration", "3"], "no event could ever start", "longer"),
        (["{wav}", "--top", "0"], "top 0 classes", "Use 1 to"),
        (["{wav}", "--duration", "nan"], "Cannot listen for nan", "above 0"),
        (["{wav}", "--backend", "quantum"], "quantum", ""),
        (["{empty}"], "holds no samples", "Give one"),
    ],
)
def test_errors_are_one_sentence_and_a_fix(
    model_path: Path, wav_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], said: str, fix: str,
) -> None:  # fmt: skip
    write_wav(tmp_path / "empty.wav", np.empty(0))
    filled = [a.format(wav=wav_path, empty=tmp_path / "empty.wav") for a in arguments]
    assert main([str(model_path), *filled, "--plain", "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    error, hint = captured.err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("fix: ")
    assert fix in hint


def test_plain_lines_are_for_people(
    model_path: Path, wav_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model_path), str(wav_path), *EASY, "--plain"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert any(" >> " in line and "began at" in line for line in lines)
    assert any(" << " in line and "best 0." in line for line in lines)
    times = [float(line.split(" s ")[0]) for line in lines]
    assert times == sorted(times)
    assert "5 classes, 8000 Hz, on cpu" in err
    assert "3.8 s heard" in err
    assert "times real time in the model" in err


def test_many_gaps_are_told_together() -> None:
    losses = Losses()
    told = [losses.add(Gap(t / 10, 80, 0.01)) for t in range(0, 210)]
    lines = [line for line in told if line]
    assert lines == [
        "0.010 s of audio were lost at 0.00 s",
        "1.000 s of audio were lost in 100 gaps up to 10.00 s",
        "1.000 s of audio were lost in 100 gaps up to 20.00 s",
    ]


def test_control_characters_of_a_label_do_not_reach_the_terminal(
    build_model: Callable[..., Any], wav_path: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "evil.onnx"
    path.write_bytes(build_model(labels=("a\x1b[2J", "b\rc")).data)
    assert main([str(path), str(wav_path), *EASY, "--plain"]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    assert "a?[2J" in out


def test_without_rich_there_is_no_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.live", None)  # type: ignore[arg-type]
    assert live_display() is None


def test_levels_follow_the_sample_clock() -> None:
    tone = (np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE) * 32767).astype(np.int16)
    whole, split = LevelMeter(RATE, 5.0), LevelMeter(RATE, 5.0)
    whole.push(tone)
    for part in np.array_split(tone, 37):
        split.push(part.astype(np.float32) / 32768)
    assert whole.level_db(0, 1) == pytest.approx(-3.01, abs=0.01)
    assert split.level_db(0.2, 0.7) == pytest.approx(-3.01, abs=0.05)
    whole.lose(RATE)
    whole.push(np.zeros(RATE, np.int16))
    assert whole.level_db(1.1, 1.9) == -120.0  # nothing was heard there
    assert whole.level_db(2.0, 3.0) == -120.0
    assert whole.level_db(0.0, 3.0) == pytest.approx(-6.02, abs=0.1)
    whole.lose(100 * RATE)
    assert whole.level_db(0.0, 200.0) == -120.0
