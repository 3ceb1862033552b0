"""The web page: in a browser it gives the results and the events of the runtime.

The browser's part needs Chromium (Debian: ``apt install chromium``) and onnxruntime-web, which the
first run fetches; where one is missing those tests are skipped, and say so.
"""

import json
import time

import browser_kit
import numpy as np
import onnx
import pytest
import soundfile
from export_kit import MEL

from frami_edge_export.errors import ExportError
from frami_edge_export.frontend import MEL as MEL_OUTPUT
from frami_edge_export.frontend import WAVEFORM, described_waveform, waveform_graph
from frami_edge_export.parity import cpu_session
from frami_edge_export.web import CONTEXT, ORT_FILES, onnxruntime_web, page_graph, write_page
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.events import EventDetector, EventSpec

RATE = MEL.sample_rate
TONES_HZ = (300, 1100, 2600, 700)
KINDS = {
    "softmax": {"thresholds": {"on": [0.6] * 6, "off": [0.4] * 6, "reject": 1.0}},
    "sigmoid, centred": {
        "output": "sigmoid",
        "mel": MEL.replace(center=True, pre_emphasis=0.9, mean=-9.0),
    },
}


@pytest.fixture(scope="module", params=KINDS)
def files(request, made, tmp_path_factory):
    """The streaming file and the waveform file of one student."""
    info = made.info.replace(**KINDS[request.param])
    folder = tmp_path_factory.mktemp("files")
    streaming, wave = folder / "s.fp32.onnx", folder / "s.wave.onnx"
    streaming.write_bytes(made.described(made.trunk, info))
    wave.write_bytes(described_waveform(waveform_graph(made.trunk, made.head, info), info))
    return streaming, wave


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Seven seconds of tones and pauses, so that classes change and events end.

    Float samples: Chromium scales positive int16 by 1/32767, which these tones show.
    """
    rng = np.random.default_rng(3)
    x = rng.normal(0, 0.002, int(7.13 * RATE))
    t = np.arange(len(x)) / RATE
    for start, hertz in zip((0.4, 2.2, 4.1, 5.6), TONES_HZ, strict=True):
        on = (t >= start) & (t < start + 1.2)
        x += 0.3 * on * np.sin(2 * np.pi * hertz * t)
    path = tmp_path_factory.mktemp("sounds") / "sounds.wav"
    soundfile.write(path, x, RATE, subtype="FLOAT")
    return path


@pytest.fixture(scope="session")
def ort():
    if not browser_kit.CHROMIUM:
        pytest.skip("NOT TESTED: the web page in a browser; there is no Chromium")
    try:
        return onnxruntime_web()
    except ExportError as error:
        pytest.skip(f"NOT TESTED: the web page in a browser; {error.message}")


@pytest.fixture
def folder(files, ort, tmp_path):
    write_page(files[1], tmp_path / "page", ort)
    return tmp_path / "page"


def by_the_runtime(model, samples, ended):
    """Results and events as `frami-edge-listen` would give them."""
    classifier = Classifier(model)
    spec = EventSpec.for_model(classifier.info, min_on_s=0.5, update_s=None)
    detector, stream = EventDetector(spec, classifier.labels), classifier.stream(window_s=1.0)
    records = []

    def take(result):
        records.append(vars(result))
        records.extend(vars(event) for event in detector.push(result))

    for result in stream.push(samples):
        take(result)
    if ended:
        last = stream.flush()
        take(last)
        records.extend(vars(event) for event in detector.finish())
        if len(samples) <= 30 * RATE:
            records.append(vars(classifier.classify(samples)))
    return records


def same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["label"] == theirs["label"]
        assert ours.get("kind") == theirs.get("kind")
        for name in ("t0", "t1", "score", "at", "logits", "scores"):
            if name in theirs:
                np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3, rtol=0)


HOOKS = """
  window.records = []; window.heard = [];
  addEventListener("frami", ({detail: {mel, ...rest}}) => records.push(
    {...rest, logits: rest.logits && [...rest.logits]}));
  const Node = AudioWorkletNode, Context = AudioContext;
  window.AudioWorkletNode = class extends Node {
    constructor(...rest) {
      super(...rest);
      this.port.addEventListener("message", ({data}) => heard.push(...data));
    }
  };
  window.AudioContext = class extends Context {
    createMediaStreamSource(stream) {
      [window.track] = stream.getAudioTracks();
      window.context = this;
      return super.createMediaStreamSource(stream);
    }
  };
"""


def wait(page, condition):
    for _ in range(300):
        if page.run(condition):
            return
        time.sleep(0.1)
    pytest.fail(f"{condition}: {page.run('document.body.innerText')}")


def said(text):
    return f"(document.getElementById('status')?.textContent ?? '').includes({json.dumps(text)})"


@pytest.fixture(scope="module")
def browser(ort, sounds, tmp_path_factory):
    flags = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    fake = f"--use-file-for-fake-audio-capture={sounds}"
    with browser_kit.chromium(tmp_path_factory.mktemp("profile"), *flags, fake) as page:
        page.call("Page.enable")
        page.call("Page.addScriptToEvaluateOnNewDocument", source=HOOKS)
        yield page


@pytest.fixture
def page(browser, folder):
    with browser_kit.served(folder) as url:
        browser.call("Page.navigate", url=url)
        wait(browser, f"location.href === {url!r} && {said('Ready')}")
        yield browser


def test_a_file_gives_the_answers_of_the_runtime(page, files, sounds):
    page.choose_file("#file", sounds)
    wait(page, said("As a whole"))
    found = page.run("records")
    same(found, by_the_runtime(files[0], soundfile.read(sounds, dtype="float32")[0], ended=True))
    assert {r.get("kind") for r in found} == {None, "start", "end"}
    rows = page.run("[...document.querySelectorAll('#top li')].map(li => li.innerText)")
    assert rows[0].split() == [found[-1]["label"], f"{found[-1]['score']:.2f}"]
    assert page.run("document.querySelectorAll('#events li').length") == sum(
        r.get("kind") == "end" for r in found
    )
    brightness = "[...picture.getContext('2d').getImageData(0, 0, 800, 32).data]"
    assert np.ptp(page.run(brightness)) > 200
    (own,) = {page.run("location.origin")}
    assert all(u.startswith(own) for u in page.run(
        "performance.getEntriesByType('resource').map(entry => entry.name)"
    ))  # fmt: skip
    with pytest.raises(AssertionError, match="Failed to fetch"):
        page.run("fetch('http://127.0.0.1:9/')")


def test_a_microphone_gives_the_answers_of_the_runtime(page, files, sounds):
    page.click("#microphone")
    wait(page, "records.length >= 12")
    page.click("#microphone")
    wait(page, said("Ready"))
    found = page.run("records")
    # Some samples may arrive after the click.
    heard = np.array(page.run("heard"), np.float32)[: round(found[-1]["t1"] * RATE)]
    # What the browser plays is the file, resampled twice and delayed.
    spectrum = np.abs(np.fft.rfft(heard))
    loudest = np.fft.rfftfreq(len(heard), 1 / RATE)[spectrum.argmax()]
    assert min(abs(loudest - hertz) for hertz in TONES_HZ) < 5
    same(found, by_the_runtime(files[0], heard, ended=True)[:-1])


@pytest.mark.parametrize("files", ["softmax"], indirect=True)
def test_a_fault_ends_listening_in_words(page, folder):
    script = (folder / "page.js").read_text()
    start = "process([[channel]]) {"  # of the audio thread's part, which each click loads
    assert script.count(start) == 1

    def fails(words, fault="", processor=start):
        (folder / "page.js").write_text(script.replace(start, processor))
        page.click("#microphone")
        if fault:
            wait(page, "document.getElementById('microphone').innerText === 'Stop'")
            page.run(fault)
        wait(page, said(words))
        assert "click to listen again" in page.run("document.getElementById('status').innerText")
        assert page.run("track.readyState") == "ended"  # the microphone is released
        assert page.run("document.querySelectorAll('#events .open').length") == 0
        button = "document.getElementById('microphone')"
        assert page.run(f"[{button}.disabled, {button}.innerText]") == [
            False, "Listen to the microphone",
        ]  # fmt: skip

    fails("was disconnected", "track.dispatchEvent(new Event('ended'))")
    fails("The browser stopped the microphone", "context.suspend()")
    fails("takes the samples failed", processor="process() { throw new Error();")
    fails("gives no samples", processor="process() { return true;")
    fails("model failed (broken)", "BigInt64Array.from = () => { throw Error('broken'); }; 0")


@pytest.mark.parametrize("files", ["softmax"], indirect=True)
def test_a_file_dropped_while_listening_is_not_ignored_in_silence(page):
    page.click("#microphone")
    wait(page, "records.length >= 1")
    page.run("""
      const data = new DataTransfer();
      data.items.add(new File(["no sound"], "notes.txt"));
      document.dispatchEvent(new DragEvent("drop", {dataTransfer: data}));
    """)
    wait(page, said("Listening. notes.txt was not opened: first stop listening."))
    page.click("#microphone")
    wait(page, said("Ready."))
    assert not page.run(said("notes.txt"))


def test_the_graph_of_the_page(files):
    """Without a browser: with the context of a clip it is the waveform graph."""
    wave = onnx.load(files[1])
    context = Classifier(files[0]).info.context
    x = np.random.default_rng(0).normal(0, 0.1, (1, 4000)).astype(np.float32)
    around = np.array([0, 0, 0, context.left, 0, 0, 0, context.right])
    logits, mel = cpu_session(page_graph(wave)).run(
        ["logits", MEL_OUTPUT], {WAVEFORM: x, CONTEXT: around}
    )
    np.testing.assert_array_equal(logits, cpu_session(wave).run(None, {WAVEFORM: x})[0])
    assert mel.shape[:3] == (1, 1, MEL.n_mels)


def test_the_folder_is_small_and_onnxruntime_comes_from_a_folder(files, tmp_path):
    package = tmp_path / "package" / "dist"
    package.mkdir(parents=True)
    with pytest.raises(ExportError, match=r"does not contain .*mjs"):
        onnxruntime_web(tmp_path / "package")
    for name in ORT_FILES:
        (package / name).write_text("code")
    page = tmp_path / "page"
    write_page(files[1], page, onnxruntime_web(tmp_path / "package"))
    names = {path.name for path in page.iterdir()}
    assert names == {"index.html", "page.js", "model.onnx", "model.json", *ORT_FILES}
    assert sum(p.stat().st_size for p in page.iterdir() if p.name not in ORT_FILES) < 3e6
    assert onnxruntime_web(page) == dict.fromkeys(ORT_FILES, b"code")


@pytest.mark.parametrize(
    ("registry", "said"),
    [
        ("http://127.0.0.1:9", "could not be fetched"),
        ("", "neither NPM_CONFIG_REGISTRY nor npm names one"),
        ("registry.example", "neither NPM_CONFIG_REGISTRY nor npm names one"),
    ],
)
def test_without_a_registry_the_error_names_the_way_around(registry, said, tmp_path, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry)
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")  # no npm
    with pytest.raises(ExportError, match=said) as caught:
        onnxruntime_web()
    assert "--ort-web" in caught.value.fix
