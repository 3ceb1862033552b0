// The page of an exported model: microphone or file in, classes, log-mel and events out.
//
// The results are those of frami_edge_runtime's `Stream` with its default window and hop, and the
// events those of its `EventDetector`. Each is also sent to the window as an event "frami", whose
// `detail` has the fields that `frami-edge-listen --json` prints.

/** Results of one clip or microphone, computed from its samples as they arrive. */
class Stream {
  constructor(run, model) {
    this.run = run; // samples and context to logits and log-mel
    this.model = model;
    const { stride, left, right, hop, blocks, pad, span, hop_length } = model;
    this.lead = Math.ceil(pad / hop_length); // mel frames that the reflection of an end changes
    this.kept = (hop * (blocks + 1) * stride + left + right + this.lead + 2) * hop_length + span;
    this.samples = new Float32Array(2 * this.kept);
    this.base = 0; // position of samples[0] in the clip
    this.total = 0; // samples so far
    this.hops = 0; // results so far
  }

  /** Take samples at the model's rate; the results that became final. */
  async *push(chunk) {
    this.append(chunk);
    const { stride, right, hop } = this.model;
    for (;;) {
      const frames = (this.hops + 1) * hop;
      if (this.end((frames - 1) * stride + right) > this.total) return;
      this.hops += 1;
      yield await this.answer(this.start(frames), frames);
    }
  }

  /** The last result of the clip, which covers its window up to the end; null without samples. */
  async flush() {
    if (this.total === 0) return null;
    const frames = this.framesOfAll();
    return this.answer(this.start(frames), frames, true);
  }

  /** The answer to a whole clip, which nothing may have been pushed before. */
  async classify(samples) {
    this.samples = samples;
    this.total = samples.length;
    return this.answer(0, this.framesOfAll(), true);
  }

  append(chunk) {
    if (this.total - this.base + chunk.length > this.samples.length) {
      const kept = Math.min(this.total - this.base, this.kept);
      const grown = new Float32Array(Math.max(2 * this.kept, kept + chunk.length));
      grown.set(this.samples.subarray(this.total - this.base - kept, this.total - this.base));
      this.samples = grown;
      this.base = this.total - kept;
    }
    this.samples.set(chunk, this.total - this.base);
    this.total += chunk.length;
  }

  /** Where the audio of a mel frame ends, in samples. */
  end(frame) {
    const { hop_length, pad, span, min_samples } = this.model;
    return Math.max(frame * hop_length - pad + span, min_samples);
  }

  /** The first trunk frame of the window of so many trunk frames. */
  start(frames) {
    const { hop, blocks } = this.model;
    return Math.max(0, (Math.ceil(frames / hop) - blocks) * hop);
  }

  melFrames(samples) {
    const { hop_length, pad, span, min_samples } = this.model;
    return 1 + Math.floor((Math.max(samples, min_samples) + 2 * pad - span) / hop_length);
  }

  framesOfAll() {
    return Math.floor((this.melFrames(this.total) - 1) / this.model.stride) + 1;
  }

  /** The result of trunk frames `from` to `to`; the clip may end after them. */
  async answer(from, to, ending = false) {
    const { labels, output, hop_length, stride, left, right, pad, sample_rate } = this.model;
    const first = from * stride - left; // the mel frames that the trunk sees; before 0: context
    const last = (to - 1) * stride + right;
    const begin = Math.max(0, first - this.lead);
    const end = ending ? this.total : this.end(last);
    const samples = this.samples.subarray(begin * hop_length - this.base, end - this.base);
    const frames = this.melFrames(samples.length);
    // More context frames than there are mel frames, or fewer: then some are cut off.
    const around = [0, 0, 0, begin - first, 0, 0, 0, last + 1 - begin - frames];
    const { logits, data } = await this.run(samples, around);
    const scores = scoresOf(logits, output);
    const index = logits.indexOf(Math.max(...logits));
    const t0 = Math.max(0, first * hop_length - pad) / sample_rate;
    const t1 = (ending ? this.total : Math.min(this.total, end)) / sample_rate;
    const mel = { data, begin, frames, first: Math.max(0, first), last };
    return { type: "result", t0, t1, label: labels[index], score: scores[index], scores, logits, mel };
  }
}

function scoresOf(logits, output) {
  const z = Array.from(logits);
  if (output === "sigmoid") return z.map((x) => 0.5 * (1 + Math.tanh(0.5 * x)));
  const sum = energy(z); // of exp, as ln
  return z.map((x) => Math.exp(x - sum));
}

/** Starts and ends of sounds: the runtime's `EventDetector` with the settings of the model file. */
class Events {
  constructor(model) {
    this.model = model;
    this.middle = 0; // a result decides from the middle of the window before to that of its own
    this.last = null;
    this.tracks = model.labels.map(() => ({ run: null, best: 0, event: null }));
  }

  push(result) {
    const middle = Math.max(this.middle, (result.t0 + result.t1) / 2);
    this.last = result;
    return this.decide(middle, result.t1);
  }

  /** The clip has ended: the last result decides up to its end, and all events end. */
  finish() {
    if (!this.last) return [];
    const at = this.last.t1;
    const found = this.decide(at, at, true);
    this.tracks.forEach((track) => track.event && found.push(this.report("end", track, at)));
    return found;
  }

  /** `ends`: the last result decides once more, and starts no event on its own. */
  decide(end, at, ends = false) {
    const begin = this.middle;
    if (end <= begin) return [];
    const first = this.first;
    Object.assign(this, { middle: end, first: begin === 0 });
    const { on, off, reject, min_on_s } = this.model;
    const { scores, logits } = this.last;
    const known = reject === null ? 1 : 1 / (1 + Math.exp(reject - energy(logits)));
    const found = [];
    this.tracks.forEach((track, k) => {
      const raw = scores[k];
      const y = raw * known;
      if (ends && !first && !track.event && (track.alone || track.run === null)) return;
      if (track.event) {
        if (y >= off[k]) Object.assign(track.event, { t1: end, score: Math.max(track.event.score, raw) });
        else found.push(this.report("end", track, at));
      } else if (y < on[k] || on[k] >= 1) {
        track.run = null;
      } else {
        track.alone = track.run === null;
        if (track.alone) Object.assign(track, { run: begin, best: 0 });
        track.best = Math.max(track.best, raw);
        if (end - track.run >= min_on_s - 1e-9) {
          track.event = { label: this.model.labels[k], t0: track.run, t1: end, score: track.best };
          track.run = null;
          found.push(this.report("start", track, at));
        }
      }
    });
    return found.sort((a, b) => (b.kind === "end") - (a.kind === "end"));
  }

  report(kind, track, at) {
    const report = { type: "event", kind, ...track.event, at };
    if (kind === "end") track.event = null;
    return report;
  }
}

/** ln of the sum of exp(logits): large for sounds like those that the model was made for. */
function energy(logits) {
  const top = Math.max(...logits);
  return top + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - top), 0));
}

// What the page shows.

const SHOWN = 5; // classes
const LISTED = 200; // events
const COLUMNS = 800; // mel frames in the picture
const WHOLE_S = 30; // longest file that is also answered as a whole
const NO_SAMPLES_S = 3; // after which a microphone has failed
const by = (id) => document.getElementById(id);
let note = ""; // after every sentence, until the page is ready again
const say = (sentence) => {
  const text = sentence + note;
  if (by("status").textContent !== text) by("status").textContent = text;
};
const seconds = (t) => `${t.toFixed(2)} s`;

/** Black, violet, orange, light yellow. */
const COLOURS = Array.from({ length: 256 }, (_, i) => {
  const stops = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  const at = (i / 255) * (stops.length - 1);
  const k = Math.min(Math.floor(at), stops.length - 2);
  return stops[k].map((c, j) => c + (stops[k + 1][j] - c) * (at - k));
});

class View {
  constructor(model) {
    this.model = model;
    by("title").textContent = document.title = `${model.name}: ${model.labels.length} classes`;
    const licence = model.licence ? `, licence ${model.licence}` : "";
    by("about").textContent = `Model ${model.model}${licence}; runs on onnxruntime-web (MIT).`;
    const span = (COLUMNS * model.hop_length) / model.sample_rate;
    by("caption").textContent = `The latest ${span.toFixed(0)} s at ${model.sample_rate} Hz.`;
    by("picture").width = COLUMNS;
    this.rows = model.labels.slice(0, SHOWN).map(() => {
      const row = document.createElement("li");
      row.append(...["span", "i", "b"].map((kind) => document.createElement(kind)));
      row.children[1].setAttribute("aria-hidden", "true");
      return by("top").appendChild(row);
    });
    this.clear();
  }

  clear() {
    this.drawn = 0; // mel frames of the clip in the picture
    this.open = {}; // list items of events that have not ended
    by("events").replaceChildren();
    by("picture").getContext("2d").clearRect(0, 0, COLUMNS, by("picture").height);
  }

  result({ scores, mel }) {
    const best = [...scores.keys()].sort((a, b) => scores[b] - scores[a]);
    this.rows.forEach((row, i) => {
      const score = scores[best[i]];
      row.children[0].textContent = row.title = this.model.labels[best[i]];
      row.children[1].style.setProperty("--score", `${100 * score}%`);
      row.children[2].textContent = score.toFixed(2);
    });
    this.draw(mel);
  }

  draw({ data, begin, frames, first, last }) {
    const from = Math.max(this.drawn, first);
    const to = Math.min(last + 1, begin + frames);
    const columns = Math.min(to - from, COLUMNS);
    if (columns <= 0) return;
    const { darkest, brightest } = this.model;
    const bands = data.length / frames;
    const canvas = by("picture");
    if (canvas.height !== bands) canvas.height = bands;
    const image = new ImageData(columns, bands);
    for (let band = 0; band < bands; band++) {
      for (let x = 0; x < columns; x++) {
        const value = data[band * frames + to - columns + x - begin];
        const share = (value - darkest) / (brightest - darkest);
        const colour = COLOURS[Math.max(0, Math.min(255, Math.round(255 * share)))];
        image.data.set([...colour, 255], 4 * ((bands - 1 - band) * columns + x));
      }
    }
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(canvas, -columns, 0);
    context.globalCompositeOperation = "source-over";
    context.putImageData(image, COLUMNS - columns, 0);
    this.drawn = to;
  }

  event({ kind, label, t0, t1, score }) {
    const item = this.open[label] ?? document.createElement("li");
    item.className = kind === "start" ? "open" : "";
    item.textContent =
      kind === "start"
        ? `${seconds(t0)}: ${label} began`
        : `${seconds(t0)} to ${seconds(t1)}: ${label}, best score ${score.toFixed(2)}`;
    if (kind === "start") by("events").prepend((this.open[label] = item));
    else delete this.open[label];
    by("events").children[LISTED]?.remove();
  }
}

/** Everything that happens to one microphone or file, one thing after the other. */
class Listening {
  constructor(run, model, view) {
    Object.assign(this, { view, stream: new Stream(run, model), events: new Events(model) });
    this.queue = Promise.resolve();
    this.busy_ms = 0;
    this.waiting = 0; // samples
    view.clear();
  }

  push(chunk) {
    this.waiting += chunk.length;
    this.queue = this.queue.then(async () => {
      const started = performance.now();
      for await (const result of this.stream.push(chunk)) this.show(result);
      this.waiting -= chunk.length;
      this.busy_ms += performance.now() - started;
    });
    return this.queue;
  }

  finish() {
    this.queue = this.queue
      .then(() => this.stream.flush())
      .then((last) => last && this.show(last))
      .finally(() => this.events.finish().forEach((event) => this.send(event)));
    return this.queue;
  }

  show(result) {
    this.view.result(result);
    this.send(result);
    this.events.push(result).forEach((event) => this.send(event));
  }

  send(record) {
    if (record.type === "event") this.view.event(record);
    window.dispatchEvent(new CustomEvent("frami", { detail: record }));
  }
}

/**
 * Start to take samples at a rate; returns how to stop.
 *
 * `failed` is called with a sentence where no more samples come, perhaps before this returns.
 */
async function openMicrophone(rate, take, failed) {
  const context = new AudioContext({ sampleRate: rate }); // the browser resamples
  let source = null;
  let watch = 0;
  let patience = NO_SAMPLES_S;
  const close = async () => {
    clearInterval(watch);
    context.onstatechange = null;
    source?.getTracks().forEach((track) => track.stop());
    if (context.state !== "closed") await context.close();
  };
  try {
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    source = await navigator.mediaDevices.getUserMedia({ audio });
    const [track] = source.getAudioTracks();
    track.onended = () => failed("The microphone was disconnected, or the page may no longer use it.");
    await context.audioWorklet.addModule("page.js");
    const node = new AudioWorkletNode(context, "samples", { channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }) => {
      patience = NO_SAMPLES_S;
      if (context.state !== "closed") take(data, track.muted);
    };
    node.onprocessorerror = () => failed("The part of the page that takes the samples failed.");
    // Nodes that lead nowhere may not run; what this one plays is silence.
    context.createMediaStreamSource(source).connect(node).connect(context.destination);
    context.resume(); // where it was not started by the click
    // By a phone call, another program or the browser itself; "interrupted" in Safari.
    context.onstatechange = () => context.state !== "running" && failed("The browser stopped the microphone.");
    // Other faults have no event, such as a device that hangs.
    watch = setInterval(() => --patience < 0 && failed("The microphone gives no samples."), 1000);
  } catch (error) {
    await close();
    throw error;
  }
  return close;
}

/** Mono samples of a file at a rate; the browser decodes and resamples. */
async function decode(file, rate) {
  const audio = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
  const mono = new Float32Array(audio.length);
  for (let c = 0; c < audio.numberOfChannels; c++) {
    audio.getChannelData(c).forEach((x, i) => (mono[i] += x / audio.numberOfChannels));
  }
  return mono;
}

async function start() {
  say("Loading the model…");
  const [model, ort] = await Promise.all([
    fetch("model.json").then((found) => {
      if (found.ok) return found.json();
      throw new Error(`model.json cannot be loaded (${found.status}). Copy the whole folder of the export.`);
    }),
    import("./ort.wasm.bundle.min.mjs"),
  ]);
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create("model.onnx");
  const run = async (samples, context) => {
    const found = await session.run({
      waveform: new ort.Tensor("float32", samples, [1, samples.length]),
      context: new ort.Tensor("int64", BigInt64Array.from(context, BigInt), [8]),
    });
    return { logits: found.logits.data, data: found.frontend_mel.data };
  };
  const view = new View(model);
  await new Stream(run, model).classify(new Float32Array(model.sample_rate)); // warm up

  const button = by("microphone");
  const rest = (said) => {
    note = "";
    const files = "Ready for files. A microphone needs https or http://localhost.";
    say(said ?? (window.isSecureContext ? "Ready." : files));
    button.textContent = "Listen to the microphone";
    button.disabled = !window.isSecureContext;
    by("file").disabled = false;
  };
  const wait = () => (button.disabled = by("file").disabled = true);
  let stop = null; // while the microphone is open

  const listen = async () => {
    const listening = new Listening(run, model, view);
    let failure = "";
    const fail = (why) => {
      failure ||= `${why} The page no longer listens: click to listen again`;
      if (stop) stop();
    };
    const broken = (error) => fail(`The model failed (${error.message}).`);
    const take = (chunk, muted) => {
      listening.push(chunk).catch(broken);
      const late = listening.waiting / model.sample_rate;
      if (!stop) return;
      if (late >= 2) say(`Listening, ${late.toFixed(0)} s late: this device is too slow.`);
      else say(muted ? "Listening, but the microphone is muted." : "Listening.");
    };
    const close = await openMicrophone(model.sample_rate, take, fail);
    stop = async () => {
      stop = null;
      wait();
      await close();
      await listening.finish().catch(broken);
      rest(failure ? `${failure}, or reload the page.` : undefined);
    };
    if (failure) return stop();
    by("microphone").textContent = "Stop";
    button.disabled = false;
  };
  button.onclick = () => {
    if (stop) return stop();
    wait();
    return listen().catch((error) => rest(`The microphone cannot be used: ${error.message}`));
  };

  const open = async (file) => {
    if (!file) return;
    if (by("file").disabled) {
      note = ` ${file.name} was not opened: first ${stop ? "stop listening" : "let this end"}.`;
      return;
    }
    wait();
    let said = "";
    try {
      say(`Reading ${file.name}…`);
      const rate = model.sample_rate;
      const samples = await decode(file, rate);
      const listening = new Listening(run, model, view);
      for (let at = 0; at < samples.length; at += rate) {
        await listening.push(samples.subarray(at, at + rate));
        say(`${file.name}: ${seconds(at / rate)}`);
      }
      await listening.finish();
      said = `${file.name}: ${seconds(samples.length / rate)}, computed in ${seconds(listening.busy_ms / 1000)}.`;
      if (samples.length && samples.length <= WHOLE_S * rate) {
        const whole = await new Stream(run, model).classify(samples);
        view.result(whole);
        listening.send({ ...whole, type: "clip" });
        said += ` As a whole: ${whole.label} (${whole.score.toFixed(2)}).`;
      }
    } catch (error) {
      said = `${file.name} cannot be used: ${error.message}`;
    }
    rest(said);
  };
  by("file").onchange = ({ target }) => open(target.files[0]).then(() => (target.value = ""));
  document.ondragover = (event) => (event.preventDefault(), document.body.classList.add("dropping"));
  document.ondragleave = () => document.body.classList.remove("dropping");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    open(event.dataTransfer.files[0]);
  };
  rest();
}

// The audio thread loads this file too, and takes only the processor.
if (globalThis.AudioWorkletProcessor) {
  registerProcessor("samples", class extends AudioWorkletProcessor {
    process([[channel]]) {
      if (channel) this.port.postMessage(channel.slice());
      return true;
    }
  });
} else {
  start().catch((error) => say(`The page could not start: ${error.message}`));
}
