"""Opening an S3-compatible store, and what its client's errors say."""

import html
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import RetryConfig

from pipeline.errors import StorageError

# 8 tries with exponential backoff outlast 30% throttling; obstore's default gives up within seconds of a restart.
_RETRY: "RetryConfig" = {
    "max_retries": 8,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
    "retry_timeout": timedelta(minutes=3),
}
_ANSWER = re.compile(r"<Code>(?P<code>[^<]*)</Code>\s*<Message>(?P<message>[^<]*)</Message>")


def open_store(bucket: str, prefix: str) -> S3Store:
    """The store below `s3://bucket/prefix`, with credentials, region and endpoint as every AWS tool finds them.

    Raises:
        StorageError: No credentials can be found, or the endpoint is no address.
    """
    try:
        session = boto3.Session()
        client = _client(session, bucket)
        credentials = Boto3CredentialProvider(session)
    except (ValueError, botocore.exceptions.BotoCoreError) as error:
        raise StorageError(
            f"s3://{bucket}: no usable AWS credentials ({first_line(error)}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where an instance role is given"
        ) from error
    endpoint = client.meta.endpoint_url
    own = None if endpoint.endswith(".amazonaws.com") else endpoint
    return S3Store(
        bucket,
        prefix=prefix or None,
        region=client.meta.region_name or "us-east-1",
        credential_provider=credentials,
        retry_config=_RETRY,
        client_options={"allow_http": endpoint.startswith("http://"), "timeout": timedelta(minutes=2)},
        endpoint=own,
    )


def _client(session: boto3.Session, bucket: str) -> Any:
    """A client, for what boto3 finds out: the region and the endpoint.

    Raises:
        StorageError: The endpoint is no address.
        BotoCoreError: Something else stands in the way.
    """
    reason = "neither http:// nor https://"
    try:
        client = session.client("s3")
        if client.meta.endpoint_url.startswith(("http://", "https://")):
            return client
    except ValueError as error:
        reason = first_line(error)
    raise StorageError(
        f"s3://{bucket}: the endpoint is no address ({reason}); AWS_ENDPOINT_URL, or endpoint_url in the AWS profile, "
        "must be one such as http://127.0.0.1:9000"
    )


def first_line(error: BaseException) -> str:
    """The gist of a client's error: obstore's messages run to a page of Rust structures around S3's answer in XML."""
    answer = _ANSWER.search(str(error))
    if answer is not None:
        return html.unescape(f"{answer['code']}: {' '.join(answer['message'].split())}")[:300]
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
