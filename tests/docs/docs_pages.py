"""The pages of the documentation as what a reader would copy: fenced blocks and their directives.

A block is one of ```` ```sh ````, ```` ```bash ```` or ```` ```python ````; with `file=NAME` behind
the language it is a file that the reader saves. An HTML comment above it, unseen in the rendered
page, may say `test: skip because REASON` or `test: prints A | B`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELL, PYTHON = ("sh", "bash"), "python"
_BLOCK = re.compile(
    r"(?P<above>(?:^<!-- test: [^\n]*-->\n)*)"
    r"^```(?P<language>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_DIRECTIVE = re.compile(r"<!-- test: (skip because|prints) (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its page, from the root of the repository.
        line: Where it starts.
        language: As it stands behind the fence.
        file: The name under which the reader saves it, or "".
        text: What is between the fences.
        skipped: Why the tests do not run it, or "".
        prints: What must be among its output.
    """

    page: str
    line: int
    language: str
    file: str
    text: str
    skipped: str
    prints: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether the tests run or save it."""
        return not self.skipped and (self.language in (*SHELL, PYTHON) or bool(self.file))


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        said = dict(_DIRECTIVE.findall(match["above"]))
        assert len(said) == match["above"].count("\n"), f"{page}: unknown directive {match[0]}"
        prints = [part.strip() for part in said.get("prints", "").split(" | ") if part.strip()]
        line = text.count("\n", 0, match.start("language")) + 1
        why = said.get("skip because", "")
        found.append(
            Block(
                page,
                line,
                match["language"],
                match["file"] or "",
                match["text"],
                why,
                tuple(prints),
            )
        )
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of every `frami-edge` or `frami-edge-listen` command in a shell block."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;()"):
                program = next((i for i, w in enumerate(words) if _is_ours(w)), None)
                if program is not None:
                    yield [words[program].rpartition("/")[2], *words[program + 1 :]]
                words = []
            else:
                words.append(word)


def _is_ours(word: str) -> bool:
    return word.rpartition("/")[2] in ("frami-edge", "frami-edge-listen")
