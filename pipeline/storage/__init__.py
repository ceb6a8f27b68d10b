"""One interface over folders and S3-compatible object stores.

`obstore` (Rust's object_store) carries the bytes; `boto3` finds credentials, region and endpoint the way every other
AWS tool does, so `AWS_PROFILE`, `AWS_ENDPOINT_URL`, instance roles and the rest work unchanged. Folders are written
by our own few lines, because a marker must not survive a power loss that its data did not: file and folder are
fsynced before a put returns.

A `Storage` is never pickled: workers open their own from the URL and their own environment, so that no credential
travels inside a task.

Nothing that is read is believed: objects are checked against the hash that their marker holds, records carry their own,
and a mismatch is read again before it is called damage, because a byte can flip on the way as well as at rest.
"""

from pipeline.storage.store import Storage, Stored, absolute, seal, sha256, split

__all__ = ["Storage", "Stored", "absolute", "seal", "sha256", "split"]
