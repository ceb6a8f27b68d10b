"""S3 as people reach it: wrong keys and addresses, certificates of their own, proxies, public buckets."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from pipeline.storage import Storage, s3
from tests.corpus.cases import Refusal, case, gnp
from tests.tls import OBJECT, Answer, answering, s3_error, write_certificates

KIND = "environments"
URL = "s3://bucket/prefix"


@contextlib.contextmanager
def _s3(endpoint: str, **settings: str) -> Iterator[None]:
    """The environment of a user of S3 at an endpoint."""
    names = ("AWS_", "HTTP", "http", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", s3.UNSIGNED)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    nowhere = {"AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}
    alone = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": endpoint}
    with mock.patch.dict(os.environ, {**kept, **keys, **nowhere, **alone, **settings}, clear=True):
        yield


def _add_answer(name: str, expected: object, *answers: Answer) -> None:
    @case(KIND, f"S3: {name}", expected)
    def run(_: Path) -> object:
        with answering(*answers) as endpoint, _s3(endpoint.url):
            return gnp("report", URL)


for _status, _code in (
    (403, "InvalidAccessKeyId"),
    (403, "SignatureDoesNotMatch"),
    (403, "AccessDenied"),
    (404, "NoSuchBucket"),
    (400, "AuthorizationHeaderMalformed"),
    (400, "ExpiredToken"),
):
    _add_answer(f"{_code} is not asked again", Refusal(f"{URL}.*: {_code}: It says"), s3_error(_status, _code))
_add_answer(
    "a bucket in another region", Refusal("(PermanentRedirect|another region)"), s3_error(301, "PermanentRedirect")
)


def _add_passing(name: str, *answers: Answer) -> None:
    @case(KIND, f"S3: {name} passes", b"content")
    def run(_: Path) -> object:
        with answering(*answers, OBJECT) as endpoint, _s3(endpoint.url):
            return Storage(URL).get("key")


_add_passing("SlowDown", s3_error(503, "SlowDown"), s3_error(503, "SlowDown"))
_add_passing("an internal error", s3_error(500, "InternalError"))
_add_passing("a time-out that S3 reports", s3_error(400, "RequestTimeout"))


def _add_connection(name: str, expected: object, address: str, **settings: str) -> None:
    @case(KIND, f"S3: {name}", expected)
    def run(_: Path) -> object:
        with _s3(address, **settings):
            return gnp("report", URL)


_add_connection("nothing listens at the endpoint", Refusal("no answer .Connection refused"), "http://127.0.0.1:9")
_add_connection("an unknown host", Refusal("unknown host name|no answer"), "http://no-such-host.invalid")
_add_connection("a region that is none", Refusal("region.*AWS_DEFAULT_REGION"), "", AWS_DEFAULT_REGION="not one")


@case(KIND, "S3: a proxy that refuses", Refusal("the proxy in HTTPS_PROXY refuses"))
def refusing_proxy(_: Path) -> object:
    with answering(Answer(200)) as proxy, _s3("https://s3.example.com", HTTPS_PROXY=proxy.url):
        return gnp("report", URL)


def _add_certificate(name: str, expected: object, settings: Callable[[Path], dict[str, str]]) -> None:
    @case(KIND, f"S3: {name}", expected)
    def run(folder: Path) -> object:
        _, certificate = write_certificates(folder)
        with answering(OBJECT, certificate=certificate) as endpoint, _s3(endpoint.url, **settings(folder)):
            storage = Storage(URL)
            storage.check_contact()
            return storage.get("key")


def _profile(folder: Path) -> dict[str, str]:
    (folder / "config").write_text(f"[default]\nca_bundle = {folder}/authority.pem\n", encoding="utf-8")
    return {"AWS_CONFIG_FILE": f"{folder}/config"}


def _no_certificates(folder: Path) -> dict[str, str]:
    (folder / "bundle").write_text("none", encoding="utf-8")
    return {"AWS_CA_BUNDLE": f"{folder}/bundle"}


_add_certificate(
    "a certificate of an authority that nobody knows", Refusal("is not trusted.*AWS_CA_BUNDLE"), lambda _: {}
)
_add_certificate(
    "AWS_CA_BUNDLE names the authority", b"content", lambda folder: {"AWS_CA_BUNDLE": f"{folder}/authority.pem"}
)
_add_certificate("the profile's ca_bundle names the authority", b"content", _profile)
_add_certificate("AWS_CA_BUNDLE is not there", Refusal("x.pem: cannot be read"), lambda _: {"AWS_CA_BUNDLE": "/x.pem"})
_add_certificate(
    "AWS_CA_BUNDLE holds no certificate", Refusal("AWS_CA_BUNDLE.*No certificates found"), _no_certificates
)


@case(KIND, "S3: https:// to a server without TLS", Refusal("does not speak TLS.*http://"))
def no_tls(_: Path) -> object:
    with answering(OBJECT) as endpoint, _s3(endpoint.url.replace("http:", "https:")):
        return gnp("report", URL)


@case(KIND, "S3: http:// to a server with TLS", Refusal("no answer"))
def unexpected_tls(folder: Path) -> object:
    _, certificate = write_certificates(folder)
    with (
        answering(OBJECT, certificate=certificate) as endpoint,
        _s3(endpoint.url.replace("https:", "http:")),
        mock.patch.object(s3, "_CONTACT_S", 0.1),
    ):
        return gnp("report", URL)


@case(KIND, "S3: buckets in GNP_UNSIGNED_BUCKETS are read without credentials, others are signed for", (False, True))
def unsigned_bucket(_: Path) -> object:
    with answering(OBJECT) as endpoint, _s3(endpoint.url, GNP_UNSIGNED_BUCKETS="other, bucket"):
        Storage(URL).get("key")
        Storage("s3://results/prefix").get("key")
    return tuple("authorization" in request for request in endpoint.requests)


@case(KIND, "S3: a public bucket without any credentials", b"content")
def public_bucket(_: Path) -> object:
    none = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    with answering(OBJECT) as endpoint, _s3(endpoint.url, GNP_UNSIGNED_BUCKETS="bucket", **none):
        return Storage(URL).get("key")


@case(KIND, "S3: no credentials", Refusal("set AWS_ACCESS_KEY_ID.*GNP_UNSIGNED_BUCKETS=bucket"))
def no_credentials(_: Path) -> object:
    with _s3("http://127.0.0.1:9", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""):
        return gnp("report", URL)
