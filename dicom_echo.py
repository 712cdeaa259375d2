"""Ask a DICOM node whether it answers: send a C-ECHO and say truthfully what happened.

    >>> import dicom_echo as echo
    >>> echo.send("ANY-SCP@pacs:11112")  # doctest: +SKIP
    0

The chapters of this file, in reading order:

1. vocabulary: constants, phases, exit codes
2. errors: what can go wrong, whose fault it is and what to do about it
3. address: ``[AE-TITLE@]HOST[:PORT]``
4. result: what one echo has shown
5. verbs: `send`, `probe` and `probe_many`
6. wire: resolve, connect, TLS, bytes in and out, one deadline over all of it
7. dialogue: the association as the requestor sees it; bytes in, events out, no I/O
8. codec: pynetdicom encodes and decodes every PDU and command set
9. campaign: repeats, waiting, many targets
10. reports: results as text, JSON, for Nagios and for Prometheus
11. other side: a peer to try the tool against
12. command: the command line

What each step means is said in the standard's own terms: PS3.7 (C-ECHO) and PS3.8 (association).
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import functools
import importlib.util
import io
import ipaddress
import itertools
import json
import logging
import math
import os
import queue
import re
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, TextIO, TypedDict, TypeVar

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Unpack

__version__ = "0.4.0"
__version_tuple__ = tuple(int(part) for part in __version__.split("."))

__all__ = [
    "DEFAULT_CALLED_AE_TITLE", "DEFAULT_CALLING_AE_TITLE", "Aborted", "Address", "AddressError", "ConnectionLost",
    "Counter", "EchoError", "EchoResult", "NotSupported", "Options", "Peer", "Phase", "ProtocolError", "Rejected",
    "TLSFailed", "TLSInfo", "TimedOut", "Unreachable", "counter", "parse_address", "probe", "probe_many", "send",
]  # fmt: skip

_log = logging.getLogger("dicom_echo")


# -- 1. vocabulary -----------------------------------------------------------------------------------------------------

DEFAULT_CALLED_AE_TITLE = "ANY-SCP"
DEFAULT_CALLING_AE_TITLE = "ECHOSCU"

_DEFAULT_PORT = 104  # acr-nema
_DEFAULT_TLS_PORT = 2762  # dicom-tls
_FAMILIES = (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6)
_DEFAULT_TIMEOUT = 10.0
_LONGEST = 86400.0  # a day: longer waits are mistakes, and much longer ones more than the system can count
_DEFAULT_JOBS = 32
_SLOW = 0.5  # seconds for an association, from which on a reason is given
_RELEASE_TIMEOUT = 1.0  # the verdict stands by then: what follows may not cost more

_UID = re.compile(r"(?=.{3,64}$)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")  # PS3.5 9.1
_VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 Annex A
_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1
_CONTEXT_ID = 1
_C_ECHO_RSP = 0x8030

_TRANSFER_SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big-endian": "1.2.840.10008.1.2.2",
}

# PS3.7 D.3.3.2: a UID made from a UUID (PS3.5 B.2) needs no registered root.
_IMPLEMENTATION_CLASS_UID = "2.25.233710274061387460427214318917360127505"
_IMPLEMENTATION_VERSION_NAME = f"DICOM_ECHO_{__version__.replace('.', '')}"

# A peer says how long its PDU is before it sends it: nothing that an echo needs comes near this.
_MAX_PDU_LENGTH = 1 << 17  # more would take seconds to decode, which no deadline can interrupt
_MAX_COMMAND_LENGTH = 1 << 16


class Phase(str, enum.Enum):
    """The steps of an echo, in their order; each compares equal to its name."""

    resolve = "resolve"
    connect = "connect"
    tls = "tls"
    associate = "associate"
    echo = "echo"
    release = "release"

    __str__ = str.__str__


class _Exit(enum.IntEnum):
    """What the process tells its caller; the highest of several targets wins."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_ANSWER = 3
    INTERRUPTED = 130
    TERMINATED = 143


# -- 2. errors ---------------------------------------------------------------------------------------------------------


class EchoError(Exception):
    """An echo that brought no C-ECHO status back.

    Attributes
    ----------
    message : str
        What happened, in a few words; also ``str(error)``.
    phase : Phase or None
        The step in which it happened; None before the first.
    over_tls : bool
        Whether TLS had been negotiated by then.
    hint : str
        What to do about it; may be empty.
    facts : dict
        What was seen, by name. Each is an attribute as well.
    detail : str
        The facts in the standard's terms, for people; may be empty.
    """

    kind: ClassVar[str] = ""
    title: ClassVar[str] = ""
    _hints: ClassVar[Mapping[Phase, str]] = {}
    _hints_over_tls: ClassVar[Mapping[Phase, str]] = {}

    def __init__(self, message: str, *, hint: str = "", detail: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.phase: Phase | None = None
        self.over_tls = False
        self.detail = detail
        self.facts = facts
        self._hint = hint
        for name, value in facts.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Make it once more for a copy or a pickle, which would lose an ``errno`` otherwise."""
        again = functools.partial(type(self), self.message, hint=self._hint, detail=self.detail, **self.facts)
        return again, (), {"phase": self.phase, "over_tls": self.over_tls}

    @property
    def hint(self) -> str:
        """What to do: as told by who saw it happen, else what the phase suggests."""
        hints = {**self._hints, **(self._hints_over_tls if self.over_tls else {})}
        return self._hint or (hints.get(self.phase, "") if self.phase else "")


class AddressError(EchoError, ValueError):
    """The caller's address, AE title or message id is wrong; nothing was sent."""

    kind, title = "address", "Wrong address"


class Unreachable(EchoError, ConnectionError):
    """The name does not resolve, the connection is refused, or there is no way to the host."""

    kind, title = "unreachable", "Unreachable"


class ConnectionLost(EchoError, ConnectionError):
    """The peer closed or reset the connection and sent no answer."""

    kind, title = "lost", "Connection lost"
    _hints: ClassVar = {
        Phase.associate: "a port that speaks TLS only (try --tls), a peer that admits only known addresses, "
        "or a load balancer with no server behind it",
        Phase.echo: "the peer accepted the association and then dropped it: its log may say why",
    }
    _hints_over_tls: ClassVar = {
        Phase.associate: "the peer hung up after the TLS handshake: it may want a client certificate (--cert, --key), "
        "admit only known addresses, or not speak DICOM; its log may say why"
    }


class TLSFailed(EchoError, ConnectionError):
    """The TLS handshake failed, or a certificate was refused."""

    kind, title = "tls", "TLS failed"


class TimedOut(EchoError, ConnectionError, TimeoutError):
    """The time is up, in whichever phase. ``timeout`` is the limit in seconds."""

    kind, title = "timeout", "Timed out"
    timeout: float
    _hints: ClassVar = {
        Phase.resolve: "the name server does not answer: try the IP address of the host",
        Phase.connect: "the host is down, the address is wrong, or a firewall drops packets "
        "(a closed port would have refused at once)",
        Phase.tls: "the port is open but does not answer the TLS handshake: does it speak TLS? try without --tls",
        Phase.associate: "the port is open but nothing answers: the peer hangs or is overloaded, "
        "or it is not a DICOM port, or it waits for TLS (try --tls)",
        Phase.echo: "the peer accepted the association but does not answer the echo: it hangs or is overloaded",
    }
    _hints_over_tls: ClassVar = {
        Phase.associate: "TLS is up but nothing answers: the peer hangs or is overloaded, or does not speak DICOM"
    }


class Rejected(EchoError, ValueError):
    """A-ASSOCIATE-RJ (PS3.8 9.3.4): ``result``, ``source`` and ``reason`` as received."""

    kind, title = "rejected", "Rejected"
    result: int
    source: int
    reason: int


class NotSupported(EchoError, ConnectionError):
    """The association is accepted, but not Verification: ``result`` (PS3.8 Table 9-18)."""

    kind, title = "not-supported", "Not supported"
    result: int


class Aborted(EchoError, ConnectionError):
    """A-ABORT (PS3.8 9.3.8): ``source`` and ``reason`` as received."""

    kind, title = "aborted", "Aborted"
    source: int
    reason: int


class ProtocolError(EchoError, ConnectionError):
    """The peer's bytes are not the DICOM that is due, or not DICOM at all."""

    kind, title = "protocol", "Protocol error"


# -- 3. address --------------------------------------------------------------------------------------------------------

_FORM = "[AE-TITLE@]HOST[:PORT]"
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?")
_ZONE = re.compile(r"[A-Za-z0-9._~-]+")


class Address(NamedTuple):
    """Where a peer is, and its AE title if the address says so; ``str()`` gives the text back."""

    ae_title: str | None
    host: str
    port: int | None

    def __str__(self) -> str:
        title = "" if self.ae_title is None else f"{self.ae_title}@"
        return title + (self.host if self.port is None else _host_port(self.host, self.port))


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> Address:
    """Read ``[AE-TITLE@]HOST[:PORT]``.

    Parameters
    ----------
    text : str
        HOST is a DNS name, an IPv4 address, ``[IPv6]`` or ``[IPv6%zone]``, or a bare IPv6 address without a port.

    Returns
    -------
    Address
        ``ae_title`` and ``port`` are None where the text has none.

    Raises
    ------
    AddressError
        With the part that is wrong and the form that is right.
    """
    if not isinstance(text, str):
        raise _wrong(f"the address must be text, not {text!r}")
    title, at, rest = text.rpartition("@")
    host, port = _split_port(rest)
    try:
        ae_title = _check_ae_title(title) if at else None
    except AddressError as error:
        raise _wrong(error.message) from None
    return Address(ae_title, _check_host(host), None if port is None else _port(port))


def _wrong(what: str) -> AddressError:
    return AddressError(f"{what}; expected {_FORM}")


def _split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise _wrong(f'the bracket in "{text}" is not closed')
        if rest and not rest.startswith(":"):
            raise _wrong(f'":PORT" must follow the bracket, not "{rest}"')
        if not _is_ipv6(host):
            raise _wrong(f'"{host}" in brackets is not an IPv6 address')
        return host, rest[1:] if rest else None
    if _is_ipv6(text):
        return text, None
    if "://" in text:
        raise _wrong(f'"{text}" is a URL, not a host and a port')
    if text.count(":") > 1:
        raise _wrong(f'"{text}" has several colons but is not an IPv6 address (which stands in brackets before a port)')
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _is_ipv6(host: str) -> bool:
    address, percent, zone = host.partition("%")
    if percent and not _ZONE.fullmatch(zone):
        return False
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


def _port(text: str) -> int:
    if not text:
        raise _wrong("the port after the colon is missing")
    if not re.fullmatch(r"[0-9]+", text):
        raise _wrong(f'the port "{text}" is not a number')
    if len(text) > 5 or not 1 <= int(text) <= 65535:
        raise _wrong(f"the port {text} is not in the range 1-65535")
    return int(text)


def _check_host(host: str) -> str:
    if not host:
        raise _wrong("the host is missing")
    if host.isdecimal():
        raise _wrong(f'"{host}" is no host; a port stands behind its host and a colon')
    if re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise _wrong(f'"{host}" is not an IPv4 address') from None
    elif not _is_ipv6(host):
        _check_name(host)
    return host


def _check_name(name: str) -> None:
    """Hold a DNS name to RFC 1035 2.3.4 and RFC 1123 2.1, with the underscore that many networks use."""
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        raise _wrong(f'"{name}" is not a host name') from None
    labels = ascii_name.removesuffix(".").split(".")
    if not all(map(_LABEL.fullmatch, labels)):
        raise _wrong(f'"{name}" is not a host name')
    if len(ascii_name) > 253 or max(map(len, labels)) > 63:
        raise _wrong(f'the host name "{name}" is too long (63 characters between dots, 253 in all)')


def _check_ae_title(text: str) -> str:
    """Hold an AE title to PS3.5 6.2 (value representation AE); return it without its padding."""
    if not isinstance(text, str):
        raise AddressError(f"the AE title must be text, not {text!r}")
    title = text.strip(" ")
    if not title:
        raise AddressError("the AE title is empty")
    if not (title.isascii() and title.isprintable()) or "\\" in title:
        raise AddressError(f"the AE title {title!r} holds a backslash, a control character or one outside of ASCII")
    if len(title) > 16:
        raise AddressError(f'the AE title "{title}" has {len(title)} characters, 16 are allowed')
    return title


# -- 4. result ---------------------------------------------------------------------------------------------------------

# PS3.7 9.3.5.2 and Annex C
_STATUS_TEXTS = {
    0x0000: "Success",
    0x0122: "SOP class not supported",
    0x0210: "duplicate invocation",
    0x0211: "unrecognized operation",
    0x0212: "mistyped argument",
}


@dataclass(frozen=True)
class Peer:
    """What the peer said of itself when it accepted the association (PS3.7 D.3.3, PS3.8 9.3.3)."""

    implementation_class_uid: str | None
    implementation_version_name: str | None
    max_pdu: int | None  # bytes; None if it did not say, 0 is unlimited
    transfer_syntax: str | None  # UID


@dataclass(frozen=True)
class TLSInfo:
    """The TLS session, and the certificate of the peer; None is an expiry that cannot be read."""

    version: str
    cipher: str
    certificate_expiry: datetime | None
    certificate_verified: bool


class _Timings(Mapping[Phase, float]):
    """Read-only: a result that holds it can be hashed, copied and pickled."""

    def __init__(self, seconds: Mapping[Phase, float]) -> None:
        self._seconds = dict(seconds)

    def __getitem__(self, phase: Phase) -> float:
        return self._seconds[phase]

    def __iter__(self) -> Iterator[Phase]:
        return iter(self._seconds)

    def __len__(self) -> int:
        return len(self._seconds)

    def __hash__(self) -> int:
        return hash(frozenset(self._seconds.items()))

    def __repr__(self) -> str:
        return repr(self._seconds)


@dataclass(frozen=True)
class EchoResult:
    """All that one echo has shown; immutable.

    Attributes
    ----------
    address : Address
        As the caller gave it.
    port : int
        The port used, whether the address names it or not.
    called_ae_title, calling_ae_title : str
        The titles used.
    message_id : int
    started_at : datetime
        In UTC.
    status : int or None
        The DIMSE status of the C-ECHO response (PS3.7 9.3.5.2), None if there was none.
    error : EchoError or None
        Why there is no status.
    timings : mapping of Phase to float
        Seconds, for the phases that ran.
    local, remote : str or None
        The two ends of the connection as ``IP:PORT``.
    peer : Peer or None
    tls : TLSInfo or None
    notes : tuple of str
        What was odd but does not change the verdict.
    released : bool
        Whether the association ended in order, by A-RELEASE or by the A-ABORT that was asked for.
    """

    address: Address
    port: int
    called_ae_title: str
    calling_ae_title: str
    message_id: int
    started_at: datetime
    status: int | None = None
    error: EchoError | None = None
    timings: Mapping[Phase, float] = _Timings({})
    local: str | None = None
    remote: str | None = None
    peer: Peer | None = None
    tls: TLSInfo | None = None
    notes: tuple[str, ...] = ()
    released: bool = False

    @property
    def ok(self) -> bool:
        """Whether the peer answered with Success."""
        return self.status == 0

    @property
    def status_text(self) -> str | None:
        """The meaning of the status."""
        return None if self.status is None else _STATUS_TEXTS.get(self.status, "unknown status")

    @property
    def kind(self) -> str:
        """``ok``, ``status``, or the kind of the error."""
        return self.error.kind if self.error else ("ok" if self.ok else "status")

    @property
    def target(self) -> str:
        """The full address with the title and the port that were used."""
        return f"{self.called_ae_title}@{_host_port(self.address.host, self.port)}"

    @property
    def total(self) -> float:
        """Seconds that the echo took, all phases together; but for a release that failed: it answered before that."""
        counted = dict(self.timings)
        if not self.released:
            counted.pop(Phase.release, None)
        return sum(counted.values())


# -- 5. verbs ----------------------------------------------------------------------------------------------------------


class Counter:
    """Message ids, each call the next: 1, 2 … 65535, 1 … Safe in threads."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def increment(self) -> int:
        """Count up and return the new count."""
        with self._lock:
            self.count = self.count % 0xFFFF + 1
            return self.count


counter = Counter()


class Options(TypedDict, total=False):
    """The keyword options of `send` and `probe`.

    Attributes
    ----------
    timeout : float
        Seconds for the whole echo; 10 by default.
    family : int
        ``socket.AF_INET`` or ``socket.AF_INET6`` to use only that; either by default.
    source : str
        The local IP address to connect from.
    tls : ssl.SSLContext
        Speak TLS; the port is then 2762 where the address names none (PS3.15 B.12).
    server_hostname : str
        The name to expect in the peer's certificate; the host of the address by default.
    max_pdu : int
        The maximum PDU length to announce (PS3.8 D.1), in bytes; 16382 by default, 0 is unlimited.
    transfer_syntaxes : sequence of str
        What to propose: ``implicit``, ``explicit``, ``deflated``, ``big-endian`` or a UID; the first two by default.
    abort : bool
        End the association with A-ABORT instead of A-RELEASE-RQ.
    """

    timeout: float
    family: int
    source: str | None
    tls: ssl.SSLContext | None
    server_hostname: str | None
    max_pdu: int
    transfer_syntaxes: Sequence[str]
    abort: bool


def send(
    address: str | Address,
    /,
    called_ae_title: str = DEFAULT_CALLED_AE_TITLE,
    calling_ae_title: str = DEFAULT_CALLING_AE_TITLE,
    message_id: int | Counter = counter,
    **options: Unpack[Options],
) -> int:
    """Send a C-ECHO request and return the DIMSE status of the answer (PS3.7 9.1.5).

    Parameters
    ----------
    address : str or Address
        ``[AE-TITLE@]HOST[:PORT]``
    called_ae_title : str
        The peer's AE title; wins over the one in the address unless it is the default.
    calling_ae_title : str
        The AE title to call from.
    message_id : int or Counter
        0-65535, or what counts up; the shared `counter` by default.
    **options
        See `Options`.

    Returns
    -------
    int
        0 for Success. Any other status is a failure that the peer reports.

    Raises
    ------
    AddressError
        A `ValueError`: the address, an AE title or the message id is wrong. Nothing was sent.
    Rejected
        A `ValueError`: the peer refused the association.
    EchoError
        One of the other kinds, each a `ConnectionError`: no answer.
    """
    result = probe(address, called_ae_title, calling_ae_title, message_id, **options)
    if result.status is None:
        raise result.error or AssertionError("a result has a status or an error")
    return result.status


def probe(
    address: str | Address,
    /,
    called_ae_title: str = DEFAULT_CALLED_AE_TITLE,
    calling_ae_title: str = DEFAULT_CALLING_AE_TITLE,
    message_id: int | Counter = counter,
    **options: Unpack[Options],
) -> EchoResult:
    """Send a C-ECHO request and return all that it has shown, success or not.

    Takes what `send` takes, but raises only for the caller's own mistakes: `AddressError`, or `ValueError` or
    `TypeError` for an option.
    """
    request = _Request.make(address, called_ae_title, calling_ae_title, **options)
    return _probe(request, _take_message_id(message_id), _Deadline(request.timeout))


def probe_many(
    addresses: Iterable[str | Address],
    /,
    called_ae_title: str = DEFAULT_CALLED_AE_TITLE,
    calling_ae_title: str = DEFAULT_CALLING_AE_TITLE,
    message_id: int | Counter = counter,
    *,
    jobs: int = _DEFAULT_JOBS,
    **options: Unpack[Options],
) -> Generator[EchoResult, None, None]:
    """Send a C-ECHO request to each of many peers, several at a time, and yield each result as it comes.

    Takes what `probe` takes, and

    Parameters
    ----------
    addresses : iterable of str or Address
        All of a sequence are checked before the first is asked; anything else is read as far as needed, so it may be
        long. Those with the same host and port are asked one after the other.
    jobs : int
        How many peers to ask at the same time.

    Returns
    -------
    generator of EchoResult
        In the order in which they finish. Closing the generator early ends the echoes under way and their threads.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs!r}")
    if isinstance(addresses, (str, Address)):
        raise TypeError(f"addresses must be several, not {addresses!r}")
    if not isinstance(message_id, Counter):
        _take_message_id(message_id)
    requests = (_Request.make(each, called_ae_title, calling_ae_title, **options) for each in addresses)
    return _probe_each(list(requests) if isinstance(addresses, Sequence) else requests, message_id, jobs)


def _probe_each(
    requests: Iterable[_Request], message_id: int | Counter, jobs: int
) -> Generator[EchoResult, None, None]:
    def ask(request: _Request, stop: _Stop) -> Generator[EchoResult, None, None]:
        yield _probe(request, _take_message_id(message_id), _Deadline(request.timeout, stop))

    with contextlib.closing(_in_parallel(requests, ask, jobs)) as results:
        yield from (result for _, result in results if result)


def _probe(request: _Request, message_id: int, deadline: _Deadline) -> EchoResult:
    """One echo over an association of its own, from the first look-up to the goodbye."""
    journal = _Journal(request, message_id)
    try:
        with _Association(request, journal, deadline) as association:
            association.echo(journal)
            association.release(journal)
    except EchoError as error:
        journal.write(error=error)
    return journal.result


@dataclass(frozen=True)
class _Request:
    """What the caller wants, checked and settled before a socket is opened."""

    address: Address
    called_ae_title: str
    calling_ae_title: str
    label: str | None = None  # what a targets file calls the peer
    timeout: float = _DEFAULT_TIMEOUT
    family: int = socket.AF_UNSPEC
    source: str | None = None
    tls: ssl.SSLContext | None = None
    server_hostname: str | None = None
    max_pdu: int = 16382
    transfer_syntaxes: Sequence[str] = ("implicit", "explicit")
    abort: bool = False

    @classmethod
    def make(cls, address: str | Address, called: str, calling: str, /, **options: Unpack[Options]) -> _Request:
        if unknown := options.keys() - Options.__annotations__.keys():
            raise TypeError(f"unknown option {min(unknown)!r}; the options are {', '.join(Options.__annotations__)}")
        parsed = parse_address(str(address) if isinstance(address, Address) else address)
        called = _check_ae_title(called)
        if called == DEFAULT_CALLED_AE_TITLE and parsed.ae_title is not None:
            called = parsed.ae_title
        return cls(parsed, called, _check_ae_title(calling), **options)

    def __post_init__(self) -> None:
        rules = {
            f"timeout must be more than 0 and at most {_LONGEST:.0f} seconds": 0 < self.timeout <= _LONGEST,
            "family must be 0, socket.AF_INET or socket.AF_INET6": self.family in _FAMILIES,
            "tls must be an ssl.SSLContext": self.tls is None or hasattr(self.tls, "wrap_socket"),
            "server_hostname must be text": isinstance(self.server_hostname or "", str)
            and "\0" not in (self.server_hostname or ""),
            "max_pdu must be 0 (unlimited) or in the range 16-4294967295": isinstance(self.max_pdu, int)
            and (self.max_pdu == 0 or 16 <= self.max_pdu < 1 << 32),
            "transfer_syntaxes must name one at least, and 100 at most": 0 < len(self.transfer_syntaxes) <= 100,
        }
        for rule, kept in rules.items():
            if not kept:
                raise ValueError(f"{rule}, not {getattr(self, rule.split()[0])!r}")
        object.__setattr__(self, "transfer_syntaxes", tuple(map(_transfer_syntax, self.transfer_syntaxes)))
        if self.source is not None:
            object.__setattr__(self, "family", _check_source(self.source, self.family))

    @property
    def port(self) -> int:
        return self.address.port or (_DEFAULT_TLS_PORT if self.tls else _DEFAULT_PORT)

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port, which are never asked twice at the same time."""
        return self.address.host.casefold(), self.port

    @property
    def target(self) -> str:
        return f"{self.called_ae_title}@{_host_port(self.address.host, self.port)}"


def _take_message_id(message_id: int | Counter) -> int:
    """Hold a message id to the sixteen bits that it has (PS3.7 9.3.5.1)."""
    number = message_id.increment() if isinstance(message_id, Counter) else message_id
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 0xFFFF:
        raise AddressError(f"the message id must be in the range 0-65535, not {number!r}")
    return number


def _transfer_syntax(name: str) -> str:
    uid = _TRANSFER_SYNTAXES.get(name, name)
    if not isinstance(uid, str) or not _UID.fullmatch(uid):
        raise ValueError(f"a transfer syntax is one of {', '.join(_TRANSFER_SYNTAXES)} or a UID, not {name!r}")
    return uid


_E = TypeVar("_E", bound="_Event")


class _Association:
    """An association, from connecting to the goodbye; leaving it by an error aborts it."""

    def __init__(self, request: _Request, journal: _Journal, deadline: _Deadline) -> None:
        """A-ASSOCIATE (PS3.8 7.1)."""
        self._request = request
        self._wire = _connect(request, journal, deadline)
        try:
            # Loading the codec is our own slowness: neither the peer's time nor the caller's limit pays for it.
            with deadline.paused():
                _load_codec()
                self._dialogue = _Dialogue(request, journal.result.local)
        except BaseException:
            self._wire.hang_up(b"")
            raise
        try:
            with journal.phase(Phase.associate):
                accepted = self._exchange(self._dialogue.associate(), _Accepted)
            journal.write(peer=accepted.peer)
            if accepted.note:
                journal.note(accepted.note)
        except BaseException as error:
            self._hang_up(error)
            raise
        self._known = journal.result

    def __enter__(self) -> _Association:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._hang_up(error)

    def resume(self, journal: _Journal, deadline: _Deadline) -> None:
        """Be ready for one more echo, with its own journal and limit."""
        self._wire.deadline = deadline
        journal.write(local=self._known.local, remote=self._known.remote, peer=self._known.peer, tls=self._known.tls)

    def echo(self, journal: _Journal) -> None:
        """C-ECHO (PS3.7 9.1.5)."""
        with journal.phase(Phase.echo):
            answer = self._exchange(self._dialogue.echo(journal.result.message_id), _Answered)
        journal.write(status=answer.status)
        if _is_slow_to_associate_only(journal.result.timings):
            journal.note("only the association was slow: the peer may be looking the address of this host up in DNS")
        if answer.comment:
            journal.note(f"error comment of the peer: {answer.comment}")

    def release(self, journal: _Journal) -> None:
        """A-RELEASE, or A-ABORT if asked for (PS3.8 7.2, 7.3). The verdict stands: trouble is but a note."""
        try:
            with journal.phase(Phase.release):
                self._wire.deadline = self._wire.deadline.at_most(_RELEASE_TIMEOUT)
                if self._request.abort:
                    self._send(self._dialogue.abort())
                else:
                    self._exchange(self._dialogue.release(), _Released)
            journal.write(released=True)
        except EchoError as error:
            journal.note(f"after the answer, while releasing: {error.title.lower()}: {error}")
            self._hang_up(error)

    def _exchange(self, pdu: bytes, expected: type[_E]) -> _E:
        self._send(pdu)
        while not isinstance(event := self._dialogue.next_event(), expected):
            try:
                self._dialogue.receive_data(self._wire.receive())
            except TimedOut as error:
                raise self._dialogue.overdue(error) from None
        return event

    def _send(self, pdu: bytes) -> None:
        _trace("sent", pdu, f"to {self._request.target}")
        self._wire.send(pdu)

    def _hang_up(self, error: BaseException | None) -> None:
        over = error is None or isinstance(error, (Rejected, Aborted, ConnectionLost))
        last_words = b"" if over else self._dialogue.abort()
        _trace("sent", last_words, f"to {self._request.target}")
        self._wire.hang_up(last_words)


def _is_slow_to_associate_only(timings: Mapping[Phase, float]) -> bool:
    association = timings.get(Phase.associate, 0.0)
    return association > _SLOW and association > 10 * (timings.get(Phase.connect, 0.0) + timings[Phase.echo])


# -- 6. wire -----------------------------------------------------------------------------------------------------------


class _Stop:
    """Tells many threads to stop, and ends what they wait for on their sockets."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def is_set(self) -> bool:
        return self._event.is_set()

    def watch(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)

    def pause(self, seconds: float) -> bool:
        """Wait; return whether to stop. In slices, since Windows keeps Ctrl-C back from one long wait."""
        end = time.monotonic() + seconds
        while not self._event.wait(min(0.5, max(0.0, end - time.monotonic()))) and time.monotonic() < end:
            pass
        return self.is_set()

    def now(self) -> None:
        self._event.set()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):  # not connected yet: see where it is called again
                    sock.shutdown(socket.SHUT_RDWR)


class _Deadline:
    """The moment by which all must be done; a stop makes it now."""

    def __init__(self, seconds: float, stop: _Stop | None = None) -> None:
        self.seconds = seconds
        self.stop = _Stop() if stop is None else stop
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, always more than none."""
        left = self._end - time.monotonic()
        if left <= 0 or self.stop.is_set():
            raise self.expired()
        return left

    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def expired(self) -> TimedOut:
        return TimedOut(_no_answer(self.seconds), timeout=self.seconds)

    def at_most(self, seconds: float) -> _Deadline:
        return _Deadline(min(seconds, self.left()), self.stop)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._end += time.monotonic() - start


class _Journal:
    """The result of an echo while it grows."""

    def __init__(self, request: _Request, message_id: int) -> None:
        self.result = EchoResult(
            request.address, request.port, request.called_ae_title, request.calling_ae_title, message_id,
            datetime.now(timezone.utc),
        )  # fmt: skip

    def write(self, **seen: object) -> None:
        """Add to the result what its attributes name."""
        self.result = replace(self.result, **seen)  # type: ignore[arg-type]  # a wrong name or type fails the tests

    def note(self, text: str) -> None:
        self.write(notes=(*self.result.notes, text))

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase, and mark with it what goes wrong within."""
        start = time.perf_counter()
        try:
            yield
        except EchoError as error:
            error.phase, error.over_tls = phase, self.result.tls is not None
            raise
        finally:
            took = time.perf_counter() - start
            self.write(timings=_Timings({**self.result.timings, phase: took}))


class _Wire:
    """A connected socket that takes no longer than its deadline."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._socket = sock
        self.deadline = deadline

    def send(self, data: bytes) -> None:
        self._socket.settimeout(self.deadline.left())
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise self.deadline.expired() from None
        except OSError:
            pass  # The peer hung up: what it said before, or that it said nothing, shows at the next `receive`.

    def receive(self) -> bytes:
        """Bytes as they come; none when the peer has closed."""
        self._socket.settimeout(self.deadline.left())
        _acknowledge_at_once(self._socket)
        try:
            return self._socket.recv(1 << 16)
        except TimeoutError:
            raise self.deadline.expired() from None
        except OSError as error:
            if _is_tls_error(error):
                raise _tls_failed(error) from error
            raise ConnectionLost("reset by the peer", detail=_reason(error)) from error

    def hang_up(self, last_words: bytes) -> None:
        """Close; try to say the last words, but do not wait for it."""
        with contextlib.suppress(OSError):
            self._socket.setblocking(False)
            if last_words:
                self._socket.send(last_words)
        self._socket.close()


def _acknowledge_at_once(sock: socket.socket) -> None:
    """Keep Linux from delaying the acknowledgement that a peer with Nagle's algorithm waits 40 ms for.

    The kernel forgets the setting, so it is made before each receive; other systems do not have it.
    """
    if hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _connect(request: _Request, journal: _Journal, deadline: _Deadline) -> _Wire:
    """Open the way to the peer: name, TCP, TLS."""
    with journal.phase(Phase.resolve):
        candidates = _resolve(request.address.host, request.port, request.family, deadline)
    with journal.phase(Phase.connect):
        sock = _connect_any(candidates, request.source, deadline, journal)
    with contextlib.suppress(OSError):  # some systems do not tell when the peer has gone already
        journal.write(local=_host_port(*sock.getsockname()[:2]))
    if request.tls:
        with journal.phase(Phase.tls):
            sock = _start_tls(sock, request.tls, request.server_hostname or request.address.host, deadline)
        journal.write(tls=_describe_tls(sock))
    return _Wire(sock, deadline)


class _Candidate(NamedTuple):
    family: int
    sockaddr: Any  # (host, port), for IPv6 with flow and scope behind


def _resolve(host: str, port: int, family: int, deadline: _Deadline) -> list[_Candidate]:
    """All addresses of a host, in the order in which the system would try them."""
    name = host.encode() if host.isascii() else host  # bytes spare us the import of the codec for other names
    look_up = functools.partial(socket.getaddrinfo, name, port, family, socket.SOCK_STREAM)
    try:
        try:
            found = look_up(flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = _bounded(look_up, deadline)
    except (OSError, UnicodeError) as error:
        if isinstance(error, TimedOut):
            raise
        if family and re.fullmatch(r"[0-9.]+|.*:.*", host):
            raise Unreachable("the host is an address of the other family", hint="leave out -4, -6, --source") from None
        hint = "check the spelling and the name server" + (", or leave out -4 and -6" if family else "")
        raise Unreachable("name not resolved", hint=hint, detail=_reason(error)) from error
    return [_Candidate(each[0], each[4]) for each in found]


_T = TypeVar("_T")


def _bounded(look_up: Callable[[], _T], deadline: _Deadline) -> _T:
    """Run a name look-up, which knows no time-out of its own, in a thread that is left behind if it hangs."""
    outcome: list[_T | BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(look_up())
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            outcome.append(error)
        done.set()

    threading.Thread(target=run, name="dicom-echo-resolve", daemon=True).start()
    while not done.wait(min(deadline.left(), 0.1)):
        pass  # `left` ends it; a stop has no other way to be heard here
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _check_source(source: str, family: int) -> int:
    """Return the address family of a local IP address to connect from."""
    try:
        own = socket.getaddrinfo(source, 0, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
        with socket.socket(own[0]) as trial:
            trial.bind(own[4])
    except (OSError, UnicodeError) as error:
        raise ValueError(f"source must be an IP address of this host, not {source!r}: {_reason(error)}") from error
    return own[0]


class _Failure(NamedTuple):
    """An address that could not be connected to, and the seconds that it was given."""

    remote: str
    error: OSError
    share: float

    @property
    def telling(self) -> int:
        """Who refuses is up, who is silent may be; "no route" often means but IPv6."""
        return 2 if isinstance(self.error, ConnectionRefusedError) else int(isinstance(self.error, TimeoutError))


def _connect_any(
    candidates: list[_Candidate], source: str | None, deadline: _Deadline, journal: _Journal
) -> socket.socket:
    """Connect to the first that answers. Each gets a fair share of the time, so that every one is tried."""
    failures: list[_Failure] = []
    for number, candidate in enumerate(candidates):
        remote = _host_port(*candidate.sockaddr[:2])
        journal.write(remote=remote)
        share = deadline.left() / (len(candidates) - number)
        try:
            return _connect_one(candidate, source, share, deadline.stop)
        except OSError as error:
            failures.append(_Failure(remote, error, share))
    worst = max(failures, key=lambda failure: failure.telling)
    journal.write(remote=worst.remote)
    each = "; ".join(f"{failure.remote}: {_reason(failure.error)}" for failure in failures)
    raise _not_connected(worst, each if len(failures) > 1 else "", deadline)


def _connect_one(candidate: _Candidate, source: str | None, timeout: float, stop: _Stop) -> socket.socket:
    sock = socket.socket(candidate.family, socket.SOCK_STREAM)
    stop.watch(sock)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(timeout)
        if source is not None:
            sock.bind((source, 0))
        sock.connect(candidate.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _not_connected(failure: _Failure, detail: str, deadline: _Deadline) -> EchoError:
    if isinstance(failure.error, TimeoutError):
        waited = deadline.seconds if deadline.is_over() else failure.share
        return TimedOut(_no_answer(waited), detail=detail, timeout=waited)
    hint = "check the address, the network and the firewalls between here and there"
    if isinstance(failure.error, ConnectionRefusedError):
        hint = "the host is up, but nothing listens on this port; usual DICOM ports: 104, 11112, 4242, 2762 (TLS)"
    return Unreachable(_reason(failure.error), hint=hint, detail=detail, errno=failure.error.errno)


def _no_answer(seconds: float) -> str:
    return f"no answer within {round(seconds, 2) or seconds:g} s"


def _reason(error: BaseException) -> str:
    """The system's words for an error, without their capitals and numbers."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"  # Windows has a whole sentence for it
    if isinstance(error, TimeoutError):
        return "timed out"
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return words[:1].lower() + words[1:]


def _start_tls(sock: socket.socket, context: ssl.SSLContext, name: str, deadline: _Deadline) -> ssl.SSLSocket:
    try:
        secured = context.wrap_socket(sock, server_hostname=name.partition("%")[0], do_handshake_on_connect=False)
        sock = secured  # the plain one is of no use any more
        deadline.stop.watch(secured)
        secured.settimeout(deadline.left())
        secured.do_handshake()
        return secured
    except TimeoutError:
        sock.close()
        raise deadline.expired() from None
    except (OSError, ValueError) as error:
        sock.close()
        raise _tls_failed(error) from error


def _is_tls_error(error: BaseException) -> bool:
    return type(error).__module__ == "ssl"  # whose import costs time that a plain echo need not spend


# What OpenSSL calls it (a part of it is enough), what we call it, and what to do.
_TLS_FAILURES = [
    ("HOSTNAME_MISMATCH", "the certificate is for another name", "--server-name NAME, if that name is right"),
    ("IP_ADDRESS_MISMATCH", "the certificate is for another address", "--server-name NAME, if a name is in it"),
    ("CERTIFICATE_HAS_EXPIRED", "a certificate has expired", "have the peer's renewed, or that of its authority; "
     "-k only to find out"),
    ("NOT_YET_VALID", "a certificate is not valid yet", "compare the clocks of both hosts"),
    ("CERTIFICATE_VERIFY_FAILED", "certificate not trusted", "--cacert FILE with the authority that issued it; "
     "-k only to find out"),
    ("CERTIFICATE_REQUIRED", "the peer wants a client certificate", "--cert FILE --key FILE"),
    ("ALERT_CERTIFICATE_EXPIRED", "the peer finds our certificate expired", "--cert FILE with one that is valid"),
    ("UNKNOWN_CA", "the peer does not trust our certificate", "have the peer trust the authority that issued it"),
    ("HANDSHAKE_FAILURE", "the peer refused the handshake", "it may want a client certificate (--cert, --key), "
     "or share no cipher with us"),
    ("BAD_CERTIFICATE", "the peer refused our certificate", "--cert FILE --key FILE with one that it accepts"),
    ("WRONG_VERSION_NUMBER", "the peer does not speak TLS", "the port does not speak TLS: drop --tls"),
    ("RECORD_LAYER_FAILURE", "the peer does not speak TLS", "the port does not speak TLS: drop --tls"),
    ("PROTOCOL_VERSION", "no common version of TLS", "the peer must speak TLS 1.2 or later (PS3.15 B.12)"),
    ("UNSUPPORTED_PROTOCOL", "no common version of TLS", "the peer must speak TLS 1.2 or later (PS3.15 B.12)"),
]  # fmt: skip


def _tls_failed(error: Exception) -> TLSFailed:
    """Say in plain words what OpenSSL means (PS3.15 B.12)."""
    words = re.sub(r"\[[^]]*\] | \(_ssl\.c:\d+\)", "", str(error)) or type(error).__name__
    code = str(error).upper().replace(" ", "_")
    for part, message, hint in _TLS_FAILURES:
        if part in code:
            return TLSFailed(message, hint=hint, detail=getattr(error, "verify_message", "") or words)
    if isinstance(error, ConnectionError) or "EOF" in code:
        return TLSFailed("closed during the handshake", hint="does the port speak TLS? try without --tls", detail=words)
    return TLSFailed("handshake failed", detail=words)


def _describe_tls(sock: ssl.SSLSocket) -> TLSInfo:
    return TLSInfo(
        version=sock.version() or "",
        cipher=(sock.cipher() or ("",))[0],
        certificate_expiry=_not_after(sock.getpeercert(binary_form=True) or b""),
        certificate_verified=sock.context.verify_mode != 0,
    )


# X.509 (RFC 5280 4.1.2.5): of two times in a row, each as UTCTime or as GeneralizedTime, the second.
_VALIDITY = re.compile(rb"(?:\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)")


def _not_after(certificate: bytes) -> datetime | None:
    """When a certificate expires; the ssl module tells that only of those that it has verified."""
    found = _VALIDITY.search(certificate)
    if not found:
        return None
    digits = found[2] or (b"19" if found[1] >= b"50" else b"20") + found[1]
    try:
        return datetime.strptime(digits.decode(), "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


# -- 7. dialogue -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Accepted:
    peer: Peer
    note: str = ""


@dataclass(frozen=True)
class _Answered:
    status: int
    comment: str


class _Released:
    pass


_Event = _Accepted | _Answered | _Released

_PDU_NAMES = {
    1: "A-ASSOCIATE-RQ",
    2: "A-ASSOCIATE-AC",
    3: "A-ASSOCIATE-RJ",
    4: "P-DATA-TF",
    5: "A-RELEASE-RQ",
    6: "A-RELEASE-RP",
    7: "A-ABORT",
}
_FOUR_BYTES = (3, 5, 6, 7)  # PS3.8 Tables 9-21, 9-24, 9-25, 9-26: nothing but four bytes may follow the header

_DUE = {
    Phase.associate: "A-ASSOCIATE-AC or A-ASSOCIATE-RJ",
    Phase.echo: "P-DATA-TF with the C-ECHO-RSP",
    Phase.release: "A-RELEASE-RP",
}

# PS3.8 Table 9-21
_REJECT_RESULTS = {1: "rejected-permanent", 2: "rejected-transient"}
_REJECT_SOURCES = {1: "service-user", 2: "service-provider (ACSE)", 3: "service-provider (presentation)"}
_NO_REASON = "the peer does not say why; often one of the two AE titles, or this host, is not known to it"
_NO_ROOM = "the peer is out of associations for the moment: try again later"
_REJECT_REASONS = {  # by source and reason: what it means, and what to do
    (1, 1): ("no reason given", _NO_REASON),
    (1, 2): ("application context name not supported", ""),
    (1, 3): ("calling AE title not recognized", "ask the administrator of the peer to register the calling AE title "
             '"{calling}" together with the address of this host, {local}'),
    (1, 7): ("called AE title not recognized", 'the peer does not answer to "{called}"; use the AE title that is '
             "configured on it: AE@HOST:PORT or -aec AE (upper and lower case count)"),
    (2, 1): ("no reason given", _NO_REASON),
    (2, 2): ("protocol version not supported", ""),
    (3, 1): ("temporary congestion", _NO_ROOM),
    (3, 2): ("local limit exceeded", _NO_ROOM),
}  # fmt: skip

# PS3.8 Table 9-26
_ABORT_SOURCES = {0: "service-user", 2: "service-provider"}
_ABORT_REASONS = {
    0: "reason not specified",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}

# PS3.8 Table 9-18
_REFUSED = "the peer knows the AE title but refuses Verification"
_CONTEXT_RESULTS = {  # what it means, and what to do
    1: ("user rejection", _REFUSED),
    2: ("no reason", _REFUSED),
    3: ("abstract syntax not supported", "the peer knows the AE title but does not offer Verification to us"),
    4: ("transfer syntaxes not supported", "the peer offers Verification, but with none of the transfer syntaxes "
        "proposed: see --transfer-syntax"),
}  # fmt: skip

# How other protocols begin when they meet an A-ASSOCIATE-RQ.
_FINGERPRINTS = {
    b"HTTP/": "HTTP",
    b"<": "HTML or XML",
    b"SSH-": "SSH",
    b"220": "SMTP or FTP",
    b"\x15\x03": "TLS",
    b"\x16\x03": "TLS",
    b"\x0bMSH": "HL7 (MLLP)",
    b"RFB ": "VNC",
}


class _Dialogue:
    """One association as its requestor sees it (PS3.8 9.2): bytes in, events out, no I/O."""

    def __init__(self, request: _Request, local: str | None) -> None:
        self._from = f"from {request.target}"
        here = (local or "").rpartition(":")[0].strip("[]")
        self._names = {"called": request.called_ae_title, "calling": request.calling_ae_title, "local": here}
        self._proposed = request.transfer_syntaxes
        self._request_pdu = _encode_associate_rq(
            request.called_ae_title, request.calling_ae_title, request.max_pdu, tuple(request.transfer_syntaxes)
        )
        self._phase = Phase.associate
        self._message_id = 0
        self._peer_max_pdu = 0
        self._buffer = bytearray()
        self._command = bytearray()
        self._closed = False

    def associate(self) -> bytes:
        return self._request_pdu

    def echo(self, message_id: int) -> bytes:
        self._phase, self._message_id = Phase.echo, message_id
        self._command.clear()
        return _encode_c_echo_rq(message_id, self._peer_max_pdu)

    def release(self) -> bytes:
        self._phase = Phase.release
        return _encode_release_rq()

    def abort(self) -> bytes:
        return _encode_abort()

    def receive_data(self, data: bytes) -> None:
        """Take what came from the peer; nothing means that it has closed."""
        self._buffer += data
        self._closed = not data

    def next_event(self) -> _Event | None:
        """What has happened, or None until more data are here."""
        while pdu := self._next_pdu():
            _trace("received", pdu, self._from)
            move = self._MOVES.get((self._phase, pdu[0]))
            if move is None:
                raise ProtocolError(f"{_PDU_NAMES[pdu[0]]} where {_DUE[self._phase]} is due")
            if event := move(self, pdu):
                return event
        if self._closed:
            raise self._cut_off()
        return None

    def _next_pdu(self) -> bytes | None:
        """Cut a whole PDU off (PS3.8 9.3.1): first the type, then the length, only then its bytes."""
        if len(self._buffer) < 6:
            return None
        kind, length = self._buffer[0], int.from_bytes(self._buffer[2:6], "big")
        if kind not in _PDU_NAMES:
            raise self._not_dicom()
        if length > _MAX_PDU_LENGTH or (kind in _FOUR_BYTES and length != 4):
            raise ProtocolError(f"{_PDU_NAMES[kind]} with an impossible length of {length} bytes")
        if len(self._buffer) < 6 + length:
            return None
        pdu = bytes(self._buffer[: 6 + length])
        del self._buffer[: 6 + length]
        return pdu

    def _not_dicom(self) -> ProtocolError:
        start = bytes(self._buffer[:16])
        _trace("received", bytes(self._buffer), self._from)
        for beginning, name in _FINGERPRINTS.items():
            if start.startswith(beginning):
                hint = "the port speaks TLS: try --tls" if name == "TLS" else "this is not a DICOM port"
                return ProtocolError(f"the answer is {name}, not DICOM", hint=hint, received=start.hex())
        return ProtocolError("the answer is not DICOM", hint="this is not a DICOM port", received=start.hex())

    def _cut_off(self) -> EchoError:
        if not self._buffer:
            return ConnectionLost("closed by the peer without an answer")
        if self._buffer[0] not in _PDU_NAMES:
            return self._not_dicom()
        return ConnectionLost("closed by the peer in the middle of an answer")

    def overdue(self, error: TimedOut) -> EchoError:
        """What a silence means after what came before it."""
        if not self._buffer:
            return error
        if self._buffer[0] not in _PDU_NAMES:
            return self._not_dicom()
        return TimedOut(error.message, hint="the answer stopped in the middle", timeout=error.timeout)

    def _on_accept(self, pdu: bytes) -> _Accepted:
        result, peer = _decode_associate_ac(pdu)
        if result is None:
            raise ProtocolError(f"the peer accepts, but says nothing of presentation context {_CONTEXT_ID}")
        if result != 0:
            meaning, hint = _CONTEXT_RESULTS.get(result, ("reserved result", _REFUSED))
            raise NotSupported(meaning, hint=hint, detail=f"presentation context result {result}", result=result)
        self._peer_max_pdu = peer.max_pdu or 0
        odd = peer.transfer_syntax not in self._proposed
        return _Accepted(peer, "the peer accepted with a transfer syntax not proposed to it" if odd else "")

    def _on_reject(self, pdu: bytes) -> None:
        result, source, reason = _decode_refusal(pdu)
        meaning, hint = _REJECT_REASONS.get((source, reason), ("reserved reason", ""))
        raise Rejected(
            meaning,
            hint=hint.format(**self._names),
            detail=f"{_REJECT_RESULTS.get(result, f'result {result}')}, "
            f"{_REJECT_SOURCES.get(source, f'source {source}')}, reason {reason}",
            result=result,
            source=source,
            reason=reason,
        )

    def _on_abort(self, pdu: bytes) -> None:
        _, source, reason = _decode_refusal(pdu)
        by_user = source == 0  # which gives no reason: the field is not significant
        unsaid = by_user or reason == 0
        raise Aborted(
            "no reason given" if by_user else _ABORT_REASONS.get(reason, "reserved reason"),
            hint="some peers abort instead of rejecting: check both AE titles, and whether the peer admits this host"
            if unsaid
            else "",
            detail=_ABORT_SOURCES.get(source, f"source {source}") + ("" if by_user else f", reason {reason}"),
            source=source,
            reason=reason,
        )

    def _on_data(self, pdu: bytes) -> _Answered | None:
        """Put the fragments of the command set together (PS3.8 Annex E)."""
        for context_id, header, fragment in _decode_p_data(pdu):
            if context_id != _CONTEXT_ID:
                raise ProtocolError(f"the answer is in presentation context {context_id}, not {_CONTEXT_ID}")
            if not header & 1:
                raise ProtocolError("a data set where the command set of the C-ECHO-RSP is due")
            self._command += fragment
            if len(self._command) > _MAX_COMMAND_LENGTH:
                raise ProtocolError(f"a command set of more than {_MAX_COMMAND_LENGTH} bytes")
            if header & 2:
                return self._on_command(bytes(self._command))
        return None

    def _on_command(self, command: bytes) -> _Answered:
        """Hold a message to PS3.7 9.3.5.2: this is the answer, and to this request."""
        response = _decode_command(command)
        if response.command_field != _C_ECHO_RSP:
            raise ProtocolError(f"command {_hex(response.command_field)} where C-ECHO-RSP (8030H) is due")
        if not isinstance(response.message_id, int):
            raise ProtocolError("the C-ECHO-RSP does not say which message it answers")
        if response.message_id != self._message_id:
            raise ProtocolError(f"the answer is to message id {response.message_id}, not {self._message_id}")
        if not isinstance(response.status, int):
            raise ProtocolError("the C-ECHO-RSP holds no status")
        return _Answered(response.status, response.comment)

    def _on_released(self, _pdu: bytes) -> _Released:
        return _Released()

    def _on_late_data(self, _pdu: bytes) -> None:
        """Data that crossed our A-RELEASE-RQ are none of our business any more."""

    _MOVES: ClassVar[dict[tuple[Phase, int], Callable[[_Dialogue, bytes], _Event | None]]] = {
        (Phase.associate, 2): _on_accept,
        (Phase.associate, 3): _on_reject,
        (Phase.associate, 7): _on_abort,
        (Phase.echo, 4): _on_data,
        (Phase.echo, 7): _on_abort,
        (Phase.release, 4): _on_late_data,
        (Phase.release, 5): _on_released,  # both ask at once: we are done all the same (PS3.8 9.2.3, Sta 9)
        (Phase.release, 6): _on_released,
        (Phase.release, 7): _on_abort,
    }


def _hex(number: object) -> str:
    return f"{number:04X}H" if isinstance(number, int) else "without a number"


# -- 8. codec ----------------------------------------------------------------------------------------------------------

# The same values are the same bytes and the other way round: a fleet of like peers is encoded and decoded once.


class _Command(NamedTuple):
    """What a peer put into its command set; it may be anything."""

    command_field: object
    message_id: object
    status: object
    comment: str


@functools.cache
def _load_codec() -> None:
    """Encode and decode once: much of pydicom is imported only then, and that time is not the peer's."""
    for _, _, command in _decode_p_data(_encode_c_echo_rq(0, 0)):
        _decode_command(command)


@functools.lru_cache(maxsize=64)
def _encode_associate_rq(called: str, calling: str, max_pdu: int, transfer_syntaxes: tuple[str, ...]) -> bytes:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2) that proposes Verification in one presentation context."""
    from pynetdicom import pdu_primitives as primitives
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.presentation import build_context

    context = build_context(_VERIFICATION, list(transfer_syntaxes))
    context.context_id = _CONTEXT_ID
    length = primitives.MaximumLengthNotification()
    length.maximum_length_received = max_pdu
    class_uid = primitives.ImplementationClassUIDNotification()
    class_uid.implementation_class_uid = _IMPLEMENTATION_CLASS_UID
    version_name = primitives.ImplementationVersionNameNotification()
    version_name.implementation_version_name = _IMPLEMENTATION_VERSION_NAME
    associate = primitives.A_ASSOCIATE()
    associate.application_context_name = _APPLICATION_CONTEXT
    associate.called_ae_title = called
    associate.calling_ae_title = calling
    associate.presentation_context_definition_list = [context]
    associate.user_information = [length, class_uid, version_name]
    return A_ASSOCIATE_RQ(associate).encode()


@functools.lru_cache(maxsize=64)
def _encode_c_echo_rq(message_id: int, peer_max_pdu: int) -> bytes:
    """C-ECHO-RQ (PS3.7 9.3.5.1) in as many P-DATA-TF PDUs as the peer's maximum length asks for (PS3.8 D.1)."""
    from pynetdicom.dimse_messages import C_ECHO_RQ
    from pynetdicom.dimse_primitives import C_ECHO
    from pynetdicom.pdu import P_DATA_TF

    request = C_ECHO()
    request.MessageID = message_id
    request.AffectedSOPClassUID = _VERIFICATION
    message = C_ECHO_RQ()
    message.primitive_to_message(request)
    # Fragments have an even length (PS3.8 E.2), and less than two bytes beside the six of their header make no sense.
    limit = max(peer_max_pdu & ~1, 8) if peer_max_pdu else 0
    return b"".join(P_DATA_TF(data).encode() for data in message.encode_msg(_CONTEXT_ID, limit))


@functools.cache
def _encode_release_rq() -> bytes:
    from pynetdicom.pdu import A_RELEASE_RQ

    return A_RELEASE_RQ().encode()


@functools.cache
def _encode_abort() -> bytes:
    """A-ABORT from the service-user, that is, from us (PS3.8 9.3.8)."""
    from pynetdicom.pdu import A_ABORT_RQ
    from pynetdicom.pdu_primitives import A_ABORT

    abort = A_ABORT()
    abort.abort_source = 0
    return A_ABORT_RQ(abort).encode()


@contextlib.contextmanager
def _decoding(what: str) -> Iterator[None]:
    """The one place where the decoders' surprise, which may be any exception, becomes a ProtocolError."""
    try:
        yield
    except Exception as error:  # any: the decoders raise what they like
        raise ProtocolError(f"malformed {what}", hint="-d shows its bytes") from error


@functools.lru_cache(maxsize=16)
def _decode_associate_ac(pdu: bytes) -> tuple[int | None, Peer]:
    """A-ASSOCIATE-AC (PS3.8 9.3.3): the result of our presentation context, None without one, and the peer."""
    from pynetdicom.pdu import A_ASSOCIATE_AC

    with _decoding("A-ASSOCIATE-AC"):
        user_information = {
            kind: sub_item for held, item in _items(pdu[74:]) if held == 0x50 for kind, sub_item in _items(item[4:])
        }
        accept = A_ASSOCIATE_AC()
        accept.decode(_only_what_counts(pdu, user_information.get(0x51, b"")))
        ours = next((each for each in accept.presentation_context if each.presentation_context_id == _CONTEXT_ID), None)
        return None if ours is None else ours.result or 0, Peer(
            _text(user_information.get(0x52)),
            _text(user_information.get(0x55)),
            accept.user_information.maximum_length if accept.user_information else None,
            str(ours.transfer_syntax) if ours and ours.transfer_syntax is not None else None,
        )


def _only_what_counts(pdu: bytes, maximum_length: bytes) -> bytes:
    """Leave out of an A-ASSOCIATE-AC what decides nothing, since pynetdicom's decoder would check it.

    It raises or warns on unknown items (PS3.8 9.3.1: to be ignored), on the transfer syntax of a refused context
    (9.3.3.2: not to be tested) and on what the peer calls itself. The AE titles in it are reserved (Table 9-17).
    """
    kept = b""
    for kind, item in _items(pdu[74:]):
        if kind == 0x21:  # presentation context: id, reserved, result, reserved, transfer syntax
            syntax = [sub for sub_kind, sub in _items(item[8:]) if sub_kind == 0x40] if item[6] == 0 else []
            kept += _refill(item, item[4:8] + b"".join(sub for sub in syntax if _UID.fullmatch(_text(sub) or "")))
        elif kind == 0x50 and maximum_length:
            kept += _refill(item, maximum_length)
    return pdu[:10] + bytes(64) + kept


def _refill(item: bytes, body: bytes) -> bytes:
    return item[:2] + len(body).to_bytes(2, "big") + body


def _text(sub_item: bytes | None) -> str | None:
    return sub_item[4:].decode("latin-1").strip(" \0") if sub_item else None


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split variable items by their headers: type, reserved, length in two bytes (PS3.8 9.3.2.1)."""
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start + 2 : start + 4], "big")
        if end > len(data):
            raise ValueError("an item is longer than what holds it")
        yield data[start], data[start:end]
        start = end


def _decode_refusal(pdu: bytes) -> tuple[int, int, int]:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4) or A-ABORT (9.3.8): result, which an A-ABORT does not have, source and reason."""
    from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RJ

    with _decoding(_PDU_NAMES[pdu[0]]):
        refusal = A_ASSOCIATE_RJ() if pdu[0] == 3 else A_ABORT_RQ()
        refusal.decode(pdu)
        result = refusal.result if isinstance(refusal, A_ASSOCIATE_RJ) else 0
        return int(result or 0), int(refusal.source or 0), int(refusal.reason_diagnostic or 0)


def _decode_p_data(pdu: bytes) -> list[tuple[int, int, bytes]]:
    """P-DATA-TF (PS3.8 9.3.5): context id, message control header and fragment of each presentation data value."""
    from pynetdicom.pdu import P_DATA_TF

    with _decoding("P-DATA-TF"):
        data = P_DATA_TF()
        data.decode(pdu)
        values = data.to_primitive().presentation_data_value_list
        return [(context_id, value[0], bytes(value[1:])) for context_id, value in values]


@functools.lru_cache(maxsize=16)
def _decode_command(command: bytes) -> _Command:
    """A command set (PS3.7 6.3.1), whatever message it is."""
    from pynetdicom.dimse_messages import DIMSEMessage
    from pynetdicom.pdu_primitives import P_DATA

    with _decoding("command set"):
        data = P_DATA()
        data.presentation_data_value_list.append((_CONTEXT_ID, b"\x03" + command))
        message = DIMSEMessage()
        message.decode_msg(data)
        elements = message.command_set
        comment = elements.get_item("ErrorComment")  # as raw bytes: checking its form would warn about it
        return _Command(
            elements.get("CommandField"),
            elements.get("MessageIDBeingRespondedTo"),
            elements.get("Status"),
            bytes(comment.value or b"").decode("latin-1").strip(" \0") if comment else "",
        )


def _trace(direction: str, pdu: bytes, whom: str) -> None:
    """Log a PDU, decoded and as hex, where somebody listens."""
    if pdu and _log.isEnabledFor(logging.DEBUG):
        name = _PDU_NAMES.get(pdu[0], "not DICOM")
        _log.debug("%s %s, %d bytes, %s\n%s%s", direction, name, len(pdu), whom, _describe_pdu(pdu), _hexdump(pdu))


def _describe_pdu(pdu: bytes) -> str:
    """What pynetdicom makes of a PDU; nothing if it cannot read it."""
    from pynetdicom.pdu import PDU_TYPES

    try:
        with warnings.catch_warnings():  # of pydicom, on what the peer wrote; the dump shows it
            warnings.simplefilter("ignore")
            decoded = next(kind for kind, number in PDU_TYPES.items() if number == pdu[0])()
            decoded.decode(pdu)
            command = _describe_command(decoded.to_primitive()) if pdu[0] == 4 else ""
            return _printable(str(decoded).rstrip("\n") + "\n" + command, keep="\n")
    except Exception:  # any: see `_decoding`; here the hex dump says it all
        return ""


def _describe_command(data: Any) -> str:
    """The command set that ends in this P-DATA, element by element; nothing if it began in another."""
    from pynetdicom.dimse_messages import DIMSEMessage

    message = DIMSEMessage()
    message.decode_msg(data)
    return f"{message.command_set}\n" if message.command_set else ""


def _hexdump(data: bytes) -> str:
    rows = (data[start : start + 16] for start in range(0, len(data), 16))
    return "\n".join(
        f"  {16 * number:04x}  {row.hex(' '):<47}  {''.join(chr(b) if 32 <= b < 127 else '.' for b in row)}"
        for number, row in enumerate(rows)
    )


# -- 9. campaign -------------------------------------------------------------------------------------------------------

_FIRST_RETRY, _LAST_RETRY = 0.2, 2.0  # seconds between the tries of --wait, growing
_RECENT = 60  # times kept for the picture of a run
_READ_AHEAD = 1000  # targets read before their turn, while their endpoint is busy


@dataclass(frozen=True)
class _Plan:
    """How often to ask a target."""

    first_id: int = 1
    count: int = 1  # 0 is without end
    interval: float = 1.0
    reuse: bool = False
    wait: float | None = None


class _Statistics:
    """What echoes add up to; takes the same memory for any number of them."""

    def __init__(self) -> None:
        self.sent = 0
        self.kinds: dict[str, int] = {}
        self.minimum = math.inf
        self.maximum = 0.0
        self._sum = 0.0
        self._squares = 0.0
        self.last_failure: EchoResult | None = None
        self.recent: deque[float] = deque(maxlen=_RECENT)

    def add(self, result: EchoResult) -> None:
        self.sent += 1
        self.kinds[result.kind] = self.kinds.get(result.kind, 0) + 1
        if result.ok:
            self.minimum, self.maximum = min(self.minimum, result.total), max(self.maximum, result.total)
            self._sum += result.total
            self._squares += result.total**2
            self.recent.append(result.total)
        else:
            self.last_failure = result

    @property
    def succeeded(self) -> int:
        return self.kinds.get("ok", 0)

    @property
    def loss(self) -> float:
        """Per cent of the echoes that were not answered with Success."""
        return 100 * (1 - self.succeeded / self.sent) if self.sent else 0.0

    @property
    def average(self) -> float:
        return self._sum / self.succeeded

    @property
    def deviation(self) -> float:
        """The standard deviation that ping calls mdev."""
        return math.sqrt(max(0.0, self._squares / self.succeeded - self.average**2))


class _Echoed(NamedTuple):
    """An echo of a campaign: its target, its result, and what the echoes to that target add up to so far."""

    target: _Request
    result: EchoResult
    statistics: _Statistics

    @property
    def verdict(self) -> EchoResult:
        """What stands for all echoes to the target: the last that failed, if one did."""
        return self.statistics.last_failure or self.result


class _Finished(NamedTuple):
    """No more echoes to this target."""

    target: _Request


def _campaign(targets: Sequence[_Request], plan: _Plan, jobs: int) -> Generator[_Echoed | _Finished, None, None]:
    """Ask each target by the plan; one alone without a thread."""

    def ask(target: _Request, stop: _Stop) -> Generator[_Echoed, None, None]:
        statistics = _Statistics()
        with contextlib.closing(_rounds(target, plan, stop)) as results:
            for result in results:
                statistics.add(result)
                yield _Echoed(target, result, statistics)

    if len(targets) == 1:
        yield from ask(targets[0], _Stop())
        yield _Finished(targets[0])
        return
    with contextlib.closing(_in_parallel(targets, ask, jobs)) as events:
        for target, event in events:
            yield event or _Finished(target)


def _rounds(request: _Request, plan: _Plan, stop: _Stop) -> Generator[EchoResult, None, None]:
    """The echoes to one target, one after the other."""
    ids = _message_ids(plan.first_id)
    if plan.wait is not None:
        yield _wait_for_success(request, ids, plan.wait, stop)
        return
    slots = _slots(plan.count, plan.interval, stop)
    if plan.reuse:
        yield from _over_one_association(request, ids, slots, stop)
        return
    for _ in slots:
        yield _probe(request, next(ids), _Deadline(request.timeout, stop))


def _message_ids(first: int) -> Iterator[int]:
    number = first
    while True:
        yield number
        number = number % 0xFFFF + 1


def _slots(count: int, interval: float, stop: _Stop) -> Iterator[int]:
    """Count the rounds, each at its time: on a grid from the first, so that they do not drift.

    Slots that a slow echo has missed are left out, not made up for.
    """
    start, slot = time.monotonic(), 0
    for number in itertools.count() if count == 0 else range(count):
        if number:
            elapsed = time.monotonic() - start
            slot = max(slot + 1, math.ceil(elapsed / interval) if interval > 1e-9 else 0)
            if stop.pause(max(0.0, slot * interval - elapsed)):
                return
        yield number


def _wait_for_success(request: _Request, ids: Iterator[int], seconds: float, stop: _Stop) -> EchoResult:
    """Try again, ever more slowly, until Success or until the time is up; what the last try showed counts."""
    end, delay = time.monotonic() + seconds, _FIRST_RETRY
    for tries in itertools.count(1):
        left = max(end - time.monotonic(), _FIRST_RETRY)  # the last try has a little time, too
        result = _probe(request, next(ids), _Deadline(min(request.timeout, left), stop))
        left = end - time.monotonic()
        if result.ok:
            break
        if left <= 0 or stop.pause(min(delay, left)):
            return replace(result, notes=(*result.notes, f"gave up after {tries} tries"))
        delay = min(delay * 1.5, _LAST_RETRY)
    return result


def _over_one_association(
    request: _Request, ids: Iterator[int], slots: Iterator[int], stop: _Stop
) -> Generator[EchoResult, None, None]:
    """Echoes over one association; when the peer ends it, that is reported and the next echo opens one anew."""
    association: _Association | None = None
    try:
        for _ in slots:
            journal, deadline = _Journal(request, next(ids)), _Deadline(request.timeout, stop)
            try:
                if association:
                    association.resume(journal, deadline)
                else:
                    association = _Association(request, journal, deadline)
                association.echo(journal)
            except EchoError as error:
                journal.write(error=error)
                if association:
                    association.__exit__(None, error, None)
                    association = None
            yield journal.result
        if association:
            association.release(_Journal(request, 0))
    finally:
        if association:
            association.__exit__(*sys.exc_info())


class _Turns:
    """Hands out jobs; one whose endpoint is busy has to wait for its turn."""

    def __init__(self, jobs: Iterable[_Request]) -> None:
        self._jobs = iter(jobs)
        self._behind: dict[tuple[str, int], deque[_Request]] = {}  # each busy endpoint
        self._ready: deque[_Request] = deque()
        self._waiting = 0

    def take(self) -> _Request | None:
        if self._ready:
            return self._ready.popleft()
        while self._waiting < _READ_AHEAD and (job := next(self._jobs, None)) is not None:
            if job.endpoint not in self._behind:
                self._behind[job.endpoint] = deque()
                return job
            self._behind[job.endpoint].append(job)
            self._waiting += 1
        return None

    def done(self, job: _Request) -> None:
        if self._behind[job.endpoint]:
            self._ready.append(self._behind[job.endpoint].popleft())
            self._waiting -= 1
        else:
            del self._behind[job.endpoint]


def _in_parallel(
    jobs: Iterable[_Request], work: Callable[[_Request, _Stop], Generator[_T, None, None]], at_once: int
) -> Generator[tuple[_Request, _T | None], None, None]:
    """Do jobs in threads; yield what comes of each as it comes, and None when the job is done.

    Jobs are handed out as outcomes are taken, so those that are done take no memory. Closed early, this ends all
    threads before it returns.
    """
    tasks: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[tuple[_Request, _T | BaseException | None]] = queue.SimpleQueue()
    stop, turns, threads, running = _Stop(), _Turns(jobs), list[threading.Thread](), 0

    def serve() -> None:
        while (job := tasks.get()) is not None:
            _do(job, work(job, stop), outcomes)

    try:
        while True:
            while running < at_once and (job := turns.take()) is not None:
                if running == len(threads):
                    thread = threading.Thread(target=serve, name="dicom-echo", daemon=True)
                    try:
                        thread.start()
                        threads.append(thread)
                    except RuntimeError:  # the system has no more of them: those that run do it all
                        if not threads:
                            raise
                        at_once = running + 1
                tasks.put(job)
                running += 1
            if not running:
                return
            job, outcome = _patiently(outcomes)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is None:
                turns.done(job)
                running -= 1
            yield job, outcome
    finally:
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            while thread.is_alive():
                if running:  # closed early
                    stop.now()  # again and again: a thread that was about to connect has not heard it
                thread.join(0.1)


def _do(job: _Request, steps: Generator[_T, None, None], outcomes: queue.SimpleQueue[tuple[_Request, Any]]) -> None:
    """Hand over each step of a job, and at its end None, or what it failed with."""
    try:
        with contextlib.closing(steps):
            for step in steps:
                outcomes.put((job, step))
        outcomes.put((job, None))
    except BaseException as error:  # whatever it is, it belongs to the thread that waits
        outcomes.put((job, error))


def _patiently(outcomes: queue.SimpleQueue[_T]) -> _T:
    """Wait for the next outcome, but let Ctrl-C through, which Windows keeps back while a thread waits."""
    while True:
        with contextlib.suppress(queue.Empty):
            return outcomes.get(timeout=0.5)


# -- 10. reports -------------------------------------------------------------------------------------------------------


class _Style(NamedTuple):
    """What the stream that a report goes to can show."""

    colour: bool = False
    symbols: bool = True
    width: int | None = None  # columns; None is no limit


class _Report:
    """A format. Each method gives the lines to print and prints nothing itself."""

    def opening(self) -> Iterator[str]:
        """Lines before the first echo."""
        yield from ()

    def echoed(self, event: _Echoed) -> Iterator[str]:
        """Lines on one echo."""
        yield from ()

    def finished(self, last: _Echoed) -> Iterator[str]:
        """Lines on a target when all its echoes are done, of which this is the last."""
        yield from ()

    def closing(self, all_echoes: _Statistics, unfinished: Sequence[_Echoed]) -> Iterator[str]:
        """Lines after the last echo; where that was an interruption, some targets are unfinished."""
        yield from ()


_SYMBOLS = {
    "ok": ("✅", "[OK]"),
    "status": ("⚠️", "[WARNING]"),
    "failed": ("❌", "[FAILED]"),
    "bar": ("█", "#"),
    "sparks": ("▁▂▃▄▅▆▇█", "_.-~=+*#"),
    "cut": ("…", "~"),
}
_COLOURS = {"ok": "32", "status": "33", "failed": "31"}
_BAR_WIDTH = 40

_DOING = {
    Phase.resolve: "resolving {host}",
    Phase.connect: "connecting to {endpoint}",
    Phase.tls: "negotiating TLS with {endpoint}",
    Phase.associate: "associating with {target} as {calling}",
    Phase.echo: "echoing {target} as {calling}",
}


def _printable(text: str, keep: str = "") -> str:
    """Escape what could move a terminal's cursor, or worse: peers say what they like."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class _Text(_Report):
    """What all reports for people have in common."""

    def __init__(self, style: _Style, verbose: bool) -> None:
        self._style = style
        self._verbose = verbose

    def _details(self, result: EchoResult) -> Iterator[str]:
        if self._verbose:
            yield from _timeline(result, self._style)
            yield from _particulars(result)


class _Single(_Text):
    """Text on one echo: the verdict, and on a failure where it went wrong and what to do."""

    def echoed(self, event: _Echoed) -> Iterator[str]:
        yield _headline(event.result, self._style)
        yield from _circumstances(event.result)
        if not (event.result.ok or self._verbose):
            yield from _notes(event.result)  # such as what the peer has to say about its refusal
        yield from self._details(event.result)


class _Repeated(_Text):
    """Text on many echoes to one target, as ping has it."""

    def __init__(self, style: _Style, verbose: bool, target: _Request) -> None:
        super().__init__(style, verbose)
        self._title = target.target
        self._calling = target.calling_ae_title
        self._begun = time.monotonic()

    def opening(self) -> Iterator[str]:
        yield f"C-ECHO to {self._title} as {self._calling}"

    def echoed(self, event: _Echoed) -> Iterator[str]:
        result = event.result
        start = f"seq={event.statistics.sent} id={result.message_id}"
        if result.ok:
            yield f"{start} status=0000H time={result.total * 1000:.2f} ms"
        else:
            yield f"{start} {_headline(result, self._style)}"
        yield from self._details(result)

    def closing(self, all_echoes: _Statistics, unfinished: Sequence[_Echoed]) -> Iterator[str]:
        took = (time.monotonic() - self._begun) * 1000
        yield f"--- {self._title} echo statistics ---"
        yield (
            f"{all_echoes.sent} sent, {all_echoes.succeeded} succeeded, {all_echoes.loss:.4g}% loss, time {took:.0f} ms"
        )
        if all_echoes.succeeded:
            yield f"min/avg/max/mdev = {_four_times(all_echoes)} ms"
        if all_echoes.succeeded >= _ENOUGH_FOR_SPARKS:
            yield _sparks(all_echoes.recent, self._style)


class _Table(_Text):
    """Text on many targets: a row for each as it finishes, then totals."""

    def __init__(self, style: _Style, verbose: bool, targets: Sequence[_Request], repeated: bool) -> None:
        super().__init__(style, verbose)
        self._repeated = repeated
        target = max(_columns(t.target) for t in targets)
        label = max(_columns(_printable(t.label or "")) for t in targets)
        self._widths = _fit(target, label, 40 if repeated else 12, style.width)

    def finished(self, last: _Echoed) -> Iterator[str]:
        yield self._row(last)
        if self._verbose:
            yield from _circumstances(last.verdict)
        yield from self._details(last.verdict)

    def _row(self, event: _Echoed) -> str:
        texts = [event.result.target, _printable(event.target.label or ""), self._times(event)]
        cells = [_cell(text, width, self._style) for text, width in zip(texts, self._widths, strict=True) if width]
        room = None if self._style.width is None else self._style.width - sum(_columns(cell) + 2 for cell in cells)
        return "  ".join([*cells, _headline(event.verdict, self._style, room)])

    def _times(self, event: _Echoed) -> str:
        statistics, result = event.statistics, event.result
        if not self._repeated:
            return f"{result.total * 1000:9.2f} ms" if result.ok else f"{'-':>9}"
        times = "/".join(_four_times(statistics).split("/")[:3]) if statistics.succeeded else "-/-/-"
        rate = f"{statistics.succeeded}/{statistics.sent} {statistics.loss:.3g}% loss"
        return f"{rate} {times:>{36 - len(rate)}} ms"

    def closing(self, all_echoes: _Statistics, unfinished: Sequence[_Echoed]) -> Iterator[str]:
        yield from map(self._row, unfinished)
        kinds = sorted(all_echoes.kinds.items(), key=lambda item: (item[0] != "ok", -item[1]))
        yield f"{all_echoes.sent} {'echoes' if self._repeated else 'targets'}: " + (
            ", ".join(f"{number} {kind}" for kind, number in kinds) or "none asked"
        )


_LEAST_TARGET, _LEAST_VERDICT, _LEAST_LABEL = 20, 10, 6


def _fit(target: int, label: int, times: int, width: int | None) -> tuple[int, int, int]:
    """Columns for each part of a row.

    The times are left out where target and verdict would have too little; a label has no more than the verdict.
    """
    if width is None:
        return target, label, times
    room = width - 2 - _LEAST_VERDICT
    if room < min(target, _LEAST_TARGET) + times + 2:
        times = 0
    room -= times + 2 if times else 0
    target = max(1, min(target, room))
    half = (room - target + _LEAST_VERDICT) // 2 - 1
    return target, min(label, half) if half >= min(label, _LEAST_LABEL) else 0, times


def _columns(text: str) -> int:
    """The columns that a terminal takes for a text (Unicode Standard Annex 11)."""
    import unicodedata

    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


_ENOUGH_FOR_SPARKS = 5


def _four_times(statistics: _Statistics) -> str:
    """Minimum, average, maximum and deviation, in milliseconds."""
    times = (statistics.minimum, statistics.average, statistics.maximum, statistics.deviation)
    return "/".join(f"{seconds * 1000:.2f}" for seconds in times)


def _sparks(times: Iterable[float], style: _Style) -> str:
    """Each time as a small bar, against the longest."""
    marks = _symbol("sparks", style)
    seconds = list(times)
    scale = (len(marks) - 1) / (max(seconds) or 1.0)
    return "".join(marks[round(each * scale)] for each in seconds)


def _cell(text: str, width: int, style: _Style) -> str:
    """A text in so many columns, cut or filled."""
    if _columns(text) > width:
        while _columns(text) >= max(width, 1):
            text = text[:-1]
        text += _symbol("cut", style)
    return text + " " * (width - _columns(text))


def _headline(result: EchoResult, style: _Style, room: int | None = None) -> str:
    """The verdict with its symbol, cut to the columns that there are."""
    if result.error:
        verdict, text = "failed", f"{result.error.title}: {_printable(result.error.message)}"
    elif result.ok:
        verdict, text = "ok", "Success"
    else:
        status = f"{result.status} ({_hex(result.status)}, {result.status_text})"
        verdict, text = "status", f"Warning: received non-zero status code: {status}"
    symbol = _symbol(verdict, style)
    if room is not None:
        text = _cell(text, room - max(2, len(symbol)) - 1, style).rstrip()
    return f"{symbol} {_paint(verdict, text, style)}"


def _symbol(name: str, style: _Style) -> str:
    return _SYMBOLS[name][0 if style.symbols else 1]


def _paint(colour: str, text: str, style: _Style) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if style.colour else text


def _circumstances(result: EchoResult) -> Iterator[str]:
    """Where it went wrong, in which terms, and what to do."""
    error = result.error
    if not error:
        return
    doing = _DOING[error.phase or Phase.resolve].format(
        host=result.address.host,
        endpoint=_host_port(result.address.host, result.port) + _resolved(result),
        target=result.target + _resolved(result),
        calling=result.calling_ae_title,
    )
    yield f"   while {doing}" + (f": {_printable(error.detail)}" if error.detail else "")
    if error.hint:
        yield f"   hint: {_printable(error.hint)}"


def _resolved(result: EchoResult) -> str:
    """The IP address behind a name, where it was found."""
    ip = result.remote.rpartition(":")[0].strip("[]") if result.remote else result.address.host
    return "" if ip == result.address.host else f" ({ip})"


def _timeline(result: EchoResult, style: _Style) -> Iterator[str]:
    """A row for each phase: how long it took, and a bar where it lies in the whole."""
    bar = _symbol("bar", style)
    scale = _BAR_WIDTH / (sum(result.timings.values()) or 1.0)
    start = 0.0
    for phase, seconds in result.timings.items():
        indent, length = min(int(start * scale), _BAR_WIDTH - 1), max(1, round(seconds * scale))
        yield f"   {phase:<9} {seconds * 1000:9.2f} ms  {' ' * indent}{bar * length}"
        start += seconds
    yield f"   {'total':<9} {result.total * 1000:9.2f} ms"


def _particulars(result: EchoResult) -> Iterator[str]:
    """What was really used, and what the peer said of itself."""
    if result.local:
        yield f"   from      {result.calling_ae_title} at {result.local}"
    if result.remote:
        yield f"   to        {result.called_ae_title} at {result.remote}"
    yield f"   message   id {result.message_id}"
    if said := result.peer:
        name, uid = said.implementation_version_name, said.implementation_class_uid
        limit = "not said" if said.max_pdu is None else f"{said.max_pdu} bytes" if said.max_pdu else "unlimited"
        yield _printable(f"   peer      {name or 'nameless'} ({uid or 'without an implementation class UID'})")
        yield f"   accepted  maximum PDU length {limit}, transfer syntax {_syntax_name(said.transfer_syntax)}"
    if tls := result.tls:
        expiry = tls.certificate_expiry
        until = f"valid until {expiry:%Y-%m-%d %H:%M} UTC" if expiry else "of unknown expiry"
        verified = "" if tls.certificate_verified else "not verified, "
        yield f"   tls       {tls.version}, {tls.cipher}, certificate {verified}{until}"
    yield from _notes(result)


def _notes(result: EchoResult) -> Iterator[str]:
    yield from (f"   note      {_printable(note)}" for note in result.notes)


def _syntax_name(uid: str | None) -> str:
    names = {known: name for name, known in _TRANSFER_SYNTAXES.items()}
    return f"{names[uid]} ({uid})" if uid in names else _printable(uid or "not said")


_LIKE_NAMED = ["local", "remote", "called_ae_title", "calling_ae_title", "message_id", "ok", "status", "status_text"]


class _JSONLines(_Report):
    """One JSON object for each echo, and for several a summary at the end."""

    def __init__(self, summary: bool) -> None:
        self._summary = summary

    def echoed(self, event: _Echoed) -> Iterator[str]:
        result, tls = event.result, event.result.tls
        yield json.dumps(
            {
                "schema_version": 1,
                "type": "echo",
                "time": _iso(result.started_at),
                "target": result.target,
                "label": event.target.label,
                "host": result.address.host,
                "port": result.port,
                **{name: getattr(result, name) for name in _LIKE_NAMED},
                "phases_ms": {phase: _milliseconds(seconds) for phase, seconds in result.timings.items()},
                "total_ms": _milliseconds(result.total),
                "peer": result.peer and vars(result.peer),
                "tls": tls and {**vars(tls), "certificate_expiry": _iso(tls.certificate_expiry)},
                "notes": result.notes,
                "error": _json_error(result),
            }
        )

    def closing(self, all_echoes: _Statistics, unfinished: Sequence[_Echoed]) -> Iterator[str]:
        if not self._summary:
            return
        times = ("minimum", "average", "maximum", "deviation")
        yield json.dumps(
            {
                "schema_version": 1,
                "type": "summary",
                "time": _iso(datetime.now(timezone.utc)),
                "sent": all_echoes.sent,
                "succeeded": all_echoes.succeeded,
                "loss_percent": round(all_echoes.loss, 3),
                "kinds": dict(sorted(all_echoes.kinds.items())),
                "times_ms": {name: _milliseconds(getattr(all_echoes, name)) for name in times}
                if all_echoes.succeeded
                else None,
            }
        )


def _json_error(result: EchoResult) -> dict[str, object] | None:
    if result.error:
        said = {name: getattr(result.error, name) for name in ("kind", "phase", "message", "hint", "detail")}
        return said | result.error.facts
    if result.ok:
        return None
    message = f"{_hex(result.status)}, {result.status_text}"
    return {
        "kind": "status",
        "phase": Phase.echo,
        "message": message,
        "hint": "",
        "detail": "",
        "status": result.status,
    }


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z") if moment else None


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


class _State(enum.IntEnum):
    """How a monitoring plugin ends."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class _Thresholds(NamedTuple):
    """Milliseconds for the whole echo, above which it is too slow."""

    warning: float | None
    critical: float | None


class _Last(_Report):
    """A format that shows how each target stood in the end, all together."""

    def __init__(self, targets: int) -> None:
        self._targets = targets
        self._ended: list[_Echoed] = []

    def finished(self, last: _Echoed) -> Iterator[str]:
        self._ended.append(last)
        yield from ()


class _Nagios(_Last):
    """The Monitoring Plugins guidelines: one line on one target; of several, the worst first on further lines."""

    def __init__(self, targets: int, thresholds: _Thresholds) -> None:
        super().__init__(targets)
        self._thresholds = thresholds

    @property
    def state(self) -> _State:
        """The worst; interrupted, nothing is known."""
        return max(map(self._state, self._ended)) if len(self._ended) == self._targets else _State.UNKNOWN

    def _state(self, event: _Echoed) -> _State:
        if event.statistics.loss:
            return _State.CRITICAL
        took = event.statistics.average * 1000
        slow, too_slow = (limit is not None and took > limit for limit in self._thresholds)
        return _State.CRITICAL if too_slow else _State.WARNING if slow else _State.OK

    def _text(self, event: _Echoed) -> str:
        result, statistics = event.verdict, event.statistics
        rate = f" ({statistics.succeeded} of {statistics.sent})" if statistics.sent > 1 else ""
        if result.error:
            text = f"{result.target}: {result.error.title}: {result.error.message}{rate}"
        elif result.ok:
            text = f"{result.target} answered in {statistics.average * 1000:.1f} ms{rate}"
        else:
            text = f"{result.target}: status {_hex(result.status)}, {result.status_text}{rate}"
        return _printable(text).replace("|", "/")  # a bar would begin the performance data

    def _performance(self, label: str, event: _Echoed) -> list[str]:
        """'label'=value[UOM];[warn];[crit];[min];[max], in seconds."""
        if not event.statistics.succeeded:
            return []
        limits = ";".join("" if limit is None else _decimal(limit / 1000) for limit in self._thresholds)
        return [f"{label}={event.statistics.average:.4f}s;{limits};0;{_decimal(event.target.timeout)}"]

    def closing(self, all_echoes: _Statistics, unfinished: Sequence[_Echoed]) -> Iterator[str]:
        if self.state is _State.UNKNOWN:
            yield f"DICOM ECHO UNKNOWN - interrupted after {len(self._ended)} of {self._targets} targets"
            return
        if self._targets == 1:
            event = self._ended[0]
            phases = [f"{phase}={seconds:.4f}s;;;0" for phase, seconds in event.result.timings.items()]
            data = [*self._performance("time", event), *(phases if event.result.ok else [])]
            yield f"DICOM ECHO {self.state.name} - {_with_data(self._text(event), data)}"
            return
        good = sum(self._state(event) is _State.OK for event in self._ended)
        yield f"DICOM ECHO {self.state.name} - {good} of {self._targets} targets OK | ok={good};;;0;{self._targets}"
        worst_first = sorted(self._ended, key=self._state, reverse=True)
        lines = [f"{self._state(event).name} - {self._text(event)}" for event in worst_first]
        used: set[str] = set()
        data = [each for event in worst_first for each in self._performance(_label(event.result.target, used), event)]
        yield from lines[:-1]
        yield from (_with_data(line, data) for line in lines[-1:])


def _with_data(text: str, data: list[str]) -> str:
    return f"{text} | {' '.join(data)}" if data else text


def _decimal(number: float) -> str:
    """A number without an exponent, which the guidelines do not know."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _label(name: str, used: set[str]) -> str:
    """A name in quotes, made unique: a graph has one line for a label."""
    plain = re.sub("['=|]", "_", name)
    numbered = (f"{plain} {number}" for number in itertools.count(2))
    label = plain if plain not in used else next(each for each in numbered if each not in used)
    used.add(label)
    return f"'{label}'"


class _Prometheus(_Last):
    """The Prometheus text format, for the textfile collector of a node exporter."""

    def closing(self, all_echoes: _Statistics, unfinished: Sequence[_Echoed]) -> Iterator[str]:
        # A target that is listed twice has one series all the same.
        echoes = [*self._ended, *unfinished]
        if len(echoes) < self._targets:  # interrupted: series that end look like targets that are gone
            return
        results = {(e.result.target, e.result.calling_ae_title): e.verdict for e in echoes}
        for name, explanation, samples in _METRICS:
            rows = [
                f"{name}{{{_labels(result, extra)}}} {_decimal(value)}"
                for result in results.values()
                for extra, value in samples(result).items()
            ]
            if rows:
                yield f"# HELP {name} {explanation}"
                yield f"# TYPE {name} gauge"
                yield from rows


def _labels(result: EchoResult, phase: str) -> str:
    labels = {"target": result.target, "called_ae": result.called_ae_title, "calling_ae": result.calling_ae_title}
    if phase:
        labels["phase"] = phase
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _expiry(result: EchoResult) -> dict[str, float]:
    expiry = result.tls and result.tls.certificate_expiry
    return {"": expiry.timestamp()} if expiry else {}


# Name, help, and the samples of a result by phase; those of the whole echo are under "".
_METRICS: list[tuple[str, str, Callable[[EchoResult], Mapping[str, float]]]] = [
    ("dicom_echo_success", "Whether the echo was answered with Success.", lambda r: {"": int(r.ok)}),
    ("dicom_echo_status_code", "DIMSE status of the C-ECHO response, where there is one.",
     lambda r: {} if r.status is None else {"": r.status}),
    ("dicom_echo_duration_seconds", "Time of the whole echo.", lambda r: {"": r.total}),
    ("dicom_echo_phase_duration_seconds", "Time of each phase that ran.",
     lambda r: {str(phase): seconds for phase, seconds in r.timings.items()}),
    ("dicom_echo_tls_certificate_expiry_timestamp_seconds", "When the certificate of the peer expires.", _expiry),
]  # fmt: skip


# -- 11. other side ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _listener(host: str) -> Iterator[str]:
    """A real peer in this process, on a free port that only this host can reach; gives its address."""
    from pynetdicom.ae import ApplicationEntity

    peer = ApplicationEntity(ae_title=DEFAULT_CALLED_AE_TITLE)
    peer.add_supported_context(_VERIFICATION)
    try:
        server = peer.start_server((host, 0), block=False)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}: {_reason(error)}") from None
    if server is None:
        raise AssertionError("a server that does not block is returned")
    try:
        yield f"{DEFAULT_CALLED_AE_TITLE}@{_host_port(*server.server_address[:2])}"
    finally:
        server.shutdown()


# -- 12. command -------------------------------------------------------------------------------------------------------

_DESCRIPTION = (
    "Ask DICOM nodes whether they answer: send a C-ECHO (PS3.7 9.1.5) and say what happened. "
    "A success does not show that this AE title may query or store."
)
_EPILOG = (
    "exit codes: 0 every echo was answered with Success; 1 a peer answered, but not with Success; "
    "2 the command line is wrong, nothing was sent (or the results cannot be written); "
    "3 no answer (name, network, TLS, time); 130 interrupted; "
    "143 terminated. With --format nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN"
)


class _Parser(argparse.ArgumentParser):
    """Leaves with one line, where argparse would print the whole usage before it."""

    for_nagios = False

    def error(self, message: str, *further: str) -> NoReturn:
        if self.for_nagios:
            raise SystemExit(_unknown("; ".join([message, *further])))
        _complain(f"{message} (see {self.prog} --help)", *further)
        raise SystemExit(_Exit.USAGE)


def _unknown(why: str) -> _State:
    """What a monitoring system is told where there is no result."""
    with contextlib.suppress(OSError):  # nobody reads it, but the exit code tells it too
        print(f"DICOM ECHO UNKNOWN - {_printable(why).replace('|', '/')}", flush=True)
    return _State.UNKNOWN


def _complain(message: str, *further: str) -> None:
    with contextlib.suppress(OSError):
        if sys.stderr is not None:  # a process may be started without
            print(f"dicom-echo: {_printable(message)}", *map(_printable, further), sep="\n", file=sys.stderr)


def _parser() -> _Parser:
    parser = _Parser(prog="dicom-echo", usage="%(prog)s [OPTIONS] HOST [HOST ...]", description=_DESCRIPTION,
                     epilog=_EPILOG, add_help=False, allow_abbrev=False)  # fmt: skip
    for title, fill in _GROUPS.items():
        group = parser.add_argument_group(title)
        fill(functools.partial(_add, group), group)
    return parser


def _add(group: argparse._ArgumentGroup, *flags: str, **how: Any) -> None:
    """Add an option that is known by its clearest name, the second."""
    group.add_argument(*flags, dest=flags[min(1, len(flags) - 1)].lstrip("-").replace("-", "_"), **how)


def _argument(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """Make argparse print why a value is refused, in our own words."""

    def convert(text: str) -> _T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _number(low: float, high: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high or number == math.inf:  # `isinf` fails on whole numbers of 310 digits
            what = "whole number" if kind is int else "number"
            upper = "" if high == math.inf else f" and at most {high:.0f}"
            raise ValueError(f"{text!r} is not a {what} of at least {low:g}{upper}")
        return number

    return _argument(read)


# One line for each argument would bury the options.
# fmt: off
def _dicom_options(add: Callable[..., None], _group: argparse._ArgumentGroup) -> None:
    title = _argument(_check_ae_title)
    add("-aec", "--called", "--called-ae-title", metavar="AE", type=title, default=DEFAULT_CALLED_AE_TITLE,
        help="AE title of the peer; wins over the one before the @ [%(default)s]")
    add("-aet", "--calling", "--calling-ae-title", metavar="AE", type=title, default=DEFAULT_CALLING_AE_TITLE,
        help="AE title of this client [%(default)s]")
    add("-id", "--id", "--message-id", metavar="ID", type=_number(0, 0xFFFF, int), default=1,
        help="message id, 0-65535; further echoes count up from it [%(default)s]")
    add("--max-pdu", metavar="BYTES", type=_number(0, 0xFFFFFFFF, int), default=16382,
        help="maximum PDU length to announce; 0 is unlimited [%(default)s]")
    add("--transfer-syntax", metavar="NAME", action="append", type=_argument(_transfer_syntax),
        help="propose implicit, explicit, deflated, big-endian or a UID; repeatable [implicit, explicit]")
    add("--abort", action="store_true", help="end with A-ABORT instead of A-RELEASE")


def _network_options(add: Callable[..., None], group: argparse._ArgumentGroup) -> None:
    add("-t", "--timeout", metavar="SECONDS", type=_number(0.001, _LONGEST, float), default=_DEFAULT_TIMEOUT,
        help="limit for the whole echo [%(default)g]")
    either = functools.partial(group.add_mutually_exclusive_group().add_argument, dest="family", action="store_const")
    either("-4", const=socket.AF_INET, default=socket.AF_UNSPEC, help="IPv4 only")
    either("-6", const=socket.AF_INET6, help="IPv6 only")
    add("--source", metavar="ADDRESS", help="connect from this IP address of this host")
    add("--tls", action="store_true", help="speak TLS 1.2 or later, and verify the certificate of the peer")
    add("--cacert", metavar="FILE", help="trust the certificates in this PEM file, not those of the system")
    add("--cert", metavar="FILE", help="client certificate, PEM")
    add("--key", metavar="FILE", help="key of the client certificate, PEM, if it is not in the same file")
    add("-k", "--insecure", action="store_true", help="do not verify the certificate of the peer")
    add("--server-name", metavar="NAME", help="name to expect in the certificate of the peer [HOST]")


def _repeat_options(add: Callable[..., None], _group: argparse._ArgumentGroup) -> None:
    add("-c", "--count", metavar="N", type=_number(0, math.inf, int), default=1,
        help="echoes to each target; 0 is until interrupted [%(default)s]")
    add("-i", "--interval", metavar="SECONDS", type=_number(0, _LONGEST, float), default=1.0,
        help="from the start of an echo to that of the next [%(default)g]")
    add("--reuse", action="store_true", help="send all echoes over one association")
    add("--wait", metavar="SECONDS", type=_number(0, _LONGEST, float),
        help="try again until Success, for so long at most")
    add("-T", "--targets", metavar="FILE", action="append", default=[],
        help="read addresses from FILE, one a line, with ' # label' behind it or without; - is standard input")
    add("-j", "--jobs", metavar="N", type=_number(1, 10000, int),
        help=f"targets to ask at the same time [{_DEFAULT_JOBS}]")


def _output_options(add: Callable[..., None], _group: argparse._ArgumentGroup) -> None:
    add("-q", "--quiet", action="store_true", help="print nothing: the exit code tells")
    add("-v", "--verbose", action="store_true", help="add the timeline, and what the peer said of itself")
    add("-d", "--debug", action="store_true",
        help="add to -v, on standard error, every PDU sent and received, decoded and as hex")
    add("--format", choices=["text", "json", "nagios", "prometheus"], default="text", metavar="FORMAT",
        help="text, json, nagios or prometheus [%(default)s]")
    add("--warning", metavar="MS", type=_number(0, math.inf, float), help="nagios: WARNING if the echo takes longer")
    add("--critical", metavar="MS", type=_number(0, math.inf, float), help="nagios: CRITICAL if the echo takes longer")
    add("--output", metavar="FILE", help="write to FILE, which is replaced as a whole at the end")
    add("--color", choices=["auto", "always", "never"], default="auto", metavar="WHEN",
        help="auto, always or never; auto is on a terminal, and as NO_COLOR and FORCE_COLOR say [%(default)s]")


def _other_options(add: Callable[..., None], _group: argparse._ArgumentGroup) -> None:
    add("--self-test", action="store_true", help="start a peer on this host and echo that")
    add("-V", "--version", action="store_true", help="print the versions of all parts; with -v, what is in the archive")
    add("-h", "--help", action="help", help="print this help")


def _arguments(_add: Callable[..., None], group: argparse._ArgumentGroup) -> None:
    group.add_argument("hosts", metavar="HOST", nargs="*",
                       help="[AE-TITLE@]HOST[:PORT]: a name, an IPv4 address or [IPv6]; "
                            "without PORT it is 104, or 2762 with --tls")
# fmt: on


_GROUPS = {
    "Arguments": _arguments,
    "DICOM Options": _dicom_options,
    "Network Options": _network_options,
    "Repeat and Fleet Options": _repeat_options,
    "Output Options": _output_options,
    "Options": _other_options,
}


def _versions(verbose: bool) -> Iterator[str]:
    """Of this tool and what it stands on; verbose, what the archive that it runs from has inside."""
    from importlib import metadata

    def version(name: str) -> str:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            return f"{name} not installed"

    python = ".".join(map(str, sys.version_info[:3]))
    yield f"dicom-echo {__version__} ({version('pynetdicom')}, {version('pydicom')}, Python {python})"
    if verbose and (build := _build()):
        yield f"build {build['build_id']}, with bytecode for {', '.join(build['bytecode'])}"
        yield from (f"contains {name} {number}" for name, number in build["contents"].items())


def _build() -> dict[str, Any] | None:
    """What packaging/build_pyz.py has put down beside this module, in an archive."""
    try:
        loader: Any = __spec__.loader
        facts: dict[str, Any] = json.loads(loader.get_data(str(Path(__file__).with_name("dicom_echo_build.json"))))
    except (OSError, AttributeError):
        return None
    return facts


def _options(args: argparse.Namespace) -> Options:
    """The keyword options of the verbs as the command line has them."""
    return Options(
        timeout=args.timeout,
        family=args.family,
        source=args.source,
        tls=_tls_context(args) if args.tls else None,
        server_hostname=args.server_name,
        max_pdu=args.max_pdu,
        transfer_syntaxes=args.transfer_syntax or ("implicit", "explicit"),
        abort=args.abort,
    )


def _tls_context(args: argparse.Namespace) -> ssl.SSLContext:
    """TLS as PS3.15 B.12 wants it (BCP 195): 1.2 or later, the peer verified unless told otherwise."""
    import ssl

    try:
        context = ssl.create_default_context(cafile=args.cacert)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if args.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if args.cert:
            context.load_cert_chain(args.cert, args.key)
    except OSError as error:
        files = ", ".join(file for file in (args.cacert, args.cert, args.key) if file)
        why = "what is wanted in PEM is not in it" if isinstance(error, ssl.SSLError) else _reason(error)
        raise ValueError(f"cannot use {files}: {why}") from None
    return context


def _style(choice: str, stream: TextIO) -> _Style:
    """Fit a report to the stream: never a character that it cannot encode, nor a row that is wider."""
    terminal = stream.isatty()
    wanted = (terminal or bool(os.environ.get("FORCE_COLOR"))) and not os.environ.get("NO_COLOR")
    colour = choice == "always" or (choice == "auto" and wanted)
    if colour and os.name == "nt":
        os.system("")  # noqa: S605, S607  # runs nothing, but makes older Windows consoles understand colours
    width = shutil.get_terminal_size().columns if terminal else None
    try:
        "".join(symbol for symbol, _ in _SYMBOLS.values()).encode(stream.encoding or "ascii")
    except (UnicodeError, LookupError):
        return _Style(colour, False, width)
    return _Style(colour, True, width)


def _report(args: argparse.Namespace, targets: Sequence[_Request], stream: TextIO) -> _Report:
    """The format asked for."""
    repeated = args.count != 1
    fleet = len(targets) > 1 or bool(args.targets)  # a file of one line, too: who reads the report expects it
    if args.quiet:
        return _Report()
    if args.format == "json":
        return _JSONLines(summary=repeated or fleet)
    if args.format == "nagios":
        return _Nagios(len(targets), _Thresholds(args.warning, args.critical))
    if args.format == "prometheus":
        return _Prometheus(len(targets))
    style, verbose = _style(args.color, stream), args.verbose or args.debug
    if fleet:
        return _Table(style, verbose, targets, repeated)
    return _Repeated(style, verbose, targets[0]) if repeated else _Single(style, verbose)


class _Named(NamedTuple):
    """A target as somebody wrote it down."""

    where: str
    address: str
    label: str | None = None


def _targets(args: argparse.Namespace, options: Options) -> list[_Request]:
    """All peers of the command line and of the files; all that is wrong with them at once."""
    named = [_Named("argument HOST", host) for host in args.hosts]
    named += [each for file in args.targets for each in _read_targets(file)]
    found, wrong = [], []
    for where, text, label in named:
        try:
            request = _Request.make(parse_address(text), args.called, args.calling, **options)
            found.append(replace(request, label=label) if label else request)
        except AddressError as error:
            wrong.append(f"{where}: {error}")
    if wrong:
        raise ValueError(*wrong) if not args.targets else ValueError("bad addresses, so nothing was sent", *wrong)
    return found


def _read_targets(file: str) -> list[_Named]:
    found = []
    for number, line in enumerate(_read(file).splitlines(), 1):
        address, label, *_ = *map(str.strip, re.split(r"\s#(?:\s|$)", line, maxsplit=1)), ""
        if address and not address.startswith("#"):
            found.append(_Named(f"{file}:{number}", address, label or None))
    if not found:
        raise ValueError(f"{file} holds no address")
    return found


def _read(file: str) -> str:
    """A text without the mark that Windows likes to put before it."""
    if file == "-" and sys.stdin is None:  # a process may be started without
        raise ValueError("cannot read -: standard input is closed")
    try:
        if file == "-" and isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8")  # as in a file, whatever the console has
        return (sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {_reason(error)}") from None


def _exit_code(result: EchoResult) -> _Exit:
    if result.ok:
        return _Exit.OK
    heard = ("status", "rejected", "not-supported", "aborted", "protocol")
    return _Exit.FAILED if result.kind in heard else _Exit.NO_ANSWER


def _check(args: argparse.Namespace) -> None:
    """Refuse what does not go together: an option that would do nothing is a mistake."""
    rules = [
        (args.self_test and (args.hosts or args.targets), "--self-test takes no HOST"),
        (args.self_test and args.tls, "--self-test goes without --tls"),
        (not (args.self_test or args.hosts or args.targets), f"no HOST given; expected {_FORM}"),
        (args.quiet and (args.format == "nagios" or args.output), "--quiet goes without --output and --format nagios"),
        (args.wait is not None and (args.count != 1 or args.reuse), "--wait goes without --count and --reuse"),
        (args.reuse and args.count == 1, "--reuse goes with --count"),
        (args.format != "nagios" and (args.warning, args.critical) != (None, None),
         "--warning and --critical go with --format nagios"),
        (not args.tls and (args.cacert or args.cert or args.key or args.insecure or args.server_name),
         "--cacert, --cert, --key, --insecure and --server-name go with --tls"),
        (args.key and not args.cert, "--key goes with --cert"),
    ]  # fmt: skip
    for broken, rule in rules:
        if broken:
            raise ValueError(rule)


@contextlib.contextmanager
def _output(file: str | None) -> Iterator[TextIO]:
    """Standard output, or a new file that takes the place of the old one when it is whole."""
    if file is None or file == "-":
        yield sys.stdout or io.StringIO()  # a process may be started without
        return
    final = Path(file).resolve()
    replaces = not final.exists() or final.is_file()  # a pipe or a device is written to
    draft = final.with_name(f".{final.name}.{os.urandom(4).hex()}.tmp") if replaces else final
    try:
        stream = draft.open("x" if replaces else "w", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write {file}: {_reason(error)}") from None
    try:
        with stream:
            yield stream
        if replaces and (draft.stat().st_size or not final.exists()):  # what was interrupted may have nothing to say
            draft.replace(final)
    finally:
        if replaces:
            draft.unlink(missing_ok=True)


def _jobs(wanted: int | None, targets: int) -> int:
    """How many targets to ask at once."""
    jobs = min(wanted or _DEFAULT_JOBS, targets)
    if jobs == 1 or (allowed := _allow_files(jobs + 64)) is None:  # the rest of the process has files open too
        return jobs
    if wanted:
        raise ValueError(f"--jobs {jobs} needs {jobs + 64} open files, but the system allows {allowed}")
    return max(1, allowed - 64)


def _allow_files(number: int) -> int | None:
    """Raise this process's own limit of open files as far as needed; return the system's where that is too low."""
    if sys.platform != "win32":  # which has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        possible = number if hard == resource.RLIM_INFINITY else min(number, hard)
        if resource.RLIM_INFINITY != soft < possible:
            resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        if possible < number:
            return possible
    return None


class _Conductor:
    """Prints what happens as it happens, and keeps the worst exit code."""

    def __init__(self, report: _Report, stream: TextIO, targets: int, show_progress: bool, signals: _Signals) -> None:
        self.code: int = _Exit.OK
        self._signals = signals
        self._report = report
        self._stream = stream
        self._targets = targets
        self._finished = 0
        self._everything = _Statistics()
        self._under_way: dict[tuple[str, int], _Echoed] = {}  # targets, each with its last echo so far
        self._show_progress = show_progress and targets > 1 and bool(sys.stderr and sys.stderr.isatty())

    def conduct(self, events: Generator[_Echoed | _Finished, None, None]) -> None:
        self._follow(events)
        self._print(self._report.closing(self._everything, list(self._under_way.values())))

    def _follow(self, events: Generator[_Echoed | _Finished, None, None]) -> None:
        try:
            with self._signals.unwrapped(), contextlib.closing(events):
                self._print(self._report.opening())
                self._progress(f"0 of {self._targets} done")
                for event in events:
                    with self._signals.held():
                        self._take(event)
        except KeyboardInterrupt as interruption:
            self._signals.heard()
            self.code = _interrupted(interruption)
        self._progress("")

    def _take(self, event: _Echoed | _Finished) -> None:
        if isinstance(event, _Echoed):
            self._everything.add(event.result)
            self.code = max(self.code, _exit_code(event.result))
            self._under_way[event.target.endpoint] = event
            self._print(self._report.echoed(event))
        else:
            self._finished += 1
            self._print(self._report.finished(self._under_way.pop(event.target.endpoint)))
            self._progress(f"{self._finished} of {self._targets} done, {self._everything.sent} echoes sent")

    def _print(self, lines: Iterator[str]) -> None:
        for line in lines:
            self._progress("")
            print(line, file=self._stream, flush=True)

    def _progress(self, text: str) -> None:
        if self._show_progress:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _unwritten(error: OSError) -> _Exit:
    """Nobody reads any more, which is all right, or nobody can."""
    if isinstance(error, BrokenPipeError):
        return _Exit.OK
    _complain(f"cannot write the results: {_reason(error)}")
    return _Exit.USAGE


def _flush() -> _Exit:
    """Let go what cannot be written: Python would complain of it at its exit."""
    code = _Exit.OK
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # a process may be started without
                stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = _unwritten(error) if stream is sys.stdout else code
    return code


class _Interrupted(KeyboardInterrupt):
    """SIGINT. Once a plain KeyboardInterrupt has left a text that `exec` runs, Python ends itself by the signal."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends the run as Ctrl-C does, but for the exit code."""


class _Signals:
    """SIGINT and SIGTERM: raised at once, but not between printing an echo and counting it.

    What is raised in a destructor or in a weak reference's callback is lost. So it is raised again until it is heard.
    """

    def __init__(self) -> None:
        self._holding = False
        self._asked: KeyboardInterrupt | None = None
        self._alarm_before: Any = None  # while the reminder is on

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        hook = sys.unraisablehook
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as in a job that a shell has put into the background
                signal.signal(number, self._take)
        sys.unraisablehook = functools.partial(self._hush, hook)
        try:
            with self.unwrapped():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)  # None: not set from Python
            sys.unraisablehook = hook
            self.heard()

    def _take(self, number: int, _frame: object) -> None:
        again = self._asked is not None  # who asks twice waits no longer
        self._asked = _Terminated() if number == signal.SIGTERM else _Interrupted()
        self._remind()
        if again or not self._holding:
            raise self._asked

    def _remind(self) -> None:
        if sys.platform != "win32" and self._alarm_before is None:  # Windows has no such reminder
            self._alarm_before = signal.signal(signal.SIGALRM, self._insist) or signal.SIG_DFL
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE, _PATIENCE)

    def _insist(self, _number: int, _frame: object) -> None:
        if self._asked:
            raise self._asked

    @contextlib.contextmanager
    def unwrapped(self) -> Iterator[None]:
        """Whatever an interruption has become on its way is one: creating a class makes a RuntimeError of it."""
        try:
            yield
        except Exception:  # any: what it became depends on where it came
            if self._asked:
                raise self._asked from None
            raise

    def heard(self) -> None:
        """The interruption has come to where it is dealt with."""
        if sys.platform != "win32" and self._alarm_before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm_before)
            self._alarm_before = None

    @staticmethod
    def _hush(hook: Callable[[Any], object], unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            raise self._asked


_PATIENCE = 2.0  # seconds: longer than the threads of a fleet take to end


def _interrupted(interruption: KeyboardInterrupt) -> _Exit:
    return _Exit.TERMINATED if isinstance(interruption, _Terminated) else _Exit.INTERRUPTED


def _never_fail_to_encode() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _debugging(wanted: bool) -> Iterator[None]:
    """Show on standard error what is logged."""
    handler, level = logging.StreamHandler(), _log.level
    if wanted:
        _log.addHandler(handler)
        _log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)


def _run(args: argparse.Namespace, parser: _Parser, signals: _Signals) -> int:
    """Carry out what the command line says."""
    if args.version:
        print(*_versions(args.verbose), sep="\n")
        return _Exit.OK
    with contextlib.ExitStack() as stack:
        try:
            if importlib.util.find_spec("pynetdicom") is None:
                raise ValueError("pynetdicom is not installed: pip install pynetdicom, or use dicom-echo.pyz")
            _check(args)
            options = _options(args)
            if args.self_test:
                args.hosts = [stack.enter_context(_listener("::1" if args.family == socket.AF_INET6 else "127.0.0.1"))]
            targets = _targets(args, options)
            jobs = _jobs(args.jobs, len(targets))
            stream = stack.enter_context(_output(args.output))
        except ValueError as error:
            parser.error(*map(str, error.args))
        report = _report(args, targets, stream)
        conductor = _Conductor(report, stream, len(targets), not args.quiet, signals)
        plan = _Plan(args.id, args.count, args.interval, args.reuse, args.wait)
        unwritten = _Exit.OK
        try:
            with stack.pop_all():  # the end of the output may fail as its lines may
                conductor.conduct(_campaign(targets, plan, jobs))
        except OSError as error:  # everything else that may fail is in a result
            unwritten = _unwritten(error)
    if isinstance(report, _Nagios):
        return _State.UNKNOWN if unwritten else report.state
    return max(conductor.code, unwritten)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code: 0 every echo succeeded, 1 a peer answered but not with Success, 2 usage or results that cannot
        be written, 3 no answer, 130 interrupted, 143 terminated. With ``--format nagios`` that of a monitoring plugin.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    for_nagios = "--format=nagios" in arguments or ("--format", "nagios") in itertools.pairwise(arguments)
    signals = _Signals()
    code: int = _Exit.OK
    try:
        with signals.handled():
            _never_fail_to_encode()
            parser = _parser()
            parser.for_nagios = for_nagios
            args = parser.parse_intermixed_args(arguments)
            with _debugging(args.debug):
                code = _run(args, parser, signals)
    except SystemExit as left:  # of argparse
        raise SystemExit(max(int(left.code or 0), _flush())) from None
    except KeyboardInterrupt as interruption:
        code = _unknown("interrupted") if for_nagios else _interrupted(interruption)
    except OSError as error:
        code = _unwritten(error)
    return max(code, _flush())


if __name__ == "__main__":
    raise SystemExit(main())
