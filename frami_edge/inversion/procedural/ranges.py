"""What procedural audio may sound like: generic physical and audible ranges, each with its reason.

Nothing here was fitted to a data set or to its classes. Pairs are (low, high); "log" in a reason
means that values are drawn log-uniformly between them.
"""

from __future__ import annotations

EVENTS = (1, 4)
"""Layered events a clip: more than four blur into one texture."""

SHORTEST_EVENT_S = 0.03
"""Seconds: what the ear needs to hear a colour and not only a click; log, up to the clip."""

SUSTAINED_SHARE = 0.3
"""Share of events without an onset or an end inside the clip (engines, wind, hum)."""

RHYTHM_SHARE = 0.25
"""Share of the other events that repeat (steps, knocks, calls, syllables)."""

RHYTHM_PERIOD_S = (0.06, 2.0)
"""Seconds between repetitions, log: the fastest trill heard as separate sounds to slow steps."""

EVENT_LEVEL_DB = (-24.0, 0.0)
"""dB below the loudest event of a clip: further down an event is masked."""

F0_LOWEST_HZ = 50.0
"""Hz: below it single pulses are heard instead of a pitch (click trains cover those)."""

F0_HIGHEST_NYQUIST = 0.4
"""Of the Nyquist frequency, log: leaves room for at least two harmonics."""

GLIDE_OCTAVES = 1.0
"""Octaves, largest standard deviation of a tone's pitch: calls, sirens, intonation."""

VIBRATO_HZ = (3.0, 12.0)
"""Hz: vocal and mechanical vibrato."""

VIBRATO_DEPTH_OCTAVES = (0.005, 0.1)
"""Octaves, log: from a tenth of a semitone to more than one."""

AM_HZ = (0.5, 100.0)
"""Hz, log: from slow beating to roughness, the two ends of audible amplitude modulation."""

CLICK_RATE_HZ = (1.0, 300.0)
"""Hz, log: from a dripping tap to a buzz."""

MODE_HZ = (60.0, 0.45)
"""Hz and share of the sample rate, log: modes of struck objects of a metre to a centimetre."""

MODE_DECAY_S = (0.005, 1.0)
"""Seconds to fall by 8.7 dB, log: from damped wood to ringing metal."""

MODES = (2, 16)
"""Modes of one struck object."""

SLOPE_DB_PER_OCTAVE = (-12.0, 3.0)
"""dB an octave: brown noise (-6) and a soft voice (-12) to a little above white (0)."""

ENVELOPE_STD_DB = 12.0
"""dB, largest standard deviation of the smooth random spectral envelope over log frequency."""

BAND_SHARE = 0.4
"""Share of spectra that are band-limited."""

BAND_OCTAVES = (0.3, 5.0)
"""Octaves, log: from a whistle-like band to nearly everything."""

BAND_EDGE_DB_PER_OCTAVE = (12.0, 48.0)
"""dB an octave: second- to eighth-order filters."""

RESONANCES = (0, 5)
"""Resonances of one spectrum: a vocal tract shows three to five, a box one or two."""

RESONANCE_Q = (2.0, 60.0)
"""Quality, log: formants have about 5 to 20, plates and bottles more."""

RESONANCE_GAIN_DB = (6.0, 30.0)
"""dB above the spectrum around it."""

RESONANCE_DRIFT_OCTAVES = 0.35
"""Octaves, standard deviation of a resonance's move from one anchor to the next (articulation)."""

DYNAMIC_RANGE_DB = 80.0
"""dB kept in one spectrum: about what 16-bit audio leaves after dither and masking."""

BACKGROUND_SHARE = 0.6
"""Share of clips with a background noise."""

BACKGROUND_SNR_DB = (-5.0, 40.0)
"""dB, events over background: from hard to hear to studio."""

ROOM_SHARE = 0.25
"""Share of clips in a room."""

ROOM_RT60_S = (0.1, 1.5)
"""Seconds, log: a car to a large hall."""

ROOM_DIRECT_DB = (-6.0, 12.0)
"""dB, direct over reverberant energy: beyond and within the critical distance."""

DIP_SHARE = 0.25
"""Share of clips with segments of near-silence."""

DIP_DB = (20.0, 80.0)
"""dB by which such a segment is lower."""

DIGITAL_SILENCE_SHARE = 0.1
"""Share of clips that begin or end in digital silence, as cut or padded files do."""

SENSOR_SHARE = 0.5
"""Share of clips with the white noise of a microphone and its converter."""

SENSOR_DBFS = (-96.0, -50.0)
"""dBFS RMS: 16-bit quantisation to a cheap microphone."""

PEAK_DBFS = (-45.0, 0.0)
"""dBFS of a clip's largest sample: a distant source to full scale."""
