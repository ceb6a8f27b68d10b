"""S3-compatible stores: opening one, and multipart uploads that were never finished."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import RetryConfig

from pipeline.errors import StorageError
from pipeline.storage.client_errors import short_message, translated_errors
from pipeline.storage.urls import S3Root

# 8 tries with exponential backoff outlast 30% throttling; obstore's default gives up within seconds of a restart.
_RETRY: "RetryConfig" = {
    "max_retries": 8,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
    "retry_timeout": timedelta(minutes=3),
}


def open_store(root: S3Root) -> S3Store:
    """The store below `s3://bucket/prefix`, with credentials, region and endpoint as every AWS tool finds them.

    Raises:
        StorageError: No credentials can be found, or the endpoint is not a URL.
    """
    try:
        session = boto3.Session()
        client = _open_client(session, root.bucket)
        credentials = Boto3CredentialProvider(session)
    except (ValueError, botocore.exceptions.BotoCoreError) as error:
        raise StorageError(
            f"s3://{root.bucket}: no usable AWS credentials ({short_message(error)}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where an instance role is given"
        ) from error
    endpoint = client.meta.endpoint_url
    return S3Store(
        root.bucket,
        prefix=root.prefix or None,
        region=client.meta.region_name or "us-east-1",
        credential_provider=credentials,
        retry_config=_RETRY,
        client_options={"allow_http": endpoint.startswith("http://"), "timeout": timedelta(minutes=2)},
        endpoint=None if endpoint.endswith(".amazonaws.com") else endpoint,
    )


def _open_client(session: boto3.Session, bucket: str) -> Any:
    """A boto3 client, which knows the region and the endpoint.

    Raises:
        StorageError: The endpoint is not a URL.
        BotoCoreError: Another setting is missing or wrong.
    """
    reason = "neither http:// nor https://"
    try:
        client = session.client("s3")
        if client.meta.endpoint_url.startswith(("http://", "https://")):
            return client
    except ValueError as error:
        reason = short_message(error)
    raise StorageError(
        f"s3://{bucket}: the endpoint is no address ({reason}); AWS_ENDPOINT_URL, or endpoint_url in the AWS profile, "
        "must be one such as http://127.0.0.1:9000"
    )


def list_uploads(root: S3Root, *, now: float, age_s: float) -> list[str]:
    """Unfinished multipart uploads below a root that began at least `age_s` ago, as `KEY ID`.

    Args:
        root: Bucket and prefix.
        now: Seconds since 1970, by the store's clock.
        age_s: Younger uploads are left out.

    Raises:
        StorageError: The store failed.
    """
    # Without the slash, uploads of another store would match whose prefix begins with this one.
    prefix = f"{root.prefix}/" if root.prefix else ""
    with translated_errors(f"s3://{root.bucket}/{prefix}"):
        pages = boto3.client("s3").get_paginator("list_multipart_uploads").paginate(Bucket=root.bucket, Prefix=prefix)
        return [
            f"{upload['Key']} {upload['UploadId']}"
            for page in pages
            for upload in page.get("Uploads", ())
            if now - upload["Initiated"].timestamp() >= age_s
        ]


def abort_upload(root: S3Root, upload: str) -> None:
    """Ends one of `list_uploads`.

    Raises:
        StorageError: The store failed.
    """
    key, _, identifier = upload.rpartition(" ")
    with translated_errors(f"s3://{root.bucket}/{key}"):
        boto3.client("s3").abort_multipart_upload(Bucket=root.bucket, Key=key, UploadId=identifier)
