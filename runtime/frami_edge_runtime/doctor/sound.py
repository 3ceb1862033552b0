"""Sound in: a microphone by PortAudio or ALSA, and what reads audio files."""

from __future__ import annotations

import re
from typing import Final

from frami_edge_runtime.doctor.check import Check
from frami_edge_runtime.doctor.machine import Machine

_MICROPHONE_LIMIT_S: Final = 4.5
READERS_LIMIT_S: Final = 15.0
_ASK_PORTAUDIO: Final = """
import sounddevice as s
say(portaudio=True)
try:
    d = s.query_devices(kind="input")
    say(device=str(d["name"]), rate=float(d["default_samplerate"]))
except Exception as error:
    say(none=str(error))
"""
_ASK_READERS: Final = """
import io
import numpy
import soundfile
say(version=soundfile.__version__, libsndfile=soundfile.__libsndfile_version__,
    formats=sorted(soundfile.available_formats()))
x = (numpy.arange(800) % 97 * 300 - 15000).astype(numpy.int16)
file = io.BytesIO()
soundfile.write(file, x, 8000, format="FLAC", subtype="PCM_16")
file.seek(0)
y, rate = soundfile.read(file, dtype="int16")
say(flac=bool(rate == 8000 and (y == x).all()))
"""
_SHOWN: Final = ("WAV", "FLAC", "OGG", "MP3", "AIFF")
_PORTAUDIO_FIX: Final = "sudo apt-get install libportaudio2, or alsa-utils for arecord"


def microphone(machine: Machine) -> list[Check]:
    """Whether something can be recorded with; nothing is recorded."""
    told = machine.ask("sounddevice", _ASK_PORTAUDIO, _MICROPHONE_LIMIT_S)
    if told["device"]:
        return [Check("microphone", "ok", f"{told['device']}, {told['rate']:g} Hz (PortAudio)")]
    listed = machine.command("arecord", "-l", limit_s=3)
    cards = re.findall(r"^card \d+:.*?\[(.*?)\]", listed.out, re.MULTILINE)
    if cards and not told["portaudio"]:
        return [Check("microphone", "ok", f"{', '.join(cards[:3])} (arecord)")]
    capturing = [line for line in machine.text("proc/asound/pcm").splitlines() if "capture" in line]
    if capturing and not machine.usable("dev/snd/controlC0"):
        return [
            Check("microphone", "warn", f"{len(capturing)} in the machine, and this user may not "
                  "use it", "sudo usermod -aG audio $USER, then log in again")
        ]  # fmt: skip
    if told["portaudio"]:
        text = "PortAudio finds no default input device"
        if capturing:
            fix = "`arecord -L` names the devices; pass one: frami-edge-listen MODEL --device NAME"
            return [Check("microphone", "warn", f"{text}, ALSA has {len(capturing)}", fix)]
        return [Check("microphone", "absent", text, "Plug one in; in a container add --device "
                      "/dev/snd.")]  # fmt: skip
    if told.error == "OSError":
        text = "sounddevice is installed, and the PortAudio library is not"
        return [Check("microphone", "warn", text, _PORTAUDIO_FIX)]
    if told.error != "ModuleNotFoundError":
        return [Check("microphone", "warn", f"sounddevice: {told.trouble}", _PORTAUDIO_FIX)]
    if listed.missing:
        text = "neither sounddevice nor arecord is installed"
        fix = "pip install 'frami-edge-runtime[mic]' and sudo apt-get install libportaudio2"
        return [Check("microphone", "absent", text, fix)]
    return [Check("microphone", "absent", "arecord lists none", "Plug one in.")]


def readers(machine: Machine, *, needed: bool = False) -> list[Check]:
    """What reads audio files; a FLAC is written and read in memory.

    Args:
        machine: To look at.
        needed: Whether the main job reads audio: the trainer's does, a device has PCM WAV anyway.
    """
    told = machine.ask("soundfile", _ASK_READERS, READERS_LIMIT_S)
    if told.error == "ModuleNotFoundError" and not machine.version("soundfile"):
        text = "PCM WAV only: soundfile is not installed"
        fix = "pip install 'frami-edge-runtime[audio]'"
        return [Check("audio files", "fail" if needed else "absent", text, fix, needed=needed)]
    if not told["flac"]:
        what = told.trouble or "a FLAC does not come back as it was written"
        fix = "pip install --force-reinstall soundfile; on old systems: apt-get install libsndfile1"
        return [Check("audio files", "fail", f"soundfile: {what}", fix, needed=needed)]
    formats = [name for name in _SHOWN if name in (told["formats"] or ())]
    text = f"{', '.join(formats)} (soundfile {told['version']}, libsndfile {told['libsndfile']})"
    return [Check("audio files", "ok", text, needed=needed)]


def resampling(machine: Machine) -> list[Check]:
    """soxr, which is LGPL and therefore an extra."""
    version = machine.version("soxr")
    if version:
        return [Check("resampling", "ok", f"soxr {version}")]
    text = "not installed: audio must come at the model's own rate"
    return [Check("resampling", "absent", text, "pip install 'frami-edge-runtime[resample]'")]
