"""Odd calls for `fuzz_runtime`: chunk sequences, groups, events, rings and mel specs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from fuzz_material import ODD, Material, Rng, WrongAnswerError, check_scores

from frami_edge_runtime import FramiEdgeError, MelSpec, Result, log_mel
from frami_edge_runtime.capture import SampleRing
from frami_edge_runtime.events import EventDetector, EventSpec

MODES: Final[tuple[dict[str, Any], ...]] = (
    {}, {"window_s": 0.6, "hop_s": 0.2}, {"forget_s": 0.5, "hop_s": 0.1},
)  # fmt: skip


class Hostile:
    """An object that only pretends to be an array."""

    def __array__(self, *_: object, **__: object) -> Any:
        """What a tensor that needs gradients does."""
        raise RuntimeError("Can't call numpy() on Tensor that requires grad")


def bad_chunk(rng: Rng) -> Any:
    """Something that is no audio."""
    masked = np.ma.masked_array([0.1, 0.2], [True, False], np.float32)
    nested: list[Any] = []
    nested.append(nested)
    bad: list[Any] = [
        np.array([0.1, np.nan], np.float32), np.array([np.inf, -np.inf], np.float32),
        np.full(9, 1e30), np.full(9, -1e30, np.float32), np.full(5000, 17.0, np.float32),
        np.zeros((3, 2), np.float32), np.zeros((0, 2), np.float32), np.float32(0.1),
        np.zeros(4, object), np.zeros(4, np.uint8), np.zeros(4, np.int64), np.zeros(4, complex),
        np.zeros(4, "S3"), np.zeros(4, "M8[s]"), np.zeros(4, [("a", "f4")]),
        np.zeros(4, np.float16),
        np.zeros(4, np.longdouble), [1, 2], [2**70], [[0.1], [0.1, 0.2]], nested, "abc", b"abc", {},
        None, object(), 3, float("nan"), masked, Hostile(), lambda: 0, iter([0.1]), {0.1},
        [None], [0.1, "x"], memoryview(b"abc"), np.array([0.1, 1e38]), range(4),
    ]  # fmt: skip
    return bad[int(rng.integers(0, len(bad)))]


def good_chunk(rng: Rng, x: Any) -> Any:
    """The same samples in another form; all hold their values exactly."""
    forms: list[Callable[[], Any]] = [
        lambda: x, lambda: x.astype(np.float64), lambda: x.astype(">f4"), x.tolist,
        lambda: x[::-1].copy()[::-1], lambda: np.repeat(x, 3)[::3], lambda: _readonly(x),
        lambda: np.stack([x, x], 1)[:, 0], lambda: x.astype(">f8"), lambda: tuple(x.tolist()),
        lambda: np.ascontiguousarray(x).data,
    ]  # fmt: skip
    return forms[int(rng.integers(0, len(forms)))]()


def _readonly(x: Any) -> Any:
    y = x.copy()
    y.flags.writeable = False
    return y


def chunks(rng: Rng, material: Material) -> None:
    """Good and bad calls of a stream in any order: the answer is that of the good ones alone."""
    options = MODES[int(rng.integers(0, 3))]
    rate = int(rng.choice([material.rate, material.rate, 3 * material.rate, 44_100]))
    stream = material.classifier.stream(rate, **options)
    plain = material.classifier.stream(rate, **options)
    found: list[Any] = []
    wanted: list[Any] = []
    integers = rng.random() < 0.3
    for _ in range(int(rng.integers(3, 25))):
        way = rng.integers(0, 10)
        start = int(rng.integers(0, len(material.clip)))
        x = material.clip[start : start + int(rng.choice([0, 1, 7, 160, 2000, 9000]))]
        if integers:
            x = (x * 32767).astype(rng.choice(["<i2", ">i2"]))
            form: Any = x[::-1].copy()[::-1] if rng.random() < 0.5 else x
        elif len(x) and rng.random() < 0.8:
            form = good_chunk(rng, x)
        else:
            form = x
        if way < 5:
            found += stream.push(form)
            half = len(x) // 2
            wanted += [*plain.push(np.ascontiguousarray(x[:half])), *plain.push(x[half:].copy())]
        elif way == 5:
            refuse(stream.push, bad_chunk(rng))
        elif way == 6:
            lost = ODD[int(rng.integers(0, 14))]
            keep = bool(rng.random() < 0.5)
            usable = isinstance(lost, int) and not isinstance(lost, bool) and 0 <= lost <= 1 << 48
            if usable:
                found += stream.gap(lost, keep_pooling=keep)
                wanted += plain.gap(lost, keep_pooling=keep)
            else:
                refuse(stream.gap, lost)
        elif way == 7:
            state = stream.state()
            key = str(rng.choice(sorted(state)))
            odd = ODD[int(rng.integers(0, len(ODD)))]
            if type(odd) is not type(state[key]) or odd != state[key]:
                refuse(stream.load_state, {**state, key: odd})
            stream = material.classifier.stream(rate, **options)
            stream.load_state(state)
        elif way == 8 and rng.random() < 0.3:
            stream.reset()
            plain.reset()
        elif way == 9:
            _end(stream, plain, found, wanted)
    _end(stream, plain, found, wanted)
    compare(found, wanted, len(material.classifier.labels))


def _end(stream: Any, plain: Any, found: list[Any], wanted: list[Any]) -> None:
    for each, results in ((stream, found), (plain, wanted)):
        try:
            results.append(each.flush())
        except FramiEdgeError as error:
            results.append(type(error))


def compare(found: list[Any], wanted: list[Any], classes: int) -> None:
    """Raise `WrongAnswerError` unless these are the same results, exactly."""
    if len(found) != len(wanted):
        raise WrongAnswerError(f"{len(found)} results instead of {len(wanted)}")
    for a, b in zip(found, wanted, strict=True):
        if not isinstance(a, Result) or not isinstance(b, Result):
            if a is not b:
                raise WrongAnswerError(f"{a} instead of {b}")
            continue
        check_scores(a, classes)
        same = np.array_equal(a.logits, b.logits) and (a.t0, a.t1, a.gap) == (b.t0, b.t1, b.gap)
        if not same:
            raise WrongAnswerError(f"{a} instead of {b}")


def refuse(call: Callable[..., Any], *arguments: Any) -> None:
    """Raise `WrongAnswerError` unless the call raises a documented error."""
    try:
        call(*arguments)
    except FramiEdgeError as error:
        if not error.message or not error.fix:
            raise WrongAnswerError(f"no fix: {error!r}") from None
        return
    raise WrongAnswerError("bad input was taken")


def group(rng: Rng, material: Material) -> None:
    """Good and bad calls of a group: the answers are those of streams of their own."""
    options = MODES[int(rng.integers(0, 3))]
    odd: Any = ODD[int(rng.integers(0, len(ODD)))]
    if not isinstance(odd, int) or isinstance(odd, bool) or not 1 <= odd <= 65_536:
        refuse(material.classifier.streams, odd)
    together = material.classifier.streams(3, **options)
    alone = [material.classifier.stream(**options) for _ in range(3)]
    for _ in range(int(rng.integers(2, 9))):
        starts = rng.integers(0, len(material.clip), 3)
        x = [material.clip[i : i + int(rng.choice([0, 1, 500, 5000]))] for i in starts]
        if rng.random() < 0.4:
            bad = bad_chunk(rng)
            given: Any = [x[0], x[1], np.array(1.0) if bad is None else bad]
            odd_calls: list[tuple[Any, ...]] = [
                (together.push, given), (together.push, x[:2]), (together.push, None),
                (together.push, iter(x)), (together.flush, 3), (together.reset, -1),
                (together.state, "0"), (together.load_state, 0, {}), (together.gap, 9, 1),
                (together.gap, 0, -1),
            ]  # fmt: skip
            refuse(*odd_calls[int(rng.integers(0, len(odd_calls)))])
        many = together.push([good_chunk(rng, each) if len(each) else None for each in x])
        for one, stream, each in zip(many, alone, x, strict=True):
            _near(one, stream.push(each))
    for i, stream in enumerate(alone):
        _near([together.flush(i)], [stream.flush()])


def _near(found: list[Any], wanted: list[Any]) -> None:
    if len(found) != len(wanted):
        raise WrongAnswerError(f"{len(found)} results instead of {len(wanted)}")
    for a, b in zip(found, wanted, strict=True):
        if (a is None) != (b is None) or (a and np.abs(a.scores - b.scores).max() > 1e-6):
            raise WrongAnswerError("a stream of a group differs")


def events(rng: Rng, material: Material) -> None:
    """Odd settings and odd results for a detector: events alternate, and stay in order."""
    labels = material.classifier.labels
    odd: list[Any] = [*ODD, float("nan"), float("inf"), 0.2, 0.7, labels[:1], (labels[0], 3)]
    names = ("on", "off", "min_on_s", "min_off_s", "merge_gap_s", "cooldown_s", "smooth_s",
             "update_s", "min_level_db", "watch", "ignore", "overrides")  # fmt: skip
    settings = {
        str(name): odd[int(rng.integers(0, len(odd)))] if rng.random() < 0.5 else _usual(rng, name)
        for name in rng.choice(names, int(rng.integers(0, 4)), replace=False)
    }
    forget: Any = odd[int(rng.integers(0, len(odd)))] if rng.random() < 0.2 else None
    detector = EventDetector(EventSpec(**settings), labels, forget_s=forget)
    base = material.classifier.classify(material.clip)
    t = 0.0
    active: set[str] = set()
    for _ in range(40):
        t += float(rng.choice([0.1, 0.5, 100.0]))
        scores = rng.dirichlet(np.full(len(labels), 0.2)).astype(np.float32)
        result = Result(
            base.label, 0, float(scores[0]), scores, base.logits, labels, max(0.0, t - 0.5), t,
            int(rng.choice([0, 0, 0, 800])),
        )  # fmt: skip
        level = (None, -100.0, -10.0, np.nan, -np.inf)[int(rng.integers(0, 5))]
        for event in detector.push(result, level_db=level):
            _follow(active, event)
    for event in detector.finish():
        _follow(active, event)
    if active:
        raise WrongAnswerError("an event never ended")


def _usual(rng: Rng, name: Any) -> Any:
    return {"watch": None, "ignore": (), "overrides": {}, "min_level_db": -60.0}.get(
        str(name), float(rng.choice([0.05, 0.3, 0.9]))
    )


def _follow(active: set[str], event: Any) -> None:
    if event.kind == "start":
        if event.label in active:
            raise WrongAnswerError("an event started twice")
        active.add(event.label)
    elif event.label not in active:
        raise WrongAnswerError(f"{event.kind} before start")
    if not event.t0 <= event.t1 <= event.at + 1e-9:
        raise WrongAnswerError(f"times of {event}")
    if event.kind == "end":
        active.discard(event.label)


def ring(rng: Rng, material: Material) -> None:
    """Odd calls of a ring: samples come out as they went in, or are counted as lost."""
    rate: Any = material.rate if rng.random() < 0.8 else ODD[int(rng.integers(0, 14))]
    seconds: Any = (
        rng.choice([0.01, 0.1, 1.0]) if rng.random() < 0.8 else ODD[int(rng.integers(14))]
    )
    policy: Any = "drop_oldest" if rng.random() < 0.7 else rng.choice(["raise", "x"])
    kind: Any = np.int16 if rng.random() < 0.8 else rng.choice(["f4", "O", "U3", "x", "u1"])
    tape = SampleRing(rate, seconds, policy, kind)
    position = told = 0
    for _ in range(30):
        way = rng.integers(0, 5)
        if way < 2:
            n = int(rng.choice([0, 1, 50, 700, 3000]))
            x = np.arange(position, position + n).astype(np.int16).astype(kind)
            try:
                tape.write(x)
                position += n
            except FramiEdgeError:
                if policy != "raise":
                    raise
        elif way == 2:
            bad = [np.array([0.5], np.float64), np.zeros((2, 2), kind), np.zeros(1, complex), [1],
                   None, np.array(["a"])]  # fmt: skip
            refuse(tape.write, bad[int(rng.integers(0, len(bad)))])
        elif way == 3:
            refuse(tape.read, int(rng.choice([-1, -5000])))
        else:
            got = tape.read(int(rng.choice([1, 10, 5000])), timeout=0)
            if got is None:
                raise WrongAnswerError("an open ring ended")
            told += got[1]
            if (
                kind == np.int16
                and len(got[0])
                and int(got[0][0]) != np.int64(told).astype(np.int16)
            ):
                raise WrongAnswerError(f"sample {got[0][0]} at {told}")
            told += len(got[0])


def mel_spec(rng: Rng, material: Material) -> None:
    """Odd values of a mel front end: finite frames, alike in two chunkings, or refused."""
    values = material.classifier.info.mel.to_dict()
    numbers = [*ODD, float("nan"), float("inf"), 7, 16, 100, 257, 400, 1024, 65_536, 768_000]
    for key in rng.choice(sorted(values), int(rng.integers(1, 4)), replace=False):
        values[str(key)] = numbers[int(rng.integers(0, len(numbers)))]
    spec = MelSpec.from_dict(values)
    if MelSpec.from_dict(spec.to_dict()) != spec:
        raise WrongAnswerError("no round trip")
    frames = log_mel(material.clip, spec)
    if frames.shape[1] != spec.n_mels or not np.isfinite(frames).all():
        raise WrongAnswerError(f"frames of shape {frames.shape}, or not finite")
    below = float((spec.floor - frames.min(axis=0, initial=np.inf)).max())
    scale = float(np.abs(spec.floor).max())
    if below > 1e-3 * (1 + scale):
        raise WrongAnswerError(f"frames {below} below the floor")
    if len(material.clip) >= spec.min_samples and len(frames) != spec.frames(len(material.clip)):
        raise WrongAnswerError("other frames than frames() says")


CALLS: Final[dict[str, Callable[[Rng, Material], None]]] = {
    "chunks": chunks,
    "group": group,
    "events": events,
    "ring": ring,
    "melspec": mel_spec,
}
