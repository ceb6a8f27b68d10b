"""Finalizing: all committed results of a store become one version, which readers take whole.

    versions/ID/clean/00000.parquet, transfer/00000.parquet …     the rows of all result files, in order of their units
    versions/ID/_info.json                                        the image shards, as timm's wds reader expects them
    versions/ID/README.md                                         the dataset card
    versions/ID/manifest.json                                     written last: every committed object and file, hashed
    _info.json, README.md, latest.json                            at the root: copies, and which version is the latest

File names in `_info.json` are relative to the store's root. ID covers what is committed and planned, so the same store
gives the same version. A folder without a manifest is not a version. A version that has its manifest is checked and
never written again. The files hold no time, host or input URL, so the same software writes the same bytes.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import IntegrityError, MissingError, StorageError
from pipeline.ledger import Ledger, name_in_id
from pipeline.maintenance import card, compaction, contents, manifest
from pipeline.maintenance.contents import StoreContents
from pipeline.maintenance.splits import splits
from pipeline.results import schema
from pipeline.storage import Storage, sha256

log = logging.getLogger(__name__)

# Files of a version that are copied to the root.
_COPIED = ("_info.json", "README.md")
_KINDS: tuple[schema.ResultKind, ...] = ("clean", "transfer")
# How often finalizing starts again because another version has become the latest meanwhile.
_ATTEMPTS = 5


@dataclass(frozen=True)
class Version:
    """A finalized version of a store.

    Attributes:
        id: Fingerprint of all that is committed and planned.
        folder: Its folder, `versions/ID`.
        rows: Number of rows in its Parquet files.
        images: Number of adversarial images.
        objects: Number of committed objects in its manifest.
        missing: Number of shards and results that plans want and that are not committed.
    """

    id: str
    folder: str
    rows: int
    images: int
    objects: int
    missing: int


def finalize(ledger: Ledger, *, partial: bool = False) -> Version:
    """Finalizes a store and makes the version its latest; if it exists already, all results are checked again.

    Args:
        ledger: The store.
        partial: Finalize although results that plans want are missing; the version records how many.

    Raises:
        MissingError: Nothing is committed, or something is missing and `partial` is false.
        IntegrityError: A result, a marker or a file of the existing version is damaged, or a row is duplicated.
        StorageError: The store failed, or other processes keep finalizing it.
    """
    storage = ledger.storage
    for _ in range(_ATTEMPTS):
        latest_tag = _latest_tag(storage)
        version = _write_or_check(ledger, partial=partial)
        if _publish(storage, version, latest_tag):
            log.info("%s: %d images, %d rows", storage.url_of(version.folder), version.images, version.rows)
            return version
    raise StorageError(
        f"{storage.url_of('latest.json')}: others keep finalizing this store; try again when they are done"
    )


def _write_or_check(ledger: Ledger, *, partial: bool) -> Version:
    """Writes the version of what is committed; if its manifest exists, reads and checks the results instead."""
    store = contents.collect(ledger, partial=partial)
    identity = manifest.version_id(store.markers, store.plans)
    version = Version(
        id=identity,
        folder=f"versions/{identity}",
        rows=sum(store.rows.values()),
        images=store.images,
        objects=len(store.markers),
        missing=store.missing_shards + store.missing_results,
    )
    if _exists(ledger.storage, manifest.key(version.id)):
        for _ in compaction.checked_tables(ledger, store.of_kind(*_KINDS)):
            pass
    else:
        _write(ledger, store, version)
    return version


def _write(ledger: Ledger, store: StoreContents, version: Version) -> None:
    """Writes the files of a version, and last its manifest, which makes it one."""
    files: list[dict[str, Any]] = []

    def write(name: str, data: bytes) -> None:
        _put_if_different(ledger.storage, f"{version.folder}/{name}", data)
        files.append({"name": name, "sha256": sha256(data), "size_bytes": len(data)})

    model_names: dict[str, str] = {}
    for kind in _KINDS:
        for index, data in enumerate(compaction.compact(ledger, store.of_kind(kind), model_names)):
            write(f"{kind}/{index:05d}.parquet", data)
    info = splits(store.markers)
    write("_info.json", _json(info))
    write("README.md", card.render(_card(store, version, model_names, info["splits"])).encode())
    fields = {
        "version": version.id,
        "layout": manifest.LAYOUT,
        "complete": not version.missing,
        "missing_shards": store.missing_shards,
        "missing_results": store.missing_results,
        "images": version.images,
        "rows": store.rows,
        "plans": store.plans,
        "objects": [manifest.object_entry(marker) for marker in store.markers],
        "files": files,
    }
    ledger.storage.put_if_absent(manifest.key(version.id), _json(fields))


def _card(
    store: StoreContents, version: Version, model_names: Mapping[str, str], split_infos: Mapping[str, Any]
) -> card.Card:
    """The facts of the dataset card; a source or target without rows is called by the name in its identity."""

    def models(identities: Mapping[str, dict[str, Any]]) -> list[card.ModelRow]:
        return [
            card.ModelRow(model_names.get(id_, name_in_id(id_)), id_, identity)
            for id_, identity in sorted(identities.items())
        ]

    return card.Card(
        version=version.id,
        datasets=[
            card.DatasetRow(
                id=dataset,
                shards=len(store.shards[dataset]),
                **{name: counts[name] for name in ("input", "usable", "quarantined", "adversarial")},
            )
            for dataset, counts in sorted(store.counts.items())
        ],
        sources=models(store.sources),
        targets=models(store.targets),
        attacks=store.attacks,
        splits={name: split["num_samples"] for name, split in split_infos.items()},
        rows=store.rows,
        software=store.software,
        plans=store.plans,
        missing_shards=store.missing_shards,
        missing_results=store.missing_results,
    )


def _latest_tag(storage: Storage) -> str:
    """The store's tag of `latest.json` as it is now; empty if there is none."""
    try:
        return storage.stat("latest.json").version
    except MissingError:
        return ""


def _publish(storage: Storage, version: Version, latest_tag: str) -> bool:
    """Makes a version the store's latest, after checking its files against its manifest.

    Args:
        storage: The store.
        version: The version.
        latest_tag: The tag that `latest.json` had before the store was read.

    Returns:
        False if another version has become the latest since then: it may cover commits that this one lacks.

    Raises:
        IntegrityError: A file is missing, damaged or not in the manifest, or the manifest cannot be read.
    """
    key = manifest.key(version.id)
    data = storage.get(key)
    files = _checked_files(storage, version, data)
    # Readers take `transfer/*.parquet`: a file left there by an earlier attempt would be duplicate rows.
    for stored in storage.list(version.folder):
        if stored.key not in {key, *files}:
            raise IntegrityError(f"{storage.url_of(stored.key)}: not in the manifest; remove it")
    for name in _COPIED:
        file = f"{version.folder}/{name}"
        _put_if_different(storage, name, storage.get(file, sha256_hex=files[file]))
    latest = _json({"version": version.id, "manifest": key, "manifest_sha256": sha256(data)})
    return _holds(storage, "latest.json", latest) or storage.put_if_unchanged("latest.json", latest, version=latest_tag)


def _checked_files(storage: Storage, version: Version, manifest_data: bytes) -> dict[str, str]:
    """The keys of a version's files → sha256, after each has been read and hashed."""
    try:
        parsed = manifest.parse(manifest_data)
        if parsed.version != version.id or not parsed.files.keys() >= set(_COPIED):
            raise ValueError("not this version's manifest")
        files = {f"{version.folder}/{name}": digest for name, digest in parsed.files.items()}
        for file, digest in files.items():
            storage.get(file, sha256_hex=digest)
    except (ValueError, MissingError, IntegrityError) as error:
        raise IntegrityError(
            f"{storage.url_of(manifest.key(version.id))}: {error}; or remove this manifest and finalize again"
        ) from error
    return files


def _exists(storage: Storage, key: str) -> bool:
    try:
        storage.stat(key)
    except MissingError:
        return False
    return True


def _put_if_different(storage: Storage, key: str, data: bytes) -> None:
    if not _holds(storage, key, data):
        storage.put(key, data)


def _holds(storage: Storage, key: str, data: bytes) -> bool:
    try:
        return storage.get(key) == data
    except MissingError:
        return False


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
