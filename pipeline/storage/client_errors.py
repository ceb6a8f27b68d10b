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
_STATUS = re.compile(r"status code: (?P<status>[345]\d\d)")
# A retry cannot help against these,
_PERMANENT = (NotFoundError, PermissionDeniedError, UnauthenticatedError, NotSupportedError, InvalidPathError)
# nor against an answer 3xx or 4xx, except for these of them.
_TRANSIENT_STATUS = {"408", "409", "425", "429"}
_TRANSIENT_CODES = {"RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
# Faults before any answer, as the client's structures name them: what they mean, and what to do.
_PERMANENT_CAUSES = {
    r"InvalidCertificate\(\s*(\w+)": "the server's certificate is not trusted ({}); AWS_CA_BUNDLE names the file of an "
    "authority that issued it, which the certificate's host name must match as well",
    r"(InvalidContentType)": "the server does not speak TLS ({}); write its address with http://",
    r"(TunnelUnsuccessful|ProxyAuthRequired)": "the proxy in HTTPS_PROXY refuses the connection ({}); NO_PROXY names "
    "hosts that are reached without one",
    r"(Name or service not known|nodename nor servname|No address associated)": "unknown host name ({}); check "
    "AWS_ENDPOINT_URL and the region",
    r"(redirect without LOCATION)": "the bucket lies in another region ({}); set AWS_DEFAULT_REGION to it",
}
_CONNECTION = re.compile(r"(?:message|error): \"(?P<cause>[^\"]*)\"")
_NO_CONNECTION = re.compile(r"legacy::Error\(\s*Connect")


def short_message(error: BaseException) -> str:
    """One line of a client's error: obstore's messages are a page of Rust structures around S3's answer in XML."""
    text = str(error)
    answer = _S3_ERROR.search(text)
    if answer is not None:
        return html.unescape(f"{answer['code']}: {' '.join(answer['message'].split())}")[:300]
    permanent = _permanent_cause(text)
    if permanent is not None:
        return permanent
    connection = _CONNECTION.search(text) if isinstance(error, BaseError) else None
    lines = text.strip().splitlines()
    return (f"no answer ({connection['cause']})" if connection else lines[0] if lines else type(error).__name__)[:300]


def _permanent_cause(text: str) -> str | None:
    for pattern, meaning in _PERMANENT_CAUSES.items():
        if found := re.search(pattern, text):
            return meaning.format(found[1])
    return None


def is_unreachable(error: BaseError) -> bool:
    """Whether the server gave no answer of any kind; not where it only took long."""
    text = str(error)
    return not _STATUS.search(text) and ("kind: Timeout" not in text or bool(_NO_CONNECTION.search(text)))


def is_permanent(error: BaseException) -> bool:
    """Whether a retry cannot help: no such object, no permission, a certificate that is not trusted, and the like."""
    text = str(error)
    if isinstance(error, _PERMANENT) or _permanent_cause(text) is not None:
        return True
    status, answer = _STATUS.search(text), _S3_ERROR.search(text)
    if status is None or status["status"] >= "500" or status["status"] in _TRANSIENT_STATUS:
        return False
    return answer is None or answer["code"] not in _TRANSIENT_CODES


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
    cause = error.__cause__
    return isinstance(error, StorageError) and isinstance(cause, BaseError) and not is_permanent(cause)


retry_transient = tenacity.retry(
    retry=tenacity.retry_if_exception(_is_transient),
    wait=tenacity.wait_random_exponential(multiplier=0.1, max=10),
    stop=tenacity.stop_after_delay(60),
    before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
    reraise=True,
)
