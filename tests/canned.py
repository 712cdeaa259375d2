"""Minimal peers in a process of their own: many ports that answer every C-ECHO at once, or never answer anything.

They cost the tool under test nothing: its memory, threads and file descriptors can be counted, and its speed measured.

    with run_canned(live=100, silent=10) as canned:
        canned.live[0].address, canned.silent[0].address

The process ends when its standard input does, so none is left behind by a test run that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import rawpeer
from rawpeer import Endpoint


class Canned(NamedTuple):
    live: list[Endpoint]
    silent: list[Endpoint]


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
            yield Canned(endpoints[:live], endpoints[live:])
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


class Peer(asyncio.Protocol):
    """One connection to a port that answers."""

    def __init__(self, delay: float) -> None:
        self._delay, self._pending = delay, b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        pdus, self._pending = rawpeer.split_pdus(self._pending + data)
        for pdu in pdus:
            if self._delay and pdu.type == rawpeer.A_ASSOCIATE_RQ:
                asyncio.get_running_loop().call_later(self._delay, self._transport.write, answer(pdu))
            else:
                self._transport.write(answer(pdu))


async def serve(live: int, silent: int, delay: float) -> None:
    """Print the ports as JSON, then serve until standard input ends."""
    loop = asyncio.get_running_loop()
    # The kernel completes the connections to a silent one, and nobody ever takes them.
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(live + silent)]
    for listener in listeners[:live]:
        await loop.create_server(lambda: Peer(delay), sock=listener)
    print(json.dumps([listener.getsockname()[1] for listener in listeners]), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    with contextlib.suppress(ImportError):  # as many open files as the system allows
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
