"""Errors of the storage clients: translation into this package's exceptions, one-line messages, retries."""

import contextlib
import html
import logging
import re
from collections.abc import Iterator

import botocore.exceptions
import tenacity
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from pipeline.errors import MissingError, StorageError

log = logging.getLogger(__name__)

_S3_ERROR = re.compile(r"<Code>(?P<code>[^<]*)</Code>\s*<Message>(?P<message>[^<]*)</Message>")
# A retry cannot help against these.
_PERMANENT = (NotFoundError, PermissionDeniedError, UnauthenticatedError, NotSupportedError, InvalidPathError)


def short_message(error: BaseException) -> str:
    """One line of a client's error: obstore's messages are a page of Rust structures around S3's answer in XML."""
    answer = _S3_ERROR.search(str(error))
    if answer is not None:
        return html.unescape(f"{answer['code']}: {' '.join(answer['message'].split())}")[:300]
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


@contextlib.contextmanager
def translated_errors(url: str) -> Iterator[None]:
    """Turns exceptions of the clients into `MissingError` and `StorageError`, with the object's URL in the message."""
    try:
        yield
    except FileNotFoundError as error:
        missing = "no such bucket" if "NoSuchBucket" in str(error) else "no such object"
        raise MissingError(f"{url}: {missing}") from error
    except (BaseError, OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{url}: {short_message(error)}") from error


def _is_transient(error: BaseException) -> bool:
    """Whether a retry may help. The client's own retries do not cover a cut connection."""
    return (
        isinstance(error, StorageError)
        and isinstance(error.__cause__, BaseError)
        and not isinstance(error.__cause__, _PERMANENT)
    )


retry_transient = tenacity.retry(
    retry=tenacity.retry_if_exception(_is_transient),
    wait=tenacity.wait_random_exponential(multiplier=0.1, max=10),
    stop=tenacity.stop_after_delay(60),
    before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
    reraise=True,
)
