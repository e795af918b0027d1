"""Every sploot-cluster command in a document exists, with the options that the document gives it."""

from __future__ import annotations

import re
import shlex
from functools import cache
from typing import Any

import pytest
import typer

from tasks.cli import app
from tests.docs.test_links import ROOT, documents

FENCE = re.compile(r"^ *```(?:bash|sh|console)\n.*?^ *```", flags=re.DOTALL | re.MULTILINE)
LINE = re.compile(r"^ *\$? *((?:\w+=\S+ )*sploot-cluster(?: .*)?)$", flags=re.MULTILINE)
INLINE = re.compile(r"`(sploot-cluster(?: [^`\n]+)?)`")
# Matches the end of a command: a pipe, a comment, a redirection.
END = re.compile(r" [|#&]| [0-9]?>|;|\)")


def commands_in(text: str) -> list[str]:
    blocks = "\n".join(FENCE.findall(text)).replace("\\\n", " ")
    return [END.split(command)[0] for command in (*LINE.findall(blocks), *INLINE.findall(FENCE.sub("", text)))]


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


def problem_with(command: str) -> str | None:
    """Return what is wrong with a command, or None if it and its options exist."""
    words = shlex.split(command.replace("…", "x"), posix=True)
    words = words[words.index("sploot-cluster") + 1 :]
    known = command_line()
    while words and hasattr(known, "commands") and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in known.commands:
            return f"{command}: no command {name}"
        known = known.commands[name]
    options = {option for parameter in known.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [
        word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in {*options, "--help"}
    ]
    return f"{command}: no option {unknown[0]}" if unknown else None


@pytest.mark.parametrize("name", documents())
def test_commands_in_a_document_exist(name: str) -> None:
    problems = [problem_with(command) for command in commands_in((ROOT / name).read_text(encoding="utf-8"))]

    assert [problem for problem in problems if problem] == []


def test_invalid_commands_in_documents_are_reported() -> None:
    block = "```bash\nsploot-cluster queue lst\nA=1 sploot-cluster clusters 42 --jsn | head\n```"

    problems = [problem_with(command) for command in commands_in(f"{block}\n`sploot-cluster merge 1 2 3`")]

    assert problems == [
        "sploot-cluster queue lst: no command lst",
        "A=1 sploot-cluster clusters 42 --jsn: no option --jsn",
        None,
    ]
