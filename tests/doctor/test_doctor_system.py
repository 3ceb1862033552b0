"""Microphones, readers, Python, memory, threads, disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frami_edge_runtime.doctor import (
    Answer,
    cores,
    disk,
    engines,
    memory,
    microphone,
    python,
    readers,
    resampling,
)

PCM = "00-00: bcm2835 Headphones : : playback 8\n01-00: USB Audio : USB Audio : capture 1\n"


@pytest.mark.parametrize(
    ("told", "commands", "files", "status", "words"),
    [
        ({"portaudio": True, "device": "USB Mic", "rate": 48000.0}, {}, {}, "ok",
         "USB Mic, 48000 Hz"),
        (None, {"arecord": "card 1: Device [USB PnP Sound Device], device 0: USB Audio\n"}, {},
         "ok", "USB PnP Sound Device (arecord)"),
        (None, {"arecord": Answer(0, "", "no soundcards found...\n")}, {}, "absent", "lists none"),
        (None, {}, {}, "absent", "neither sounddevice nor arecord"),
        ({"error": "OSError", "message": "PortAudio library not found"}, {}, {}, "warn",
         "the PortAudio library is not"),
        ({"portaudio": True, "none": "Error querying device -1"}, {}, {}, "absent", "no default"),
        ({"portaudio": True, "none": "Error querying device -1"}, {},
         {"proc/asound/pcm": PCM, "dev/snd/controlC0": ""}, "warn", "ALSA has 1"),
        ({"portaudio": True, "none": "Error querying device -1"}, {}, {"proc/asound/pcm": PCM},
         "warn", "this user may not use it"),
        (Answer(None, trouble="python3 did not end within 4.5 s"), {}, {}, "warn", "did not end"),
    ],
)  # fmt: skip
def test_microphones(
    machine: Any, told: Any, commands: dict[str, Any], files: dict[str, str], status: str,
    words: str,
) -> None:  # fmt: skip
    asks = {} if told is None else {"sounddevice": told}
    (line,) = microphone(machine(asks=asks, commands=commands, files=files))
    assert (line.status, words in line.found) == (status, True), line


def test_readers_of_audio(machine: Any) -> None:
    (line,) = readers(machine())
    assert (line.status, line.needed) == ("absent", False)
    (line,) = readers(machine(), needed=True)
    assert line.blocks
    good = {"version": "0.14.0", "libsndfile": "1.2.2", "formats": ["FLAC", "WAV", "XI"]}
    (line,) = readers(machine(asks={"soundfile": good | {"flac": True}}))
    assert line.found == "WAV, FLAC (soundfile 0.14.0, libsndfile 1.2.2)"
    (line,) = readers(machine(asks={"soundfile": good | {"flac": False}}), needed=True)
    assert line.blocks


def test_resampling_is_an_extra(machine: Any) -> None:
    assert resampling(machine())[0].status == "absent"
    assert resampling(machine(versions={"soxr": "1.1.0"}))[0].found == "soxr 1.1.0"


def test_python_too_old(machine: Any) -> None:
    assert python(machine(python=(3, 9, 2)))[0].blocks
    assert python(machine(python=(3, 10, 12)))[0].status == "ok"
    assert python(machine(python=(3, 10, 12)), least=(3, 11))[0].blocks


def test_memory_and_a_containers_limit(machine: Any) -> None:
    info = {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\n"}
    (line,) = memory(machine(files=info), 1.0, 4.0)
    assert (line.status, line.found) == ("ok", "9.2 of 16.4 GB free")
    group = {"sys/fs/cgroup/memory.max": "2000000000\n",
             "sys/fs/cgroup/memory.current": "1500000000\n"}  # fmt: skip
    (line,) = memory(machine(files=info | group), 1.0, 4.0)
    assert line.blocks
    assert line.found.startswith("0.5 of 2.0 GB free in this container")
    assert memory(machine(files={"proc/meminfo": "nonsense"}), 1.0, 4.0) == []


def test_threads_in_a_container(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    box = machine(files={"sys/fs/cgroup/cpu.max": "200000 100000\n"})
    (line,) = cores(box)
    assert (line.status, line.fix) == ("warn", "export OMP_NUM_THREADS=2")
    box = machine(
        files={"sys/fs/cgroup/cpu.max": "max 100000\n"}, environ={"OMP_NUM_THREADS": "99"}
    )
    (line,) = cores(box)
    assert (line.status, line.fix) == ("warn", "export OMP_NUM_THREADS=64")


def test_a_full_disk_blocks_where_results_go(machine: Any, tmp_path: Path) -> None:
    full = machine(disk=lambda path: (2_000_000, 10**12))
    places = [("here", tmp_path), ("cache", tmp_path / "not" / "there" / "yet")]
    here, cache = disk(full, places, 0.3, 5.0)
    assert here.blocks
    assert here.found.startswith("0.0 of 1000 GB free")
    assert (cache.status, cache.needed) == ("warn", False)
    roomy = machine(disk=lambda path: (10**11, 10**12))
    assert [line.status for line in disk(roomy, places, 0.3, 5.0)] == ["ok"]  # one file system


def test_a_disk_that_cannot_be_asked(machine: Any, tmp_path: Path) -> None:
    def broken(path: Path) -> tuple[int, int]:
        raise OSError(116, "Stale file handle")

    (line,) = disk(machine(disk=broken), [("here", tmp_path)], 0.3, 5.0)
    assert line.blocks
    assert "Stale file handle" in line.found


def test_engines_that_are_none(
    machine: Any, tmp_path: Path, by_name: Callable[[Any], dict[str, Any]]
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (tmp_path / "x.engine").write_bytes(b"ftrt" + bytes(60))
    lines = by_name(engines(machine(), [folder, tmp_path / "x.engine", tmp_path / "gone.engine"]))
    assert lines["export"].status == "absent"
    assert lines["x.engine"].status == "fail"
    assert lines["gone.engine"].status == "fail"
