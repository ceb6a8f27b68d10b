"""The S3 server of the demo and the tests: it takes no port but its own, and says why when it does not come up."""

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra import local_s3


def test_it_listens_on_the_ports_it_was_given_and_on_no_other(tmp_path: Path) -> None:
    # A fixed port beside them (weed's own choices have some) made two servers, started at once, fight for it.
    server = local_s3.Server(tmp_path)
    server.start()
    try:
        listening = {
            each.laddr.port
            for process in psutil.process_iter(["cmdline"])
            if f"-dir={tmp_path}" in (process.info["cmdline"] or [])
            for each in process.net_connections()
            if each.status == psutil.CONN_LISTEN
        }
    finally:
        server.stop()
    assert len(server.ports) == len(set(server.ports)) == 5
    assert listening <= {*server.ports, *(port + 10000 for port in server.ports)}
    assert server.ports[0] in listening


def test_servers_started_at_once_all_come_up(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.local_s3"]
    running = [
        subprocess.Popen([*command, tmp_path / str(which), "true"], cwd=Path(__file__).parents[2]) for which in range(4)
    ]
    assert [process.wait(120) for process in running] == [0] * 4


def test_its_ports_lie_below_those_that_outgoing_connections_are_given(tmp_path: Path) -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(port + 10000 < lowest for port in local_s3.Server(tmp_path).ports)


def test_its_ports_are_held_from_the_start(tmp_path: Path) -> None:
    server = local_s3.Server(tmp_path)
    for port in (*server.ports, *(port + 10000 for port in server.ports)):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    server = local_s3.Server(tmp_path)
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", server.ports[1]))
        held.listen()
        with pytest.raises(RuntimeError, match=rf"the S3 server ended with code \d+:\n.*{server.ports[1]}"):
            server.start()
