"""Terraform modules, checked without their providers: syntax, names, arguments, attributes, functions and rights."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import hcl2
from lark.exceptions import LarkError

_TOOL_S = 60
# Terraform's own blocks, and their arguments.
_BLOCKS = {"terraform", "provider", "variable", "locals", "data", "resource", "output"}
_ARGUMENTS = {
    "variable": {"type", "default", "description", "validation", "sensitive", "nullable"},
    "output": {"description", "value", "sensitive", "depends_on"},
    "terraform": {"required_version", "required_providers", "backend"},
}
# Arguments of any resource or data source.
_META = {"for_each", "count", "depends_on", "lifecycle", "provider", "dynamic", "content"}
# Arguments of the AWS provider's types that are used here, in blocks at any depth; and attributes that are read.
_STATEMENT = "statement sid effect actions resources principals type identifiers condition test variable values"
_TYPES = {
    "aws_iam_instance_profile": "name role",
    "aws_iam_policy": "name policy description path tags",
    "aws_iam_policy_document": _STATEMENT,
    "aws_iam_role": "name assume_role_policy description max_session_duration tags",
    "aws_iam_role_policy": "name role policy",
    "aws_iam_role_policy_attachment": "role policy_arn",
    "aws_partition": "",
    "aws_s3_bucket": "bucket force_destroy tags",
    "aws_s3_bucket_lifecycle_configuration": "bucket rule id status filter prefix abort_incomplete_multipart_upload "
    "days_after_initiation noncurrent_version_expiration noncurrent_days expiration expired_object_delete_marker",
    "aws_s3_bucket_policy": "bucket policy",
    "aws_s3_bucket_public_access_block": "bucket block_public_acls block_public_policy ignore_public_acls "
    "restrict_public_buckets",
    "aws_s3_bucket_server_side_encryption_configuration": "bucket rule apply_server_side_encryption_by_default "
    "sse_algorithm kms_master_key_id bucket_key_enabled",
    "aws_s3_bucket_versioning": "bucket versioning_configuration status mfa_delete",
}
_PROVIDER = """
    region default_tags tags s3_use_path_style skip_credentials_validation skip_metadata_api_check endpoints s3
    skip_region_validation skip_requesting_account_id
"""
_ATTRIBUTES = {"arn", "bucket", "id", "json", "name", "partition"}
_FUNCTIONS = "alltrue can compact contains endswith floor join keys object list regex split startswith toset"
_TESTS = {"Bool", "StringEquals", "StringLike", "StringLikeIfExists"}
# Rights that are named otherwise than their API operation.
_RIGHTS = {"s3:ListBucket", "s3:ListBucketMultipartUploads", "iam:PassRole", "ec2:CreateAction"}


def module(folder: Path) -> list[str]:
    """Faults of a Terraform module.

    These are syntax errors; blocks, arguments, attributes, functions and rights that are unknown to Terraform or to the
    tables above; variables and outputs without a description; and names that are used but not declared, or declared but
    not used.
    """
    faults: list[str] = []
    used: dict[str, Path] = {}
    declared: dict[str, Path] = {}
    for path in sorted(folder.glob("*.tf")):
        text = path.read_text(encoding="utf-8")
        try:
            blocks = hcl2.loads(text)
        except LarkError as error:
            return [f"{path.name}: {' '.join(str(error).split())[:200]}"]
        bare = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
        found = (*_block_faults(blocks), *_argument_faults(blocks), *_name_faults(bare))
        faults += [f"{path.name}: {fault}" for fault in found]
        declared |= dict.fromkeys(_declared(blocks), path)
        used |= dict.fromkeys(_used(bare), path)
    for name in sorted(used.keys() - declared.keys()):
        faults.append(f"{used[name].name}: {name} is not declared")
    for name in sorted(declared.keys() - used.keys()):
        faults += [f"{declared[name].name}: {name} is not used"] if name.startswith(("var.", "local.")) else []
    return faults


def formatted(folder: Path) -> list[str]:
    """Files below a folder that `terraform fmt` would change, or cannot read.

    Raises:
        FileNotFoundError: terraform is not installed.
    """
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-recursive", "-no-color", str(folder)],
        capture_output=True,
        text=True,
        timeout=_TOOL_S,
        check=False,
    )
    if not done.returncode:
        return []
    unformatted = [f"{Path(line).name}: not formatted as by terraform fmt" for line in done.stdout.splitlines()]
    return unformatted or [" ".join(done.stderr.split())]


def _block_faults(blocks: dict[str, Any]) -> Iterator[str]:
    """Yields unknown blocks and arguments of Terraform itself, and missing descriptions."""
    yield from (f"{kind}: not a block of Terraform" for kind in _names(blocks) - _BLOCKS)
    for kind, arguments in _ARGUMENTS.items():
        for block in blocks.get(kind, []):
            for name, body in [(kind, block)] if kind == "terraform" else block.items():
                bare = name.strip('"')
                yield from (f"{bare}: {argument}: no such argument" for argument in _names(body) - arguments)
                if "description" in arguments and "description" not in body:
                    yield f"{bare}: no description"


def _argument_faults(blocks: dict[str, Any]) -> Iterator[str]:
    """Yields unknown types and arguments of the AWS provider."""
    for block in (*blocks.get("resource", []), *blocks.get("data", [])):
        for type_ in _names(block):
            if type_ not in _TYPES:
                yield f"{type_}: not a type that is used here"
                continue
            for body in block[f'"{type_}"'].values():
                known = {*_META, *_TYPES[type_].split()}
                yield from (f"{type_}: {name}: no such argument" for name in sorted(_nested_names(body) - known))
    for block in blocks.get("provider", []):
        for body in block.values():
            yield from (
                f"provider: {name}: no such argument" for name in sorted(_nested_names(body) - set(_PROVIDER.split()))
            )


def _nested_names(body: Any) -> set[str]:
    """The names of arguments and blocks at any depth, except below `tags`, which has free names."""
    if isinstance(body, list):
        return {name for block in body for name in _nested_names(block)}
    if not isinstance(body, dict):
        return set()
    names = _names(body)
    for name in names - {"tags"}:
        names = names | _nested_names(body.get(name, body.get(f'"{name}"')))
    return names


def _name_faults(bare: str) -> Iterator[str]:
    """Yields unknown attributes, functions, condition operators and rights in a module's text."""
    for name in re.findall(r"(?<![\w.])(?:data\.)?aws_\w+\.\w+(?:\[[^\]]*\])?\.(\w+)", bare):
        if name not in _ATTRIBUTES:
            yield f".{name}: not an attribute that is used here"
    for name in re.findall(r"\b([a-z]\w*)\(", re.sub(r'"[^"\n]*"', "", bare)):
        if name not in _FUNCTIONS.split():
            yield f"{name}(): not a function that is used here"
    for name in re.findall(r'test\s+= "(\w+)"', bare):
        if name not in _TESTS:
            yield f"{name}: not a condition operator of IAM"
    for right in re.findall(r'"((?:s3|ec2|iam|sts):[A-Z]\w*)"', bare):
        service, _, name = right.partition(":")
        if (
            right not in _RIGHTS
            and name not in botocore.session.get_session().get_service_model(service).operation_names
        ):
            yield f"{right}: not a right of AWS"


def _declared(blocks: dict[str, Any]) -> Iterator[str]:
    """Yields var.NAME, local.NAME, TYPE.NAME and data.TYPE.NAME."""
    for kind, prefix in (("variable", "var."), ("locals", "local.")):
        for block in blocks.get(kind, []):
            yield from (f"{prefix}{name}" for name in _names(block))
    for kind, prefix in (("resource", ""), ("data", "data.")):
        for block in blocks.get(kind, []):
            yield from (f"{prefix}{type_}.{name}" for type_ in _names(block) for name in _names(block[f'"{type_}"']))


def _names(body: dict[str, Any]) -> set[str]:
    """The names in a block, without the quotes and comments that the parser adds."""
    return {name.strip('"') for name in body if not name.startswith("__")}


def _used(bare: str) -> list[str]:
    """The names that the text refers to, in the form of `_declared`."""
    return re.findall(r"(?<![\w.])(?:var\.\w+|local\.\w+|data\.aws_\w+\.\w+|aws_\w+\.\w+)", bare)
