"""MQTT with a real broker, mosquitto: what Home Assistant sees, and brokers that come and go."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections import defaultdict

import pytest
from stream_kit import EASY, PROGRAM, as_int16

from frami_edge_runtime.listen import main

MOSQUITTO = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def broker(port, tmp_path):
    """`broker(*settings)` starts mosquitto on `port`."""
    if MOSQUITTO is None:
        pytest.skip("no mosquitto (apt-get install mosquitto): MQTT IS NOT TESTED HERE")
    started = []

    def start(*settings):
        lines = [
            f"listener {port} 127.0.0.1",
            "user root",
            *(settings or ("allow_anonymous true",)),
        ]
        (tmp_path / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        command = [str(MOSQUITTO), "-c", str(tmp_path / "mosquitto.conf")]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return started[-1]
            time.sleep(0.05)
        raise AssertionError("mosquitto did not start")

    yield start
    for process in started:
        process.kill()
        process.wait()


class Home:
    """A client that sees everything, as Home Assistant does."""

    def __init__(self, port):
        client = pytest.importorskip("paho.mqtt.client", reason="no paho-mqtt: NOT TESTED HERE")
        enums = pytest.importorskip("paho.mqtt.enums")
        self.seen = defaultdict(list)
        self._client = client.Client(enums.CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda c, *rest: c.subscribe("#", 1)
        self._client.on_message = lambda c, d, m: self.seen[m.topic].append(m.payload.decode())
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def wait(self, topic, payload):
        for _ in range(200):
            if self.seen[topic][-1:] == [payload]:
                return
            time.sleep(0.05)
        raise AssertionError(f"{topic}: {self.seen[topic]}")

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


def listener(model, port, *options, **environment):
    """It reads raw PCM from its pipe, and stays alive until the pipe is closed."""
    address = ["--mqtt", f"127.0.0.1:{port}", "--mqtt-topic", "home/ear"]
    return subprocess.Popen(
        [*PROGRAM, str(model), "-", "--rate", "8000", *EASY, *address, "--json", *options],
        bufsize=0,  # communicate() does not see what a buffered readline() has read ahead
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def feed(process, clip):
    process.stdin.write(as_int16(clip).tobytes())
    process.stdin.flush()


def records_of(process):
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    return [json.loads(line) for line in out.splitlines()]


def test_home_assistant_sees_sensors_states_and_a_dead_listener(model_path, clip, broker, port):
    broker()
    home = Home(port)
    first = listener(model_path, port, "--ignore", "rain")
    feed(first, clip)
    home.wait("home/ear/availability", "online")
    records = records_of(first)
    home.wait("home/ear/availability", "offline")  # it said goodbye
    events = [r for r in records if r["type"] == "event"]
    assert len(events) > 4
    slugs = {"dog": "dog", "siren": "siren", "glass breaking": "glass_breaking"}
    for label, slug in slugs.items():
        expected = [e for e in events if e["label"] == label]
        mine = [json.loads(payload) for payload in home.seen[f"home/ear/{slug}/event"]]
        assert [(e["kind"], round(e["t0"], 6), e["model"]) for e in mine] == [
            (e["kind"], e["t0"], e["model"]) for e in expected
        ]
        switches = {"start": "ON", "end": "OFF"}
        states = [switches[e["kind"]] for e in expected if e["kind"] in switches]
        assert home.seen[f"home/ear/{slug}/state"] == ["OFF", *states]
        config = json.loads(home.seen[f"homeassistant/binary_sensor/home_ear/{slug}/config"][-1])
        assert (config["name"], config["device_class"]) == (label, "sound")
        assert config["state_topic"] == f"home/ear/{slug}/state"
        assert config["availability_topic"] == "home/ear/availability"
    assert not [topic for topic in home.seen if "rain" in topic]

    second = listener(model_path, port)
    home.wait("home/ear/availability", "online")
    second.kill()
    home.wait("home/ear/availability", "offline")  # its last will
    second.communicate()
    home.close()


def test_the_audio_does_not_wait_for_a_broker_and_nothing_is_lost(model_path, clip, broker, port):
    process = listener(model_path, port, "--stall-timeout", "60")
    feed(process, clip)
    lines = [process.stdout.readline()]
    while b'"event"' not in lines[-1]:  # it hears, and no broker is there
        lines.append(process.stdout.readline())
    running = broker()
    home = Home(port)
    home.wait("home/ear/availability", "online")
    time.sleep(0.5)
    running.kill()
    running.wait()
    time.sleep(0.2)
    broker()
    again = Home(port)
    again.wait("home/ear/availability", "online")
    records = [*map(json.loads, lines), *records_of(process)]
    again.wait("home/ear/availability", "offline")
    seen = [
        json.loads(payload)
        for topic in {*home.seen, *again.seen}
        if topic.endswith("/event")
        for payload in [*home.seen[topic], *again.seen[topic]]
    ]
    happened = {(r["label"], r["at"], r["kind"]) for r in records if r["type"] == "event"}
    arrived = {(e["label"], round(e["at"], 6), e["kind"]) for e in seen}
    assert {kind for *_, kind in happened - arrived} <= {"update"}  # those are not kept
    assert arrived <= happened
    warnings = [r["message"] for r in records if r["type"] == "warning"]
    assert len(warnings) == 2
    assert "cannot be reached" in warnings[0]
    assert "has gone" in warnings[1]
    home.close()
    again.close()


def test_a_user_with_a_password_and_one_without(model_path, clip, broker, port, tmp_path):
    passwords = tmp_path / "passwords"
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip("no mosquitto_passwd: PASSWORDS ARE NOT TESTED HERE")
    subprocess.run([program, "-b", "-c", passwords, "ear", "secret"], check=True)
    broker("allow_anonymous false", f"password_file {passwords}")
    for user, refused in (
        ({"FRAMI_MQTT_USER": "ear", "FRAMI_MQTT_PASSWORD": "secret"}, False),
        ({}, True),
    ):
        process = listener(model_path, port, **user)
        feed(process, clip)
        time.sleep(1)
        feed(process, clip)
        warnings = [r for r in records_of(process) if r["type"] == "warning"]
        assert [w["kind"] for w in warnings] == ["mqtt"] * len(warnings)
        assert (
            any("refuses the connection: Not authorized" in w["message"] for w in warnings)
            == refused
        )


@pytest.mark.parametrize("address", ["http://a", "a:b", "a:99999999"])
def test_an_address_that_cannot_be_used_is_refused(model_path, wav_path, address, capsys):
    pytest.importorskip("paho.mqtt.client")
    assert main([str(model_path), str(wav_path), "--mqtt", address]) == 1
    assert "fix: Give HOST, HOST:PORT or mqtts://HOST" in capsys.readouterr().err
