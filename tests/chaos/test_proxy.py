"""The fault proxy: transparent without faults; every kind of fault, with a real server and real clients."""

import contextlib
import http.client
import random
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from infra import local_s3
from pipeline.errors import IntegrityError
from pipeline.storage import Storage, sha256
from tests.chaos.proxy import Fault, FaultKind, Proxy

KEYS = ("plain", "deep/er/key", "spaces and +plus", "perc%41ent", "ü=ε,×;&?#", "a//b")


@pytest.fixture
def proxy(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3["AWS_ENDPOINT_URL"], stall_s=0.2) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def through(proxy: Proxy, prefix: str) -> Storage:
    """An empty store behind the proxy."""
    del proxy  # its address is in the environment
    return Storage(f"s3://demo/{prefix}")


@pytest.fixture
def direct(s3: dict[str, str], prefix: str) -> Storage:
    """The same store without the proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3["AWS_ENDPOINT_URL"])
        return Storage(f"s3://demo/{prefix}")


def ask(url: str, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, target, body)
        response = connection.getresponse()
        return response.status, response.read()


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


# --- without faults -----------------------------------------------------------------------------------------------


def test_storage_works_the_same_through_the_proxy(proxy: Proxy, through: Storage, direct: Storage) -> None:
    for size_bytes in (0, 1, 1000, 5_000_000):
        through.put(f"shards/{size_bytes}", noise(size_bytes))
        assert through.get(f"shards/{size_bytes}") == direct.get(f"shards/{size_bytes}") == noise(size_bytes)
    assert through.put_if_absent("marker", b"first")
    assert not through.put_if_absent("marker", b"second")
    assert sorted(through.list(), key=str) == sorted(direct.list(), key=str)
    assert through.list_folder() == direct.list_folder()
    through.check_put_if_absent()
    assert not proxy.counts


def test_a_large_conditional_put_that_the_server_refuses_is_answered(through: Storage) -> None:
    assert through.put_if_absent("large", noise(5_000_000))
    assert not through.put_if_absent("large", noise(5_000_001))


@pytest.mark.parametrize("key", KEYS)
def test_addresses_are_passed_on_as_they_were_signed(
    proxy: Proxy, s3: dict[str, str], prefix: str, through: Storage, key: str
) -> None:
    client = local_s3.client({**s3, "AWS_ENDPOINT_URL": proxy.url})
    client.put_object(Bucket="demo", Key=f"{prefix}/{key}", Body=b"bytes")
    assert client.get_object(Bucket="demo", Key=f"{prefix}/{key}")["Body"].read() == b"bytes"
    if "//" not in key:
        assert through.get(key) == b"bytes"


def test_boto3_works_the_same_through_the_proxy(proxy: Proxy, s3: dict[str, str], prefix: str) -> None:
    client = local_s3.client({**s3, "AWS_ENDPOINT_URL": proxy.url})
    for size_bytes in (0, 1, 5_000_000):  # boto3 sends Expect: 100-continue with each
        key = f"{prefix}/shards/{size_bytes}"
        client.put_object(Bucket="demo", Key=key, Body=noise(size_bytes))
        assert client.head_object(Bucket="demo", Key=key)["ContentLength"] == size_bytes
        assert client.get_object(Bucket="demo", Key=key)["Body"].read() == noise(size_bytes)
    part = client.get_object(Bucket="demo", Key=f"{prefix}/shards/5000000", Range="bytes=10-19")["Body"].read()
    assert part == noise(5_000_000)[10:20]
    client.delete_object(Bucket="demo", Key=f"{prefix}/shards/0")
    listed = client.list_objects_v2(Bucket="demo", Prefix=prefix)["Contents"]
    assert [item["Size"] for item in listed] == [1, 5_000_000]
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(Bucket="demo", Key=f"{prefix}/shards/0")


def test_a_chunked_request_arrives_whole(proxy: Proxy, s3: dict[str, str], prefix: str, direct: Storage) -> None:
    client = local_s3.client({**s3, "AWS_ENDPOINT_URL": proxy.url})
    url = urlsplit(client.generate_presigned_url("put_object", {"Bucket": "demo", "Key": f"{prefix}/chunked"}))
    connection = http.client.HTTPConnection(url.netloc, timeout=60)
    with contextlib.closing(connection):
        chunks = iter((noise(10), noise(100_000)))
        connection.request(
            "PUT", f"{url.path}?{url.query}", chunks, {"Transfer-Encoding": "chunked"}, encode_chunked=True
        )
        assert connection.getresponse().status == 200
    assert direct.get("chunked") == noise(10) + noise(100_000)


def test_many_connections_at_once(proxy: Proxy, s3: dict[str, str], prefix: str) -> None:
    client = local_s3.client({**s3, "AWS_ENDPOINT_URL": proxy.url})
    client.put_object(Bucket="demo", Key=f"{prefix}/object", Body=noise(1000))
    url = urlsplit(client.generate_presigned_url("get_object", {"Bucket": "demo", "Key": f"{prefix}/object"}))
    with ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda _: ask(proxy.url, "GET", f"{url.path}?{url.query}"), range(200)))
    assert set(answers) == {(200, noise(1000))}


# --- each kind of fault -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["slow-down", "reset", "refuse", "stall"])
def test_puts_succeed_under_thirty_percent(proxy: Proxy, through: Storage, direct: Storage, kind: FaultKind) -> None:
    proxy.inject(Fault(kind, 0.3))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: through.put(f"{number}", noise(1000 + number)), range(60)))
    assert proxy.counts[kind] > 0
    assert set(proxy.counts) == {kind}
    assert all(direct.get(f"{number}") == noise(1000 + number) for number in range(60))


@pytest.mark.parametrize("kind", ["slow-down", "reset", "refuse", "stall"])
def test_gets_give_the_right_bytes_under_thirty_percent(
    proxy: Proxy, through: Storage, direct: Storage, kind: FaultKind
) -> None:
    for number in range(20):
        direct.put(f"{number}", noise(100_000 + number))
    proxy.inject(Fault(kind, 0.3))
    assert all(through.get(f"{number}") == noise(100_000 + number) for number in range(20))
    assert proxy.counts[kind] > 0


def test_a_writer_whose_response_was_lost_recognises_its_own_bytes(
    proxy: Proxy, through: Storage, direct: Storage
) -> None:
    proxy.inject(Fault("lost-response", 1.0, limit=1))
    assert through.put_if_absent("key", b"first")
    assert direct.get("key") == b"first"
    assert proxy.counts["lost-response"] == 1
    proxy.inject(Fault("lost-response", 1.0, limit=1))
    assert not through.put_if_absent("key", b"second")
    through.put("plain", b"an unconditional put is not eligible")
    assert proxy.counts == {"lost-response": 2}


def test_exactly_one_of_racing_writers_wins_though_responses_are_lost(proxy: Proxy, through: Storage) -> None:
    proxy.inject(Fault("lost-response", 0.5))
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: through.put_if_absent("race", str(number).encode()), range(8)))
    assert [str(number).encode() for number in range(8) if won[number]] == [through.get("race")]


def test_a_flipped_bit_is_noticed(proxy: Proxy, through: Storage) -> None:
    data = noise(10_000)
    through.put("shards/one.tar", data)
    proxy.inject(Fault("flip", 1.0))
    with pytest.raises(IntegrityError, match=r"shards/one\.tar: damaged: its 10000 bytes"):
        through.get("shards/one.tar", sha256_hex=sha256(data))
    damaged = through.get("shards/one.tar")
    flipped = int.from_bytes(damaged, "big") ^ int.from_bytes(data, "big")
    assert len(damaged) == len(data)
    assert flipped.bit_count() == 1
    assert proxy.counts["flip"] >= 2, "Storage may read again before it calls bytes damaged"


def test_only_objects_of_the_folders_with_digests_are_flipped(proxy: Proxy, s3: dict[str, str], prefix: str) -> None:
    storage = Storage(f"s3://demo/{prefix}/shards/")
    storage.put("one", b"")
    Storage(f"s3://demo/{prefix}").put("recipe.toml", b"bytes")
    proxy.inject(Fault("flip", 1.0))
    assert [item.key for item in storage.list()] == ["one"]
    assert [item.key for item in storage.list_folder()] == ["one"]
    assert storage.get("one") == b""
    assert Storage(f"s3://demo/{prefix}").get("recipe.toml") == b"bytes"
    client = local_s3.client({**s3, "AWS_ENDPOINT_URL": proxy.url})
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(Bucket="demo", Key=f"{prefix}/shards/missing")
    assert not proxy.counts


@pytest.mark.parametrize("kind", ["refuse", "reset"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_the_client_gets_a_connection_error(
    proxy: Proxy, s3: dict[str, str], prefix: str, kind: FaultKind, method: str
) -> None:
    client = local_s3.client({**s3, "AWS_ENDPOINT_URL": proxy.url})
    client.put_object(Bucket="demo", Key=f"{prefix}/object", Body=noise(100))
    operation = {"GET": "get_object", "PUT": "put_object"}[method]
    url = urlsplit(client.generate_presigned_url(operation, {"Bucket": "demo", "Key": f"{prefix}/object"}))
    proxy.inject(Fault(kind, 1.0))
    with pytest.raises(ConnectionError) as raised:
        ask(proxy.url, method, f"{url.path}?{url.query}", noise(1_000) if method == "PUT" else None)
    assert not isinstance(raised.value, http.client.RemoteDisconnected), "that would be an orderly end"
    assert proxy.counts == {kind: 1}


def test_slow_down_is_the_answer_that_s3_gives(proxy: Proxy) -> None:
    proxy.inject(Fault("slow-down", 1.0))
    status, body = ask(proxy.url, "GET", "/demo/anything")
    assert status == 503
    assert b"<Code>SlowDown</Code>" in body
    assert ask(proxy.url, "HEAD", "/demo/anything") == (503, b"")


# --- how faults are drawn -----------------------------------------------------------------------------------------


def test_limits_hold_and_counts_add_up(proxy: Proxy) -> None:
    def answers(count: int) -> list[int]:
        return [ask(proxy.url, "GET", "/demo/nothing-there")[0] for _ in range(count)]

    proxy.inject(Fault("slow-down", 1.0, limit=2), Fault("flip", 1.0))
    assert answers(4) == [503, 503, 403, 403], "unsigned, so the server itself refuses"
    proxy.inject(Fault("slow-down", 1.0, limit=1))
    assert answers(2) == [503, 403]
    proxy.inject(Fault("slow-down", 1.0))
    proxy.clear()
    assert answers(1) == [403]
    assert proxy.counts == {"slow-down": 3}


def test_equal_seeds_draw_equal_faults(s3: dict[str, str]) -> None:
    def drawn(seed: int) -> list[int]:
        with Proxy(s3["AWS_ENDPOINT_URL"], seed=seed) as proxy:
            proxy.inject(Fault("slow-down", 0.5))
            return [ask(proxy.url, "GET", "/demo/nothing-there")[0] for _ in range(30)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


# --- a server that is down ----------------------------------------------------------------------------------------


def serve_once(listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        answer(connection)


def test_the_proxy_answers_for_a_server_that_is_down_and_counts_nothing() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with Proxy(f"http://127.0.0.1:{bound.getsockname()[1]}") as proxy:
            assert [ask(proxy.url, method, "/demo/key")[0] for method in ("GET", "PUT", "HEAD")] == [503] * 3
            assert not proxy.counts


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nServer: half"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n",
    ],
)
def test_the_proxy_answers_for_a_server_that_dies_within_its_answer(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve_once, args=(listener, lambda connection: connection.sendall(answer)))
        server.start()
        with Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}") as proxy:
            proxy.inject(Fault("lost-response", 1.0), Fault("flip", 1.0), Fault("reset", 1.0))
            assert ask(proxy.url, "GET", "/demo/shards/key")[0] == 503
            assert not proxy.counts
        server.join()


def test_the_proxy_reconnects_to_a_server_that_disconnected_between_requests() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    listener = socket.create_server(("127.0.0.1", 0))
    with listener, Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}") as proxy:
        connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=60)
        for _ in range(2):
            server = threading.Thread(target=serve_once, args=(listener, answer))
            server.start()
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"ok"
            server.join()
        connection.close()


def test_leaving_ends_idle_connections(s3: dict[str, str]) -> None:
    with Proxy(s3["AWS_ENDPOINT_URL"]) as proxy:
        connection = socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port or 0))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 ")
    with connection:
        connection.settimeout(60)
        while connection.recv(65536):
            pass
