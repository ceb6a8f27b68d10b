"""S3: error messages, listing by pages, faults of the network."""

import random
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IntegrityError, MissingError, StorageError
from pipeline.storage import Storage, sha256
from tests.chaos.proxy import Fault, FaultKind, Proxy


def test_a_missing_bucket_and_wrong_credentials_read_as_one_line(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingError, match="no-such-bucket"):
        Storage("s3://no-such-bucket/prefix").get("key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError) as refused:
        Storage("s3://demo/prefix").get("key")
    assert "\n" not in str(refused.value)


def test_missing_credentials_are_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        Storage("s3://bucket/prefix")


def test_a_small_folder_is_listed_in_one_request(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    storage = Storage(f"s3://demo/{uuid.uuid4().hex}")
    for number in range(6):
        storage.put(f"a/{number}", b"")
    real, requests = obstore.list, []

    def counting_list(*arguments: Any, **options: Any) -> Any:
        requests.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(obstore, "list", counting_list)
    assert len(list(storage.list("a"))) == 6
    assert len(requests) == 1
    monkeypatch.setattr("pipeline.storage.listing._PAGE_SIZE", 3)  # the server fills pages of any size likewise
    assert len(list(storage.list("a"))) == 6
    assert len(requests) == 1 + 3, "two full pages, and the end"


@pytest.mark.parametrize("kind", ["reset", "refuse"])
def test_operations_succeed_in_spite_of_cut_connections(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, kind: FaultKind
) -> None:
    with Proxy(s3["AWS_ENDPOINT_URL"], seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage = Storage(f"s3://demo/{uuid.uuid4().hex}")
        proxy.inject(Fault(kind, 0.3))
        for number in range(30):
            assert storage.put_if_absent(f"once/{number:02d}", b"first" * 1000)
            assert not storage.put_if_absent(f"once/{number:02d}", b"second")
            storage.put(f"put/{number:02d}", b"x" * 1000)
        for _ in range(5):
            assert [item.key for item in storage.list("once")] == [f"once/{number:02d}" for number in range(30)]
        for number in range(30):
            assert storage.get(f"once/{number:02d}") == b"first" * 1000
            assert storage.stat(f"put/{number:02d}").size_bytes == 1000
        with tempfile.TemporaryFile() as file:
            assert storage.download("once/00", file) == sha256(b"first" * 1000)
        storage.delete([f"put/{number:02d}" for number in range(30)])
        assert list(storage.list("put")) == []
        assert proxy.counts[kind] > 20


def test_a_byte_flipped_in_transit_is_read_again(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(s3["AWS_ENDPOINT_URL"], seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage = Storage(f"s3://demo/{uuid.uuid4().hex}")
        data = random.Random(0).randbytes(10_000)
        storage.put("shards/x", data)
        storage.put_record("plans/x.json", {"a": 1})
        for _ in range(10):
            proxy.inject(Fault("flip", 1.0, limit=2))
            assert storage.get("shards/x", sha256_hex=sha256(data)) == data
            proxy.inject(Fault("flip", 1.0, limit=2))
            with tempfile.TemporaryFile() as file:
                assert storage.download("shards/x", file) == sha256(data)
            proxy.inject(Fault("flip", 1.0, limit=2))
            assert storage.get_record("plans/x.json") == {"a": 1}
        proxy.inject(Fault("flip", 1.0))
        with pytest.raises(IntegrityError, match="damaged"):
            storage.get("shards/x", sha256_hex=sha256(data))
        with pytest.raises(IntegrityError, match="reads gave different bytes"), tempfile.TemporaryFile() as file:
            storage.download("shards/x", file)


def test_an_error_of_s3_is_reported_by_code_and_message_without_xml(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"demo/prefix/key: SignatureDoesNotMatch: The request signature") as refused:
        Storage("s3://demo/prefix").get("key")
    assert "<" not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "http://", "ftp://x", "http://a b"])
def test_a_malformed_endpoint_is_named_in_the_error(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match=r"the endpoint is no address.*AWS_ENDPOINT_URL") as refused:
        Storage("s3://demo/prefix")
    assert "credentials" not in str(refused.value)
