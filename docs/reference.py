"""docs/CLI.md from the program itself: `python docs/reference.py > docs/CLI.md`."""

import sys
from typing import Any

from rich.text import Text
from typer.main import get_command

from frami_edge.cli import app

HEAD = """\
# Command line

Made from the program by `python docs/reference.py > docs/CLI.md`; a test keeps it fresh.
Results go to stdout, everything else to stderr. `--json` prints exactly one JSON object with a
schema version; an error is an object with the key `error`. Exit codes: 0 done, 1 a known error (one
sentence and the fix), 2 wrong usage, 3 a gate failed. `FRAMI_DEBUG=1` shows tracebacks,
`FRAMI_EDGE_DATA` is the folder of the data sets.
"""
LISTEN = """\
The program `frami-edge-listen`: `frami-edge listen --help` shows its options,
[runtime/README.md](../runtime/README.md#frami-edge-listen) what it prints. Its `--json` prints JSON
Lines.
"""


def reference() -> str:
    """The page: every command with its arguments, options, defaults and examples."""
    return HEAD + "".join(_section(name, command) for name, command in _commands(get_command(app)))


def _commands(group: Any) -> list[tuple[str, Any]]:
    found = []
    for name, command in group.commands.items():
        found.append((name, command))
        found += [(f"{name} {n}", c) for n, c in getattr(command, "commands", {}).items()]
    return found


def _section(name: str, command: Any) -> str:
    text = "\n\n".join(" ".join(part.split()) for part in _plain(command.help).split("\n\n"))
    context = command.make_context(name, [], resilient_parsing=True)
    rows = [_row(p, context) for p in command.params if p.name != "help"]
    examples = [li.strip()[2:] for li in _plain(command.epilog).splitlines() if "$ " in li[:4]]
    table = "".join(
        f"| {' | '.join(row)} |\n" for row in [("", "", "default"), ("---",) * 3, *rows]
    )
    code = "\n".join(examples)
    if not rows:  # the runtime's program has a parser of its own
        return f"\n## {name}\n\n{text}\n\n{LISTEN}"
    return f"\n## {name}\n\n{text}\n\n{table}\n```sh\n{code}\n```\n"


def _row(p: Any, context: Any) -> tuple[str, str, str]:
    value = p.metavar or str(p.display_type(context)).strip("<>").replace(" range", "")
    if p.param_type_name == "argument":
        names = p.metavar or p.name.upper()
    else:
        names = ", ".join(reversed(p.opts)) + ("" if p.is_flag else f" {value}")
    default = p.show_default if isinstance(p.show_default, str) else p.default
    shown = "**required**" if p.required else "" if default in (None, False) else str(default)
    return f"`{names}`".replace("|", "\\|"), _plain(p.help).replace("|", "\\|"), shown


def _plain(text: str | None) -> str:
    return Text.from_markup(text or "").plain.strip()


if __name__ == "__main__":
    sys.stdout.write(reference())
