"""`frami-edge listen`: hear with an exported model, as `frami-edge-listen` does without torch."""

from __future__ import annotations

from typing import Annotated

import typer

from frami_edge.cli._app import command_app, examples

app = command_app()

_RESULTS, _EVENTS, _SOURCE, _OUTPUT = "Results", "Events", "Source", "Output"


@app.command(
    epilog=examples(
        "frami-edge listen student.onnx",
        "frami-edge listen student.onnx street.wav --on 0.7 --min-on 0.5",
        "frami-edge listen student.onnx mic --device plughw:1 --json --quiet | my-logger",
        "ffmpeg -i rtsp://cam -f s16le -ac 1 -ar 16000 - | "
        "frami-edge listen student.onnx - --rate 16000",
    )
)
def listen(
    model: Annotated[str, typer.Argument(help="The .onnx or .engine file of an export.")],
    source: Annotated[
        str,
        typer.Argument(
            help="An audio file of any length; - for raw PCM on standard input; mic.",
        ),
    ] = "mic",
    window: Annotated[
        float | None,
        typer.Option(
            "--window",
            metavar="S",
            help="A result looks back so far.",
            show_default="1",
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    forget: Annotated[
        float | None,
        typer.Option(
            "--forget",
            metavar="S",
            help="Instead of a window: weights halve in this time.",
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(
            "--hop",
            metavar="S",
            help="Time between results.",
            show_default="a quarter of the window, at most 0.5",
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            "--top", metavar="K", help="Classes shown with a result.", rich_help_panel=_RESULTS
        ),
    ] = 3,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="auto, cpu, cuda, tensorrt-ep or tensorrt.",
            rich_help_panel=_RESULTS,
        ),
    ] = "auto",
    on: Annotated[
        float | None,
        typer.Option(
            "--on",
            metavar="P",
            help="Score from which a label is on.",
            show_default="0.5",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    off: Annotated[
        float | None,
        typer.Option(
            "--off",
            metavar="P",
            help="Score below which it ends.",
            show_default="--on less 0.15",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    min_on: Annotated[
        float | None,
        typer.Option(
            "--min-on",
            metavar="S",
            help="On for so long, to begin an event.",
            show_default="half of the window",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    min_off: Annotated[
        float | None,
        typer.Option(
            "--min-off", metavar="S", help="Off for so long, to end it.", rich_help_panel=_EVENTS
        ),
    ] = None,
    merge_gap: Annotated[
        float | None,
        typer.Option(
            "--merge-gap",
            metavar="S",
            help="Join events that are less apart.",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    cooldown: Annotated[
        float | None,
        typer.Option(
            "--cooldown",
            metavar="S",
            help="Deaf to the label after its event.",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    smooth: Annotated[
        float | None,
        typer.Option(
            "--smooth",
            metavar="S",
            help="Half-life of an average over the scores.",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    update: Annotated[
        float | None,
        typer.Option(
            "--update",
            metavar="S",
            help="Time between updates of an event.",
            show_default="1",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    min_level: Annotated[
        float | None,
        typer.Option(
            "--min-level",
            metavar="DB",
            help="Windows quieter than this are no event, such as -55 (dB of full scale).",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    watch: Annotated[
        list[str] | None,
        typer.Option(
            "--watch",
            metavar="LABEL",
            help="Only this label; repeatable.",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="LABEL",
            help="Not this label; repeatable.",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Microphone: sounddevice name or number, or ALSA PCM.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    rate: Annotated[
        int | None,
        typer.Option(
            "--rate",
            metavar="HZ",
            help="Of raw PCM; or wanted of the microphone.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F",
            help="Of raw PCM: s16le, s32le or f32le.",
            show_default="s16le",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(
            "--channels",
            metavar="N",
            help="Of raw PCM, interleaved.",
            show_default="1",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    channel: Annotated[
        str,
        typer.Option(
            "--channel", metavar="N", help="1 is the first; mix averages.", rich_help_panel=_SOURCE
        ),
    ] = "mix",
    ring: Annotated[
        float,
        typer.Option(
            "--ring",
            metavar="S",
            help="Audio that may wait before the oldest is dropped.",
            rich_help_panel=_SOURCE,
        ),
    ] = 10.0,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="JSON Lines: one object a line (start, result, event, gap, warning, summary), "
            "because a stream has no end to wait for.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Plain lines, also on a terminal.", rich_help_panel=_OUTPUT),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Events only, no results and notes.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    once: Annotated[
        bool,
        typer.Option("--once", help="Stop when the first event begins.", rich_help_panel=_OUTPUT),
    ] = False,
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration", metavar="S", help="Stop after so much audio.", rich_help_panel=_OUTPUT
        ),
    ] = None,
) -> None:
    """Listen to a microphone, a file or a pipe: level, top classes and events.

    Files stream as fast as they can, in bounded memory; Ctrl-C ends with a summary and exit code 0.
    On a device without torch the same program is called `frami-edge-listen`.
    """
    from frami_edge_runtime.listen import ListenOptions, run

    given = {
        "on": on,
        "off": off,
        "min_on_s": min_on,
        "min_off_s": min_off,
        "merge_gap_s": merge_gap,
        "cooldown_s": cooldown,
        "smooth_s": smooth,
        "update_s": update,
        "min_level_db": min_level,
        "watch": tuple(watch) if watch else None,
        "ignore": tuple(ignore) if ignore else None,
    }
    run(
        ListenOptions(
            model=model,
            source=source,
            window_s=window,
            hop_s=hop,
            forget_s=forget,
            events={name: value for name, value in given.items() if value is not None},
            top=top,
            backend=backend,
            device=device,
            rate=rate,
            encoding=encoding,
            channels=channels,
            channel=channel,
            ring_s=ring,
            duration_s=duration,
            once=once,
            json=json,
            plain=plain,
            quiet=quiet,
        )
    )
