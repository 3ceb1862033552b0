"""docs/CLI.md from the program itself: `python -m frami_edge.cli.reference > docs/CLI.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from rich.text import Text
from typer.main import get_command

from frami_edge.cli import app
from frami_edge_runtime.listen import make_parser as listen_parser

_HEAD = """\
# Command line

Made from the program by `python -m frami_edge.cli.reference > docs/CLI.md`; a test keeps it fresh.
Results go to stdout, everything else to stderr; `--json` prints exactly one JSON object. Exit
codes: 0 done, 1 a known error (one sentence and the fix), 2 wrong usage, 3 a gate failed.
`FRAMI_DEBUG=1` shows tracebacks, `FRAMI_EDGE_DATA` is where the data sets lie.

"""


def reference() -> str:
    """The page: every command with its arguments, options, defaults and examples."""
    found = list(_commands())
    index = "\n".join(
        f"- [`{name}`](#{name.replace(' ', '-')}): {_first_sentence(command)}"
        for name, command in found
    )
    return _HEAD + index + "\n" + "".join(_section(name, command) for name, command in found)


def _commands() -> Iterator[tuple[str, Any]]:
    """(name behind `frami-edge`, command), sub-commands after their group."""
    group: Any = get_command(app)
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield name, command
        for inner, sub in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", sub


def _section(name: str, command: Any) -> str:
    if name == "listen":  # the runtime's program has the options
        text = listen_parser("frami-edge listen").format_help()
        return f"\n## listen\n\n{_paragraphs(command.help)}\n\n```text\n{text}```\n"
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    context = command.make_context(name, [], resilient_parsing=True)
    words = ["frami-edge", name, *(_argument(p) for p in arguments)]
    required = [f"{p.opts[0]} {_value(p, context)}" for p in options if p.required]
    usage = " ".join([*words, *required, "[OPTIONS]"])
    parts = [f"\n## {name}\n\n{_paragraphs(command.help)}\n\n```text\n{usage}\n```\n"]
    if arguments:
        parts.append("\n| argument | |\n| --- | --- |\n")
        parts += [f"| `{_cell(_argument(p))}` | {_help(p)} |\n" for p in arguments]
    parts.append("\n| option | | default |\n| --- | --- | --- |\n")
    parts += [f"| {_names(p, context)} | {_help(p)} | {_default(p)} |\n" for p in options]
    examples = _examples(command)
    if examples:
        parts.append("\n```sh\n" + "\n".join(examples) + "\n```\n")
    return "".join(parts)


def _names(option: Any, context: Any) -> str:
    value = "" if option.is_flag else f" {_value(option, context)}"
    names = [f"`{_cell(name + value)}`" for name in option.opts]
    return ", ".join(sorted(names, key=len, reverse=True))


def _value(option: Any, context: Any) -> str:
    if option.metavar:
        return str(option.metavar)
    label = str(option.display_type(context)).strip("<>").replace(" range", "")
    return label if "|" in label else label.upper()


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _default(option: Any) -> str:
    if option.required:
        return "**required**"
    if isinstance(option.show_default, str):
        return option.show_default
    value = option.default
    if option.is_flag or value in (None, ""):
        return ""
    return f"`{_cell(str(value))}`"


def _help(parameter: Any) -> str:
    return _cell(_plain(parameter.help or "")) + (
        " Repeatable." if parameter.multiple and "repeatable" not in parameter.help else ""
    )


def _examples(command: Any) -> list[str]:
    lines = _plain(command.epilog or "").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if line.strip().startswith("$ ")]


def _first_sentence(command: Any) -> str:
    return _paragraphs(command.help).split("\n")[0]


def _paragraphs(text: str | None) -> str:
    blocks = re.split(r"\n\s*\n", _plain(text or "").strip())
    return "\n\n".join(" ".join(block.split()) for block in blocks)


def _plain(text: str) -> str:
    return Text.from_markup(text).plain


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
