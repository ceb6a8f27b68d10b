"""Whether commands of ray's and gnp's that stand in other files are ones that these programs take."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import typer
from ray.scripts import scripts

from jobs import cli  # noqa: F401  # all commands
from jobs.app import app

# Either is click's, or typer's copy of it.
_PROGRAMS: dict[str, Any] = {"ray": scripts.cli, "gnp": typer.main.get_group(app)}


def joined(text: str) -> str:
    """Without comments, and with lines that go on in the next put together."""
    return re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")


def misused(text: str) -> Iterator[str]:
    """Yields the commands in a script that ray and gnp do not have, and the options that these do not take."""
    known = _options()
    for program, name, rest in re.findall(r"\b(ray|gnp) ([a-z][\w-]*)((?: [^\s;&|']+)*)", joined(text)):
        called = f"{program} {name}"
        if called not in known:
            yield f"{called}: no such command"
            continue
        for word in re.split(r" --(?: |$)", rest)[0].split():
            option = word.split("=")[0]
            if option.startswith("-") and option not in known[called]:
                yield f"{called}: no option {option}"


def refused(command: str) -> Iterator[str]:
    """Yields what ray or gnp would refuse of a command, or of several in one `sh -c`; nothing else may stand in it."""
    words = shlex.split(command)
    if words[:2] == ["sh", "-c"]:
        words = list(shlex.shlex("".join(words[2:3]), posix=True, punctuation_chars=True))
    single: list[str] = []
    for word in [*words, "&&"]:
        if word not in ("&&", "||", ";"):
            single.append(word)
            continue
        yield from _refused(single)
        single = []


def _refused(words: list[str]) -> Iterator[str]:
    program = _PROGRAMS.get(" ".join(words[:1]))
    if program is None:
        yield f"{' '.join(words)}: neither ray nor gnp"
        return
    called = " ".join(words[:2])
    command = program.commands.get(" ".join(words[1:2]))
    if command is None:
        yield f"{called}: no such command"
        return
    try:
        command.make_context(called, words[2:]).close()
    except Exception as error:  # a UsageError, click's or its copy's, which have nothing in common
        yield f"{called}: {error.format_message() if hasattr(error, 'format_message') else error}"


def _options() -> dict[str, set[str]]:
    """The options of each command of ray's and gnp's."""
    options = {
        f"{program} {name}": {option for each in command.params for option in each.opts}
        for program, group in _PROGRAMS.items()
        for name, command in group.commands.items()
    }
    options["ray symmetric-run"] |= options["ray start"]  # to which it hands on what it does not know itself
    return options
