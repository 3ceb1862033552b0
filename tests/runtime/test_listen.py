"""The listening program: the library's answers, from any source, to any reader."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.events import EventDetector, EventSpec
from frami_edge_runtime.listen import LevelMeter, main

RATE = 8000
PROGRAM = [sys.executable, "-m", "frami_edge_runtime.listen"]
EASY = ["--window", "0.4", "--hop", "0.1", "--on", "0.25", "--off", "0.2", "--min-on", "0.1"]
ENDLESS = "while True: out.write(random.randbytes(800)); out.flush(); time.sleep(0.02)"

Records = list[dict[str, Any]]
Listen = Callable[..., Records]
FakeArecord = Callable[[str], dict[str, str]]


def write_wav(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(as_int16(samples).tobytes())
    return path


def as_int16(clip: np.ndarray) -> np.ndarray:
    return (clip * 32767).clip(-32768, 32767).astype("<i2")


def of(records: Records, kind: str) -> Records:
    return [{k: v for k, v in r.items() if k != "type"} for r in records if r["type"] == kind]


@pytest.fixture
def wav_path(clip: np.ndarray, tmp_path: Path) -> Path:
    return write_wav(tmp_path / "street.wav", clip)


@pytest.fixture
def listen(model_path: Path, capsys: pytest.CaptureFixture[str]) -> Listen:
    """`listen(path, "--once")` returns the records of --json."""

    def run(*arguments: object) -> Records:
        assert main([str(model_path), *map(str, arguments), "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def start(*arguments: object, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def rest(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What is left to read; `communicate` would miss what `readline` has buffered."""
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        return process.stdout.read(), process.stderr.read()


def test_a_file_gives_the_library_s_results_and_events(
    listen: Listen, wav_path: Path, classifier: Classifier, clip: np.ndarray
) -> None:
    records = listen(wav_path, *EASY)
    assert [records[0]["type"], records[-1]["type"]] == ["start", "summary"]
    stream = classifier.stream(window_s=0.4, hop_s=0.1)
    detector = EventDetector(EventSpec(0.25, 0.2, 0.1), classifier.labels)
    results = stream.push(as_int16(clip))
    last = stream.flush()
    assert last is not None
    events = [e for r in [*results, last] for e in detector.push(r)] + detector.finish()
    assert len(events) > 4
    assert of(records, "event") == [
        {k: round(v, 6) if type(v) is float else v for k, v in dataclasses.asdict(e).items()}
        for e in events
    ]
    shown = of(records, "result")
    assert [(r["label"], r["t1"]) for r in shown] == [
        (r.label, round(r.t1, 6)) for r in [*results, last]
    ]
    assert all(len(r["top"]) == 3 and r["top"][r["label"]] == r["score"] for r in shown)
    assert all(-60 < r["level_db"] < 0 for r in shown)
    (summary,) = of(records, "summary")
    assert summary["results"] == len(shown)
    assert sum(summary["events"].values()) == len([e for e in events if e.kind == "start"])
    assert (summary["reason"], summary["lost"]) == ("end", 0)
    assert summary["audio_s"] == pytest.approx(len(clip) / RATE, abs=1e-6)
    assert records[0]["labels"] == list(classifier.labels)


def test_pipes_give_the_same_as_files(
    listen: Listen, wav_path: Path, clip: np.ndarray, model_path: Path
) -> None:
    piped = subprocess.run(
        [*PROGRAM, str(model_path), "-", "--rate", str(RATE), "--json", *EASY],
        input=as_int16(clip).tobytes(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    records = [json.loads(line) for line in piped.stdout.splitlines()]
    from_file = listen(wav_path, *EASY)
    for kind in ("result", "event"):
        assert of(records, kind) == of(from_file, kind)
    assert piped.stderr == b""


def test_options_choose_what_is_reported(listen: Listen, wav_path: Path) -> None:
    (summary,) = of(listen(wav_path, *EASY, "--duration", 1.5), "summary")
    assert (summary["reason"], summary["audio_s"]) == ("duration", 1.5)
    records = listen(wav_path, *EASY, "--once")
    assert [e["kind"] for e in of(records, "event")] == ["start"]
    assert records[-1]["reason"] == "once"
    quiet = listen(wav_path, *EASY, "-q")
    assert {r["type"] for r in quiet} == {"start", "event", "summary"}
    everything = {e["label"] for e in of(quiet, "event")}
    some = sorted(everything)[0]
    assert {e["label"] for e in of(listen(wav_path, *EASY, "--watch", some), "event")} == {some}
    assert of(listen(wav_path, *EASY, "--min-level", -1), "event") == []
    assert of(listen(wav_path, *EASY, "--min-level", -60), "event") != []
    (begun,) = of(listen("--forget", 0.5, wav_path), "start")  # SOURCE may follow options
    assert (begun["window_s"], begun["forget_s"], begun["events"]["min_on_s"]) == (None, 0.5, 0.25)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["none.wav"], 1, "none.wav does not exist.\nfix: Check the path"),
        (["{wav}", "--on", "1.5"], 1, "on must be a number in 0..1"),
        (["{wav}", "--backend", "quantum"], 1, "quantum"),
        (["{empty}"], 1, "holds no samples"),
        (["a.wav", "b.wav"], 2, "unrecognized arguments"),
        (["-"], 2, "add --rate"),
        (["{wav}", "--rate", "8000"], 2, "--rate is for mic and -"),
        (["{wav}", "--channel", "left"], 2, "invalid channel value: 'left'"),
        (["{wav}", "--window", "1", "--forget", "1"], 2, "exclude each other"),
        (["{wav}", "--duration", "nan"], 2, "invalid seconds value: 'nan'"),
    ],
)
def test_errors_name_the_reason_and_the_fix(
    model_path: Path,
    wav_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    empty = write_wav(tmp_path / "empty.wav", np.empty(0))
    filled = [a.format(wav=wav_path, empty=empty) for a in arguments]
    try:
        returned = main([str(model_path), *filled, "--plain", "--quiet"])
    except SystemExit as end:
        returned = int(str(end.code))
    out, err = capsys.readouterr()
    assert (returned, out) == (code, "")
    assert said in err


def test_plain_lines_are_for_people_and_show_no_control_characters(
    build_model: Callable[..., Any],
    wav_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "evil.onnx"
    path.write_bytes(build_model(labels=("a\x1b[2J", "b\rc")).data)
    assert main([str(path), str(wav_path), *EASY, "--plain"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert any(" >> a?[2J began at" in line for line in lines)
    assert any(" << " in line and ", best " in line for line in lines)
    times = [float(line.split(" s ")[0]) for line in lines]
    assert times == sorted(times)
    assert "2 classes, 8000 Hz, on cpu" in err
    assert "3.8 s of audio in" in err
    assert "\x1b" not in out + err
    assert "\r" not in out + err


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
    assert whole.level_db(1.1, 1.9) == -120.0  # lost
    assert whole.level_db(2.0, 3.0) == -120.0  # silent
    assert whole.level_db(0.0, 3.0) == pytest.approx(-6.02, abs=0.1)
    whole.lose(100 * RATE)
    assert whole.level_db(0.0, 200.0) == -120.0


@pytest.mark.parametrize("source", [["mic"], ["-", "--rate", "8000"]])
def test_signals_end_with_a_summary_and_success(
    model_path: Path, fake_arecord: FakeArecord, source: list[str]
) -> None:
    environment = fake_arecord(ENDLESS)
    process = start(
        model_path, *source, *EASY, "--json", env=environment, stdin=subprocess.PIPE
    )  # a pipe that stays silent
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3 if source == ["mic"] else 1)]
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM if source == ["mic"] else signal.SIGINT)
    out, err = rest(process)
    assert (process.returncode, err) == (0, "")
    records = [json.loads(line) for line in [*lines, *out.splitlines()]]
    assert records[-1]["reason"] == "interrupted"
    kinds = [r["kind"] for r in of(records, "event")]
    assert kinds.count("start") == kinds.count("end")


def test_lost_samples_are_reported_and_the_clock_advances(
    model_path: Path, fake_arecord: FakeArecord
) -> None:
    environment = fake_arecord(
        "out.write(bytes(16000)); out.flush(); time.sleep(0.3)\n"
        "print('overrun!!! (at least 310000.000 ms long)', file=sys.stderr, flush=True)\n"
        "time.sleep(0.3); out.write(bytes(16000)); out.flush(); time.sleep(30)"
    )
    out, _ = rest(start(model_path, *EASY, "--json", "--duration", "312", env=environment))
    records = [json.loads(line) for line in out.splitlines()]
    assert records[0]["source"] == "ALSA device default"
    assert of(records, "gap") == [{"t": 1.0, "lost": 2_480_000, "lost_s": 310.0}]
    assert [r["gap"] for r in of(records, "result") if r["gap"]] == [2_480_000]
    (warning,) = of(records, "warning")
    assert warning["message"].startswith("99 % of the audio of the last 5 minutes was lost")
    (summary,) = of(records, "summary")
    assert (summary["audio_s"], summary["lost"], summary["gaps"]) == (312.0, 2_480_000, 1)


def test_a_reader_that_goes_away_and_a_full_disk(model_path: Path, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "long.wav", np.zeros(RATE * 600))
    process = start(model_path, path, "--json", *EASY)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == ""
    process.stderr.close()
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full: A FULL DISK IS NOT TESTED HERE")
    line = f"{shlex.join([*PROGRAM, str(model_path), str(path), *EASY])} >/dev/full"
    run = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.endswith(
        "error: The output could not be written: No space left on device.\n"
        "fix: Free some space, or send it elsewhere.\n"
    )


def test_on_a_terminal_it_is_live_and_restores_it(model_path: Path, wav_path: Path) -> None:
    pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, str(model_path), str(wav_path), *EASY],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
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
    assert "windows of 0.40 s every 0.10 s" in text
    assert "began at" in text
    assert "of audio in" in text.splitlines()[-1]
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor is shown again


def test_starting_stays_light(model_path: Path, wav_path: Path) -> None:
    code = (
        "import sys; from frami_edge_runtime.listen import main; "
        f"main([{str(model_path)!r}, {str(wav_path)!r}, '-q']); "
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.splitlines()[-1].split())
    assert "onnxruntime" in loaded
    heavy = {"rich", "soundfile", "sounddevice", "soxr", "torch", "scipy", "typer", "pydantic"}
    assert not loaded & heavy
