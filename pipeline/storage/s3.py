"""S3-compatible stores: opening one, and multipart uploads that were never finished."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions
import obstore
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

from pipeline.errors import StorageError
from pipeline.storage.client_errors import is_permanent, is_unreachable, short_message, translated_errors
from pipeline.storage.urls import S3Root

# 8 tries with exponential backoff outlast 30% throttling; obstore's default gives up within seconds of a restart.
_RETRY: "RetryConfig" = {
    "max_retries": 8,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
    "retry_timeout": timedelta(minutes=3),
}


_TIMEOUTS: "ClientConfig" = {"timeout": timedelta(minutes=2)}
# A command's first contact must not wait for a server that does not answer.
_CONTACT_S = 3.0
_CONTACT_RETRY: "RetryConfig" = {**_RETRY, "max_retries": 0}
_CONTACT_TIMEOUTS: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=1.5),
    "timeout": timedelta(seconds=_CONTACT_S),
}
# Buckets that are read without credentials, as names with commas between them.
UNSIGNED = "GNP_UNSIGNED_BUCKETS"


def open_store(root: S3Root) -> S3Store:
    """The store below `s3://bucket/prefix`, with credentials, region and endpoint as every AWS tool finds them.

    Raises:
        StorageError: No credentials can be found, the endpoint is not a URL, or the certificates cannot be read.
    """
    return _open(root, _RETRY, _TIMEOUTS)


def check_contact(root: S3Root, *, url: str) -> None:
    """Checks that the server of a store answers, whatever it answers; tries for a few seconds.

    Raises:
        StorageError: It does not: nothing listens, its name is unknown, its certificate is not trusted, and the like.
    """
    store = _open(root, _CONTACT_RETRY, _CONTACT_TIMEOUTS)
    deadline = time.monotonic() + _CONTACT_S
    while True:
        try:
            obstore.head(store, "probe/contact")
        except (BaseError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) or not is_unreachable(error):
                return
            if is_permanent(error) or time.monotonic() > deadline:
                address = store.config.get("endpoint") or "Amazon S3"
                raise StorageError(f"{url}: {address}: {short_message(error)}") from None  # a cause would be retried
            time.sleep(0.2)
        else:
            return


def _open(root: S3Root, retry: "RetryConfig", timeouts: "ClientConfig") -> S3Store:
    session = boto3.Session()
    unsigned = root.bucket in os.environ.get(UNSIGNED, "").replace(" ", "").split(",")
    try:
        client = _open_client(session, root.bucket)
        credentials = None if unsigned else Boto3CredentialProvider(session)
    except (ValueError, botocore.exceptions.BotoCoreError) as error:
        raise StorageError(
            f"s3://{root.bucket}: no usable AWS credentials ({short_message(error)}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where an instance role is given; to read a public bucket "
            f"without any, set {UNSIGNED}={root.bucket}"
        ) from error
    endpoint = client.meta.endpoint_url
    options: ClientConfig = {**timeouts, "allow_http": endpoint.startswith("http://")}
    if bundle := _certificates(session):
        options["root_certificate"] = bundle
    try:
        return S3Store(
            root.bucket,
            prefix=root.prefix or None,
            region=client.meta.region_name or "us-east-1",
            credential_provider=credentials,
            skip_signature=unsigned,
            retry_config=retry,
            client_options=options,
            endpoint=None if endpoint.endswith(".amazonaws.com") else endpoint,
        )
    except ValueError as error:  # the certificates are not PEM, or damaged
        raise StorageError(f"s3://{root.bucket}: AWS_CA_BUNDLE, or another setting: {short_message(error)}") from error


def _certificates(session: boto3.Session) -> bytes | None:
    """The certificates of AWS_CA_BUNDLE, or of the profile's ca_bundle, which the client does not read by itself.

    Raises:
        StorageError: The file cannot be read.
    """
    bundle = session._session.get_config_variable("ca_bundle")
    if not bundle:
        return None
    try:
        return Path(bundle).read_bytes()
    except OSError as error:
        raise StorageError(
            f"{bundle}: cannot be read ({error.strerror}); AWS_CA_BUNDLE, or ca_bundle in the AWS profile, names a "
            "file of certificates in PEM"
        ) from error


def _open_client(session: boto3.Session, bucket: str) -> Any:
    """A boto3 client, which knows the region and the endpoint.

    Raises:
        StorageError: The endpoint is not a URL, or the region has no region's form.
        BotoCoreError: Another setting is missing or wrong.
    """
    reason = "neither http:// nor https://"
    try:
        client = session.client("s3")
        if client.meta.endpoint_url.startswith(("http://", "https://")):
            return client
    except botocore.exceptions.InvalidRegionError as error:
        raise StorageError(
            f"s3://{bucket}: {short_message(error)} Correct AWS_DEFAULT_REGION or the profile"
        ) from error
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
