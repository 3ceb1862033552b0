"""Events for Home Assistant and other programs, by MQTT; the audio never waits for the broker.

Topics below the prefix, which is ``frami-edge/HOSTNAME`` unless it is chosen:

    availability    online or offline; retained, and offline is the last will
    LABEL/state     ON or OFF; retained, one topic per watched label
    LABEL/event     event records, as ``--json`` prints them
    warning         warning records

Home Assistant discovers a binary sensor per watched label, and one that is on after a warning.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections import deque
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from frami_edge_runtime import __version__
from frami_edge_runtime.errors import FramiEdgeError

DISCOVERY: Final = "homeassistant/binary_sensor"
MOST_QUEUED: Final = 10_000
"""Messages that wait for a broker that is away; beyond, new ones are dropped."""
LONGEST_RETRY_S: Final = 60
PROBLEM_S: Final = 900
"""The warning sensor is off this long after the last warning."""
_GOODBYE_S: Final = 2.0
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


class Publisher:
    """Publishes the records of a session; connects, and connects again, in a thread of its own.

    User and password are taken from ``FRAMI_MQTT_USER`` and ``FRAMI_MQTT_PASSWORD``.

    Args:
        address: ``HOST``, ``HOST:PORT``, or ``mqtts://HOST`` for TLS.
        prefix: Prefix of all topics; None for the default.

    Raises:
        FramiEdgeError: paho-mqtt is not installed, or the address or prefix cannot be used.
    """

    def __init__(self, address: str, prefix: str | None = None) -> None:
        try:
            # Imported here: it is an extra.
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
        except ImportError:
            raise FramiEdgeError(
                "--mqtt needs paho-mqtt, which is not installed.",
                fix="pip install 'frami-edge-runtime[mqtt]'",
            ) from None
        self._prefix = prefix or f"frami-edge/{socket.gethostname()}"
        self._node = _slug(self._prefix)
        self._states: dict[str, str] = {}  # slug of each watched label, by label
        self._hello: list[tuple[str, str]] = []  # retained messages of every connection
        self._warnings: deque[tuple[str, str]] = deque()
        self._full, self._dropped = MQTTErrorCode.MQTT_ERR_QUEUE_SIZE, 0
        self._away = False  # one warning for each time that the broker is away
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.max_queued_messages_set(MOST_QUEUED)
        self._client.reconnect_delay_set(1, LONGEST_RETRY_S)
        self._client.on_connect = self._connected
        self._client.on_connect_fail = self._failed
        self._client.on_disconnect = self._disconnected
        try:
            self._client.will_set(self._topic("availability"), "offline", qos=1, retain=True)
            url = urlsplit(address if "://" in address else f"mqtt://{address}")
            self.address = f"{url.hostname}:{url.port or _PORTS[url.scheme]}"
            if url.scheme == "mqtts":
                self._client.tls_set()
            if user := os.environ.get("FRAMI_MQTT_USER"):
                self._client.username_pw_set(user, os.environ.get("FRAMI_MQTT_PASSWORD"))
            self._client.connect_async(url.hostname or "", url.port or _PORTS[url.scheme])
        except (KeyError, ValueError) as error:
            raise FramiEdgeError(
                f"Cannot publish to {address!r}, {self._prefix!r}: {error}.",
                fix="Give HOST, HOST:PORT or mqtts://HOST, and a topic without + and #.",
            ) from None
        self._client.loop_start()

    def show(self, record: dict[str, Any]) -> None:
        """Publish a record, if it is one of the types that are published."""
        if record["type"] == "start":
            self._introduce(record)
        elif record["type"] == "warning" and record["kind"] != "mqtt":
            self._publish(self._topic("warning"), json.dumps(record))
        elif record["type"] == "event":
            if record["kind"] == "update" and not self._client.is_connected():
                return  # the queue is for starts and ends
            slug = self._states[record["label"]]
            self._publish(self._topic(slug, "event"), json.dumps(record))
            if record["kind"] != "update":
                state = "ON" if record["kind"] == "start" else "OFF"
                self._publish(self._topic(slug, "state"), state, retain=True)

    def take_warnings(self) -> list[tuple[str, str]]:
        """News of the connection since the last call, as (``mqtt``, sentence)."""
        return [self._warnings.popleft() for _ in range(len(self._warnings))]

    def close(self) -> None:
        """Say goodbye, with at most two seconds for what still waits."""
        with suppress(ValueError, RuntimeError):  # it is not connected, or too much waits
            gone = self._client.publish(self._topic("availability"), "offline", 1, retain=True)
            gone.wait_for_publish(_GOODBYE_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _introduce(self, start: dict[str, Any]) -> None:
        rules = start["events"]
        for label in start["labels"]:
            if label in rules["ignore"] or label not in (rules["watch"] or [label]):
                continue
            slug = _slug(label)
            self._states[label] = (
                f"{slug}_{len(self._states)}" if slug in self._states.values() else slug
            )
        device = {
            "identifiers": [self._node],
            "name": self._prefix.rpartition("/")[2],
            "manufacturer": "frami-edge",
            "model": f"{start['model']} {start['sha256'][:12]}",
            "sw_version": start["version"],
        }
        common = {
            "availability_topic": self._topic("availability"),
            "device": device,
            "origin": {"name": "frami-edge", "sw_version": __version__},
            "qos": 1,
        }
        sensors: dict[str, dict[str, Any]] = {
            slug: {
                "name": label,
                "device_class": "sound",
                "state_topic": self._topic(slug, "state"),
                "json_attributes_topic": self._topic(slug, "event"),
            }
            for label, slug in self._states.items()
        }
        sensors["input_warning"] = {
            "name": "Input warning",
            "device_class": "problem",
            "entity_category": "diagnostic",
            "state_topic": self._topic("warning"),
            "value_template": "ON",
            "off_delay": PROBLEM_S,
            "json_attributes_topic": self._topic("warning"),
        }
        self._hello = [
            (
                f"{DISCOVERY}/{self._node}/{slug}/config",
                json.dumps({**common, **sensor, "unique_id": f"{self._node}_{slug}"}),
            )
            for slug, sensor in sensors.items()
        ]
        for slug in self._states.values():
            self._publish(self._topic(slug, "state"), "OFF", retain=True)
        if self._client.is_connected():
            self._greet()

    def _greet(self) -> None:
        for topic, payload in self._hello:
            self._publish(topic, payload, retain=True)
        self._publish(self._topic("availability"), "online", retain=True)

    def _publish(self, topic: str, payload: str, *, retain: bool = False) -> None:
        if self._client.publish(topic, payload, qos=1, retain=retain).rc == self._full:
            self._dropped += 1
            if self._dropped == 1:
                self._warnings.append(("mqtt", f"{MOST_QUEUED} messages wait: more are dropped."))

    def _topic(self, *parts: str) -> str:
        return "/".join((self._prefix, *parts))

    def _connected(self, client: Any, data: Any, flags: Any, code: Any, properties: Any) -> None:
        if code.is_failure:
            self._report_away(f"refuses the connection: {code}")
        else:
            self._away = False
            self._greet()

    def _failed(self, client: Any, data: Any) -> None:
        self._report_away("cannot be reached")

    def _disconnected(self, client: Any, data: Any, flags: Any, code: Any, rest: Any) -> None:
        if code.is_failure:
            self._report_away(f"has gone: {code}")

    def _report_away(self, why: str) -> None:
        if not self._away:
            self._away = True
            self._warnings.append(("mqtt", f"The broker {self.address} {why}; trying again."))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "label"
