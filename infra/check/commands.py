"""Whether commands of ray's and gnp's that stand in other files are ones that these programs take."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
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
    try:
        words = shlex.split(command)
    except ValueError as error:
        yield f"{command}: {error}"
        return
    for single in _singles(words[2] if words[:2] == ["sh", "-c"] and len(words) == 3 else command):
        yield from _refused(single)


def refused_in(command: Sequence[str]) -> Iterator[str]:
    """Yields what ray or gnp would refuse of their commands among others in a `sh -c`."""
    script = " ".join(command[2:]) if list(command[:2]) == ["sh", "-c"] else " ".join(command)
    for single in _singles(script):
        begins = [index for index, word in enumerate(single) if word in _PROGRAMS]
        yield from _refused(single[begins[0] :]) if begins else ()


def unstartable(parameters: Mapping[str, str]) -> Iterator[str]:
    """Yields what `ray start` would refuse of what KubeRay hands to it, resources aside."""
    given = [f"--{name}={value}" for name, value in parameters.items() if name != "resources"]
    yield from _refused(["ray", "start", *given])


def _singles(script: str) -> Iterator[list[str]]:
    """The words of each command in a script that `&&`, `||`, `;` and `|` join."""
    single: list[str] = []
    lexer = shlex.shlex(script, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for word in [*lexer, ";"]:
        if word not in ("&&", "||", ";", "|"):
            single.append(word)
        elif single:
            yield single
            single = []


def _refused(words: list[str]) -> Iterator[str]:
    program = _PROGRAMS.get(" ".join(words[:1]))
    if program is None:
        yield f"{' '.join(words)}: neither ray nor gnp"
        return
    if words[1:] == ["--help"]:
        return
    called = " ".join(words[:2])
    command = program.commands.get(" ".join(words[1:2]))
    if command is None:
        yield f"{called}: no such command"
        return
    try:
        command.make_context(called, words[2:]).close()
    except Exception as error:  # a UsageError, click's or its copy's, which have but this in common
        if not hasattr(error, "format_message"):
            raise
        yield f"{called}: {error.format_message()}"


def _options() -> dict[str, set[str]]:
    """The options of each command of ray's and gnp's."""
    options = {
        f"{program} {name}": {option for each in command.params for option in each.opts}
        for program, group in _PROGRAMS.items()
        for name, command in group.commands.items()
    }
    options["ray symmetric-run"] |= options["ray start"]  # to which it hands on what it does not know itself
    return options
