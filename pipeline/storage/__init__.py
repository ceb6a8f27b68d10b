"""One interface over folders and S3-compatible object stores.

`obstore` (Rust's object_store) carries the bytes; `boto3` finds credentials, region and endpoint as every other AWS
tool does, so `AWS_PROFILE`, `AWS_ENDPOINT_URL`, instance roles and the rest work unchanged. Folders are written by a
few lines here, because a marker must not survive a power loss that its data did not: file and folder are fsynced
before a put returns.

A `Storage` is never pickled: workers open their own from the URL and their environment, so that no credential
travels inside a task.

Every read is verified: objects are checked against the hash in their marker, records carry their own, and a mismatch
is read again before it counts as damage, because a byte can flip on the way as well as at rest.
"""

from pipeline.storage.listing import StoredObject
from pipeline.storage.records import json_sha256, sha256
from pipeline.storage.store import Storage, have_one_order
from pipeline.storage.urls import absolute_url, split_url

__all__ = ["Storage", "StoredObject", "absolute_url", "have_one_order", "json_sha256", "sha256", "split_url"]
