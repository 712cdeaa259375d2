"""The command, run in this process, with what changes from run to run taken out of its text.

ran = run(capsys, endpoint, "-v")
ran.out     # the peer's host and port read HOST:PORT, our own end reads LOCAL
"""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from command import Outcome, run_main
from rawpeer import Endpoint, RawPeer, Script


class Ran(NamedTuple):
    """What a run of the command left behind."""

    code: object
    out: str
    err: str
    seconds: float


def run(capsys: pytest.CaptureFixture[str], endpoint: Endpoint, *options: str) -> Ran:
    """Echo an endpoint: exit code, output and time."""
    start = time.monotonic()
    code, out, err = leave(capsys, endpoint.address, *options)
    return Ran(code, anonymous(out, endpoint), anonymous(err, endpoint), time.monotonic() - start)


def leave(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    """Run the command, without colours: its exit code, whether returned or raised, and what it printed."""
    return run_main(capsys, "--color", "never", *arguments)


def anonymous(text: str, endpoint: Endpoint) -> str:
    """The text with our own address and the peer's, which has another port each time, replaced by words."""
    return re.sub(r"\b127\.0\.0\.1(:\d+)?", "LOCAL", text.replace(endpoint.host_port, "HOST:PORT"))


@contextlib.contextmanager
def raw(script: Script) -> Iterator[Endpoint]:
    """A raw peer of which only the address matters."""
    with RawPeer(script) as peer:
        yield peer.endpoint


def run_raw(capsys: pytest.CaptureFixture[str], played: Script, *options: str) -> Ran:
    """Echo a raw peer that plays a script."""
    with raw(played) as endpoint:
        return run(capsys, endpoint, *options)
