"""A server on loopback that answers every request likewise, over TLS too, with certificates made for it."""

import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Answer:
    """One answer of the server: status and body; of an S3 error, code and message in XML."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def s3_error(status: int, code: str) -> Answer:
    """S3's answer to a request that it refuses."""
    return Answer(status, f"<Error><Code>{code}</Code><Message>It says {code}.</Message></Error>".encode())


OBJECT = Answer(200, b"content", (("Last-Modified", "Sat, 28 Nov 2026 12:00:00 GMT"), ("ETag", '"tag"')))


@dataclass
class Endpoint:
    """A running server.

    Attributes:
        url: Its address.
        requests: The headers of every request.
    """

    url: str
    requests: list[dict[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def answering(*answers: Answer, certificate: Path | None = None) -> Iterator[Endpoint]:
    """Runs a server while entered; it gives the answers in turn, and the last for ever.

    Args:
        answers: At least one.
        certificate: PEM file with key and certificate, for TLS.
    """
    endpoint = Endpoint("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(answers, endpoint.requests))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    endpoint.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(answers: Sequence[Answer], requests: list[dict[str, str]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers[min(len(requests), len(answers) - 1)]
            requests.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_HEAD = do_PUT = do_GET  # noqa: N815  # http.server's names

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    return Handler


def write_certificates(folder: Path) -> tuple[Path, Path]:
    """Writes the certificate of an authority, and a server's for 127.0.0.1 with its key; returns both files."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate("authority", authority_key, "authority", authority_key, is_authority=True)
    server = _certificate("127.0.0.1", key, "authority", authority_key, is_authority=False)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "authority.pem").write_bytes(authority.public_bytes(pem))
    (folder / "server.pem").write_bytes(private + server.public_bytes(pem))
    return folder / "authority.pem", folder / "server.pem"


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, *, is_authority: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject, issued_by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer))
    builder = x509.CertificateBuilder(issued_by, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - _DAY).not_valid_after(now + _DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    if not is_authority:
        address = x509.IPAddress(ipaddress.ip_address(name))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return builder.sign(signer, hashes.SHA256())
