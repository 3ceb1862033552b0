"""The listening program: the library's answers, from any source, to any reader."""

import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from stream_kit import EASY, PROGRAM, as_int16, write_wav

from frami_edge_runtime.events import EventDetector, EventSpec
from frami_edge_runtime.listen import LevelMeter, main
from frami_edge_runtime.monitor import CaptureStats

RATE = 8000
README = Path(__file__).parents[2] / "runtime" / "README.md"


def of(records, kind):
    return [{k: v for k, v in r.items() if k != "type"} for r in records if r["type"] == kind]


@pytest.fixture
def listen(model_path, capsys):
    """`listen(path, "--once")` returns the records of --json."""

    def run(*arguments):
        assert main([str(model_path), *map(str, arguments), "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return [json.loads(line) for line in out.splitlines()]

    return run


def start(*arguments, **settings):
    command = [*PROGRAM, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **settings)


@pytest.mark.parametrize("source", ["file", "pipe", "file in a pipe"])
def test_any_source_gives_the_library_s_results_and_events(
    listen, wav_path, classifier, clip, monkeypatch, source
):
    pcm = as_int16(clip)
    data = pcm.tobytes() if source == "pipe" else wav_path.read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    given = {"file": [wav_path], "pipe": ["-", "--rate", RATE]}
    records = listen(*given.get(source, ["-"]), *EASY)
    assert [records[0]["type"], records[-1]["type"]] == ["start", "summary"]
    stream = classifier.stream(window_s=0.4, hop_s=0.1)
    detector = EventDetector(EventSpec(0.25, 0.2, 0.1), classifier.labels)
    results = stream.push(pcm)
    last = stream.flush()
    assert last is not None
    events = [e for r in [*results, last] for e in detector.push(r)] + detector.finish()
    assert len(events) > 4
    shown = of(records, "event")
    for event in shown:
        wall_s = [event.pop("wall_t0"), event.pop("wall_t1")]
        if source != "pipe":  # nobody knows when it was recorded
            assert wall_s == [None, None]
        else:
            assert wall_s[1] - wall_s[0] == pytest.approx(event["t1"] - event["t0"], abs=1e-5)
            assert abs(time.time() - wall_s[1]) < 60
    names = shown[0].keys()
    assert shown == [
        {k: round(v, 6) if type(v := getattr(e, k)) is float else v for k in names} for e in events
    ]
    assert {r["model"] for r in of(records, "result") + shown} == {records[0]["sha256"][:12]}
    shown = of(records, "result")
    assert [(r["label"], r["t1"]) for r in shown] == [
        (r.label, round(r.t1, 6)) for r in [*results, last]
    ]
    assert all(len(r["top"]) == 3 and r["top"][r["label"]] == r["score"] for r in shown)
    assert all(-60 < r["level_db"] < 0 for r in shown)
    summary = records[-1]
    assert summary["results"] == len(shown)
    assert sum(summary["events"].values()) == len([e for e in events if e.kind == "start"])
    assert (summary["reason"], summary["lost"]) == ("end", 0)
    assert summary["audio_s"] == pytest.approx(len(clip) / RATE, abs=1e-6)


def test_options_choose_what_is_reported(listen, wav_path):
    (summary,) = of(listen(wav_path, *EASY, "--duration", 1.5), "summary")
    assert (summary["reason"], summary["audio_s"]) == ("duration", 1.5)
    records = listen(wav_path, *EASY, "--once")
    assert [e["kind"] for e in of(records, "event")] == ["start"]
    assert records[-1]["reason"] == "once"
    quiet = listen(wav_path, *EASY, "-q")
    assert {r["type"] for r in quiet} == {"start", "event", "summary"}
    label = of(quiet, "event")[0]["label"]
    assert {e["label"] for e in of(listen(wav_path, *EASY, "--watch", label), "event")} == {label}
    assert of(listen(wav_path, *EASY, "--min-level", -1), "event") == []
    (opened,) = of(listen("--forget", 0.5, wav_path), "start")  # SOURCE may follow options
    assert (opened["window_s"], opened["events"]["min_on_s"]) == (None, 0.25)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none.wav"], 1, "none.wav does not exist.\nfix: Check the path"),
        (["{wav}", "--on", "1.5"], 1, "on must be a number in 0..1"),
        (["{wav}", "--window", "1", "--forget", "1"], 1, "exclude each other"),
        (["{empty}"], 1, "holds no samples"),
        (["-"], 1, "do not state their rate.\nfix: Add --rate"),
        (["--driver", "alsa"], 2, "auto, arecord, portaudio"),
        (["{wav}", "--rate", "8000"], 2, "--rate is for mic and -"),
        (["{wav}", "--rate", "0"], 2, "--rate is for mic and -"),
        (["{wav}", "--out", "x.onnx"], 2, "--out and --false-alarms are for --tune"),
        (["-", "--rate", "8000", "--channels", "0"], 2, "--channels must be at least 1"),
        (["{wav}", "--duration", "nan"], 2, "invalid seconds value: 'nan'"),
    ],
)
def test_errors_name_the_reason_and_the_fix(
    model_path, wav_path, tmp_path, capsys, arguments, code, words, monkeypatch
):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(100))))
    empty = write_wav(tmp_path / "empty.wav", np.empty(0))
    filled = [a.format(wav=wav_path, empty=empty) for a in arguments]
    try:
        returned = main([str(model_path), *filled, "--plain", "--quiet"])
    except SystemExit as end:
        returned = int(str(end.code))
    out, err = capsys.readouterr()
    assert (returned, out) == (code, "")
    assert words in err


def test_plain_lines_show_no_control_characters(build_model, wav_path, tmp_path, capsys):
    path = tmp_path / "evil.onnx"
    path.write_bytes(build_model(labels=("a\x1b[2J", "b\rc")).data)
    assert main([str(path), str(wav_path), *EASY, "--plain"]) == 0
    out, err = capsys.readouterr()
    assert " >> a?[2J began at" in out
    assert " << a?[2J " in out
    assert "2 classes, 8000 Hz, on cpu" in err
    assert "3.8 s of audio in" in err
    assert not {"\x1b", "\r"} & set(out + err)


def test_levels_follow_the_sample_clock():
    tone = (np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE) * 32767).astype(np.int16)
    whole, split = LevelMeter(RATE, 5.0), LevelMeter(RATE, 5.0)
    whole.push(tone)
    for part in np.array_split(tone, 37):
        split.push(part.astype(np.float32) / 32768)
    assert whole.level_db(0, 1) == pytest.approx(-3.01, abs=0.01)
    assert split.level_db(0.2, 0.7) == pytest.approx(-3.01, abs=0.05)
    whole.lose(RATE)
    whole.push(np.zeros(RATE, np.int16))
    assert whole.level_db(1.1, 1.9) == -120.0  # lost
    assert whole.level_db(2.0, 3.0) == -120.0  # silent
    assert whole.level_db(0.0, 3.0) == pytest.approx(-6.02, abs=0.1)
    offset, rng = LevelMeter(RATE, 5.0), np.random.default_rng(0)
    offset.push(np.float32(0.05) + rng.normal(0, 10 ** (-71 / 20), RATE).astype(np.float32))
    assert offset.level_db(0, 1) == pytest.approx(-71, abs=0.2)  # with the offset it is -26
    whole.lose(100 * RATE)
    assert whole.level_db(0.0, 200.0) == -120.0  # older than the span


@pytest.mark.parametrize(
    ("source", "number"), [(["mic"], signal.SIGTERM), (["-", "--rate", "8000"], signal.SIGINT)]
)
def test_signals_end_with_a_summary_and_success(model_path, fake_arecord, source, number):
    endless = "while True: out.write(random.randbytes(800)); out.flush(); time.sleep(0.02)"
    settings = {"env": fake_arecord(endless), "stdin": subprocess.PIPE}  # the pipe stays silent
    with start(model_path, *source, *EASY, "--json", **settings) as process:
        assert process.stderr is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(number)
        lines, err = process.stdout.readlines(), process.stderr.read()
    assert (process.returncode, err) == (0, "")
    records = [json.loads(line) for line in lines]
    assert records[-1]["reason"] == "interrupted"
    kinds = [event["kind"] for event in of(records, "event")]
    assert kinds.count("start") == kinds.count("end")


def test_losses_are_counted_exactly_and_the_readme_names_every_field(model_path, fake_arecord):
    environment = fake_arecord(
        "out.write(random.randbytes(16000)); out.flush(); time.sleep(0.5)\n"
        "print('overrun!!! (at least 250.000 ms long)', file=sys.stderr, flush=True)\n"
        "time.sleep(0.3); out.write(random.randbytes(8000)); out.flush(); time.sleep(0.5)\n"
        "print('overrun!!! (at least 9000000.000 ms long)', "
        "file=sys.stderr, flush=True)\n"
        "time.sleep(0.3); out.write(random.randbytes(16000)); out.flush(); time.sleep(30)"
    )
    process = start(model_path, *EASY, "--json", "--duration", "2.7", env=environment)
    records = [json.loads(line) for line in process.communicate(timeout=60)[0].splitlines()]
    gap, step = of(records, "gap")
    assert gap == {"t": 1.0, "lost": 2000, "lost_s": 0.25}
    assert 0.3 <= step["lost_s"] < 1  # the clock was set by hours; no more time has passed
    assert [r["gap"] for r in of(records, "result") if r["gap"]] == [2000, step["lost"]]
    (warning,) = of(records, "warning")
    assert warning["kind"] == "clock"
    assert "say that 9000.0 s were lost" in warning["message"]
    (summary,) = of(records, "summary")
    assert (summary["audio_s"], summary["gaps"], summary["clock_steps"]) == (2.7, 2, 1)
    rows = README.read_text(encoding="utf-8").splitlines()
    for record in records:
        (row,) = (row for row in rows if row.startswith(f"| `{record['type']}` |"))
        named = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row))  # values are in brackets
        assert set(named) - {record["type"]} == set(record) - {"type"}


def test_heavy_losses_are_a_warning(listen, monkeypatch, clip):
    blocks = iter([(clip, 0), (clip, 310 * RATE), None])
    source = SimpleNamespace(
        name="slow", live=True, device_note="", sample_rate=RATE, stats=CaptureStats(),
        close=lambda: None,
    )  # fmt: skip
    source.read, source.take_warnings = lambda: next(blocks), list
    monkeypatch.setattr("frami_edge_runtime.listen.open_source", lambda *a: source)
    (warning,) = of(listen("any"), "warning")
    assert warning["kind"] == "lost"
    assert warning["message"].startswith("98 % of the audio of the last 5 minutes was lost")


def test_a_reader_that_goes_away_and_a_full_disk(model_path, tmp_path):
    path = write_wav(tmp_path / "long.wav", np.zeros(RATE * 600))
    command = shlex.join([*PROGRAM, str(model_path), str(path), "--json"])

    def shell(line):
        settings = {"executable": "/bin/bash", "stdout": subprocess.DEVNULL}
        run = subprocess.run(
            line, shell=True, stderr=subprocess.PIPE, text=True, timeout=60, **settings
        )
        return run.returncode, run.stderr

    assert shell(f"set -o pipefail; {command} | head -1") == (1, "")
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full: A FULL DISK IS NOT TESTED HERE")
    code, err = shell(f"{command} >/dev/full")
    assert code == 1
    assert err.startswith("error: The output could not be written: No space left on device.\nfix: ")


def test_on_a_terminal_it_is_live_and_restores_it(model_path, wav_path):
    pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [*PROGRAM, str(model_path), str(wav_path), *EASY]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65_536):
            shown += data
    except OSError:
        pass  # how Linux ends a terminal
    os.close(ours)
    assert process.wait(30) == 0
    text = shown.decode()
    for words in ("windows of 0.40 s every 0.10 s", "began at", "3.8 s of audio in"):
        assert words in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor is shown again
