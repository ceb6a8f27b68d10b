"""A proxy on loopback between S3 clients and a real S3 server, which injects faults and counts them.

The clients, the server and the connections are real; only what goes wrong between them is drawn, from a seed. Bodies
are held whole in memory, so that an answer is either known completely before the client sees any of it or replaced.
"""

import http.client
import logging
import random
import select
import socket
import struct
import sys
import threading
from collections import Counter
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

_LOG = logging.getLogger(__name__)

FaultKind = Literal["slow-down", "reset", "stall", "lost-response", "flip", "refuse"]
Headers = tuple[tuple[str, str], ...]

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 120.0
_LINGER_ZERO = struct.pack("ii", 1, 0)
# Those that describe one connection rather than the message (RFC 9110, 7.6.1); the proxy frames each side itself.
_PER_CONNECTION = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_FRAMED_BY_PROXY = _PER_CONNECTION | {"content-length", "expect"}
_BODILESS = {http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED}
_FLIPPED_FOLDERS = ("shards/", "results/", "markers/", "weights/", "plans/")
_LISTING = {"list-type", "delimiter", "prefix"}


@dataclass(frozen=True)
class Fault:
    """One kind of fault and how often it strikes.

    Attributes:
        kind: `slow-down` answers 503 SlowDown; `reset` cuts a GET's answer or a PUT's body short with a TCP reset;
            `stall` waits before forwarding; `lost-response` lets the server carry out a conditional PUT and resets
            instead of answering; `flip` flips one bit of an object that is read; `refuse` resets at once.
        probability: Chance per request that can suffer this kind.
        limit: At most so many injections since `Proxy.inject`; None for no limit.
    """

    kind: FaultKind
    probability: float
    limit: int | None = None


class Proxy:
    """Forwards requests to an S3 server while entered, with the faults that were asked for.

    A server that is down, or dies while it answers, is answered for with 503, which S3 clients retry; that is not
    counted as an injection.

    Args:
        upstream: The server, as `http://127.0.0.1:PORT`.
        seed: Of the draws. Requests race for them, so equal seeds give equal faults only to one client at a time.
        stall_s: How long a stall lasts.

    Attributes:
        url: Where the proxy listens, once entered.
    """

    url: str

    def __init__(self, upstream: str, *, seed: int = 0, stall_s: float = 3.0) -> None:
        self._draws = _Draws(seed)
        self._upstream = upstream
        self._stall_s = stall_s

    def __enter__(self) -> Self:
        self._server = _Server(self._upstream, self._draws, self._stall_s)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.hang_up()

    def inject(self, *faults: Fault) -> None:
        """Makes these the active faults, in place of the ones before, with their limits counted anew."""
        self._draws.use(faults)

    def clear(self) -> None:
        """Forwards everything unharmed from now on."""
        self._draws.use(())

    @property
    def counts(self) -> Counter[str]:
        """How many faults of each kind were injected since the proxy was made; a copy."""
        return self._draws.injected()


class _Draws:
    """The active faults, the randomness and the counts, shared by all connections."""

    def __init__(self, seed: int) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._counts: Counter[str] = Counter()
        self._since_use: Counter[Fault] = Counter()
        self._faults: tuple[Fault, ...] = ()

    def use(self, faults: tuple[Fault, ...]) -> None:
        with self._lock:
            self._faults = faults
            self._since_use.clear()

    def injected(self) -> Counter[str]:
        with self._lock:
            return self._counts.copy()

    def strikes(self, kind: FaultKind) -> bool:
        """Whether a request that can suffer this kind does; counts it if so."""
        with self._lock:
            for fault in self._faults:
                spent = fault.limit is not None and self._since_use[fault] >= fault.limit
                if fault.kind == kind and not spent and self._random.random() < fault.probability:
                    self._since_use[fault] += 1
                    self._counts[kind] += 1
                    return True
            return False

    def below(self, bound: int) -> int:
        """A whole number of at least 0 and less than `bound`."""
        with self._lock:
            return self._random.randrange(bound)


@dataclass(frozen=True)
class _Answer:
    """A response whose headers frame its body already."""

    status: int
    reason: str
    headers: Headers
    body: bytes

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {self.reason}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _slow_down() -> _Answer:
    body = (
        b'<?xml version="1.0" encoding="UTF-8"?>\n'
        b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    )
    headers = (("Content-Type", "application/xml"), ("Content-Length", str(len(body))))
    return _Answer(503, "Slow Down", headers, body)


class _Upstream:
    """One connection to the server, kept between requests and reopened when the server has closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_CONNECT_TIMEOUT_S)

    def ask(self, method: str, target: str, headers: Headers, body: bytes) -> _Answer:
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
            # The client library takes the end of the connection for the end of the headers: they were cut.
            raise http.client.HTTPException("an answer without a length")
        return _received(response, method, response.read())

    def close(self) -> None:
        self._connection.close()

    def _open(self) -> None:
        """Connects unless connected. Readable between requests means that the server has hung up."""
        if self._connection.sock is not None:
            poll = select.poll()
            poll.register(self._connection.sock, select.POLLIN)
            if not poll.poll(0):
                return
            self._connection.close()
        self._connection.connect()
        self._connection.sock.settimeout(_READ_TIMEOUT_S)


def _received(response: http.client.HTTPResponse, method: str, body: bytes) -> _Answer:
    """The server's answer, with a length where the body was chunked; a bodiless one keeps the length it states."""
    headers = tuple((name, value) for name, value in response.getheaders() if name.lower() not in _PER_CONNECTION)
    if method != "HEAD" and response.status not in _BODILESS:
        headers = tuple(header for header in headers if header[0].lower() != "content-length")
        headers += (("Content-Length", str(len(body))),)
    return _Answer(response.status, response.reason, headers, body)


class _Server(ThreadingHTTPServer):
    """Accepts on a free port of loopback; a thread per connection."""

    request_queue_size = 128

    def __init__(self, upstream: str, draws: _Draws, stall_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.upstream = upstream
        self.draws = draws
        self.stall_s = stall_s
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def hang_up(self) -> None:
        """Ends the connections that are still open, and with them their threads."""
        self.closing.set()
        with self._lock:
            for connection in self._open:
                _shut(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes without the farewell (FIN) of the base class, after which a reset would pass for an orderly end."""
        with self._lock:
            self._open.discard(request)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that vanish are everyday here; anything else is a fault of the proxy itself."""
        if not isinstance(sys.exception(), OSError):
            _LOG.exception("the proxy failed on a request")


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        _LOG.debug("the client had hung up")


class _Connection(BaseHTTPRequestHandler):
    """One client's connection, and its own connection to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._upstream = _Upstream(self.server.upstream)

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Requests are not logged."""

    def handle_expect_100(self) -> bool:
        """Puts the go-ahead off until the body is read: a refused request gets no answer at all."""
        return True

    def _serve(self) -> None:
        draws = self.server.draws
        if draws.strikes("refuse"):
            return self._reset()
        if self.command == "PUT" and self._has_body() and draws.strikes("reset"):
            self._read_part()
            return self._reset()
        body = self._read_body()
        if draws.strikes("slow-down"):
            return self._send(_slow_down())
        if draws.strikes("stall"):
            self.server.closing.wait(self.server.stall_s)
        try:
            answer = self._forward(body)
        except (OSError, http.client.HTTPException):
            self._upstream.close()
            return self._send(_slow_down())
        return self._return(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = _serve  # noqa: N815  # http.server's names

    def _return(self, answer: _Answer) -> None:
        """Sends the server's answer, unless it is to be lost, cut short or damaged."""
        draws = self.server.draws
        if self.command == "PUT" and self.headers["If-None-Match"] == "*" and draws.strikes("lost-response"):
            return self._reset()
        if self.command == "GET" and len(answer.body) > 1 and draws.strikes("reset"):
            self.wfile.write(answer.head() + answer.body[: draws.below(len(answer.body))])
            return self._reset()
        if self._reads_object(answer) and draws.strikes("flip"):
            answer = replace(answer, body=_flip(answer.body, draws.below(8 * len(answer.body))))
        return self._send(answer)

    def _send(self, answer: _Answer) -> None:
        """Sends in one piece: small pieces wait for each other's acknowledgement."""
        self.wfile.write(answer.head() + (b"" if self.command == "HEAD" else answer.body))

    def _reset(self) -> None:
        """Ends the connection so that the client's kernel reports a reset rather than an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.close_connection = True

    def _forward(self, body: bytes) -> _Answer:
        headers = tuple((name, value) for name, value in self.headers.items() if name.lower() not in _FRAMED_BY_PROXY)
        if body or "Content-Length" in self.headers:
            headers += (("Content-Length", str(len(body))),)
        # Not `self.path`, in which the base class merges leading slashes: the signature covers what was sent.
        return self._upstream.ask(self.command, self.requestline.split()[1], headers, body)

    def _reads_object(self, answer: _Answer) -> bool:
        """Whether the answer holds an object's bytes, from a folder whose readers must notice damage."""
        path, _, query = self.path.partition("?")
        _, _, key = path.lstrip("/").partition("/")
        listing = not key or not _LISTING.isdisjoint(parse_qs(query, keep_blank_values=True))
        read = self.command == "GET" and answer.status in (200, 206) and len(answer.body) > 0
        return read and not listing and any(folder in path for folder in _FLIPPED_FOLDERS)

    def _chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def _has_body(self) -> bool:
        return self._chunked() or self._size_bytes() > 0

    def _size_bytes(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def _read_body(self) -> bytes:
        """The request's whole body, unchunked; what `aws-chunked` adds is content and stays.

        Raises:
            ConnectionError: The client hung up before its end.
        """
        self._go_ahead()
        if not self._chunked():
            return self._read(self._size_bytes())
        chunks = []
        while size := int(self._read_line().partition(b";")[0], 16):
            chunks.append(self._read(size))
            self._read_line()
        while self._read_line():
            pass  # trailers, which S3 does not use at this level
        return b"".join(chunks)

    def _read_part(self) -> None:
        """Reads some of the body, and leaves some of it."""
        self._go_ahead()
        self._read(1 if self._chunked() else self.server.draws.below(self._size_bytes()))

    def _go_ahead(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read(self, size_bytes: int) -> bytes:
        data = self.rfile.read(size_bytes)
        if len(data) < size_bytes:
            raise ConnectionAbortedError("the client hung up within its body")
        return data

    def _read_line(self) -> bytes:
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            raise ConnectionAbortedError("the client hung up within its body")
        return line.strip()


def _flip(body: bytes, bit: int) -> bytes:
    damaged = bytearray(body)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
