"""The proxy's connection to the S3 server, and the server's answers."""

import http.client
import logging
import select
from dataclasses import dataclass
from urllib.parse import urlsplit

_LOG = logging.getLogger(__name__)

Headers = tuple[tuple[str, str], ...]

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 120.0
# Headers that describe one connection rather than the message (RFC 9110, 7.6.1).
PER_CONNECTION = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_BODILESS = {http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED}


@dataclass(frozen=True)
class Answer:
    """A response whose headers already state the length of its body."""

    status: int
    reason: str
    headers: Headers
    body: bytes

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {self.reason}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def slow_down() -> Answer:
    body = (
        b'<?xml version="1.0" encoding="UTF-8"?>\n'
        b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    )
    headers = (("Content-Type", "application/xml"), ("Content-Length", str(len(body))))
    return Answer(503, "Slow Down", headers, body)


class Upstream:
    """One connection to the server, kept between requests and reopened when the server has closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_CONNECT_TIMEOUT_S)

    def ask(self, method: str, target: str, headers: Headers, body: bytes) -> Answer:
        """The server's whole answer.

        Raises:
            OSError, http.client.HTTPException: The server is down, or died before its answer was complete.
        """
        self._open()
        self._connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            self._connection.putheader(name, value)
        try:
            self._connection.endheaders(body)
        except (BrokenPipeError, ConnectionResetError):
            _LOG.debug("the server stopped reading the body, as it may after a refusal: its answer follows")
        response = self._connection.getresponse()
        if response.length is None and not response.chunked:
            # http.client takes a closed connection for the end of the headers: they were cut off.
            raise http.client.HTTPException("an answer without a length")
        return _received(response, method, response.read())

    def close(self) -> None:
        self._connection.close()

    def _open(self) -> None:
        """Connects unless connected; a socket that is readable between requests has been closed by the server."""
        if self._connection.sock is not None:
            poll = select.poll()
            poll.register(self._connection.sock, select.POLLIN)
            if not poll.poll(0):
                return
            self._connection.close()
        self._connection.connect()
        self._connection.sock.settimeout(_READ_TIMEOUT_S)


def _received(response: http.client.HTTPResponse, method: str, body: bytes) -> Answer:
    """The server's answer, with the length of its body; one without a body keeps the length that it states."""
    headers = tuple((name, value) for name, value in response.getheaders() if name.lower() not in PER_CONNECTION)
    if method != "HEAD" and response.status not in _BODILESS:
        headers = tuple(header for header in headers if header[0].lower() != "content-length")
        headers += (("Content-Length", str(len(body))),)
    return Answer(response.status, response.reason, headers, body)
