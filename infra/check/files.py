"""Checks of the Dockerfile, scripts, Slurm and Ray launcher files: functions that return faults, `FILE: message`."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import botocore.session
import click
import jsonschema
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private import util

from infra.check.commands import command_faults, join_lines, script_faults, shell_faults
from pipeline.plan.pools import RESOURCES

ROOT = Path(__file__).parents[2]
_TOOL_S = 60

# Options of sbatch's manual that make sense here.
_SBATCH = """
    account array chdir comment constraint cpus-per-gpu cpus-per-task dependency error exclude exclusive export gpus
    gpus-per-node gpus-per-task gres job-name licenses mail-type mail-user mem mem-per-cpu mem-per-gpu nodelist nodes
    ntasks ntasks-per-node open-mode output partition qos requeue reservation signal switches time time-min tmp
"""

# Variables of Slurm that are used here.
_SLURM = "SLURM_JOB_ID SLURM_JOB_NUM_NODES SLURMD_NODENAME"
_SIGNALS = {number.name for number in signal.Signals}

# Resources that a node may declare.
_RESOURCES = {"CPU", "GPU", "memory", "object_store_memory", *RESOURCES.values()}


def dockerfile(path: Path, root: Path = ROOT) -> list[str]:
    """Faults of a Dockerfile: those that hadolint finds, and mismatches with the repository that it is built from.

    Args:
        path: The Dockerfile; NAME.dockerignore is beside it.
        root: The repository.
    """
    text = path.read_text(encoding="utf-8")
    ignore = path.with_name(f"{path.name}.dockerignore")
    faults = list(_hadolint(text))
    for source in _copied(join_lines(text)):
        if not (root / source).exists():
            faults.append(f"COPY {source}: there is no such file")
        elif _ignored(source, ignore.read_text(encoding="utf-8").splitlines()):
            faults.append(f"COPY {source}: {ignore.name} keeps it out of the build")
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    faults += command_faults(shlex.join(json.loads(command)))
    faults += [
        f"{name}: there is no such constraints file" for name in _constraints(text) if not (root / name).exists()
    ]
    if "RAY_AUTH_MODE=token" not in text:
        faults.append("ENV: no RAY_AUTH_MODE=token: anyone who reaches Ray can run code")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [extra for names in re.findall(r"\.\[([\w,]+)\]", text) for extra in names.split(",")]
    faults += [f"[{extra}]: no such extra" for extra in extras if extra not in project["optional-dependencies"]]
    if f'image.version="{project["version"]}"' not in text:
        faults.append(f"image.version: not pyproject.toml's {project['version']}")
    return _prefixed(path, faults)


def sbatch(path: Path) -> list[str]:
    """Faults of a script for sbatch: those of any script, and unknown options, signals and variables of Slurm."""
    return [*script(path), *_prefixed(path, _slurm_faults(path.read_text(encoding="utf-8")))]


def script(path: Path) -> list[str]:
    """Faults of a shell script: those that bash and shellcheck find, and unknown options of ray and gnp."""
    faults = _run("bash", "-n", str(path)) or _run("shellcheck", "--format", "gcc", str(path))
    return _prefixed(path, [*faults, *script_faults(path.read_text(encoding="utf-8"))])


def launcher(path: Path) -> list[str]:
    """Faults of a file for Ray's cluster launcher: by Ray's schema, without unknown keys, and by EC2's."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        return _prefixed(path, [" ".join(str(error).split())])
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    errors = jsonschema.Draft7Validator(_strict(schema)).iter_errors(config)
    faults = [f"{'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message}" for error in errors]
    if not faults:
        try:
            util.validate_config(util.prepare_config(config))
        except (ValueError, RuntimeError, click.ClickException) as error:
            faults.append(str(error))
        if config["provider"]["type"] == "aws":
            faults += _ec2_faults(config["available_node_types"])
    node_types = config.get("available_node_types", {})
    declared = {name for node_type in node_types.values() for name in node_type.get("resources", {})}
    faults += [f"resources.{name}: neither a resource of Ray nor of gnp" for name in sorted(declared - _RESOURCES)]
    commands = [command for key in config if key.endswith("_commands") for command in config[key]]
    for command in commands:  # without the path of the program
        faults += shell_faults([re.sub(r"\S*/(ray|gnp) ", r"\1 ", command)])
    head = node_types.get(config.get("head_node_type"))
    if head is not None and head["resources"]["CPU"]:
        faults.append(f"{config['head_node_type']}: the head takes no work: CPU must be 0")
    faults += [
        f"{command}: starts without RAY_AUTH_MODE=token"
        for command in commands
        if "ray start" in command and "RAY_AUTH_MODE=token" not in command
    ]
    return _prefixed(path, faults)


def _prefixed(path: Path, faults: Iterable[str]) -> list[str]:
    return [f"{path.name}: {fault}" for fault in faults]


def _run(tool: str, *arguments: str, text: str | None = None) -> list[str]:
    """The output of a tool that finds faults; tools that pip installed are beside this Python."""
    path = shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        return [f"{tool}: not installed"]
    done = subprocess.run([path, *arguments], input=text, capture_output=True, text=True, timeout=_TOOL_S, check=False)
    return (done.stdout + done.stderr).strip().splitlines() if done.returncode else []


def _hadolint(text: str) -> Iterator[str]:
    """Yields hadolint's messages, each with the line of the file."""
    for message in _run("hadolint", "--no-color", "-", text=text):
        match = re.match(r"\S+?:(\d+)(?::\d+)? (.*)", message)
        yield f"{match[2]}: {text.splitlines()[int(match[1]) - 1].strip()}" if match else message


def _slurm_faults(text: str) -> Iterator[str]:
    """What Slurm would not know, or not see."""
    for option in re.findall(r"^#SBATCH\s+(?:--)?([\w-]+)", text, re.MULTILINE):
        if option not in _SBATCH.split():
            yield f"#SBATCH {option}: not an option of sbatch"
    for word in re.findall(r"^#(?!SBATCH\b)([A-Z]+)\b", text, re.MULTILINE):
        yield f"#{word}: neither #SBATCH nor a comment"
    for name in re.findall(r"--signal=B:(\w+)@", text):
        if f"SIG{name}" not in _SIGNALS:
            yield f"{name}: not a signal"
    for name in re.findall(r"\$(SLURM\w+)", text):
        if name not in _SLURM.split():
            yield f"${name}: Slurm does not set this variable"
    for name in re.findall(r"scontrol (\w+)", text):
        if name != "requeue":
            yield f"scontrol {name}: no such command"
    if "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" not in text:
        yield "no token authentication: anyone who reaches Ray can run code"
    first_command = re.search(r"^[^#\n]", text, re.MULTILINE)
    if first_command and "\n#SBATCH" in text[first_command.start() :]:
        yield "#SBATCH: after the first command, where sbatch ignores it"


def _copied(text: str) -> Iterator[str]:
    """Yields the paths that a Dockerfile copies from the repository."""
    for words in (shlex.split(line) for line in re.findall(r"^COPY (.*)", text, re.MULTILINE)):
        if not any(word.startswith("--from") for word in words):
            yield from [word for word in words if not word.startswith("--")][:-1]


def _constraints(text: str) -> set[str]:
    """The constraints files that pip is given."""
    return set(re.findall(r"--constraint (\S+)", join_lines(text)))


def _ignored(source: str, patterns: list[str]) -> bool:
    """Whether a .dockerignore excludes a path: the last pattern that matches it, or a folder above, decides."""
    parts = [source, *map(str, PurePosixPath(source).parents)]
    matching = [pattern for pattern in patterns if any(fnmatchcase(part, pattern.lstrip("!")) for part in parts)]
    return bool(matching) and not matching[-1].startswith("!")


def _strict(schema: Any) -> Any:
    """A copy of the schema that refuses unknown keys."""
    strict_schema = dict(schema)
    for key in ("properties", "patternProperties"):
        if key in schema:
            strict_schema[key] = {name: _strict(field) for name, field in schema[key].items()}
    if "properties" in schema:
        strict_schema["additionalProperties"] = False
    return strict_schema


def _ec2_faults(node_types: dict[str, Any]) -> Iterator[str]:
    """Yields what botocore's description of RunInstances does not accept; SubnetIds is Ray's."""
    ec2 = botocore.session.get_session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape
    for name, node_type in node_types.items():
        request = {key: value for key, value in node_type["node_config"].items() if key != "SubnetIds"}
        report = ParamValidator().validate({**request, "MinCount": 1, "MaxCount": 1}, shape)
        yield from (f"{name}.node_config: {line}" for line in report.generate_report().splitlines())
        if not report.has_errors():
            yield from (f"{name}.node_config.{fault}" for fault in _enum_faults(request, shape))


def _enum_faults(value: Any, shape: Any) -> Iterator[str]:
    """Yields values that EC2's enumerations do not list, which botocore's validator does not check."""
    if shape.type_name == "structure":
        for name, field in value.items():
            yield from (f"{name}.{fault}" for fault in _enum_faults(field, shape.members[name]))
    elif shape.type_name == "list":
        for item in value:
            yield from _enum_faults(item, shape.member)
    elif getattr(shape, "enum", []) and value not in shape.enum:
        yield f"{value}: not a value that EC2 knows"
