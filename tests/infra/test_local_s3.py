"""The S3 server of the demo and the tests: its ports, simultaneous starts, and errors at the start."""

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra import local_s3


def test_the_server_listens_only_on_its_own_ports(tmp_path: Path) -> None:
    # weed also has fixed default ports, over which two servers conflicted that were started at once.
    server = local_s3.Server(tmp_path)
    server.start()
    try:
        listening = {
            connection.laddr.port
            for process in psutil.process_iter(["cmdline"])
            if f"-dir={tmp_path}" in (process.info["cmdline"] or [])
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
    finally:
        server.stop()
    assert len(server.ports) == len(set(server.ports)) == 5
    assert listening <= {*server.ports, *(port + 10000 for port in server.ports)}
    assert server.ports[0] in listening


def test_servers_can_be_started_at_the_same_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.local_s3"]
    running = [
        subprocess.Popen([*command, tmp_path / str(number), "true"], cwd=Path(__file__).parents[2])
        for number in range(4)
    ]
    assert [process.wait(120) for process in running] == [0] * 4


def test_ports_are_below_the_range_of_outgoing_connections(tmp_path: Path) -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(port + 10000 < lowest for port in local_s3.Server(tmp_path).ports)


def test_ports_are_reserved_before_the_start(tmp_path: Path) -> None:
    server = local_s3.Server(tmp_path)
    for port in (*server.ports, *(port + 10000 for port in server.ports)):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


def test_the_error_of_a_server_that_ends_has_its_log(tmp_path: Path) -> None:
    server = local_s3.Server(tmp_path)
    with socket.socket() as occupied:
        occupied.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        occupied.bind(("127.0.0.1", server.ports[1]))
        occupied.listen()
        with pytest.raises(RuntimeError, match=rf"the S3 server ended with code \d+:\n.*{server.ports[1]}"):
            server.start()
