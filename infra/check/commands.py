"""Commands of ray and gnp in other files: whether these programs accept them."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer
from ray.scripts import scripts

from jobs import cli  # noqa: F401  # all commands
from jobs.app import app

# Groups of click, or of typer's copy of it.
_PROGRAMS: dict[str, Any] = {"ray": scripts.cli, "gnp": typer.main.get_group(app)}


def join_lines(text: str) -> str:
    """A script without comments, with continued lines joined."""
    return re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")


def script_faults(text: str) -> Iterator[str]:
    """Yields unknown commands and options of ray and gnp in a script."""
    options = _options()
    for program, name, rest in re.findall(r"\b(ray|gnp) ([a-z][\w-]*)((?: [^\s;&|']+)*)", join_lines(text)):
        command = f"{program} {name}"
        if command not in options:
            yield f"{command}: no such command"
            continue
        for word in re.split(r" --(?: |$)", rest)[0].split():
            option = word.split("=")[0]
            if option.startswith("-") and option not in options[command]:
                yield f"{command}: no option {option}"


def command_faults(command: str) -> Iterator[str]:
    """Yields errors of a command of ray or gnp, or of several in one `sh -c`; other programs are errors."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        yield f"{command}: {error}"
        return
    script = words[2] if words[:2] == ["sh", "-c"] and len(words) == 3 else command
    for single in _split(script):
        yield from _parse_errors(single)


def shell_faults(command: Sequence[str]) -> Iterator[str]:
    """Yields errors of the commands of ray and gnp in a `sh -c`, which may run other programs too."""
    script = " ".join(command[2:]) if list(command[:2]) == ["sh", "-c"] else " ".join(command)
    for words in _split(script):
        starts = [index for index, word in enumerate(words) if word in _PROGRAMS]
        yield from _parse_errors(words[starts[0] :]) if starts else ()


def start_faults(parameters: Mapping[str, str]) -> Iterator[str]:
    """Yields errors of the parameters that KubeRay passes to `ray start`, except resources."""
    options = [f"--{name}={value}" for name, value in parameters.items() if name != "resources"]
    yield from _parse_errors(["ray", "start", *options])


def _split(script: str) -> Iterator[list[str]]:
    """Yields the words of each command between `&&`, `||`, `;` and `|`."""
    command: list[str] = []
    lexer = shlex.shlex(script, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for word in [*lexer, ";"]:
        if word not in ("&&", "||", ";", "|"):
            command.append(word)
        elif command:
            yield command
            command = []


def _parse_errors(words: list[str]) -> Iterator[str]:
    """Yields the error of the program's own command-line parser, if it has one."""
    program = _PROGRAMS.get(" ".join(words[:1]))
    if program is None:
        yield f"{' '.join(words)}: neither ray nor gnp"
        return
    if words[1:] == ["--help"]:
        return
    name = " ".join(words[:2])
    command = program.commands.get(" ".join(words[1:2]))
    if command is None:
        yield f"{name}: no such command"
        return
    try:
        command.make_context(name, words[2:]).close()
    except Exception as error:  # UsageError of click or of typer's copy, which share only this attribute
        if not hasattr(error, "format_message"):
            raise
        yield f"{name}: {error.format_message()}"


def _options() -> dict[str, set[str]]:
    """The options of each command of ray and gnp."""
    options = {
        f"{program} {name}": {option for parameter in command.params for option in parameter.opts}
        for program, group in _PROGRAMS.items()
        for name, command in group.commands.items()
    }
    options["ray symmetric-run"] |= options["ray start"]  # it passes unknown options on to `ray start`
    return options
