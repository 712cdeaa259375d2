"""Minimal peers in a process of their own: many ports that answer every C-ECHO at once, or never answer anything.

They cost the tool under test nothing: its memory, threads and file descriptors can be counted, and its speed measured.

    with run_canned(live=100, silent=10) as canned:
        canned.live[0].address, canned.silent[0].address

The process ends when its standard input does, so none is left behind by a test run that is killed.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import rawpeer
from rawpeer import Endpoint


@dataclass(frozen=True)
class Canned:
    live: list[Endpoint]
    silent: list[Endpoint]
    pid: int


@contextlib.contextmanager
def run_canned(live: int = 0, silent: int = 0, delay: float = 0.0) -> Iterator[Canned]:
    """Run so many ports that answer and so many that do not, on 127.0.0.1, in one process.

    Those that answer take `delay` seconds to accept an association.
    """
    command = [sys.executable, __file__, str(live), str(silent), str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            ports = json.loads(process.stdout.readline())
            endpoints = [Endpoint("127.0.0.1", port) for port in ports]
            yield Canned(endpoints[:live], endpoints[live:], process.pid)
        finally:
            process.stdin.close()
            process.wait(10)


# --- The process -----------------------------------------------------------------------------------------------------


def answer(received: rawpeer.ReceivedPdu) -> bytes:
    """What a good peer says to a PDU; nothing to an A-ABORT."""
    if received.type == rawpeer.A_ASSOCIATE_RQ:
        return rawpeer.GOOD_ACCEPT
    if received.type == rawpeer.P_DATA_TF:
        command = rawpeer.decode_command(b"".join(pdv.data for pdv in rawpeer.decode_pdvs(received.body)))
        return rawpeer.echo_rsp(int.from_bytes(command[rawpeer.MESSAGE_ID], "little"))
    return rawpeer.GOOD_RELEASE if received.type == rawpeer.A_RELEASE_RQ else b""


class Server:
    """One loop over all listeners and connections."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._due: list[tuple[float, int, socket.socket]] = []  # acceptances, a heap
        self._selector = selectors.DefaultSelector()
        self._silent: list[socket.socket] = []  # kept open

    def listen(self, live: bool) -> int:
        """Open a port; the kernel completes the connections to a silent one, and nobody ever takes them."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        if live:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        else:
            self._silent.append(listener)
        port: int = listener.getsockname()[1]
        return port

    def serve(self) -> None:
        """Serve for ever."""
        while True:
            pause = max(0.0, self._due[0][0] - time.perf_counter()) if self._due else None
            for key, _ in self._selector.select(pause):
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    if key.data is None:
                        connection, _ = key.fileobj.accept()
                        connection.setblocking(False)
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        self._selector.register(connection, selectors.EVENT_READ, bytearray())
                    else:
                        self._receive(key.fileobj, key.data)
            while self._due and self._due[0][0] <= time.perf_counter():
                with contextlib.suppress(OSError):
                    heapq.heappop(self._due)[2].sendall(rawpeer.GOOD_ACCEPT)

    def _receive(self, connection: socket.socket, pending: bytearray) -> None:
        try:
            data = connection.recv(1 << 16)
            pdus, pending[:] = rawpeer.split_pdus(bytes(pending) + data)
            if self._delay and pdus and pdus[0].type == rawpeer.A_ASSOCIATE_RQ:
                heapq.heappush(self._due, (time.perf_counter() + self._delay, connection.fileno(), connection))
            else:
                connection.sendall(b"".join(map(answer, pdus)))
        except ConnectionError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()


def main() -> None:
    """Print the ports as JSON, then serve until standard input ends."""
    live, silent = map(int, sys.argv[1:3])
    with contextlib.suppress(ImportError):  # as many open files as the system allows
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = Server(float(sys.argv[3]))
    print(json.dumps([server.listen(number < live) for number in range(live + silent)]), flush=True)
    threading.Thread(target=server.serve, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
