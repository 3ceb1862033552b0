"""A headless Chromium, driven over its debugging pipe, and a web server for a folder."""

import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import threading

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


class Page:
    """One page; every call waits for its answer."""

    def __init__(self, sink, source):
        self._sink, self._source = os.fdopen(sink, "wb"), os.fdopen(source, "rb")
        self._count, self._left, self._session = 0, b"", {}
        (target,) = (
            t["targetId"]
            for t in self.call("Target.getTargets")["targetInfos"]
            if t["type"] == "page"
        )
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": found["sessionId"]}

    def call(self, method, **params):
        """A method of the Chrome DevTools Protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params} | self._session
        self._sink.write(json.dumps(message).encode() + b"\0")
        self._sink.flush()
        while True:
            while b"\0" not in self._left:
                data = os.read(self._source.fileno(), 1 << 20)
                assert data, "Chromium has ended"
                self._left += data
            text, _, self._left = self._left.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def run(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def click(self, selector):
        """A click of the user: a script's own may not start audio."""
        script = f"document.querySelector({json.dumps(selector)}).click()"
        self.call("Runtime.evaluate", expression=script, userGesture=True)

    def choose_file(self, selector, path):
        """As a user does in the dialogue of a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


@contextlib.contextmanager
def chromium(profile, *flags):
    """A page of a new browser."""
    (from_us, sink), (source, to_us) = os.pipe(), os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    command = 'exec "$0" "$@" 3<&"$FROM" 4>&"$TO"'
    browser = subprocess.Popen(
        [
            "bash", "-c", command, CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            "--no-first-run", "--window-size=800,1000", *flags, "about:blank",
        ],
        pass_fds=(from_us, to_us),
        env=os.environ | {"FROM": str(from_us), "TO": str(to_us)},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(from_us)
    os.close(to_us)
    try:
        yield Page(sink, source)
    finally:
        browser.terminate()
        browser.wait(20)


@contextlib.contextmanager
def served(folder):
    """The address of a folder, served as ``python -m http.server`` does."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def end_headers(self):
            self.send_header("Cache-Control", "no-store")  # a test may change a file
            super().end_headers()

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
