"""Send a DICOM C-ECHO ("DICOM ping") and report which step failed, why, and what to do.

    send("ANY-SCP@pacs:11112")         returns the DIMSE status, 0 for Success; raises an EchoError if there is none
    probe("ANY-SCP@pacs:11112")        returns an EchoResult, whatever the network or the peer does
    probe_many(["a:104", "b:104"])     yields an EchoResult for each address as it finishes, many in parallel

Steps are named and explained in the standard's own terms: PS3.7 (C-ECHO) and PS3.8 (association).
"""

# The chapters of this file, in reading order:
#
#  1. vocabulary   constants and phases
#  2. errors       what can go wrong, and what to do about it
#  3. address      [AE-TITLE@]HOST[:PORT]
#  4. request      what is asked, and the result
#  5. verbs        send, probe, probe_many
#  6. echo         one echo from beginning to end
#  7. wire         name look-up, TCP and TLS; what an echo can wait for
#  8. dialogue     the association as its requestor sees it: bytes in, events out, no I/O
#  9. codec        PDUs and command sets: requests encoded by pynetdicom, answers read here
# 10. turns        the loop in which many echoes take turns
# 11. campaign     repeats, intervals, retries; what they add up to
# 12. reports      results in, lines out: text, JSON, Nagios, Prometheus
# 13. other end    a peer to try this tool, or a modality, against
# 14. command      the command line

from __future__ import annotations

if __name__ == "__main__":  # from here on, Ctrl-C ends the process without a traceback
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import enum
import errno
import functools
import heapq
import importlib.machinery
import io
import itertools
import math
import os
import re
import selectors
import socket
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, Optional, TypedDict, TypeVar

if TYPE_CHECKING:
    import argparse
    import queue
    import ssl
    from pathlib import Path
    from typing import TextIO

    from typing_extensions import Unpack

__version__ = "0.4.0"
__version_tuple__ = (0, 4, 0)

__all__ = [
    "send", "probe", "probe_many", "parse_address", "Address", "EchoResult", "Peer", "TLSInfo", "Phase", "Identity",
    "Counter", "counter", "DEFAULT_CALLED_AE_TITLE", "DEFAULT_CALLING_AE_TITLE",
    "EchoError", "AddressError", "Unreachable", "ConnectionLost", "TLSFailed", "TimedOut", "Rejected", "NotSupported",
    "Aborted", "ProtocolError",
]  # fmt: skip

_T = TypeVar("_T")


# -- 1. vocabulary -----------------------------------------------------------------------------------------------------

DEFAULT_CALLED_AE_TITLE = "ANY-SCP"
"""The called AE title where neither the address nor the caller names one."""

DEFAULT_CALLING_AE_TITLE = "ECHOSCU"
"""The calling AE title where the caller names none."""

_DEFAULT_PORT = 104  # acr-nema
_DEFAULT_TLS_PORT = 2762  # dicom-tls
_DEFAULT_TIMEOUT = 10.0
_MAX_SECONDS = 86400.0  # a day; the system's own limits are far above
_DEFAULT_JOBS = 32
_RELEASE_TIMEOUT = 1.0  # the verdict is known by then, so the rest must not take longer

_UID = re.compile(r"(?=.{3,64}$)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")  # PS3.5 9.1
_VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 Annex A
_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1
_CONTEXT_ID = 1

_TRANSFER_SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big-endian": "1.2.840.10008.1.2.2",
}

# A UID made from a UUID (PS3.5 B.2) needs no registered root.
_IMPLEMENTATION_CLASS_UID = "2.25.233710274061387460427214318917360127505"
_IMPLEMENTATION_VERSION_NAME = f"DICOM_ECHO_{__version__.replace('.', '')}"

# Bounds on what a peer may announce: an echo needs a few hundred bytes; decoding more could outlast the time limit.
_MAX_PDU_LENGTH = 1 << 17
_MAX_COMMAND_LENGTH = 1 << 16


class Phase(enum.Enum):
    """The steps of an echo, in their order; ``str()`` gives the name.

    Attributes
    ----------
    resolve, connect, tls : Phase
        The look-up of the name, the TCP connection, the TLS handshake.
    associate, echo, release : Phase
        The association (PS3.8 7.1), the C-ECHO (PS3.7 9.1.5), the end of the association (PS3.8 7.2).
    """

    resolve = "resolve"
    connect = "connect"
    tls = "tls"
    associate = "associate"
    echo = "echo"
    release = "release"

    def __str__(self) -> str:
        return self.name


_PDU_NAMES = {
    1: "A-ASSOCIATE-RQ", 2: "A-ASSOCIATE-AC", 3: "A-ASSOCIATE-RJ", 4: "P-DATA-TF", 5: "A-RELEASE-RQ",
    6: "A-RELEASE-RP", 7: "A-ABORT",
}  # fmt: skip

# PS3.7 9.3.5.2 and Annex C
_STATUS_TEXTS = {
    0x0000: "Success", 0x0105: "no such attribute", 0x0106: "invalid attribute value", 0x0107: "attribute list error",
    0x0110: "processing failure", 0x0111: "duplicate SOP instance", 0x0112: "no such SOP instance",
    0x0113: "no such event type", 0x0114: "no such argument", 0x0115: "invalid argument value",
    0x0116: "attribute value out of range", 0x0117: "invalid SOP instance", 0x0118: "no such SOP class",
    0x0119: "class-instance conflict", 0x0120: "missing attribute", 0x0121: "missing attribute value",
    0x0122: "SOP class not supported", 0x0123: "no such action", 0x0124: "not authorized",
    0x0210: "duplicate invocation", 0x0211: "unrecognized operation", 0x0212: "mistyped argument",
    0x0213: "resource limitation",
}  # fmt: skip


def _status_text(status: int) -> str:
    """The name of a status or, if it has none, its class (PS3.7 Annex C)."""
    if status in _STATUS_TEXTS:
        return _STATUS_TEXTS[status]
    digits = f"{status:04X}"
    if digits[:2] in ("01", "02") or digits[0] in "AC":
        return "an unnamed failure"
    if status == 0x0001 or digits[0] == "B":
        return "an unnamed warning"
    if status == 0xFE00:
        return "cancelled"
    return "pending" if digits[:2] == "FF" else "not a status of the standard"


def _hex(number: int) -> str:
    return f"{number:04X}H"


def _printable(text: str) -> str:
    """Escape control characters, so that a peer's text cannot control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _reason(error: BaseException) -> str:
    """The system's message for an error, without its number, and in lower case."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"  # Windows has a whole sentence for it
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return words[:1].lower() + words[1:]


def _no_answer(seconds: float) -> str:
    return f"no answer within {round(seconds, 2) or seconds:g} s"


# -- 2. errors ---------------------------------------------------------------------------------------------------------


class _OwnNames(type):
    """Hides the members of Python's own exceptions from ``dir()``, and so from ``help()``."""

    def __dir__(cls) -> list[str]:
        return sorted({name for base in cls.__mro__ if base.__module__ == __name__ for name in vars(base)})


class EchoError(Exception, metaclass=_OwnNames):
    """No C-ECHO status was received.

    Attributes
    ----------
    kind : str
        The kind of failure in one word, as in the JSON output.
    message : str
        What happened, in a few words; also ``str(error)``.
    phase : Phase or None
        The step in which it happened; None before the first.
    hint : str
        What may be the cause and what to do; may be empty.
    title : str
        The kind in words, as in ``Timed out``.
    detail : str
        The facts in the standard's terms, as text; may be empty.
    facts : dict
        The facts by name; each is also an attribute.
    """

    kind: ClassVar[str] = ""
    title: ClassVar[str] = ""
    facts: dict[str, Any]

    def __init_subclass__(cls, kind: str = "", title: str = "") -> None:
        cls.kind, cls.title = kind or cls.kind, title or cls.title

    def __init__(self, message: str, *, case: str = "", hint: str = "", detail: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message, self.hint, self.detail, self.facts = message, hint, detail, facts
        self.phase: Phase | None = None
        self._case = case or message  # its key in the table of hints
        for name, value in facts.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild copies and pickles from the facts, too: ``errno``, for example, is not in ``__dict__``."""
        return functools.partial(type(self), self.message, **self.facts), (), vars(self)


class AddressError(EchoError, ValueError, kind="address", title="Wrong address"):
    """The caller's address, AE title or message ID is wrong; nothing was sent."""


class Unreachable(EchoError, ConnectionError, kind="unreachable", title="Unreachable"):
    """The name does not resolve, the connection is refused, or there is no route to the host.

    Attributes
    ----------
    errno : int or None
        The system's error number, if there is one.
    """


class ConnectionLost(EchoError, ConnectionError, kind="lost", title="Connection lost"):
    """The peer closed or reset the connection without an answer."""


class TLSFailed(EchoError, ConnectionError, kind="tls", title="TLS failed"):
    """The TLS handshake failed, or a certificate was refused."""


class TimedOut(EchoError, ConnectionError, TimeoutError, kind="timeout", title="Timed out"):
    """The time limit expired, in any phase.

    Attributes
    ----------
    timeout : float
        The time limit, in seconds.
    """

    timeout: float


class Rejected(EchoError, ValueError, kind="rejected", title="Rejected"):
    """The peer rejected the association: A-ASSOCIATE-RJ (PS3.8 9.3.4).

    Attributes
    ----------
    result, source, reason : int
        As received; PS3.8 Table 9-21 has their meanings.
    """

    result: int
    source: int
    reason: int


class NotSupported(EchoError, ConnectionError, kind="not-supported", title="Not supported"):
    """The association was accepted, but Verification was not.

    Attributes
    ----------
    result : int
        The result of the presentation context, as received; PS3.8 Table 9-18 has its meaning.
    """

    result: int


class Aborted(EchoError, ConnectionError, kind="aborted", title="Aborted"):
    """The peer aborted the association: A-ABORT (PS3.8 9.3.8).

    Attributes
    ----------
    source, reason : int
        As received; PS3.8 Table 9-26 has their meanings.
    """

    source: int
    reason: int


class ProtocolError(EchoError, ConnectionError, kind="protocol", title="Protocol error"):
    """The peer sent something other than the expected DICOM (PS3.8 9.3, PS3.7 9.3.5), or no DICOM at all."""


# What may be the cause and what to do, by the kind of the error and its case: what happened or, failing that, where;
# "" is any. `_Echo._explain` looks them up, in its order.
_HINTS: dict[tuple[str, str], str] = {
    ("unreachable", "name not resolved"): "check the spelling and the name server, or use the IP address",
    ("unreachable", "other family"): "leave out -4, -6 and --source, or give another address",
    ("unreachable", "connection refused"): "nothing listens on this port, or a firewall resets the connection; usual "
    "DICOM ports: 104, 11112, 4242, 2762 (TLS)",
    ("unreachable", "link-local"): "a link-local address needs the interface to use: [fe80::1%eth0]",
    ("unreachable", "this host"): "the problem is on this host: check its limits, permissions and network settings",
    ("unreachable", "connect"): "check the address, the network and the firewalls in between",
    ("lost", "associate"): "possible causes: a port that speaks TLS only (try --tls), a peer that admits only known "
    "addresses or AE titles, or a load balancer with no server behind it",
    ("lost", "associate over TLS"): "the peer hung up after the TLS handshake: it may want a client certificate "
    "(--cert, --key), admit only known addresses or AE titles, or not speak DICOM; its log may say why",
    ("lost", "echo"): "the peer accepted the association and then dropped it: its log may say why",
    ("timeout", "resolve"): "the name server does not answer: try the IP address of the host",
    ("timeout", "connect"): "the host may be down, the address wrong, or a firewall may drop packets (a closed port "
    "usually refuses at once)",
    ("timeout", "tls"): "the port may not speak TLS (try without --tls), or the peer hangs",
    ("timeout", "associate"): "the port is open but nothing answers: the peer may hang or be overloaded, be looking "
    "this host up in DNS, or wait for TLS (try --tls); it may not be a DICOM port, or a firewall holds the data back",
    ("timeout", "associate over TLS"): "the peer may hang, be looking this host up in DNS, or not speak DICOM",
    ("timeout", "echo"): "the peer may hang or be overloaded, or a firewall holds the data back",
    ("timeout", "cut off"): "the answer was cut off",
    ("timeout", "suspended"): "the problem is not at the peer: this host was suspended or overloaded",
    # the peer's certificate
    ("tls", "certificate not trusted"): "pass the issuing CA, or the peer's own certificate if it is self-signed, with "
    "--cacert FILE, or have the peer send its intermediate certificates; use -k only for diagnosis",
    ("tls", "a certificate has expired"): "renew it, or compare the clocks of both hosts; use -k only for diagnosis",
    ("tls", "a certificate is not valid yet"): "compare the clocks of both hosts",
    ("tls", "the certificate is for another name"): "check the address, or pass a name that it has with --server-name",
    ("tls", "a certificate is too weak"): "have it reissued (RSA of 2048 bits, SHA-256); --cacert does not help",
    ("tls", "the certificate is for another purpose"): "have it reissued for serverAuth; --cacert does not help",
    ("tls", "a CA may not issue this certificate"): "the CA's basic constraints, key usage, path length or name "
    "constraints do not allow it: have one of the two reissued; --cacert does not help unless it holds another CA",
    ("tls", "a certificate breaks RFC 5280"): "have it reissued, or clear the SSLContext's VERIFY_X509_STRICT",
    ("tls", "certificate not accepted"): "the certificate itself may be at fault, or --cacert holds another CA "
    "of the same name; use -k only for diagnosis",
    # our certificate
    ("tls", "the peer wants a client certificate"): "present a client certificate: --cert FILE --key FILE",
    ("tls", "the peer says our certificate has expired"): "renew it, or compare the clocks of both hosts",
    ("tls", "the peer says our certificate has been revoked"): "have a new one issued (--cert, --key)",
    **dict.fromkeys(
        (("tls", f"the peer does not {what} our certificate") for what in ("accept", "trust", "support")),
        "the peer may not trust the CA that issued it (put the intermediate certificates behind ours in --cert FILE), "
        "or it may have expired, or be for another purpose than client authentication",
    ),
    ("tls", "client certificate missing or not accepted"): "if the SSLContext has no certificate loaded, load one; "
    "otherwise the peer may not trust its CA, or it has expired or is for another purpose than client authentication",
    ("tls", "the peer denied access"): "the holder of our certificate may have to be registered with the peer",
    # the handshake
    ("tls", "the peer refused the handshake"): "the two sides may have no common cipher (--ciphers AES128-SHA reaches "
    "peers of the retired AES profile), or the peer may want a client certificate, or another (--cert, --key)",
    ("tls", "no common TLS version"): "the peer must speak TLS 1.2 or later (PS3.15 B.12), and allow it",
    ("tls", "no common cipher"): "no cipher of ours suits the peer, or is strong enough for it: see --ciphers",
    ("tls", "the peer's TLS is too weak"): "have it updated, or try --ciphers DEFAULT@SECLEVEL=0 for diagnosis",
    ("tls", "the peer does not know this server name"): "pass one that it knows with --server-name",
    ("tls", "the peer ended the handshake"): "the peer gives no useful reason: its log may say more",
    ("tls", "the peer does not speak TLS"): "the port does not speak TLS: drop --tls",
    ("tls", "closed during the handshake"): "the port may not speak TLS (try without --tls), or the peer admits only "
    "known addresses, or names (--server-name)",
    ("tls", "handshake failed"): "see what OpenSSL says above, and the peer's log; a firewall or proxy may be at fault",
    # the association
    ("rejected", ""): "often the peer does not know an AE title or this host, {local}; its log may say more",
    **dict.fromkeys(
        (("rejected", "application context name not supported"), ("rejected", "protocol version not supported")),
        "the peer may not be a DICOM application, or a very old one; its log may say more",
    ),
    ("rejected", "calling AE title not recognized"): 'the peer may not know "{calling}" from {local}: have it '
    "registered there, or call as a registered title with -aet, as the modality does",
    ("rejected", "called AE title not recognized"): 'check the called AE title "{called}" (upper and lower case may '
    "count); some peers answer the same when they do not admit the calling AE title \"{calling}\" (-aet) or this host, "
    "{local}",
    **dict.fromkeys(
        (("rejected", "temporary congestion"), ("rejected", "local limit exceeded")),
        "the peer has no free association: try again later (if it stays, connections that were never closed may use "
        "them up, and the peer may need a restart)",
    ),
    ("rejected", "with identity"): "the peer may not accept this user identity, an AE title or this host, {local}",
    ("not-supported", ""): "the peer accepts the AE titles but refuses Verification, which it may not list for us",
    ("not-supported", "abstract syntax not supported"): "the peer accepts the AE titles but does not offer the "
    "Verification SOP class; another AE title of the same host may",
    ("not-supported", "transfer syntaxes not supported"): "the peer wants another one: see --transfer-syntax",
    ("aborted", "no reason given"): "some peers abort instead of rejecting: check both AE titles, and whether the peer "
    "admits this host, {local}",
    ("aborted", ""): "the peer did not understand the request or did not want it: its log may say why",
    ("protocol", "TLS"): "the port speaks TLS: try --tls",
    ("protocol", "not DICOM"): "this is not a DICOM port",
    ("protocol", ""): "the peer's DICOM is faulty, or its answer was changed on the way; -d shows its bytes",
    ("status", "not authorized"): 'the peer may not admit the calling AE title "{calling}" (-aet) or this host',
    ("status", ""): "the peer answered and reports a failure of its own: its log may say why",
}  # fmt: skip


def _hint(kind: str, *cases: Any) -> str:
    """The hint for the first of the cases that has one."""
    return next((_HINTS[kind, case] for case in (*cases, "") if (kind, case) in _HINTS), "")


# -- 3. address --------------------------------------------------------------------------------------------------------

_FORM = "[AE-TITLE@]HOST[:PORT]"
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_ZONE = re.compile(r"[A-Za-z0-9._~-]+")


class Address(NamedTuple):
    """Where a peer is, and its AE title if the address names one; ``str()`` gives the text back.

    Attributes
    ----------
    ae_title : str or None
        The called AE title, without padding.
    host : str
        A DNS name, an IPv4 address or an IPv6 address, the last without brackets.
    port : int or None
        1-65535, or None where the address has none.
    """

    ae_title: str | None
    host: str
    port: int | None

    def __str__(self) -> str:
        title = "" if self.ae_title is None else f"{self.ae_title}@"
        return title + (self.host if self.port is None else _host_port(self.host, self.port))


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _without_port(host_port: str) -> str:
    return host_port.rpartition(":")[0].strip("[]")


def parse_address(text: str) -> Address:
    """Read ``[AE-TITLE@]HOST[:PORT]``.

    Parameters
    ----------
    text : str
        HOST is a DNS name, an IPv4 address, ``[IPv6]`` or ``[IPv6%zone]``, or a bare IPv6 address without a port.
        Brackets may stand around any host. The AE title is everything before the last ``@`` (PS3.5 6.2).

    Returns
    -------
    Address
        ``ae_title`` and ``port`` are None where the text has none.

    Raises
    ------
    AddressError
        Its message names the part that is wrong and shows the expected form.
    """
    try:
        if not isinstance(text, str):
            raise AddressError(f"the address must be text, not {text!r}")
        if "://" in text:
            raise AddressError(f'"{text}" is a URL')
        title, at, rest = text.rpartition("@")
        host, port = _split_port(rest)
        ae_title = _check_ae_title(title) if at else None
        return Address(ae_title, _check_host(host), None if port is None else _check_port(port))
    except AddressError as error:
        raise AddressError(f"{error}; expected {_FORM}") from None


def _split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        parts = re.fullmatch(r"\[([^]]*)\](?::(.*))?", text, re.DOTALL)
        if not parts:
            raise AddressError(f'"{text}" is not [HOST] or [HOST]:PORT')
        return parts[1], parts[2]
    if _ip_version(text) == 6:
        return text, None
    if text.count(":") > 1:
        raise AddressError(f'"{text}" has several colons but is not an IPv6 address (with a port, write [IPv6]:PORT)')
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _ip_version(host: str) -> int:
    """4 or 6 for an IP address, which may have a zone if it is an IPv6 one; 0 for anything else."""
    address, percent, zone = host.partition("%")
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, address)
            return version if not percent or (version == 6 and _ZONE.fullmatch(zone)) else 0
    return 0


def _check_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise AddressError(f"the port {text} is not in the range 1-65535" if text else "the port is missing")
    return int(text)


def _check_host(host: str) -> str:
    """Check a DNS name against RFC 1035 2.3.4 and RFC 1123 2.1, with the underscore that many networks use."""
    if not host:
        raise AddressError("the host is missing")
    if _ip_version(host):
        return host
    if words := re.fullmatch(r"(?:(\S+) +)?(\d+)", host):
        raise AddressError(f'"{host}" is not a host; write {words[1] or "HOST"}:{words[2]} as one argument')
    ascii_name = _ascii_name(host)
    bare = ascii_name.removesuffix(".")
    is_name = all(map(_LABEL.fullmatch, bare.split("."))) and len(bare) <= 253
    is_number = re.fullmatch(r"[0-9.]+", ascii_name)  # the system reads 10.1 as 10.0.0.1
    if not is_name or is_number:
        raise AddressError(f'"{_printable(host)}" is not {"an IPv4 address" if is_number else "a host name"}')
    return host


def _ascii_name(host: str) -> str:
    """A host name as it goes to the name server; empty if it cannot (RFC 3490)."""
    if host.isascii():
        return host
    import stringprep

    # The conversion silently drops these, but the output and the name that TLS expects would still contain them.
    if any(map(stringprep.in_table_b1, host)):
        return ""
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return ""


def _check_ae_title(text: str) -> str:
    """Check an AE title against PS3.5 6.2 (value representation AE); return it without its padding."""
    if not isinstance(text, str):
        raise AddressError(f"the AE title must be text, not {text!r}")
    title = text.strip(" ")
    if not title:
        raise AddressError("the AE title is empty")
    if not (title.isascii() and title.isprintable()) or "\\" in title:
        raise AddressError(f"the AE title {title!r} contains a backslash, a control character or a non-ASCII character")
    if len(title) > 16:
        raise AddressError(f'the AE title "{title}" has {len(title)} characters, 16 are allowed')
    return title


# -- 4. request --------------------------------------------------------------------------------------------------------


class Identity:
    """A user identity to present with the association request (PS3.7 D.3.3.7); its ``repr`` does not show it.

    Parameters
    ----------
    user : str, optional
        A user name, alone or with a password.
    password : str, optional
        The password of the user.
    kerberos, saml, jwt : bytes or str, optional
        Instead of a user: a Kerberos service ticket, a SAML assertion or a JSON Web Token.

    Raises
    ------
    ValueError
        Not exactly one of them is given, a password has no user, or one is empty or longer than 65,000 bytes.
    """

    __slots__ = ("_primary", "_secondary", "_type")

    def __init__(
        self,
        *,
        user: str | None = None,
        password: str | None = None,
        kerberos: bytes | str | None = None,
        saml: bytes | str | None = None,
        jwt: bytes | str | None = None,
    ) -> None:
        kinds = ((1, user), (3, kerberos), (4, saml), (5, jwt))  # PS3.7 Table D.3-14; 2 is a user with a password
        given = [(kind, value) for kind, value in kinds if value is not None]
        if len(given) != 1 or (password is not None and user is None):
            raise ValueError("an identity is a user, with or without a password, or one of kerberos, saml and jwt")
        [(kind, primary)] = given
        secondary = "" if password is None else password
        if not isinstance(primary, (str, bytes)) or not isinstance(secondary, str):
            raise TypeError("the parts of an identity must be str or bytes")
        self._type = kind if password is None else 2
        self._primary = primary.encode(errors="surrogateescape") if isinstance(primary, str) else primary
        self._secondary = secondary.encode(errors="surrogateescape")
        if not primary or password == "" or len(self._primary) + len(self._secondary) > 65000:
            raise ValueError("an identity must not be empty, nor longer than 65,000 bytes")

    def __repr__(self) -> str:
        return "Identity(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity cannot be pickled or copied: it holds a secret")


class Options(TypedDict, total=False):
    """The keyword options of the verbs; see `probe`."""

    timeout: float
    family: int
    source: str | None
    tls: ssl.SSLContext | None
    server_hostname: str | None
    identity: Identity | None
    max_pdu: int
    transfer_syntaxes: Sequence[str]
    abort: bool


class _Request:
    """What the caller wants, checked and settled before a socket is opened."""

    timeout: float = _DEFAULT_TIMEOUT
    family: int = socket.AF_UNSPEC
    source: str | None = None
    tls: ssl.SSLContext | None = None
    server_hostname: str | None = None
    identity: Identity | None = None
    max_pdu: int = 16382
    transfer_syntaxes: Sequence[str] = ("implicit", "explicit")
    abort: bool = False

    def __init__(
        self, address: str | Address, called: str, calling: str, label: str | None = None, /, **options: Unpack[Options]
    ) -> None:
        if unknown := options.keys() - Options.__annotations__.keys():
            raise TypeError(f"unknown option {min(unknown)!r}; the options are {', '.join(Options.__annotations__)}")
        self.address = parse_address(str(address) if isinstance(address, Address) else address)
        self.label = label  # from a targets file
        self.called_ae_title, self.calling_ae_title = _check_ae_title(called), _check_ae_title(calling)
        if self.called_ae_title == DEFAULT_CALLED_AE_TITLE and self.address.ae_title is not None:
            self.called_ae_title = self.address.ae_title
        vars(self).update(options)
        number, text = (int, float), (str, type(None))
        families = (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6)
        for name, kind, rule, fits in (  # the last two say the same, in words and as code
            ("timeout", number, f"a number above 0 and up to {_MAX_SECONDS:.0f}", lambda n: 0 < n <= _MAX_SECONDS),
            ("family", int, "0, socket.AF_INET or socket.AF_INET6", lambda n: n in families),
            ("source", text, "an IP address as text", lambda _: True),
            ("server_hostname", text, "a host name as text", lambda s: s is None or (s and s.isprintable())),
            ("identity", (Identity, type(None)), "an Identity", lambda _: True),
            ("max_pdu", int, "0 (unlimited) or an integer from 16 to 4294967295", lambda n: not n or 16 <= n < 2**32),
            ("transfer_syntaxes", Sequence, "a sequence of 1 to 100 names", lambda names: 0 < len(names) <= 100),
        ):
            value: Any = getattr(self, name)
            is_of_kind = isinstance(value, kind) and not (kind is Sequence and isinstance(value, str))
            if not is_of_kind or not fits(value):
                raise (ValueError if is_of_kind else TypeError)(f"{name} must be {rule}, not {value!r}")
        if self.tls is not None and not hasattr(self.tls, "wrap_socket"):
            raise TypeError(f"tls must be an ssl.SSLContext, not {self.tls!r}")
        self.transfer_syntaxes = tuple(map(_transfer_syntax, self.transfer_syntaxes))
        if self.source is not None:
            self.family = _family_of_source(self.source, self.family)

    @property
    def port(self) -> int:
        return self.address.port or (_DEFAULT_TLS_PORT if self.tls else _DEFAULT_PORT)

    @property
    def target(self) -> str:
        """The full address, with the title and the port to use."""
        return f"{self.called_ae_title}@{_host_port(self.address.host, self.port)}"


def _transfer_syntax(name: str) -> str:
    uid = _TRANSFER_SYNTAXES.get(name, name)
    if not isinstance(uid, str) or not _UID.fullmatch(uid):
        raise ValueError(f"a transfer syntax is one of {', '.join(_TRANSFER_SYNTAXES)} or a UID, not {name!r}")
    return uid


def _family_of_source(source: str, family: int) -> int:
    """The address family of a local IP address, after checking that a socket can be bound to it."""
    try:
        own = socket.getaddrinfo(source, 0, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[0]
        with socket.socket(own[0]) as trial:
            trial.bind(own[4])
    except (OSError, UnicodeError) as error:
        raise ValueError(f"source must be an IP address of this host, not {source!r}: {_reason(error)}") from error
    return own[0]


class Peer(NamedTuple):
    """What the peer reported about itself when it accepted the association (PS3.7 D.3.3, PS3.8 9.3.3).

    Attributes
    ----------
    implementation_class_uid : str or None
        The UID of its software (PS3.7 D.3.3.2).
    implementation_version_name : str or None
        The name of its software (PS3.7 D.3.3.2).
    max_pdu : int or None
        The longest PDU that it accepts, in bytes (PS3.8 D.1); 0 is unlimited, None if not stated.
    transfer_syntax : str or None
        The UID of the transfer syntax that it chose (PS3.8 9.3.3.2).
    user_identity : str or None
        ``accepted`` or ``not stated``, as a peer that does not know identities accepts in silence (PS3.7 D.3.3.7.2);
        None where none was presented.
    """

    implementation_class_uid: str | None
    implementation_version_name: str | None
    max_pdu: int | None
    transfer_syntax: str | None
    user_identity: str | None = None


class TLSInfo(NamedTuple):
    """The TLS session, and the peer's certificate. What cannot be read is None or empty.

    Attributes
    ----------
    version, cipher : str
        As OpenSSL names them.
    certificate_expiry : datetime.datetime or None
        In UTC.
    certificate_verified : bool
        Whether its chain and its names were checked.
    subject, issuer : str
        As in ``CN=pacs, O=Hospital``.
    names : tuple of str
        What the certificate is for: its DNS names and IP addresses, or its common name where it has none.
    """

    version: str
    cipher: str
    certificate_expiry: datetime | None
    certificate_verified: bool
    subject: str = ""
    issuer: str = ""
    names: tuple[str, ...] = ()


class _Timings(dict[Phase, float]):
    """Read-only, so that a result can be hashed and shared."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a result cannot be changed")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # a dict, which can change, has none
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


class EchoResult(NamedTuple):
    """The outcome of one echo; immutable. It is true if the peer answered with Success.

    Attributes
    ----------
    address : Address
        As the caller gave it.
    port : int
        The port used, whether the address names it or not.
    called_ae_title, calling_ae_title : str
        The titles used.
    message_id : int
        The message ID of the request (PS3.7 9.3.5.1).
    started_at : datetime.datetime
        In UTC.
    label : str or None
        The peer's label in a targets file.
    status : int or None
        The DIMSE status of the C-ECHO response (PS3.7 9.3.5.2), None if there was none.
    error : EchoError or None
        Why there is no status.
    timings : mapping of Phase to float
        Seconds, for the phases that ran.
    local, remote : str or None
        The two ends of the connection as ``IP:PORT``.
    peer : Peer or None
        What the peer reported about itself; None unless it accepted the association.
    tls : TLSInfo or None
        The TLS session; None unless there was one.
    notes : tuple of str
        Anomalies that do not change the verdict.
    released : bool
        Whether the association ended properly, by A-RELEASE or by the A-ABORT that was asked for.
    """

    address: Address
    port: int
    called_ae_title: str
    calling_ae_title: str
    message_id: int
    started_at: datetime
    label: str | None = None
    status: int | None = None
    error: EchoError | None = None
    timings: Mapping[Phase, float] = _Timings()
    local: str | None = None
    remote: str | None = None
    peer: Peer | None = None
    tls: TLSInfo | None = None
    notes: tuple[str, ...] = ()
    released: bool = False

    def __bool__(self) -> bool:
        return self.ok

    @property
    def ok(self) -> bool:
        """Whether the peer answered with Success."""
        return self.status == 0

    @property
    def status_text(self) -> str | None:
        """The meaning of the status (PS3.7 Annex C)."""
        return None if self.status is None else _status_text(self.status)

    @property
    def kind(self) -> str:
        """``ok``, ``status``, or the kind of the error."""
        return self.error.kind if self.error else ("ok" if self.ok else "status")

    @property
    def phase(self) -> Phase | None:
        """The step in which the echo failed; None if it did not."""
        return self.error.phase if self.error else (None if self.ok else Phase.echo)

    @property
    def hint(self) -> str:
        """What may be the cause of a failure and what to do; may be empty."""
        if self.error:
            return self.error.hint
        return "" if self.ok else _hint("status", self.status_text or "").format(calling=self.calling_ae_title)

    @property
    def target(self) -> str:
        """The full address, with the title and the port that were used."""
        return f"{self.called_ae_title}@{_host_port(self.address.host, self.port)}"

    @property
    def total(self) -> float:
        """Total seconds, excluding a failed release: the peer had answered before that."""
        return sum(took for phase, took in self.timings.items() if phase != Phase.release or self.released)

    def to_dict(self) -> dict[str, Any]:
        """The result as ``--format json`` prints it: made of numbers, texts, lists and dictionaries."""
        error: dict[str, Any] | None = None
        if not self.ok:
            why = self.error or EchoError(f"status {_hex(self.status or 0)}, {self.status_text}", status=self.status)
            error = {"kind": self.kind, "phase": self.phase and str(self.phase), "message": why.message}
            error.update(hint=self.hint, detail=why.detail, **why.facts)
        tls: dict[str, Any] | None = None
        if self.tls:
            expiry = _iso(self.tls.certificate_expiry)
            tls = {**self.tls._asdict(), "certificate_expiry": expiry, "names": list(self.tls.names)}
        return {
            "schema_version": 1, "type": "echo", "time": _iso(self.started_at), "target": self.target,
            "label": self.label, "host": self.address.host, "port": self.port, "local": self.local,
            "remote": self.remote, "called_ae_title": self.called_ae_title, "calling_ae_title": self.calling_ae_title,
            "message_id": self.message_id, "ok": self.ok, "status": self.status, "status_text": self.status_text,
            "phases_ms": {str(phase): _milliseconds(seconds) for phase, seconds in self.timings.items()},
            "total_ms": _milliseconds(self.total), "peer": self.peer and self.peer._asdict(), "tls": tls,
            "notes": list(self.notes), "error": error,
        }  # fmt: skip


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z") if moment else None


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


# -- 5. verbs ----------------------------------------------------------------------------------------------------------


class Counter:
    """Thread-safe message ID counter: 1 … 65535, then 1 again (PS3.7 9.3.5.1).

    Attributes
    ----------
    count : int
        The last ID that was given out; 0 before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def increment(self) -> int:
        """Count up and return the new count."""
        with self._lock:
            self.count = self.count % 0xFFFF + 1
            return self.count


counter = Counter()
"""The counter of message IDs that `send`, `probe` and `probe_many` share by default."""


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
        The peer's AE title; overrides the one in the address unless it is the default.
    calling_ae_title : str
        The AE title to call from.
    message_id : int or Counter
        0-65535, or a counter; the shared `counter` by default.
    **options
        The same as for `probe`.

    Returns
    -------
    int
        0 for Success. Any other status is a failure reported by the peer and does not raise.

    Raises
    ------
    AddressError
        A `ValueError`: the address, an AE title or the message ID is wrong. Nothing was sent.
    Rejected
        A `ValueError`: the peer rejected the association (PS3.8 9.3.4).
    EchoError
        One of the other kinds, each a `ConnectionError`: no status was received.
    ValueError, TypeError
        An option is wrong. Nothing was sent.
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
    """Send a C-ECHO request and return its result, whether it succeeds or fails (PS3.7 9.1.5).

    Parameters
    ----------
    address : str or Address
        ``[AE-TITLE@]HOST[:PORT]``
    called_ae_title : str
        The peer's AE title; overrides the one in the address unless it is the default.
    calling_ae_title : str
        The AE title to call from.
    message_id : int or Counter
        0-65535, or a counter; the shared `counter` by default.
    **options
        Any of the following.
    timeout : float
        Seconds for the whole echo; 10 by default, a day at most.
    family : int
        ``socket.AF_INET`` or ``socket.AF_INET6`` to use only that; either by default.
    source : str
        The local IP address to connect from.
    tls : ssl.SSLContext
        Use TLS; the port is then 2762 where the address names none (PS3.15 B.12).
    server_hostname : str
        The name expected in the peer's certificate, and sent as SNI; the host of the address by default.
    identity : Identity
        The user identity to present (PS3.7 D.3.3.7); none by default.
    max_pdu : int
        The maximum PDU length to announce (PS3.8 D.1), in bytes; 16382 by default, 0 is unlimited.
    transfer_syntaxes : sequence of str
        What to propose: ``implicit``, ``explicit``, ``deflated``, ``big-endian`` or a UID; the first two by default.
    abort : bool
        End the association with A-ABORT instead of A-RELEASE-RQ.

    Returns
    -------
    EchoResult
        If no status was received, its ``error`` says why.

    Raises
    ------
    AddressError
        A `ValueError`: the address, an AE title or the message ID is wrong. Nothing was sent.
    ValueError, TypeError
        An option is wrong. Nothing was sent.
    """
    request = _Request(address, called_ae_title, calling_ae_title, **options)
    task = _alone(_probe(request, _take_message_id(message_id), request.timeout))
    with contextlib.closing(_take_turns([task], 1)) as outcomes:
        result: EchoResult = next(outcomes)
    return result


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
    """Send a C-ECHO request to each of many peers, several in parallel, and yield each result as it comes.

    Parameters
    ----------
    addresses : iterable of str or Address
        All are validated before anything is sent. Those with the same host and port are asked in turn.
    called_ae_title : str
        The peers' AE title; overrides those in the addresses unless it is the default.
    calling_ae_title : str
        The AE title to call from.
    message_id : int or Counter
        0-65535 for all, or a counter; the shared `counter` by default.
    jobs : int
        How many peers to ask in parallel.
    **options
        The same as for `probe`.

    Returns
    -------
    generator of EchoResult
        In the order in which they finish. Closing the generator early ends the echoes under way.

    Raises
    ------
    AddressError
        A `ValueError`: an address, an AE title or the message ID is wrong. Nothing was sent.
    ValueError, TypeError
        An option, or ``jobs``, is wrong. Nothing was sent.
    """
    if not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs must be a whole number of at least 1, not {jobs!r}")
    if isinstance(addresses, (str, Address)):
        raise TypeError(f"addresses must be an iterable of addresses, not {addresses!r}")
    if not isinstance(message_id, Counter):
        _take_message_id(message_id)
    requests = [_Request(each, called_ae_title, calling_ae_title, **options) for each in addresses]

    def ask(request: _Request) -> _Waiting[None]:
        return _alone(_probe(request, _take_message_id(message_id), request.timeout))

    return _Stream(_by_endpoint(requests, ask), jobs).outcomes()


def _take_message_id(message_id: int | Counter) -> int:
    """The next message ID of a counter, or the given one after a check of its range (PS3.7 9.3.5.1)."""
    number = message_id.increment() if isinstance(message_id, Counter) else message_id
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 0xFFFF:
        raise AddressError(f"the message ID must be in the range 0-65535, not {number!r}")
    return number


# -- 6. echo -----------------------------------------------------------------------------------------------------------


def _probe(request: _Request, message_id: int, seconds: float) -> _Waiting[EchoResult]:
    """One echo over an association of its own, from the look-up of the name to the release."""
    echo = _Echo(request, message_id, seconds)
    with contextlib.closing(_Association(request)) as association:
        try:
            yield from association.open(echo)
            yield from association.echo(echo)
            yield from association.release(echo)
        except EchoError as error:
            echo.fail(error)
    return echo.result()


class _Echo:
    """An echo under way: how long it may take, and what it has shown so far."""

    def __init__(self, request: _Request, message_id: int, seconds: float) -> None:
        self.request = request
        self.message_id = message_id
        self.seconds = seconds
        self.started_at = datetime.now(timezone.utc)
        self.wire = _Wire()  # the association that takes this echo up puts its own in place of this and of `pdus`
        self.timings: dict[Phase, float] = {}
        self.notes: list[str] = []
        self.pdus: list[tuple[float, str, bytes]] = []  # logged once the phase is over, since that would prolong it
        self.status: int | None = None
        self.error: EchoError | None = None
        self.peer: Peer | None = None
        self.released = False

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase; record it, with its hint, on any EchoError raised inside."""
        start, self.wire.ready_at = time.perf_counter(), None
        try:
            yield
        except (EchoError, TimeoutError) as error:
            failure = error if isinstance(error, EchoError) else self.expired(detail=str(error))
            self._explain(failure, phase)
            raise failure from None
        finally:
            # The answer may have arrived before it was our turn.
            self.timings[phase] = (self.wire.ready_at or time.perf_counter()) - start
            _log_pdus(self.pdus, self.request.target)
            self.pdus.clear()

    def _explain(self, error: EchoError, phase: Phase) -> None:
        error.phase = phase
        if not error.hint:
            asked = self.request
            local = _without_port(self.wire.local or "") or "this host"
            cases = error._case, asked.identity and "with identity", asked.tls and f"{phase} over TLS", str(phase)
            hint = _hint(error.kind, *cases)
            error.hint = hint.format(called=asked.called_ae_title, calling=asked.calling_ae_title, local=local)

    def expired(self, case: str = "", detail: str = "") -> TimedOut:
        message, self.wire.ready_at = _no_answer(self.seconds), None  # a part of an answer does not end the phase
        late = time.perf_counter() - self.wire.until
        if late > 1.0:  # the loop looks at the clock in time, unless this process did not run
            message, case = f"{message}, but this process did not run for {late:.0f} s", "suspended"
        return TimedOut(message, case=case, detail=detail, timeout=self.seconds)

    def fail(self, error: EchoError) -> None:
        """Keep an error as the outcome: its facts, and none of the frames and buffers that it came from."""
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self.error = error

    def result(self) -> EchoResult:
        asked = self.request
        return EchoResult(
            address=asked.address, port=asked.port, called_ae_title=asked.called_ae_title,
            calling_ae_title=asked.calling_ae_title, message_id=self.message_id, started_at=self.started_at,
            label=asked.label, status=self.status, error=self.error, timings=_Timings(self.timings),
            local=self.wire.local, remote=self.wire.remote, peer=self.peer, tls=self.wire.tls,
            released=self.released,
            notes=tuple(dict.fromkeys(self.notes)),  # the same anomaly may occur many times
        )  # fmt: skip


class _Association:
    """An association and the wire under it; echoes go over it one after the other."""

    def __init__(self, request: _Request) -> None:
        self._request = request
        self._wire = _Wire()
        self._pdus = pdus = list[tuple[float, str, bytes]]()
        self._dialogue = _Dialogue(request)
        # By way of `self`, it would refer back to what holds it, and only the garbage collector would free them.
        self._dialogue.trace = lambda pdu: pdus.append((time.time(), "received", pdu))
        self._peer: Peer | None = None
        self._used_at = 0.0
        self._last_words = b""  # the PDU to send if we hang up now, if any

    def open(self, echo: _Echo) -> _Waiting[None]:
        """Connect, and request the association: A-ASSOCIATE (PS3.8 7.1)."""
        self._take_up(echo)
        request, wire, host = self._request, self._wire, self._request.address.host
        with echo.phase(Phase.resolve):
            candidates = yield from wire.resolve(host, request.port, request.family)
        with echo.phase(Phase.connect):
            echo.notes += yield from wire.connect(candidates, request.source)
        if request.tls:
            with echo.phase(Phase.tls):
                yield from wire.start_tls(request.tls, request.server_hostname or host)
        start = time.perf_counter()
        _load_codec()
        wire.until += time.perf_counter() - start  # time of our own: stop the clock
        with echo.phase(Phase.associate):
            accepted = yield from self._exchange(self._dialogue.associate(), echo)
        self._peer = echo.peer = accepted.peer
        echo.notes += accepted.notes
        if request.identity and request.identity._type != 1 and not request.tls:
            echo.notes.append("the secret of the user identity was sent without TLS")

    def resume(self, echo: _Echo) -> str:
        """Prepare for one more echo; return how the peer has ended the association meanwhile, or "" if it has not."""
        self._take_up(echo)
        try:
            while True:
                self._dialogue.next_event()  # the end may have arrived with the last answer
                data, events = self._wire.receive_at_once()
                if events:  # nothing more has arrived
                    return ""
                self._dialogue.receive_data(data)
        except EchoError as error:
            self._note_the_end(error)
            pdus = {"aborted": "A-ABORT", "released": "A-RELEASE-RQ"}
            how = pdus.get(error.kind) or pdus.get(error._case) or error.message.replace(" without an answer", "")
            idle = time.perf_counter() - self._used_at
            return f"the peer ended the association within {idle:.1f} s after the last echo ({how}); opened a new one"

    def _take_up(self, echo: _Echo) -> None:
        echo.wire, echo.pdus, echo.peer = self._wire, self._pdus, self._peer
        self._wire.until = time.perf_counter() + echo.seconds

    def echo(self, echo: _Echo) -> _Waiting[None]:
        """C-ECHO (PS3.7 9.1.5)."""
        with echo.phase(Phase.echo):
            answer = yield from self._exchange(self._dialogue.echo(echo.message_id), echo)
        self._used_at = time.perf_counter()
        echo.status = answer.status
        echo.notes += answer.notes
        took = echo.timings
        if took.get(Phase.associate, 0) > max(1.0, 10 * (took.get(Phase.connect, 0) + took[Phase.echo])):
            echo.notes.append("only the association was slow: the peer may be doing a reverse DNS lookup of this host")

    def release(self, echo: _Echo) -> _Waiting[None]:
        """A-RELEASE, or A-ABORT if asked for (PS3.8 7.2, 7.3). The verdict stands: a failure here becomes a note."""
        now = time.perf_counter()
        echo.seconds = max(0.001, min(_RELEASE_TIMEOUT, self._wire.until - now))
        self._wire.until = now + echo.seconds
        try:
            with echo.phase(Phase.release):
                if self._request.abort:
                    yield from self._send(_ABORT)
                else:
                    yield from self._exchange(self._dialogue.release(), echo)
            self._last_words = b""
            echo.released = True
        except EchoError as error:
            echo.notes.append(f"after the answer, while releasing: {error.title.lower()}: {error}")

    def close(self) -> None:
        """Close the connection; send the last words, but do not wait for them."""
        if self._last_words:
            self._wire.send_at_once(self._last_words)
            self._pdus.append((time.time(), "sent", self._last_words))
        _log_pdus(self._pdus, self._request.target)
        self._wire.close()

    def _exchange(self, pdu: bytes, echo: _Echo) -> _Waiting[Any]:
        """Send a PDU and return what the peer answers."""
        try:
            yield from self._send(pdu)
            while (event := self._dialogue.next_event()) is None:
                self._dialogue.receive_data((yield from self._wire.receive()))
        except TimeoutError:
            raise echo.expired("cut off" if self._dialogue.is_cut_off() else "") from None
        except EchoError as error:
            self._note_the_end(error)
            raise
        return event

    def _send(self, pdu: bytes) -> _Waiting[None]:
        self._last_words = _ABORT
        self._pdus.append((time.time(), "sent", pdu))
        yield from self._wire.send(pdu)

    def _note_the_end(self, error: EchoError) -> None:
        """Once the peer has ended the association, nothing but the answer to its A-RELEASE-RQ may be sent."""
        if isinstance(error, (Rejected, Aborted, ConnectionLost)):
            self._last_words = _RELEASE_RP if error._case == "released" else b""


def _log_pdus(pdus: list[tuple[float, str, bytes]], target: str) -> None:
    """Log PDUs, decoded and as hex."""
    if "logging" not in sys.modules:  # nobody reads it, and a start is faster
        return
    import logging  # waits for another thread that is importing it

    if (log := logging.getLogger("dicom_echo")).isEnabledFor(logging.DEBUG):
        for at, direction, pdu in pdus:
            shown = _without_secret(pdu)
            name, size = _PDU_NAMES.get(pdu[0], "not DICOM"), f"{len(pdu)} bytes"
            clock = datetime.fromtimestamp(at).isoformat(sep=" ", timespec="milliseconds")
            whom = f"{'to' if direction == 'sent' else 'from'} {target}"
            words, dump = _describe_pdu(shown), _hexdump(shown)
            log.debug("%s %s %s, %s, %s\n%s%s", clock, direction, name, size, whom, words, dump)


# -- 7. wire -----------------------------------------------------------------------------------------------------------


class _Wait(NamedTuple):
    """Yielded by a task that waits for a socket, or only until a given time."""

    sock: socket.socket | None
    events: int  # of `selectors`
    until: float  # on the clock of `time.perf_counter`


# A task that takes turns with others. It is sent the time at which its socket was ready, or None when `until` has come.
# Whatever it yields other than a _Wait is an outcome.
_Waiting = Generator[Any, Optional[float], _T]


# Errors of this host, which say nothing about the peer.
_THIS_HOST = {
    errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.ENOBUFS,
    errno.ENOMEM,
}  # fmt: skip

# Limits the threads that a name server which does not answer can keep waiting.
_look_ups = threading.BoundedSemaphore(64)


class _Wire:
    """The connection to a peer, and when to stop waiting for it: then TimeoutError is raised."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self.until = 0.0  # on the clock of `time.perf_counter`
        self.ready_at: float | None = None  # when the socket was last ready
        self.local: str | None = None
        self.remote: str | None = None
        self.tls: TLSInfo | None = None
        self._socket: Any = sock

    def _ready(self, sock: socket.socket, events: int, until: float = math.inf) -> _Waiting[None]:
        at = yield _Wait(sock, events, min(until, self.until))
        if at is None:
            raise TimeoutError
        self.ready_at = at

    def resolve(self, host: str, port: int, family: int) -> _Waiting[list[tuple[int, Any]]]:
        """All addresses of a host, each with its family, in the order in which the system tries them."""
        try:
            if found := [(each[0], each[4]) for each in (yield from self._look_up(host, port, family))]:
                return found
            raise socket.gaierror(socket.EAI_NONAME, "no addresses")  # from an application's own resolver
        except TimeoutError:
            raise
        except Exception as error:  # any: an application's own resolver may raise anything
            message, case, detail, others = "name not resolved", "", _reason(error), None
            with contextlib.suppress(Exception):
                others = family and (yield from self._look_up(host, port, 0))
            if isinstance(error, OSError) and error.errno in _THIS_HOST and not isinstance(error, socket.gaierror):
                case = "this host"
            elif others:
                message, case = f"the name has no IPv{6 if family == socket.AF_INET6 else 4} address", "other family"
                if _ip_version(host):
                    message = "the address does not match -4, -6 or --source"
            elif "%" in host:
                message, case = f'this host has no network interface "{host.partition("%")[2]}"', "this host"
                detail = f"it has {', '.join(name for _, name in socket.if_nameindex())}"
            number = getattr(error, "errno", None)
            raise Unreachable(message, case=case, detail=detail, errno=number) from None

    def _look_up(self, host: str, port: int, family: int) -> _Waiting[list[Any]]:
        """Run a name look-up, which can be neither polled nor cancelled, in a thread that is abandoned if it hangs.

        When done, the thread closes its end of a socket pair, which the loop can wait for.
        """
        # Positional arguments, the name as text: an application may have replaced getaddrinfo by its own.
        look_up = functools.partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        if _ip_version(host):  # an IP address needs no name server
            return look_up()
        while not _look_ups.acquire(blocking=False):
            if time.perf_counter() >= self.until:
                raise TimeoutError
            yield _Wait(None, 0, min(self.until, time.perf_counter() + 0.01))
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.append(look_up())
            except Exception as error:  # any: it is raised below
                outcome.append(error)
            finally:
                _look_ups.release()
                theirs.close()

        try:
            ours, theirs = socket.socketpair()
        except OSError:  # no descriptors, without which nothing can be looked up or connected to
            _look_ups.release()
            raise
        with ours:
            try:
                threading.Thread(target=run, name="dicom-echo-resolve", daemon=True).start()
            except RuntimeError:  # no thread can be started
                run()
            yield from self._ready(ours, selectors.EVENT_READ)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return list(outcome[0])

    def connect(self, candidates: list[tuple[int, Any]], source: str | None) -> _Waiting[list[str]]:
        """Connect to the first that answers; return notes on those before it that did not.

        Each gets a fair share of the time, so that every one is tried. If all fail, the failure that tells most is
        raised: this host's own trouble > refused > silent > no route (often only IPv6 is missing).
        """
        failures: list[tuple[int, str, EchoError, float]] = []  # rank, address, what happened, seconds
        for number, (family, address) in enumerate(candidates):
            start, self.ready_at = time.perf_counter(), None
            remote = self.remote = _host_port(*address[:2])
            failure: EchoError
            share = max(0.0, self.until - start) / (len(candidates) - number)
            try:
                yield from self._connect_one(family, address, source, start + share)
                return [f"tried first: {other}, {error}, {took * 1000:.0f} ms" for _, other, error, took in failures]
            except TimeoutError:
                rank, failure = 1, TimedOut(_no_answer(share), timeout=share)
            except OSError as error:
                case = "this host" if error.errno in _THIS_HOST else ""
                if not case and re.match(r"\[fe[89ab]", remote, re.IGNORECASE) and not address[3]:
                    case = "link-local"  # and without its interface
                rank = 3 if case else 2 if isinstance(error, ConnectionRefusedError) else 0
                failure = Unreachable(_reason(error), case=case, errno=error.errno)
            failures.append((rank, remote, failure, time.perf_counter() - start))
        _, self.remote, worst, _ = max(failures, key=lambda failure: failure[0])
        if len(failures) > 1:
            worst.detail = "; ".join(f"{other}: {error}" for _, other, error, _ in failures)
        if isinstance(worst, TimedOut) and time.perf_counter() >= self.until:
            raise TimeoutError(worst.detail)
        raise worst

    def _connect_one(self, family: int, address: Any, source: str | None, until: float) -> _Waiting[None]:
        self.close()  # the one that failed before
        sock = self._socket = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source is not None:
            sock.bind((source, 0))
        try:
            sock.connect(address)
        except BlockingIOError:
            yield from self._ready(sock, selectors.EVENT_WRITE, until)
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code)) from None
        with contextlib.suppress(OSError):  # some systems fail here if the peer has already gone
            self.local = _host_port(*sock.getsockname()[:2])

    def send(self, data: bytes) -> _Waiting[None]:
        while data:
            try:
                data = data[self._socket.send(data) :]
            except OSError as error:
                if not (events := _awaited(error, selectors.EVENT_WRITE)):
                    return  # The peer hung up: `receive` shows what it sent before, or that it sent nothing.
                yield from self._ready(self._socket, events)

    def send_at_once(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(data)

    def receive(self) -> _Waiting[bytes]:
        """Bytes as they come; empty when the peer has closed the connection."""
        decrypted = hasattr(self._socket, "pending") and self._socket.pending()  # by TLS, but not read yet
        events = 0 if decrypted else selectors.EVENT_READ
        while True:
            # A peer with Nagle's algorithm waits for our acknowledgement, which Linux would delay by 40 ms. The kernel
            # forgets the setting, so it is made before each receive; other systems do not have it.
            if hasattr(socket, "TCP_QUICKACK"):
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if events:
                yield from self._ready(self._socket, events)
            data, events = self.receive_at_once()
            if not events:
                return data

    def receive_at_once(self) -> tuple[bytes, int]:
        """Bytes that have already arrived, empty when the peer has closed the connection; or the event to wait for."""
        try:
            return bytes(self._socket.recv(1 << 16)), 0
        except OSError as error:
            if events := _awaited(error, selectors.EVENT_READ):
                return b"", events
            if type(error).__module__ == "ssl":
                raise _tls_failed(error, self._socket.context) from None
            raise ConnectionLost("reset by the peer", detail=_reason(error)) from None

    def hang_up(self) -> None:
        """End the connection; whoever waits for it is woken up, and closes it."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not SSLSocket's, which drops its TLS state

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def start_tls(self, context: ssl.SSLContext, name: str) -> _Waiting[None]:
        """Secure the connection (PS3.15 B.12) and verify the peer."""
        # Names in certificates, and SNI (RFC 6066 3), have no trailing dot; a zone has a meaning only on this host.
        name = _ascii_name(name.partition("%")[0].removesuffix("."))
        secured = yield from self.shake_hands(context, server_hostname=name)
        certificate = _read_certificate(secured)
        if context.verify_mode and hasattr(context, "_has_certificate"):  # for an application's, OpenSSL does it
            _check_names(certificate, name)
        self.tls = TLSInfo(
            version=secured.version() or "",
            cipher=(secured.cipher() or ("",))[0],
            certificate_expiry=_read_time(certificate.get("notAfter", "")),
            certificate_verified=context.verify_mode != 0,
            subject=_distinguished_name(certificate.get("subject", ())),
            issuer=_distinguished_name(certificate.get("issuer", ())),
            names=tuple(_names(certificate, "DNS", "IP Address")),
        )

    def shake_hands(self, context: ssl.SSLContext, **side: Any) -> _Waiting[ssl.SSLSocket]:
        """The TLS handshake: as a client with ``server_hostname``, as a server with ``server_side``."""
        try:
            secured = context.wrap_socket(self._socket, do_handshake_on_connect=False, **side)
            self._socket = secured  # the plain one is detached
            while True:
                try:
                    secured.do_handshake()
                    break
                except OSError as error:
                    if not (events := _awaited(error, selectors.EVENT_READ)):
                        raise
                yield from self._ready(secured, events)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise _tls_failed(error, context) from None
        return secured


def _awaited(error: OSError, events: int) -> int:
    """The event to wait for before trying again; 0 if the socket failed. By name: ssl may not have been imported."""
    if isinstance(error, BlockingIOError):
        return events
    name = type(error).__name__
    return {"SSLWantReadError": selectors.EVENT_READ, "SSLWantWriteError": selectors.EVENT_WRITE}.get(name, 0)


# A verify error of OpenSSL (X509_V_ERR_...) by its number; the words for it differ between versions.
_VERIFY_ERRORS = {
    **dict.fromkeys((2, 18, 19, 20, 21, 27, 28), "certificate not trusted"),
    10: "a certificate has expired",
    9: "a certificate is not valid yet",
    **dict.fromkeys((62, 64), "the certificate is for another name"),
    **dict.fromkeys((66, 67, 68), "a certificate is too weak"),
    **dict.fromkeys((26, 39), "the certificate is for another purpose"),
    **dict.fromkeys((24, 25, 32, 37, 47, 48, 49, 51, 52, 53, 79), "a CA may not issue this certificate"),
    **dict.fromkeys(range(80, 95), "a certificate breaks RFC 5280"),
}

# Other messages of OpenSSL, by a part of their text, in the order in which they are tried. Java's TLS says
# BAD_CERTIFICATE where there is none, and CERTIFICATE_UNKNOWN to one that it does not accept, whatever the reason.
_TLS_FAILURES = {
    "the peer wants a client certificate": ("CERTIFICATE_REQUIRED", "ALERT_NO_CERTIFICATE"),
    "the peer does not accept our certificate": ("ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_UNKNOWN"),
    "the peer does not trust our certificate": ("ALERT_UNKNOWN_CA",),
    "the peer says our certificate has expired": ("ALERT_CERTIFICATE_EXPIRED",),
    "the peer says our certificate has been revoked": ("ALERT_CERTIFICATE_REVOKED",),
    "the peer does not support our certificate": ("ALERT_UNSUPPORTED_CERTIFICATE",),
    "the peer denied access": ("ALERT_ACCESS_DENIED",),
    "the peer refused the handshake": ("ALERT_HANDSHAKE_FAILURE",),
    "the peer does not know this server name": ("UNRECOGNIZED_NAME",),
    "no common TLS version": ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "INAPPROPRIATE_FALLBACK"),
    "no common cipher": ("ALERT_INSUFFICIENT_SECURITY", "NO_CIPHERS_AVAILABLE", "CIPHER_RETURNED"),
    "the peer's TLS is too weak": ("DH_KEY_TOO_SMALL", "SIGNATURE_TYPE", "SIGNATURE_ALGORITHM", "LEGACY_"),
    "the peer does not speak TLS": ("WRONG_VERSION", "RECORD_LAYER_FAILURE", "PACKET_LENGTH", "BAD_RECORD_TYPE"),
    "closed during the handshake": ("EOF", "CLOSED_BEFORE"),
    "the peer ended the handshake": ("ALERT", "TLSV1_"),  # OpenSSL leaves ALERT out of the names of some alerts
}


def _tls_failed(error: Exception, context: ssl.SSLContext) -> TLSFailed:
    """Say in plain words what OpenSSL means: in the handshake, or at the first read after it."""
    words = re.sub(r"\[[^]]*\] | \(_ssl\.c:\d+\)", "", str(error)) or type(error).__name__
    if code := getattr(error, "verify_code", 0):
        message = _VERIFY_ERRORS.get(code, "certificate not accepted")
        return TLSFailed(message, detail=getattr(error, "verify_message", words))
    if isinstance(error, ConnectionError):
        return TLSFailed("closed during the handshake", detail=words)
    said = str(error).upper().replace(" ", "_")
    known = (message for message, parts in _TLS_FAILURES.items() if any(part in said for part in parts))
    message = next(known, "handshake failed")
    if "our certificate" in message:
        has_certificate = getattr(context, "_has_certificate", None)
        if has_certificate is None:  # an application's context does not say
            message = "client certificate missing or not accepted"
        elif not has_certificate:
            message = "the peer wants a client certificate"
    return TLSFailed(message, detail=words)


def _check_names(certificate: dict[str, Any], name: str) -> None:
    """Check that the peer's verified certificate is for the expected name (RFC 9525 6.3, RFC 5280 4.2.1.6).

    OpenSSL would end the handshake on a mismatch without telling the names.
    """
    if not certificate:
        raise TLSFailed("certificate not accepted", detail="its names cannot be read")
    name = name.lower()
    if _ip_version(name):
        alternatives = certificate.get("subjectAltName", ())
        fits = _short_ip(name) in [_short_ip(value) for kind, value in alternatives if kind == "IP Address"]
    else:
        names = [each.lower() for each in _names(certificate, "DNS")]
        first, _, rest = name.partition(".")
        fits = name in names or bool(first and "." in rest and f"*.{rest}" in names)
    if not fits:
        there = _names(certificate, "DNS", "IP Address")
        detail = f"it names {', '.join(there) or 'nothing'}, not {name}"
        if name in there:
            detail = f"it names {name} as its common name, which does not count for an IP address"
        raise TLSFailed("the certificate is for another name", detail=detail, names=there)


def _read_certificate(secured: ssl.SSLSocket) -> dict[str, Any]:
    """The peer's certificate, as the ssl module decodes it; empty if it cannot, which is no failure."""
    with contextlib.suppress(OSError, ValueError):
        if certificate := secured.getpeercert():
            return certificate
        import ssl

        # It decodes only one that was verified, which it concludes from the context that the socket has at the moment.
        context, secured.context = secured.context, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            return secured.getpeercert() or {}
        finally:
            secured.context = context
    return {}


def _names(certificate: dict[str, Any], *kinds: str) -> list[str]:
    """The subject alternative names of these kinds or, if there are none, the common names."""
    alternatives = certificate.get("subjectAltName", ())
    names = [_short_ip(name) if kind == "IP Address" else name for kind, name in alternatives if kind in kinds]
    return names or [value for parts in certificate.get("subject", ()) for kind, value in parts if kind == "commonName"]


# RFC 4514 3
_NAME_PARTS = {
    "commonName": "CN", "countryName": "C", "localityName": "L", "stateOrProvinceName": "ST", "organizationName": "O",
    "organizationalUnitName": "OU", "domainComponent": "DC",
}  # fmt: skip


def _distinguished_name(name: Iterable[Iterable[tuple[str, str]]]) -> str:
    """As in ``CN=pacs, O=Hospital``, but in the certificate's order."""
    return ", ".join(f"{_NAME_PARTS.get(kind, kind)}={value}" for parts in name for kind, value in parts)


def _short_ip(text: str) -> str:
    """An IP address in its usual form: ::1, where OpenSSL has 0:0:0:0:0:0:0:1."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    with contextlib.suppress(OSError, ValueError):
        return socket.inet_ntop(family, socket.inet_pton(family, text.strip()))
    return text


def _read_time(text: str) -> datetime | None:
    """Read OpenSSL's ``Jan  5 09:34:43 2018 GMT``. `ssl.cert_time_to_seconds` would do, but imports more modules."""
    with contextlib.suppress(ValueError):
        month, day, clock, year, _ = text.split()
        number = "JanFebMarAprMayJunJulAugSepOctNovDec".index(month) // 3 + 1
        return datetime.fromisoformat(f"{year}-{number:02}-{day:0>2}T{clock}+00:00")
    return None


# -- 8. dialogue -------------------------------------------------------------------------------------------------------

_EXPECTED = {
    Phase.associate: "A-ASSOCIATE-AC or A-ASSOCIATE-RJ",
    Phase.echo: "P-DATA-TF with the C-ECHO-RSP",
    Phase.release: "A-RELEASE-RP",
}

# PS3.8 Table 9-21
_REJECT_RESULTS = {1: "rejected-permanent", 2: "rejected-transient"}
_REJECT_SOURCES = {1: "service-user", 2: "service-provider (ACSE)", 3: "service-provider (presentation)"}
_REJECT_REASONS = {
    (1, 1): "no reason given", (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized", (1, 7): "called AE title not recognized",
    (2, 1): "no reason given", (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion", (3, 2): "local limit exceeded",
}  # fmt: skip

# PS3.8 Table 9-26
_ABORT_REASONS = {
    0: "reason not specified", 1: "unrecognized PDU", 2: "unexpected PDU", 4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter", 6: "invalid PDU parameter value",
}  # fmt: skip

# PS3.8 Table 9-18
_CONTEXT_RESULTS = {
    1: "user rejection", 2: "no reason", 3: "abstract syntax not supported", 4: "transfer syntaxes not supported",
}  # fmt: skip

# The first bytes with which other protocols answer an A-ASSOCIATE-RQ.
_FINGERPRINTS = {
    b"HTTP/": "HTTP", b"<": "HTML or XML", b"SSH-": "SSH", b"220": "SMTP or FTP", b"\x15\x03": "TLS",
    b"\x16\x03": "TLS", b"\x0bMSH": "HL7 (MLLP)", b"RFB ": "VNC",
}  # fmt: skip


class _Event(NamedTuple):
    """What a phase ends with if all goes well: A-ASSOCIATE-AC, C-ECHO-RSP or A-RELEASE-RP."""

    peer: Peer | None = None  # from an A-ASSOCIATE-AC that accepts Verification
    status: int | None = None  # from a C-ECHO-RSP
    notes: Sequence[str] = ()


class _Dialogue:
    """One association as its requestor sees it (PS3.8 9.2): bytes in, events out, no I/O.

    Between two echoes the peer can only end the association, which raises an `EchoError`.
    """

    def __init__(self, request: _Request) -> None:
        self._request = request
        self.trace: Callable[[bytes], None] = lambda _pdu: None  # called with each PDU received
        self._phase = Phase.associate
        self._message_id: int | None = None  # of the request that has no answer yet
        self._peer_max_pdu = 0
        self._buffer = bytearray()
        self._command = bytearray()
        self._data_set_due = False
        self._closed = False

    def associate(self) -> bytes:
        asked = self._request
        return _encode_associate_rq(
            asked.called_ae_title, asked.calling_ae_title, asked.max_pdu, tuple(asked.transfer_syntaxes), asked.identity
        )

    def echo(self, message_id: int) -> bytes:
        self._phase, self._message_id = Phase.echo, message_id
        return _encode_c_echo(message_id, self._peer_max_pdu)

    def release(self) -> bytes:
        self._phase = Phase.release
        return _RELEASE_RQ

    def receive_data(self, data: bytes) -> None:
        """Take data from the peer; empty means that it has closed the connection."""
        self._buffer += data
        self._closed = not data

    def next_event(self) -> _Event | None:
        """The next event, or None if more data is needed. Raises an `EchoError`; anything else is a bug."""
        while pdu := self._next_pdu():
            self.trace(pdu)
            move = self._MOVES.get((self._phase, pdu[0]))
            if move is None:
                raise ProtocolError(f"received {_PDU_NAMES[pdu[0]]}, expected {_EXPECTED[self._phase]}")
            if event := move(self, pdu):
                return event
        if not self._closed:
            return None
        raise ConnectionLost("the answer was cut off" if self.is_cut_off() else "closed by the peer without an answer")

    def is_cut_off(self) -> bool:
        """Whether an answer has begun but is incomplete; raises `ProtocolError` if it is not DICOM."""
        if self._buffer:
            self._check_type()
        return bool(self._buffer or (self._command and self._phase == Phase.echo))

    def _next_pdu(self) -> bytes | None:
        """Take a whole PDU from the buffer (PS3.8 9.3.1); its type and length are checked before its bytes are here."""
        if len(self._buffer) < 6:
            return None
        self._check_type()
        kind, length = self._buffer[0], int.from_bytes(self._buffer[2:6], "big")
        four_bytes = kind in (3, 5, 6, 7)  # PS3.8 Tables 9-21, 9-24, 9-25, 9-26: nothing else may follow the header
        if length > _MAX_PDU_LENGTH or (four_bytes and length != 4):
            raise ProtocolError(f"{_PDU_NAMES[kind]} with an impossible length of {length} bytes")
        return _take_pdu(self._buffer)

    def _check_type(self) -> None:
        """Raise if the first byte shows that the answer is not DICOM; the next ones may show what it is instead."""
        if self._buffer[0] in _PDU_NAMES:
            return
        start = bytes(self._buffer[:16])
        self.trace(bytes(self._buffer))
        name = next((name for first, name in _FINGERPRINTS.items() if start.startswith(first)), "")
        raise ProtocolError(
            f"the answer is {name}, not DICOM" if name else "the answer is not DICOM",
            case="TLS" if name == "TLS" and not self._request.tls else "not DICOM",
            received=start.hex(),
        )

    def _on_accept(self, pdu: bytes) -> _Event:
        result, syntaxes, peer, notes = _decode_associate_ac(pdu)
        if result is None:
            raise ProtocolError(f"the peer accepts, but does not mention presentation context {_CONTEXT_ID}")
        if result != 0:
            meaning = _CONTEXT_RESULTS.get(result, "reserved result")
            raise NotSupported(meaning, detail=f"presentation context result {result}", result=result)
        self._peer_max_pdu = peer.max_pdu or 0
        if len(syntaxes) != 1:
            notes.append(f"the peer accepted with {len(syntaxes) or 'no'} transfer syntaxes instead of one")
        elif syntaxes[0] not in self._request.transfer_syntaxes:
            notes.append("the peer accepted with a transfer syntax that was not proposed")
        return _Event(peer if self._request.identity else peer._replace(user_identity=None), notes=notes)

    def _on_reject(self, pdu: bytes) -> NoReturn:
        result, source, reason = pdu[7:10]
        meaning = _REJECT_REASONS.get((source, reason), "reserved reason")
        said = _REJECT_RESULTS.get(result, f"result {result}"), _REJECT_SOURCES.get(source, f"source {source}")
        detail = f"{', '.join(said)}, reason {reason}"
        raise Rejected(meaning, detail=detail, result=result, source=source, reason=reason)

    def _on_abort(self, pdu: bytes) -> NoReturn:
        source, reason = pdu[8:10]
        if source == 0:  # the user of the service gives no reason: the field is not significant
            meaning, detail = "no reason given", "service-user"
        else:
            meaning = _ABORT_REASONS.get(reason, "reserved reason")
            detail = f"{'service-provider' if source == 2 else f'source {source}'}, reason {reason}"
        instead_of_a_rejection = self._phase == Phase.associate and (source == 0 or reason == 0)
        case = "no reason given" if instead_of_a_rejection else "request not understood or not wanted"
        raise Aborted(meaning, case=case, detail=detail, source=source, reason=reason)

    def _on_release(self, _pdu: bytes) -> NoReturn:
        """The peer may end an association at any time (PS3.8 7.2)."""
        raise ConnectionLost("the peer released the association without an answer", case="released")

    def _on_data(self, pdu: bytes) -> _Event | None:
        """Put the fragments of the command set together (PS3.8 Annex E)."""
        for context_id, header, fragment in _decode_p_data(pdu):
            if context_id != _CONTEXT_ID:
                raise ProtocolError(f"the answer is in presentation context {context_id}, not {_CONTEXT_ID}")
            if not header & 1:
                if not self._data_set_due:
                    raise ProtocolError("received a data set, expected the command set of the C-ECHO-RSP")
                self._data_set_due = not header & 2  # its last fragment ends it
                continue
            self._command += fragment
            if len(self._command) > _MAX_COMMAND_LENGTH:
                raise ProtocolError(f"a command set of more than {_MAX_COMMAND_LENGTH} bytes")
            if header & 2:
                command, self._command = bytes(self._command), bytearray()
                return self._on_command(command)
        return None

    def _on_command(self, data: bytes) -> _Event:
        """Check a message against PS3.7 9.3.5.2: this is the answer, and to this request."""
        elements, notes = _decode_command(data)
        kind, answers = _integer(elements, "Command Field"), _integer(elements, "Message ID Being Responded To")
        status, data_set = _integer(elements, "Status"), _integer(elements, "Command Data Set Type")
        if kind != 0x8030:
            what = "a message without a command field" if kind is None else f"command {_hex(kind)}"
            raise ProtocolError(f"received {what}, expected C-ECHO-RSP (8030H)")
        if answers is None:
            raise ProtocolError("the C-ECHO-RSP does not say which message it answers")
        if answers != self._message_id:
            expected = "no request" if self._message_id is None else self._message_id
            raise ProtocolError(f"the answer is to message ID {answers}, expected {expected}")
        if status is None:
            raise ProtocolError("the C-ECHO-RSP contains no status")
        self._message_id = None
        if data_set not in (None, 0x0101):
            self._data_set_due = True
            notes.append(f"the C-ECHO-RSP announces a data set (command data set type {_hex(data_set)})")
        sop_class = _text(elements.get("Affected SOP Class UID", b""))
        if sop_class not in ("", _VERIFICATION):
            notes.append(f"the C-ECHO-RSP names SOP class {sop_class}, not Verification")
        if comment := _text(elements.get("Error Comment", b"")):
            notes.append(f"the peer's error comment: {comment}")
        return _Event(status=status, notes=notes)

    _MOVES: ClassVar[dict[tuple[Phase, int], Callable[[_Dialogue, bytes], _Event | None]]] = {
        (Phase.associate, 2): _on_accept,
        (Phase.associate, 3): _on_reject,
        (Phase.associate, 7): _on_abort,
        (Phase.echo, 4): _on_data,
        (Phase.echo, 5): _on_release,
        (Phase.echo, 7): _on_abort,
        (Phase.release, 4): lambda *_: None,  # sent before our A-RELEASE-RQ arrived
        (Phase.release, 5): lambda *_: _Event(),  # both sides ask at once, which also ends it (PS3.8 9.2.3, Sta9)
        (Phase.release, 6): lambda *_: _Event(),
        (Phase.release, 7): _on_abort,
    }


# -- 9. codec ----------------------------------------------------------------------------------------------------------

# pynetdicom encodes what we send. What we receive is decoded here: its decoder, and pydicom's, check what the standard
# says to ignore, and depend on asserts, warnings and settings of the process.

_PACKAGES = ("pynetdicom", "pydicom")

# Importing pynetdicom and pydicom takes most of a command's time, and most of that goes to what encoding a request does
# not use: what is for images, storage, printing and serving, and parts of the standard library.
_LEFT_OUT = {
    *_PACKAGES, "pynetdicom.sop_class", "pydicom._dicom_dict", "pydicom._private_dict", "pydicom._version",
    "pydicom.encaps", "pydicom.errors", "pydicom.filereader", "pydicom.fileutil", "pydicom.hooks", "pydicom.jsonrep",
    "pydicom.misc", "pydicom.overlays", "pydicom.overlays.numpy_handler", "pydicom.pixels", "pydicom.pixels.utils",
    "pydicom.values", "pydicom.waveforms", "pydicom.pixel_data_handlers", "pydicom.pixel_data_handlers.util",
    *(f"pydicom.pixel_data_handlers.{each}_handler"
      for each in ("gdcm", "jpeg_ls", "numpy", "pillow", "pylibjpeg", "rle")),
    "base64", "ctypes", "decimal", "hashlib", "inspect", "json", "pathlib", "secrets", "tempfile", "uuid",
}  # fmt: skip
# Of pydicom's dictionary of 5,000 elements, those of group 0000 that a C-ECHO, or an import, looks up (PS3.7 E.1).
_DICTIONARY = {
    0x0000: ("UL", "1", "", "", "CommandGroupLength"), 0x0002: ("UI", "1", "", "", "AffectedSOPClassUID"),
    0x0100: ("US", "1", "", "", "CommandField"), 0x0110: ("US", "1", "", "", "MessageID"),
    0x0120: ("US", "1", "", "", "MessageIDBeingRespondedTo"), 0x0800: ("US", "1", "", "", "CommandDataSetType"),
    0x0900: ("US", "1", "", "", "Status"), 0x0901: ("AT", "1-n", "", "", "OffendingElement"),
    0x1005: ("AT", "1-n", "", "", "AttributeIdentifierList"),
}  # fmt: skip
_lean_modules: dict[str, Any] = {}  # what `_lean_import` loads; only whole modules of Python's own stay in sys.modules
_own_process = False  # _command() sets it: no other code runs here that could import these modules meanwhile


def _lean_import(encode: Callable[..., _T]) -> Callable[..., _T]:
    """Where the process is ours, let a function import only those modules of pynetdicom and pydicom that it needs.

    Hollow modules replace those in `_LEFT_OUT`: any name can be imported from them, but using it raises. The function
    then runs again, with everything imported. So another release of pydicom may cost time, but changes no byte.
    sys.modules is restored afterwards, so that a later `import pydicom` gives the whole package.
    """

    @functools.wraps(encode)
    def encoded(*arguments: Any) -> _T:
        global _own_process
        if not _own_process or not sys.modules.keys().isdisjoint(_PACKAGES):  # the latter: nothing to save
            return encode(*arguments)
        import gc
        import logging

        logging.getLogger("pynetdicom").addHandler(logging.NullHandler())  # as its __init__.py does
        before = sys.modules.keys() - _lean_modules.keys()
        hollow = {name: _HollowModule(name) for name in _LEFT_OUT - before - _lean_modules.keys()}
        for name, module in {**hollow, "numpy": None, **_lean_modules}.items():  # None: as if not installed
            sys.modules.setdefault(name, module)
        gc.disable()  # importing makes many objects and hardly any garbage
        try:
            return encode(*arguments)
        except Exception:  # any: what a stand-in raises may be caught on the way and lead to another error
            _own_process = False
            for name in sys.modules.keys() - before:  # of the standard library, too, as they may have stand-ins
                package, _, child = name.rpartition(".")
                if package in sys.modules:
                    vars(sys.modules[package]).pop(child, None)
                del sys.modules[name]
        finally:
            gc.enable()
            for name in sys.modules.keys() - before:
                _lean_modules[name] = sys.modules[name]
                if name.partition(".")[0] in (*_PACKAGES, "numpy") or isinstance(sys.modules[name], _HollowModule):
                    del sys.modules[name]
        return encode(*arguments)

    return encoded


class _HollowModule(types.ModuleType):
    """Stands in for a module, or for the __init__.py of a package."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        package = importlib.machinery.PathFinder.find_spec(name) if name in _PACKAGES else None
        self.__path__ = (package and package.submodule_search_locations) or []
        if name == "pydicom._dicom_dict":
            vars(self).update(DicomDictionary=_DICTIONARY, RepeatersDictionary={})

    def __getattr__(self, name: str) -> Any:
        if self.__name__ in _PACKAGES:
            with contextlib.suppress(ImportError):  # as in `from pynetdicom import pdu`
                return importlib.import_module(f"{self.__name__}.{name}")
        return _StandIn(name, (), {})


class _StandIn(type):
    """A class that may be imported, inherited from, or named in an annotation or a default. Any use of it raises."""

    def _refuse(cls, *_: object, **__: object) -> Any:
        raise ImportError(f"{cls.__name__} was left out by _lean_import")

    __call__ = __bool__ = __iter__ = __len__ = __contains__ = __instancecheck__ = __subclasscheck__ = _refuse

    def values(cls) -> tuple[()]:
        """No SOP classes: pynetdicom.presentation makes a context for each in a table when it is imported."""
        return ()


# pynetdicom's modules import each other in circles, which threads must not enter together.
_codec_lock = threading.Lock()


def _load_codec() -> None:
    """Import pynetdicom and encode once, so that no echo pays for it."""
    try:
        with _codec_lock:
            _encode_associate_rq("A", "B", 0, ("1.2.840.10008.1.2",), None)
            _encode_c_echo(0, 0)
    except OSError as error:  # such as too many open files
        raise ImportError(f"this host cannot load pynetdicom: {_reason(error)}") from error
    except Exception as error:  # any: an old release fails in its own ways
        raise ImportError(
            "pynetdicom 2.0.2 or later is required (pip install pynetdicom); found "
            f"{' with '.join(_codec_versions()) or 'none'} ({type(error).__name__}: {error})"
        ) from error


def _codec_versions() -> list[str]:
    """Names and versions of pynetdicom and pydicom, as far as they are installed."""
    return [f"{name} {found}" for name in _PACKAGES if (found := _installed_version(name))]


def _installed_version(package: str) -> str:
    """Read it off the name of a folder, if possible: to import importlib.metadata takes longer than a start may."""
    spec = importlib.machinery.PathFinder.find_spec(package)
    if spec and spec.origin:
        with contextlib.suppress(OSError):  # it is in an archive
            for entry in os.listdir(os.path.dirname(os.path.dirname(spec.origin))):
                if found := re.fullmatch(rf"{package}-([^-]+)\.(dist|egg)-info", entry):
                    return found[1]
    from importlib import metadata

    with contextlib.suppress(Exception):  # any: it is not installed, or the archive that it is in cannot be read
        return metadata.version(package)
    return ""


def _encode_associate_rq(
    called: str, calling: str, max_pdu: int, transfer_syntaxes: tuple[str, ...], identity: Identity | None
) -> bytes:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2) that proposes Verification in one presentation context."""
    encoded = _encode_associate_rq_once(max_pdu, transfer_syntaxes, identity)
    return encoded[:10] + called.ljust(16).encode() + calling.ljust(16).encode() + encoded[42:]


@functools.lru_cache(maxsize=64)
@_lean_import
def _encode_associate_rq_once(max_pdu: int, transfer_syntaxes: tuple[str, ...], identity: Identity | None) -> bytes:
    """The requests of a fleet differ only in the AE titles."""
    from pynetdicom import pdu_primitives as primitives
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.presentation import build_context

    context = build_context(_VERIFICATION, list(transfer_syntaxes))
    context.context_id = _CONTEXT_ID
    associate = _associate(max_pdu)
    associate.presentation_context_definition_list = [context]
    if identity:
        user = primitives.UserIdentityNegotiation()
        user.user_identity_type = identity._type
        user.primary_field = identity._primary
        if identity._type == 2:
            user.secondary_field = identity._secondary
        user.positive_response_requested = True
        associate.user_information.append(user)
    return A_ASSOCIATE_RQ(associate).encode()


def _associate(max_pdu: int) -> Any:
    """What an A-ASSOCIATE-RQ and an A-ASSOCIATE-AC of ours have in common."""
    from pynetdicom import pdu_primitives as primitives

    length = primitives.MaximumLengthNotification()
    length.maximum_length_received = max_pdu
    class_uid = primitives.ImplementationClassUIDNotification()
    class_uid.implementation_class_uid = _IMPLEMENTATION_CLASS_UID
    version_name = primitives.ImplementationVersionNameNotification()
    version_name.implementation_version_name = _IMPLEMENTATION_VERSION_NAME
    associate = primitives.A_ASSOCIATE()
    associate.application_context_name = _APPLICATION_CONTEXT
    associate.called_ae_title = DEFAULT_CALLED_AE_TITLE
    associate.calling_ae_title = DEFAULT_CALLING_AE_TITLE
    associate.user_information = [length, class_uid, version_name]
    return associate


def _encode_associate_ac(request: bytes, max_pdu: int, contexts: Mapping[int, tuple[int, str]]) -> bytes:
    """A-ASSOCIATE-AC (PS3.8 9.3.3), with the AE titles of the request, and a result and syntax for each context."""
    from pynetdicom.pdu import A_ASSOCIATE_AC
    from pynetdicom.presentation import PresentationContext

    associate, results = _associate(max_pdu), []
    for context_id, (result, syntax) in contexts.items():
        context = PresentationContext()
        context.context_id, context.result, context.transfer_syntax = context_id, result, [syntax]
        results.append(context)
    associate.presentation_context_definition_results_list = results
    encoded = A_ASSOCIATE_AC(associate).encode()
    return encoded[:10] + request[10:42] + encoded[42:]


def _encode_c_echo(message_id: int, peer_max_pdu: int, context_id: int = _CONTEXT_ID, kind: str = "C_ECHO_RQ") -> bytes:
    """C-ECHO-RQ, or C-ECHO-RSP with Success, in as many PDUs as the peer's maximum length requires (PS3.8 D.1)."""
    encoded, places = _encode_c_echo_once(kind, context_id, peer_max_pdu)
    message = bytearray(encoded)
    for place, byte in zip(places, message_id.to_bytes(2, "little")):
        message[place] = byte
    return bytes(message)


@functools.lru_cache(maxsize=64)
@_lean_import
def _encode_c_echo_once(kind: str, context_id: int, peer_max_pdu: int) -> tuple[bytes, list[int]]:
    """The messages of a campaign differ only in the message ID: return one, and the positions of the ID in it."""
    from pynetdicom import dimse_messages
    from pynetdicom.dimse_primitives import C_ECHO
    from pynetdicom.pdu import P_DATA_TF

    # A PDU holds at least a header of six bytes and two of a fragment, whose length is even (PS3.8 E.2).
    limit = max(peer_max_pdu & ~1, 8) if peer_max_pdu else 0
    encoded = []
    for message_id in (0x0000, 0xFFFF):
        echo = C_ECHO()
        echo.AffectedSOPClassUID = _VERIFICATION
        if kind == "C_ECHO_RQ":
            echo.MessageID = message_id
        else:
            echo.MessageIDBeingRespondedTo, echo.Status = message_id, 0x0000
        message: Any = getattr(dimse_messages, kind)()
        message.primitive_to_message(echo)
        encoded.append(b"".join(P_DATA_TF(data).encode() for data in message.encode_msg(context_id, limit)))
    return encoded[0], [place for place, pair in enumerate(zip(*encoded)) if pair[0] != pair[1]]


# Ten bytes each, and always the same.
_RELEASE_RQ = bytes.fromhex("05 00 00000004 00000000")  # PS3.8 9.3.6
_RELEASE_RP = bytes.fromhex("06 00 00000004 00000000")  # PS3.8 9.3.7
_ABORT = bytes.fromhex("07 00 00000004 00000000")  # PS3.8 9.3.8: from the service-user, that is, from us


def _take_pdu(buffer: bytearray) -> bytes | None:
    """Take a PDU out of a buffer that begins with its header (PS3.8 9.3.1); None if it is not complete."""
    size = 6 + int.from_bytes(buffer[2:6], "big")
    if len(buffer) < size:
        return None
    pdu = bytes(buffer[:size])
    del buffer[:size]
    return pdu


def _decode_associate_ac(pdu: bytes) -> tuple[int | None, list[str], Peer, list[str]]:
    """A-ASSOCIATE-AC: the result and the transfer syntaxes of our presentation context, what the peer says, and notes.

    Unknown items (PS3.8 9.3.1), the AE titles and what is reserved are ignored.
    """
    what, notes = "A-ASSOCIATE-AC", list[str]()
    items = _associate_items(pdu)  # raises if the PDU is too short for the rest
    if not pdu[7] & 1:
        notes.append(f"the peer states protocol version {pdu[6:8].hex()}H, without bit 0 (PS3.8 9.3.3)")
    result: int | None = None
    syntaxes: list[str] = []
    said: dict[int, bytes] = {}
    for kind, item in items:
        if kind == 0x21:  # presentation context: ID, reserved, result, reserved, transfer syntax
            if len(item) < 4:
                raise ProtocolError(f"malformed {what}: a presentation context of {len(item)} bytes")
            if item[0] == _CONTEXT_ID:
                if result not in (None, item[2]):
                    raise ProtocolError(f"presentation context {_CONTEXT_ID} has two results, {result} and {item[2]}")
                result = item[2]
                raw = [value for kind, value in _items(item, what, 4) if kind == 0x40] if result == 0 else []
                syntaxes = list(map(_text, raw))
                if any(value != value.strip(b" \0") for value in raw):
                    notes.append("the peer pads the UID of the transfer syntax, which PS3.8 Annex F does not allow")
        elif kind == 0x50:
            said = dict(_items(item, what))
    if 0x51 in said and len(said[0x51]) != 4:
        raise ProtocolError(f"malformed {what}: a maximum length of {len(said[0x51])} bytes, 4 expected")
    peer = Peer(
        implementation_class_uid=_text(said[0x52]) if 0x52 in said else None,
        implementation_version_name=_text(said[0x55]) if 0x55 in said else None,
        max_pdu=int.from_bytes(said[0x51], "big") if 0x51 in said else None,
        transfer_syntax=syntaxes[0] if syntaxes else None,
        user_identity="accepted" if 0x59 in said else "not stated",
    )
    return result, syntaxes, peer, notes


def _associate_items(pdu: bytes) -> Iterator[tuple[int, bytes]]:
    """The variable items of an A-ASSOCIATE-RQ or A-ASSOCIATE-AC, after its 74 fixed bytes (PS3.8 9.3.2, 9.3.3)."""
    name = _PDU_NAMES[pdu[0]]
    if len(pdu) < 74:
        raise ProtocolError(f"malformed {name}: {len(pdu)} bytes, at least 74 expected")
    return _items(pdu, name, 74)


def _items(data: bytes, what: str, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """Split variable items by their headers: type, reserved, length in two bytes (PS3.8 9.3.2.1)."""
    while at < len(data):
        kind, end = data[at], at + 4 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data):
            raise ProtocolError(f"malformed {what}: an item of type {kind:02X}H is longer than what contains it")
        yield kind, data[at + 4 : end]
        at = end


def _text(value: bytes) -> str:
    """A peer's text without padding. It is cut, since results are kept; PS3.5 6.2 allows it 64 characters at most."""
    return value[:256].decode("latin-1").strip(" \0") + "…" * (len(value) > 256)


def _decode_p_data(pdu: bytes) -> list[tuple[int, int, bytes]]:
    """P-DATA-TF (PS3.8 9.3.5): context ID, message control header and fragment of each presentation data value."""
    values, at = [], 6
    while at < len(pdu):
        length, left = int.from_bytes(pdu[at : at + 4], "big"), max(0, len(pdu) - at - 4)
        if not 2 <= length <= left:
            raise ProtocolError(f"malformed P-DATA-TF: a value of {length} bytes where {left} are left")
        values.append((pdu[at + 4], pdu[at + 5], pdu[at + 6 : at + 4 + length]))
        at += 4 + length
    if not values:
        raise ProtocolError("malformed P-DATA-TF: it contains no value")
    return values


# The elements of a command set that matter here (PS3.7 E.1), all of group 0000.
_ELEMENTS = {
    0x0002: "Affected SOP Class UID", 0x0100: "Command Field", 0x0110: "Message ID",
    0x0120: "Message ID Being Responded To", 0x0800: "Command Data Set Type", 0x0900: "Status",
    0x0902: "Error Comment",
}  # fmt: skip


def _decode_command(data: bytes) -> tuple[dict[str, bytes], list[str]]:
    """A command set by the names of its elements, and notes; in Implicit VR (PS3.7 6.3.1), or in Explicit VR."""
    elements, notes = dict[str, bytes](), list[str]()
    explicit = data[4:6].isalpha() and data[4:6].isupper()  # the VR of the first element, or else its length
    if explicit:
        notes.append("the peer encodes the command set in Explicit VR instead of Implicit VR")
    end = 0
    while end < len(data):
        tag = int.from_bytes(data[end : end + 4], "little")
        group, element = tag & 0xFFFF, tag >> 16
        start, width = end + 8, 4
        if explicit:
            long = data[end + 4 : end + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
            start, width = (end + 12, 4) if long else (end + 8, 2)
        length = int.from_bytes(data[start - width : start], "little")
        end = start + length
        if end > len(data):
            where = f"({group:04X},{element:04X})"
            raise ProtocolError(f"malformed command set: element {where} is longer than what contains it")
        if group or element not in _ELEMENTS:
            continue
        name, value = _ELEMENTS[element], data[start:end]
        if name in elements:
            raise ProtocolError(f"malformed command set: it contains {name} twice")
        elements[name] = value
        if name.endswith("UID") and (length % 2 or value.endswith(b" ")):
            notes.append(f"the {name} of the answer is not padded as PS3.5 9.1 requires")
    return elements, notes


def _integer(elements: dict[str, bytes], name: str) -> int | None:
    """The value of an element of a command set that is a number; None if it is not there."""
    value = elements.get(name)
    if value is not None and len(value) != 2:
        raise ProtocolError(f"malformed command set: {name} has {len(value)} bytes, 2 expected")
    return None if value is None else int.from_bytes(value, "little")


_ITEM_NAMES = {
    0x10: "application context", 0x20: "presentation context", 0x21: "presentation context", 0x30: "abstract syntax",
    0x40: "transfer syntax", 0x50: "user information", 0x51: "maximum length", 0x52: "implementation class UID",
    0x55: "implementation version name", 0x58: "user identity", 0x59: "user identity response",
}  # fmt: skip


def _describe_pdu(pdu: bytes) -> str:
    """A PDU in words, as far as it can be read; the hex dump below it is complete."""
    lines: list[str] = []
    with contextlib.suppress(ProtocolError, IndexError):
        if pdu[0] in (1, 2):
            lines.append(f'called AE title "{_text(pdu[10:26])}", calling AE title "{_text(pdu[26:42])}"')
            for line in _describe_items(pdu, 74):
                lines.append(line)
        elif pdu[0] in (3, 7):
            lines.append(f"{f'result {pdu[7]}, ' if pdu[0] == 3 else ''}source {pdu[8]}, reason {pdu[9]}")
        elif pdu[0] == 4:
            for context_id, header, fragment in _decode_p_data(pdu):
                what = "command set" if header & 1 else "data set"
                lines.append(f"presentation context {context_id}, {what}{', last fragment' if header & 2 else ''}")
                elements = _decode_command(fragment)[0] if header & 1 else {}
                for name, value in elements.items():
                    shown = _hex(int.from_bytes(value, "little")) if len(value) == 2 else _text(value)
                    lines.append(f"  {name}: {shown}")
    return "".join(f"  {_printable(line)}\n" for line in lines)


def _describe_items(data: bytes, at: int, indent: str = "") -> Iterator[str]:
    for kind, item in _items(data, "", at):
        name = indent + _ITEM_NAMES.get(kind, f"item {kind:02X}H")
        if kind in (0x20, 0x21):
            yield f"{name} {item[0]}" + (f", result {item[2]}" if kind == 0x21 else "")
            yield from _describe_items(item, 4, indent + "  ")
        elif kind == 0x50:
            yield name
            yield from _describe_items(item, 0, indent + "  ")
        elif kind == 0x58:
            yield f"{name}: not shown"
        else:
            yield f"{name}: {int.from_bytes(item, 'big') if kind == 0x51 else _text(item)}"


def _without_secret(pdu: bytes) -> bytes:
    """A PDU with zeros in place of a user identity, which must not be logged."""
    place = 74 if pdu[0] in (1, 2) else len(pdu)
    while place < len(pdu):
        kind, length = pdu[place], int.from_bytes(pdu[place + 2 : place + 4], "big")
        if kind in (0x58, 0x59):
            end = min(place + 4 + length, len(pdu))
            start = min(place + 6, end)  # after the length of the first field
            return pdu[:start] + bytes(end - start) + pdu[end:]
        place += 4 if kind == 0x50 else 4 + length  # into the user information
    return pdu


def _hexdump(data: bytes) -> str:
    rows = (data[start : start + 16] for start in range(0, len(data), 16))
    return "\n".join(
        f"  {16 * number:04x}  {row.hex(' '):<47}  {''.join(chr(b) if 32 <= b < 127 else '.' for b in row)}"
        for number, row in enumerate(rows)
    )


# -- 10. turns ---------------------------------------------------------------------------------------------------------


def _take_turns(
    tasks: Iterable[_Waiting[None]], at_once: int, stop: socket.socket | None = None
) -> Generator[Any, None, None]:
    """Run up to ``at_once`` tasks in turn and yield their outcomes; all waiting is done here.

    Sockets are polled after each step, so that the time of an answer is known even if its task's turn comes later. A
    generator that a task yields becomes one more task. A byte on ``stop`` closes all tasks.
    """
    todo, has_more = iter(tasks), True
    turns = deque[tuple[_Waiting[None], Optional[float]]]()
    waiting: dict[_Waiting[None], _Wait] = {}
    deadlines: list[tuple[float, int, _Waiting[None], _Wait]] = []  # a heap; those whose wait is over are left in it
    serial = itertools.count()
    with _selector(at_once) as selector:
        if stop:
            selector.register(stop, selectors.EVENT_READ)
        try:
            while True:
                if has_more and len(waiting) + len(turns) < at_once:
                    if (task := next(todo, None)) is None:
                        has_more = False
                    else:
                        turns.append((task, None))
                if turns:
                    task, at = turns.popleft()
                    with contextlib.suppress(StopIteration):
                        said = task.send(at)
                        if isinstance(said, _Wait):
                            waiting[task] = said
                            heapq.heappush(deadlines, (said.until, next(serial), task, said))
                            if said.sock:
                                selector.register(said.sock, said.events, task)
                        else:
                            turns.appendleft((task, None))
                            if isinstance(said, Generator):
                                turns.append((said, None))
                            else:
                                yield said
                elif not waiting and not has_more:
                    return
                while deadlines and waiting.get(deadlines[0][2]) is not deadlines[0][3]:
                    heapq.heappop(deadlines)
                if len(deadlines) > 2 * len(waiting) + 1000:  # most waits end long before their limit
                    deadlines = [each for each in deadlines if waiting.get(each[2]) is each[3]]
                    heapq.heapify(deadlines)
                busy = turns or (has_more and len(waiting) < at_once)
                pause = 0.0 if busy or not deadlines else max(0.0, deadlines[0][0] - time.perf_counter())
                if selector.get_map():
                    ready = selector.select(pause)
                else:  # only time to wait for: Windows' select fails without a socket
                    if pause:
                        time.sleep(pause)
                    ready = []
                now = time.perf_counter()
                for key, _ in ready:
                    if key.data is None:  # `stop`
                        return
                    selector.unregister(key.fileobj)
                    del waiting[key.data]
                    turns.append((key.data, now))
                while deadlines and deadlines[0][0] <= now:
                    _, _, task, wait = heapq.heappop(deadlines)
                    if waiting.get(task) is wait:
                        del waiting[task]
                        if wait.sock:
                            selector.unregister(wait.sock)
                        turns.append((task, None))
        finally:
            for task in (*waiting, *(task for task, _ in turns)):
                task.close()


def _selector(at_once: int) -> selectors.BaseSelector:
    """The best one for many sockets; for a single one, or if descriptors run out, one that needs no descriptor."""
    if at_once > 1:
        with contextlib.suppress(OSError):
            return selectors.DefaultSelector()
    return getattr(selectors, "PollSelector", selectors.SelectSelector)()


def _alone(task: _Waiting[_T]) -> _Waiting[None]:
    """A task whose result is its only outcome."""
    yield (yield from task)


class _Stream:
    """Outcomes of tasks that take turns in a thread of their own, so that a slow reader does not delay them."""

    def __init__(self, tasks: Iterable[_Waiting[None]], at_once: int) -> None:
        import queue

        self._tasks, self._at_once = tasks, at_once
        self._outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()  # None is the end mark
        self._ours: socket.socket | None = None

    def outcomes(self, idle: Callable[[], None] = lambda: None) -> Generator[Any, None, None]:
        """Yield outcomes as they come; call ``idle`` once a second meanwhile. Closing it ends all tasks."""
        import queue

        with contextlib.ExitStack() as stack:
            theirs = None
            try:
                self._ours, theirs = map(stack.enter_context, socket.socketpair())
                thread = threading.Thread(target=self._run, args=(theirs,), name="dicom-echo", daemon=True)
                stack.callback(self._join, thread)  # before it starts, as an interruption may come at any moment
                thread.start()
            except (OSError, RuntimeError):  # no descriptors, or no thread can be started: do without
                with contextlib.closing(_take_turns(self._tasks, self._at_once, theirs)) as outcomes:
                    # Here, the queue stays empty until `end` is called.
                    yield from itertools.takewhile(lambda _: self._outcomes.empty(), outcomes)
                return
            due = time.monotonic() + 1.0
            while True:
                try:  # on Windows, Ctrl-C does not end a wait without a timeout
                    outcome = self._outcomes.get(timeout=max(0.0, due - time.monotonic()))
                except queue.Empty:
                    idle()
                    due = time.monotonic() + 1.0
                    continue
                if outcome is None:
                    return
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome

    def _join(self, thread: threading.Thread) -> None:
        self.end()
        if thread.is_alive() and not sys.is_finalizing():  # when a thread does not end, but stops wherever it is
            thread.join()

    def _run(self, stop: socket.socket) -> None:
        try:
            for outcome in _take_turns(self._tasks, self._at_once, stop):
                self._outcomes.put(outcome)
        except BaseException as error:  # any: it is raised where the outcomes are read
            self._outcomes.put(error)
        finally:
            self._outcomes.put(None)

    def end(self) -> None:
        """End the stream; safe to call from a signal handler, from any thread, and more than once."""
        self._outcomes.put(None)
        if self._ours:
            with contextlib.suppress(OSError):
                self._ours.send(b"\0")


# -- 11. campaign ------------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """How often to ask a target."""

    first_id: int = 1
    echoes: int = 1  # 0 is without end
    interval: float = 1.0  # seconds from the start of an echo to the start of the next
    reuse: bool = False
    wait: float | None = None  # seconds; retry until Success


class _Echoed(NamedTuple):
    """An echo of a campaign, and whether it is the last to its target.

    When an echo begins, its `_Request` is an outcome, too.
    """

    target: _Request
    result: EchoResult
    last: bool


class _Statistics:
    """Running totals, in constant memory."""

    verdict: EchoResult  # what counts for a target: its last failure or, if there is none, its last echo

    def __init__(self) -> None:
        self.sent = 0
        self.kinds: dict[str, int] = {}
        self.began = self.ended = 0.0  # when the first echo began and the last ended, in seconds since the epoch
        self._minimum = math.inf
        self._maximum = self._sum = self._squares = 0.0
        self.recent: deque[float] = deque(maxlen=60)  # drawn below the statistics

    def add(self, result: EchoResult) -> None:
        start, took = result.started_at.timestamp(), result.total
        self.began, self.ended = self.began or start, start + took
        self.sent += 1
        self.kinds[result.kind] = self.kinds.get(result.kind, 0) + 1
        if result.ok:
            self._minimum, self._maximum = min(self._minimum, took), max(self._maximum, took)
            self._sum += took
            self._squares += took**2
            self.recent.append(took)
        if not result.ok or self.succeeded == self.sent:
            self.verdict = result

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
    def times(self) -> dict[str, float]:
        """Of the echoes that succeeded, at least one, in seconds; the deviation is what ping calls mdev."""
        deviation = math.sqrt(max(0.0, self._squares / self.succeeded - self.average**2))
        return {"minimum": self._minimum, "average": self.average, "maximum": self._maximum, "deviation": deviation}


class _Tally:
    """Counts echoes on their way to a report: in all, and for each target."""

    def __init__(self, outcomes: Iterable[_Request | _Echoed], targets: Sequence[_Request]) -> None:
        self._outcomes = outcomes
        self.targets = targets
        self.total = _Statistics()
        self.of: dict[_Request, _Statistics] = {}
        self.under_way: dict[_Request, None] = {}  # in the order in which they were started
        self.finished = 0  # targets

    def __iter__(self) -> Iterator[_Echoed]:
        for event in self._outcomes:
            if isinstance(event, _Request):
                self.under_way[event] = None
                continue
            self.under_way.pop(event.target, None)
            self.of.setdefault(event.target, _Statistics()).add(event.result)
            self.total.add(event.result)
            self.finished += event.last
            yield event

    @property
    def interrupted(self) -> bool:
        return self.finished < len(self.targets)


def _campaign(targets: Sequence[_Request], plan: _Plan, jobs: int) -> _Stream:
    """Run the plan for each target, several in parallel; the outcomes are `_Request` and `_Echoed`."""
    if plan.echoes != 1 or plan.wait is not None:
        _load_codec()  # now: the archive that it comes from may be replaced during a long run
    return _Stream(_by_endpoint(targets, lambda target: _rounds(target, plan)), jobs)


def _by_endpoint(requests: Iterable[_Request], ask: Callable[[_Request], _Waiting[None]]) -> Iterator[_Waiting[None]]:
    """A task for each host and port, which asks its targets in turn: a peer may allow few associations at a time."""
    groups: dict[object, list[_Request]] = {}
    for request in requests:
        groups.setdefault((request.address.host.casefold(), request.port), []).append(request)
    if len(groups) > 1:
        _load_codec()  # now: later, it would delay the echoes under way

    def in_turn(group: list[_Request]) -> _Waiting[None]:
        for request in group:
            yield from ask(request)

    yield from map(in_turn, groups.values())


def _rounds(request: _Request, plan: _Plan) -> _Waiting[None]:
    """The echoes to one target, one after the other."""
    ids = _message_ids(plan.first_id)
    if plan.wait is not None:
        yield from _retry(request, ids, plan.wait)
    elif plan.reuse:
        yield from _over_one_association(request, ids, plan)
    else:
        for last, pause in _pauses(plan):
            yield pause
            yield request
            yield _Echoed(request, (yield from _probe(request, next(ids), request.timeout)), last)


def _message_ids(first: int) -> Iterator[int]:
    """Without end; 65535 is followed by 1 (PS3.7 9.3.5.1)."""
    return itertools.accumulate(itertools.repeat(first), lambda last, _: last % 0xFFFF + 1)


def _pauses(plan: _Plan) -> Iterator[tuple[bool, _Wait]]:
    """For each round, whether it is the last, and the wait before it. Rounds start on a grid and so do not drift.

    Slots that a slow echo has missed are skipped, not made up for.
    """
    start, slot = time.perf_counter(), 0
    for number in itertools.count() if plan.echoes == 0 else range(plan.echoes):
        if number:
            elapsed = time.perf_counter() - start
            slot = max(slot + 1, math.ceil(elapsed / plan.interval) if plan.interval > 1e-9 else 0)
        yield number + 1 == plan.echoes, _Wait(None, 0, start + slot * plan.interval)


def _retry(request: _Request, ids: Iterator[int], seconds: float) -> _Waiting[None]:
    """Retry at growing intervals until Success or until the time is up; the last try is the result."""
    end, delay = time.perf_counter() + seconds, 0.2
    yield request
    for tries in itertools.count(1):
        left = max(end - time.perf_counter(), 0.2)  # so that the last try has a little time, too
        result = yield from _probe(request, next(ids), min(request.timeout, left))
        if result.ok:
            break
        if time.perf_counter() >= end:
            result = result._replace(notes=(*result.notes, f"gave up after {tries} {'tries' if tries > 1 else 'try'}"))
            break
        yield _Wait(None, 0, min(time.perf_counter() + delay, end))
        delay = min(delay * 1.5, 2.0)
    yield _Echoed(request, result, True)


def _over_one_association(request: _Request, ids: Iterator[int], plan: _Plan) -> _Waiting[None]:
    """Echoes over one association; when the peer ends it, that is reported and a new one is opened."""
    association: _Association | None = None
    with contextlib.ExitStack() as stack:  # closes the association that is open, if any
        for last, pause in _pauses(plan):
            yield pause
            yield request
            echo = _Echo(request, next(ids), request.timeout)
            try:
                if association and (ended := association.resume(echo)):
                    stack.close()
                    association = None
                    echo.notes.append(ended)
                if not association:
                    association = stack.enter_context(contextlib.closing(_Association(request)))
                    yield from association.open(echo)
                yield from association.echo(echo)
            except EchoError as error:
                echo.fail(error)
                stack.close()
                association = None
            yield _Echoed(request, echo.result(), last)
        if association:
            goodbye = _Echo(request, 0, request.timeout)
            association.resume(goodbye)
            yield from association.release(goodbye)


# -- 12. reports -------------------------------------------------------------------------------------------------------

# A report is a generator that takes the echoes as they come and yields the lines to print; it prints nothing itself.
# To a report, an interruption is an early end of the echoes.


class _Style(NamedTuple):
    """What the output stream can show, and how much detail is wanted."""

    colour: bool = False
    symbols: bool = True
    verbose: bool = False
    width: int = sys.maxsize  # columns; without limit where there is no terminal
    height: int = 0  # lines of a terminal on which a table can be kept up to date; 0 is none

    def symbol(self, name: str) -> str:
        return _SYMBOLS[name][0 if self.symbols else 1]

    def paint(self, colour: str, text: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colour and colour and text else text

    def wrap(self, label: str, text: str, colour: str = "") -> Iterator[str]:
        """A label and a text, broken between words where the width is too small, and indented to stand beneath."""
        line = ""
        for word in _printable(text).split(" "):
            if line and _exceeds(f"{label}{line} {word}", self.width):
                yield label + self.paint(colour, line)
                label, line = " " * min(_columns(label), 13), ""  # 13 columns are before each of the details
            line = f"{line} {word}" if line else word
        yield label + self.paint(colour, line)

    def cut(self, text: str, columns: int) -> str:
        if _exceeds(text, columns):
            while text and _columns(text) >= columns:
                text = text[:-1]
            text += self.symbol("cut") if columns > 0 else ""
        return text


_SYMBOLS = {
    "ok": ("✅", "[OK]"), "failed": ("❌", "[FAILED]"), "bar": ("█", "#"), "sparks": ("▁▂▃▄▅▆▇█", "_.-~=+*#"),
    "cut": ("…", "~"),
}  # fmt: skip
_COLOURS = {"ok": "32", "failed": "31"}


def _text_on_one(tally: _Tally, style: _Style) -> Iterator[str]:
    for event in tally:
        yield from _headline("", event.result, style)
        yield from _circumstances(event.result, style)
        yield from _details(event.result, style)
    if tally.interrupted:
        yield f"interrupted while waiting for {tally.targets[0].target}"


def _text_on_repeats(tally: _Tally, style: _Style) -> Iterator[str]:
    """Many echoes to one target, as ping has them."""
    target = tally.targets[0]
    seen: tuple[object, ...] = ()
    yield f"C-ECHO to {target.target} as {target.calling_ae_title}"
    for _, result, _ in tally:
        yield from _one_of_many(f"seq={tally.total.sent} ", result, style)
        if not result.ok:
            if (failure := (result.kind, str(result.error), result.status)) != seen:
                yield from _circumstances(result, style)
            seen = failure
        yield from _details(result, style)
    every = tally.total
    yield f"--- {target.target} echo statistics ---"
    under_way = f", {len(tally.under_way)} under way when interrupted" if tally.under_way else ""
    took = f"time {(every.ended - every.began) * 1000:.0f} ms{under_way}"
    yield f"{every.sent} sent, {every.succeeded} succeeded, {every.loss:.4g}% loss, {took}"
    if every.succeeded:
        yield f"min/avg/max/mdev = {'/'.join(_four_times(every))} ms"
    if every.succeeded >= 5:  # enough for a picture: each time as a bar, against the longest
        bars = style.symbol("sparks")
        scale = (len(bars) - 1) / (max(every.recent) or 1.0)
        yield "".join(bars[round(each * scale)] for each in every.recent)[-style.width :]


def _one_of_many(start: str, result: EchoResult, style: _Style) -> Iterator[str]:
    start += f"id={result.message_id} "
    if result.ok:
        yield f"{start}status=0000H time={result.total * 1000:.2f} ms"
    else:
        yield from _headline(start, result, style)


def _table(tally: _Tally, style: _Style, repeated: bool, endless: bool) -> Iterator[str]:
    """Text on many targets: a row for each as it finishes, then the failures again in full, then totals."""
    names = {target: (target.target, _printable(target.label or "")) for target in tally.targets}
    widths = [max(map(_columns, column)) for column in zip(*names.values())]
    # A row is one line: first the labels are cut, then the addresses.
    room = style.width - _columns(f"{style.symbol('failed')} ") - (44 if repeated else 16)  # times, gaps
    widths[0] = min(widths[0], max(room, 8))
    room -= widths[0] + len("  Connection lost")  # the longest title of a failure
    widths[1] = min(widths[1], room) if room >= 8 else 0

    def name(target: _Request) -> str:
        cells = [style.cut(text, width) for text, width in zip(names[target], widths)]
        return "  ".join(cell + " " * (width - _columns(cell)) for cell, width in zip(cells, widths) if width)

    def row(target: _Request) -> str:
        statistics = tally.of.get(target)
        if not statistics:
            return f"{name(target)}  {'-':>9}"
        verdict = statistics.verdict
        colour, words = "ok" if verdict.ok else "failed", _verdict(verdict)
        start = f"{name(target)}  {_times(statistics, repeated)}  {style.symbol(colour)} "
        if _exceeds(start + words, style.width):  # failures are repeated below in full
            words = words.partition(":")[0]
            start, words = style.cut(start, style.width), style.cut(words, style.width - _columns(start))
        return start + style.paint(colour, words)

    live = endless and len(tally.targets) + 2 < style.height  # all rows stand from the start and are kept up to date
    if live:
        yield from map(row, tally.targets)
    for event in tally:
        if live:  # up to its row, and down again
            up = len(tally.targets) - tally.targets.index(event.target)
            yield f"\x1b[{up}A\x1b[K{row(event.target)}\x1b[{up}B\r\x1b[A"
        elif endless:
            yield from _one_of_many(f"{name(event.target)}  seq={tally.of[event.target].sent} ", event.result, style)
        elif event.last:
            yield row(event.target)
            yield from _details(event.result, style)
    if not live:
        yield from (row(target) for target in tally.of if endless or target in tally.under_way)
    verdicts = [tally.of[target].verdict for target in tally.targets if target in tally.of]
    if failures := [verdict for verdict in verdicts if not verdict.ok]:
        yield ""
        for failure in failures:
            label = f" {_printable(failure.label)}" if failure.label else ""
            yield from _headline(f"{failure.target}{label}: ", failure, style)
            yield from _circumstances(failure, style)
            yield from _notes(failure, style)  # such as the peer's own comment on a failure
        yield ""
    yield from style.wrap("", _totals(tally, repeated))


def _totals(tally: _Tally, repeated: bool) -> str:
    """How many echoes, or targets, there were of each kind, and how many are missing after an interruption."""
    kinds = sorted(tally.total.kinds.items(), key=lambda item: (item[0] != "ok", -item[1]))
    one, many = ("echo", "echoes") if repeated else ("target", "targets")
    line = f"{tally.total.sent} {one if tally.total.sent == 1 else many}: "
    line += ", ".join(f"{number} {kind}" for kind, number in kinds) or "none answered"
    if tally.interrupted:
        left = {"under way": len(tally.under_way), "not asked": len({*tally.targets} - {*tally.of, *tally.under_way})}
        rest = " and".join(f" {number} {what}" for what, number in left.items() if number)
        line += f"; interrupted with{rest}" if rest else "; interrupted"
    return line


def _times(statistics: _Statistics, repeated: bool) -> str:
    if not repeated:
        return f"{statistics.average * 1000:9.2f} ms" if statistics.succeeded else f"{'-':>9}   "
    times = "/".join(_four_times(statistics)[:3]) if statistics.succeeded else "-/-/-"
    rate = f"{statistics.succeeded}/{statistics.sent} {statistics.loss:.3g}% loss"
    return f"{rate} {times:>{36 - len(rate)}} ms"


def _columns(text: str) -> int:
    """The columns that a terminal takes for a text (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    import unicodedata

    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _exceeds(text: str, columns: int) -> bool:
    """Whether a text does not fit; no character takes more than two columns, so that most need not be counted."""
    return 2 * len(text) > columns and _columns(text) > columns


def _four_times(statistics: _Statistics) -> list[str]:
    """Minimum, average, maximum and deviation, in milliseconds."""
    return [f"{seconds * 1000:.2f}" for seconds in statistics.times.values()]


def _verdict(result: EchoResult) -> str:
    if result.error:
        return f"{result.error.title}: {_printable(result.error.message)}"
    return "Success" if result.ok else f"Failed: status {_hex(result.status or 0)}, {result.status_text}"


def _headline(label: str, result: EchoResult, style: _Style) -> Iterator[str]:
    colour = "ok" if result.ok else "failed"
    return style.wrap(f"{label}{style.symbol(colour)} ", _verdict(result), colour)


def _circumstances(result: EchoResult, style: _Style) -> Iterator[str]:
    """Where it went wrong, the detail in the standard's terms, and the hint."""
    if result.ok:
        return
    host, detail = result.address.host, result.error.detail if result.error else ""
    ip = _without_port(result.remote) if result.remote else host
    found = "" if ip == host else f" ({ip})"
    endpoint = _host_port(host, result.port) + found
    doing = {
        Phase.resolve: f"resolving {host}",
        Phase.connect: f"connecting to {endpoint}",
        Phase.tls: f"negotiating TLS with {endpoint}",
        Phase.associate: f"associating with {result.target}{found} as {result.calling_ae_title}",
        Phase.echo: f"echoing {result.target}{found} as {result.calling_ae_title}",
    }[result.phase or Phase.resolve]
    yield from style.wrap("   while ", doing + (f": {detail}" if detail else ""))
    if result.hint:
        yield from style.wrap("   hint: ", result.hint)


def _details(result: EchoResult, style: _Style) -> Iterator[str]:
    if style.verbose:
        yield from _timeline(result, style)
        yield from _particulars(result, style)
    yield from _notes(result, style)


def _timeline(result: EchoResult, style: _Style) -> Iterator[str]:
    """A row for each phase: its time, and a bar that shows its share and place in the whole."""
    columns = max(8, min(40, style.width - 28))
    scale = columns / (sum(result.timings.values()) or 1.0)
    start = 0.0
    for phase, seconds in result.timings.items():
        indent = min(int(start * scale), columns - 1)
        length = max(1, min(round(seconds * scale), columns - indent))
        yield f"   {phase:<9} {seconds * 1000:9.2f} ms  {' ' * indent}{style.symbol('bar') * length}"
        start += seconds
    yield f"   {'total':<9} {result.total * 1000:9.2f} ms"


def _particulars(result: EchoResult, style: _Style) -> Iterator[str]:
    """The addresses and titles really used, and what the peer reported about itself."""
    rows = [
        ("from", result.local and f"{result.calling_ae_title} at {result.local}"),
        ("to", result.remote and f"{result.called_ae_title} at {result.remote}"),
        ("message", f"ID {result.message_id}"),
    ]
    if said := result.peer:
        name, uid, syntax = said.implementation_version_name, said.implementation_class_uid, said.transfer_syntax
        limit = "not stated" if said.max_pdu is None else f"{said.max_pdu} bytes" if said.max_pdu else "unlimited"
        known = next((f"{name} ({uid})" for name, uid in _TRANSFER_SYNTAXES.items() if uid == syntax), syntax)
        rows += [
            ("peer", f"{name or 'no version name'} ({uid or 'no implementation class UID'})"),
            ("accepted", f"maximum PDU length {limit}, transfer syntax {known or 'not stated'}"),
            ("identity", said.user_identity),
        ]
    if tls := result.tls:
        expiry = tls.certificate_expiry
        until = f"valid until {expiry:%Y-%m-%d %H:%M} UTC" if expiry else "of unknown expiry"
        verified = "" if tls.certificate_verified else "not verified, "
        rows += [
            ("tls", f"{tls.version}, {tls.cipher}, certificate {verified}{until}"),
            ("subject", tls.subject or "none"),
            ("issuer", tls.issuer or "none"),
            ("names", ", ".join(tls.names) or "none"),
        ]
    for label, text in rows:
        if text:
            yield from style.wrap(f"   {label:<9} ", text)


def _notes(result: EchoResult, style: _Style) -> Iterator[str]:
    for note in result.notes:
        yield from style.wrap("   note      ", note)


def _json_lines(tally: _Tally, summary: bool) -> Iterator[str]:
    """One JSON object for each echo, and for several a summary at the end."""
    import json

    for event in tally:
        yield json.dumps(event.result.to_dict())
    if summary:
        every = tally.total
        summed = {
            "schema_version": 1, "type": "summary",
            "time": _iso(datetime.fromtimestamp(every.ended, timezone.utc) if every.sent else None),
            "targets": len(tally.targets), "sent": every.sent, "succeeded": every.succeeded,
            "loss_percent": round(every.loss, 3), "kinds": dict(sorted(every.kinds.items())),
            "times_ms": {name: _milliseconds(took) for name, took in every.times.items()} if every.succeeded else None,
        }  # fmt: skip
        yield json.dumps(summed)


class _State(enum.IntEnum):
    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


_RANK = [_State.OK, _State.WARNING, _State.UNKNOWN, _State.CRITICAL]  # from the mildest to the worst


class _Thresholds(NamedTuple):
    """Limits for alarms: milliseconds that an echo takes, days until the certificate expires."""

    warning: float | None = None
    critical: float | None = None
    warning_cert: float | None = None
    critical_cert: float | None = None

    def judge(self, statistics: _Statistics) -> tuple[_State, str]:
        """The state, and its reason where that is neither the verdict nor the time."""
        verdict = statistics.verdict
        if not verdict.ok:
            is_ours = verdict.error and (verdict.error._case in ("this host", "suspended"))
            return _State.UNKNOWN if is_ours else _State.CRITICAL, ""
        worst, why, took, days = _State.OK, "", statistics.average * 1000, _days_left(verdict)
        for state, limit, limit_cert in (
            (_State.WARNING, self.warning, self.warning_cert), (_State.CRITICAL, self.critical, self.critical_cert)
        ):  # fmt: skip
            if limit is not None and took > limit:
                worst = state
            if limit_cert is not None and days is not None and days < limit_cert:
                when = f"expires in {days:.0f} days" if days >= 0 else f"expired {-days:.0f} days ago"
                worst, why = state, f"certificate {when}"
        if verdict.tls and days is None and worst is not _State.CRITICAL and self[2:] != (None, None):
            return _State.UNKNOWN, "certificate of unknown expiry"
        return worst, why


def _days_left(result: EchoResult) -> float | None:
    expiry = result.tls and result.tls.certificate_expiry
    return (expiry - result.started_at).total_seconds() / 86400 if expiry else None


def _nagios_state(tally: _Tally, thresholds: _Thresholds) -> _State:
    """The exit code of a monitoring plugin; after an interruption nothing is known."""
    if tally.interrupted:
        return _State.UNKNOWN
    return max((thresholds.judge(statistics)[0] for statistics in tally.of.values()), key=_RANK.index)


def _nagios(tally: _Tally, thresholds: _Thresholds) -> Iterator[str]:
    """The Monitoring Plugins guidelines: one line for one target; for several, a line each follows, the worst first."""
    for _ in tally:
        pass
    if tally.interrupted:
        yield f"DICOM ECHO UNKNOWN - interrupted after {tally.finished} of {len(tally.targets)} targets"
        return
    judged = []
    for target in tally.targets:
        state, why = thresholds.judge(tally.of[target])
        judged.append((state, _plugin_text(target, tally.of[target], why), target, tally.of[target]))
    judged.sort(key=lambda each: _RANK.index(each[0]), reverse=True)
    worst, text, target, statistics = judged[0]
    if len(judged) == 1:
        lines, data = [f"DICOM ECHO {worst.name} - {text}"], _performance("", statistics, target, thresholds)
        if statistics.verdict.ok:
            data += [f"{phase}={seconds:.4f}s;;;0" for phase, seconds in statistics.verdict.timings.items()]
    else:
        good, first = sum(state is _State.OK for state, *_ in judged), f"; {text}" if worst else ""
        yield f"DICOM ECHO {worst.name} - {good} of {len(judged)} targets OK{first} | ok={good};;;0;{len(judged)}"
        lines, data = [f"{state.name} - {text}" for state, text, *_ in judged], []
        used: dict[str, int] = {}  # labels may be given twice, but not in performance data
        for _, _, target, statistics in judged:
            name = plain = re.sub("['=|]", "_", _printable(target.label or target.target))
            while name in used:
                used[plain] += 1
                name = f"{plain} {used[plain]}"
            used[name] = 1
            data += _performance(name, statistics, target, thresholds)
    yield from lines[:-1]
    yield f"{lines[-1]} | {' '.join(data)}" if data else lines[-1]


def _plugin_text(target: _Request, statistics: _Statistics, why: str) -> str:
    result = statistics.verdict
    text = f"{target.label} ({target.target})" if target.label else target.target
    text += f" answered in {statistics.average * 1000:.1f} ms" if result.ok else f": {_verdict(result)}"
    text += f", {why}" if why else ""
    text += f" ({statistics.succeeded} of {statistics.sent} succeeded)" if statistics.sent > 1 else ""
    return _plugin_line(text)


def _plugin_line(text: str) -> str:
    """One line, without the vertical bar that begins the performance data."""
    return _printable(text).replace("|", "/")


def _performance(name: str, statistics: _Statistics, target: _Request, thresholds: _Thresholds) -> list[str]:
    """'label'=value[UOM];[warn];[crit];[min];[max]: seconds, and days of the certificate."""
    if not statistics.succeeded:
        return []
    limits = ["" if limit is None else _decimal(limit / 1000) for limit in thresholds[:2]]
    label = f"'{name}'" if name else "time"
    data = [f"{label}={statistics.average:.4f}s;{';'.join(limits)};0;{_decimal(target.timeout)}"]
    if (days := _days_left(statistics.verdict)) is not None:
        # An alert range "N:" is below N (Monitoring Plugins guidelines).
        limits = ["" if limit is None else f"{_decimal(limit)}:" for limit in thresholds[2:]]
        label = f"'{name} certificate_days'" if name else "certificate_days"
        data.append(f"{label}={days:.2f};{';'.join(limits)}")
    return data


def _decimal(number: float) -> str:
    """A number without an exponent, which the guidelines do not allow."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _prometheus(tally: _Tally) -> Iterator[str]:
    """The Prometheus text format, for the textfile collector of a node exporter."""
    for _ in tally:
        pass
    if tally.interrupted:  # missing series would look like targets that are gone
        return
    # A target listed twice has one series.
    results = {_labels(tally.of[target].verdict): tally.of[target].verdict for target in tally.targets}
    for name, explanation, samples in _METRICS:
        rows = [
            f"{name}{{{_labels(result, more)}}} {_decimal(value)}"
            for result in results.values()
            for more, value in samples(result)
        ]
        if rows:
            yield f"# HELP {name} {explanation}"
            yield f"# TYPE {name} gauge"
            yield from rows


def _labels(result: EchoResult, more: Mapping[str, str] = {}) -> str:
    labels = {"target": result.target, "called_ae": result.called_ae_title, "calling_ae": result.calling_ae_title}
    if result.label:
        labels["label"] = result.label
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return ",".join(f'{name}="{value.translate(escapes)}"' for name, value in {**labels, **more}.items())


# Name, help, and the samples of a result, each with its further labels.
_METRICS: list[tuple[str, str, Callable[[EchoResult], list[tuple[dict[str, str], float]]]]] = [
    ("dicom_echo_success", "Whether the echo was answered with Success.", lambda r: [({}, int(r.ok))]),
    ("dicom_echo_status_code", "DIMSE status of the C-ECHO response, where there is one.",
     lambda r: [] if r.status is None else [({}, r.status)]),
    ("dicom_echo_duration_seconds", "Time of the whole echo.", lambda r: [({}, r.total)]),
    ("dicom_echo_phase_duration_seconds", "Time of each phase that ran.",
     lambda r: [({"phase": str(phase)}, seconds) for phase, seconds in r.timings.items()]),
    ("dicom_echo_tls_certificate_expiry_timestamp_seconds", "When the certificate of the peer expires.",
     lambda r: [({}, r.tls.certificate_expiry.timestamp())] if r.tls and r.tls.certificate_expiry else []),
    ("dicom_echo_result_info", "How the echo ended, and in which phase it failed.",
     lambda r: [({"kind": r.kind, "phase": str(r.phase or "")}, 1)]),
]  # fmt: skip


class _Visit:
    """A connection to the other end: what the caller sent, and how it ended."""

    tls: str | None = None
    called: str | None = None  # None: no A-ASSOCIATE-RQ came
    calling: str | None = None
    version_name: str | None = None
    rejected: int | None = None  # the reason, PS3.8 Table 9-21
    echoes: int = 0
    end: str = ""
    hint: str = ""

    def __init__(self, started_at: datetime, host: str, port: int, **said: Any) -> None:
        self.started_at, self.host, self.port = started_at, host, port
        self.proposed: list[tuple[str, list[str]]] = []  # SOP classes, each with its transfer syntaxes
        vars(self).update(said)

    def text(self, style: _Style) -> str:
        line = f"{self.started_at:%Y-%m-%d %H:%M:%S} {_host_port(self.host, self.port)}"
        if self.called is not None:
            names = {uid: name for name, uid in _TRANSFER_SYNTAXES.items()}
            proposed = [
                f"Verification ({', '.join(names.get(each, each) for each in syntaxes)})"
                for sop_class, syntaxes in self.proposed if sop_class == _VERIFICATION
            ]  # fmt: skip
            if others := len(self.proposed) - len(proposed):
                proposed.append(f"{others} other{'s' * (others > 1)}")
            who = ", ".join(filter(None, [self.version_name or "no version name", self.tls]))
            line += f' "{self.calling}" calls "{self.called}" ({who}), proposes {", ".join(proposed) or "nothing"};'
            line += f" {self.echoes or 'no'} echo{'es' * (self.echoes > 1)} answered;"
        line += f" {self.end}{self.hint and '; hint: '}{self.hint}"
        verdict = "ok" if self.echoes else "failed"
        return f"{style.symbol(verdict)} {style.paint(verdict, _printable(line))}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1, "type": "association", "time": _iso(self.started_at.astimezone(timezone.utc)),
            "remote": _host_port(self.host, self.port), "tls": self.tls, "called_ae_title": self.called,
            "calling_ae_title": self.calling, "implementation_version_name": self.version_name,
            "proposed": [{"sop_class": name, "transfer_syntaxes": syntaxes} for name, syntaxes in self.proposed],
            "echoes": self.echoes, "reject_reason": self.rejected, "end": self.end, "hint": self.hint or None,
        }  # fmt: skip


def _visits(visits: Iterable[_Visit], style: _Style | None) -> Iterator[str]:
    """A line for each visit, then the totals: as text or, without a style, as JSON."""
    if not style:
        import json

    totals = {"connections": 0, "associations": 0, "rejected": 0, "echoes": 0}
    for visit in visits:
        totals["connections"] += 1
        totals["associations"] += visit.called is not None and visit.rejected is None
        totals["rejected"] += visit.rejected is not None
        totals["echoes"] += visit.echoes
        yield visit.text(style) if style else json.dumps(visit.to_dict())
    text = ", ".join(f"{name}: {number}" for name, number in totals.items())
    yield text if style else json.dumps({"schema_version": 1, "type": "association_summary", **totals})


# -- 13. other end -----------------------------------------------------------------------------------------------------

# A Verification SCP. Its callers take turns in the loop, where silent ones cost nothing but their sockets; pynetdicom's
# own server spends two threads that poll on each, and waits without limit for the rest of a PDU.

_MAX_CALLERS = 500  # one more, and the one that has been silent longest is dropped; Windows' select takes 512 sockets
_CALL_SECONDS = 10.0  # for TLS and the A-ASSOCIATE-RQ
_IDLE_SECONDS = 60.0  # from an answer to the next request
_MAX_REQUEST_LENGTH = 1 << 16  # 128 presentation contexts fit


class _OtherEnd(_Stream):
    """A Verification SCP, and the stream of visits to it."""

    def __init__(
        self, listeners: Sequence[socket.socket], called: str | None, calling: str | None, tls: ssl.SSLContext | None,
        count: int, wait: float,
    ) -> None:  # fmt: skip
        import shlex  # now: later, there may be too many open files

        super().__init__([*map(self._accept, listeners), self._limit(wait)], _MAX_CALLERS)
        self._quote = shlex.quote
        self.addresses = [_host_port(*each.getsockname()[:2]) for each in listeners]
        self.accepted = self.answered = 0
        self.missed = ""  # what has not come within the time limit
        self._called, self._calling, self._tls, self._count = called, calling, tls, count
        self._open: dict[_Visit, _Wire] = {}  # the one that has been silent longest comes first

    def visits(self) -> Generator[_Visit, None, None]:
        """Each visit as it ends; after `count` echoes, the time limit or the end mark, those that are still open."""
        yield from self.outcomes()
        while not self._outcomes.empty():  # after the end mark
            if visit := self._outcomes.get():
                yield visit
        for visit, wire in self._open.items():
            wire.close()
            visit.end = visit.end or "still open"
            yield visit

    def _limit(self, seconds: float) -> _Waiting[None]:
        """End the stream if no echo has been answered within this time."""
        if seconds < math.inf:
            yield _Wait(None, 0, time.perf_counter() + seconds)
            if not self.answered:
                self.missed = f"{'no echo' if self.accepted else 'nobody called'} within {seconds:g} s"
                self.end()

    def _accept(self, listener: socket.socket) -> _Waiting[None]:
        while True:
            yield _Wait(listener, selectors.EVENT_READ, time.perf_counter() + _MAX_SECONDS)
            try:
                sock, address = listener.accept()
                sock.setblocking(False)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):  # otherwise, the caller has gone already
                    self._drop_all_but(len(self._open) // 2, "dropped: this host has too many open files")
                    yield _Wait(None, 0, time.perf_counter() + 0.1)
                continue
            self.accepted += 1
            visit = _Visit(datetime.now().astimezone(), *address[:2])
            self._open[visit] = wire = _Wire(sock)
            self._drop_all_but(_MAX_CALLERS, f"dropped: silent for longer than {_MAX_CALLERS} others")
            yield self._attend(visit, wire)

    def _drop_all_but(self, most: int, why: str) -> None:
        """Drop those that have been silent longest; they see the end of the connection when it is their turn."""
        attended = [visit for visit in self._open if not visit.end]
        for visit in attended[: max(len(attended) - most, 0)]:
            visit.end = why
            self._open[visit].hang_up()

    def _attend(self, visit: _Visit, wire: _Wire) -> _Waiting[None]:
        with contextlib.closing(wire):
            try:
                end = yield from self._converse(visit, wire)
            except TLSFailed as error:
                end = f"TLS failed: {error.message.replace('the peer', 'the caller')} ({error.detail})"
            except EchoError as error:
                end = error.message.replace("the peer", "the caller")
                visit.hint = visit.hint or error.hint
                if isinstance(error, ProtocolError):
                    wire.send_at_once(_ABORT)
            except TimeoutError:
                end = "dropped: silent or slow for too long"
            except Exception as error:  # any: the other callers are still served
                end = f"internal error: {error!r}"
        del self._open[visit]
        visit.end = visit.end or end
        yield visit
        if self._has_enough():
            self.end()

    def _has_enough(self) -> bool:
        return 0 < self._count <= self.answered

    def _converse(self, visit: _Visit, wire: _Wire) -> _Waiting[str]:
        """Answer the requests of a caller; return how the association ended."""
        buffer = bytearray()  # what has been received and not been used
        wire.until = time.perf_counter() + _CALL_SECONDS
        if self._tls:
            visit.tls = (yield from wire.shake_hands(self._tls, server_side=True)).version()
        request = yield from _receive_pdu(wire, buffer, _MAX_REQUEST_LENGTH, 1)
        contexts, max_pdu = _read_associate_rq(visit, request)
        if rejection := self._rejection(visit, request):
            source, reason = rejection
            visit.rejected = reason
            yield from wire.send(bytes([3, 0, 0, 0, 0, 4, 0, 1, source, reason]))  # A-ASSOCIATE-RJ (PS3.8 9.3.4)
            return f"rejected: {_REJECT_REASONS[source, reason]} (reason {reason})"
        yield from wire.send(_encode_associate_ac(request, _MAX_REQUEST_LENGTH, contexts))
        while True:
            self._open[visit] = self._open.pop(visit)
            wire.until = time.perf_counter() + (_RELEASE_TIMEOUT if self._has_enough() else _IDLE_SECONDS)
            kind, context_id, message_id = yield from _receive_request(wire, buffer)
            wire.until = time.perf_counter() + _CALL_SECONDS
            if kind == 7:
                return "aborted by the caller"
            if kind == 5:
                yield from wire.send(_RELEASE_RP)
                return "released"
            if context_id not in contexts or contexts[context_id][0]:
                raise ProtocolError(f"aborted by this end: presentation context {context_id} was not accepted")
            yield from wire.send(_encode_c_echo(message_id, max_pdu, context_id, "C_ECHO_RSP"))
            visit.echoes += 1
            self.answered += 1

    def _rejection(self, visit: _Visit, request: bytes) -> tuple[int, int] | None:
        """The source and the reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21) if one is due; sets the hint."""
        wrong: dict[int, str] = {}  # by the reason: the option that would admit the caller
        if self._called and visit.called != self._called:
            wrong[7] = f"-aec {self._quote(visit.called or '')}"
        if self._calling and visit.calling != self._calling:
            wrong[3] = f"-aet {self._quote(visit.calling or '')}"
        if wrong:
            wanted = f'call "{self._called or visit.called}" as "{self._calling or visit.calling}"'
            visit.hint = f"let the caller {wanted}, or listen with {' '.join(wrong.values())}"
        if not request[7] & 1:
            return 2, 2
        return (1, next(iter(wrong))) if wrong else None


def _receive_pdu(wire: _Wire, buffer: bytearray, room: int, *types: int) -> _Waiting[bytes]:
    """A whole PDU of one of the expected types; its type is checked first, then its length."""
    while True:
        start, size = bytes(buffer[:6]), 6 + int.from_bytes(buffer[2:6], "big")
        if len(start) == 6:
            if start.startswith(b"\x16\x03"):
                raise ProtocolError("the caller uses TLS", hint="listen with --tls, or turn TLS off at the caller")
            if start[0] not in types:
                expected = " or ".join(_PDU_NAMES[kind] for kind in types)
                raise ProtocolError(f"received {_PDU_NAMES.get(start[0], str(start)[2:-1])}, expected {expected}")
            if size > room:
                raise ProtocolError(f"received {_PDU_NAMES[start[0]]} of {size} bytes, expected no more than {room}")
            if pdu := _take_pdu(buffer):
                return pdu
        if not (data := (yield from wire.receive())):
            raise ConnectionLost(f"closed by the caller{' in the middle of a PDU' if buffer else ''}")
        buffer += data


def _receive_request(wire: _Wire, buffer: bytearray) -> _Waiting[tuple[int, int, int]]:
    """The PDU type of the next request, and the presentation context and message ID of a C-ECHO-RQ, otherwise 0."""
    data, room = b"", _MAX_REQUEST_LENGTH
    while True:
        pdu = yield from _receive_pdu(wire, buffer, room, 4, 5, 7)
        room -= len(pdu)
        if pdu[0] != 4:
            return pdu[0], 0, 0
        for context_id, header, fragment in _decode_p_data(pdu):
            data += fragment
            if header & 2:  # it is the last
                command, _ = _decode_command(data if header & 1 else b"")
                field, message_id = _integer(command, "Command Field"), _integer(command, "Message ID")
                if field != 0x0030 or message_id is None or _integer(command, "Command Data Set Type") != 0x0101:
                    raise ProtocolError("received a message other than C-ECHO-RQ")
                return 4, context_id, message_id


def _read_associate_rq(visit: _Visit, pdu: bytes) -> tuple[dict[int, tuple[int, str]], int]:
    """Read an A-ASSOCIATE-RQ (PS3.8 9.3.2) into the visit.

    Return the result and the transfer syntax for each presentation context, and the caller's maximum length.
    """
    what, max_pdu = "A-ASSOCIATE-RQ", 0
    contexts: dict[int, tuple[int, str]] = {}
    items = _associate_items(pdu)  # raises before anything of a PDU that is too short is read into the visit
    visit.called, visit.calling = _text(pdu[10:26]), _text(pdu[26:42])
    for kind, item in items:
        if kind == 0x20:  # presentation context: ID and three reserved bytes, abstract syntax, transfer syntaxes
            syntaxes = [(kind, _text(value)) for kind, value in _items(item, what, 4)]
            offered = [name for kind, name in syntaxes if kind == 0x40]
            sop_classes = [name for kind, name in syntaxes if kind == 0x30]
            visit.proposed += [(name, offered) for name in sop_classes]
            known = [name for name in offered if name in _TRANSFER_SYNTAXES.values()]
            result = 3 if sop_classes != [_VERIFICATION] else 0 if known else 4  # PS3.8 Table 9-18
            contexts[int.from_bytes(item[:1], "big")] = result, (known or [_TRANSFER_SYNTAXES["implicit"]])[0]
        elif kind == 0x50:
            said = dict(_items(item, what))
            visit.version_name = _text(said[0x55]) if 0x55 in said else None
            max_pdu = int.from_bytes(said.get(0x51, b"")[:4], "big")
    if not (visit.called and visit.calling):
        raise ProtocolError(f"malformed {what}: an AE title is missing")
    if not all(context_id % 2 for context_id in contexts):
        raise ProtocolError(f"malformed {what}: the ID of a presentation context is even")
    return contexts, max_pdu


@contextlib.contextmanager
def _listen(
    endpoints: Sequence[tuple[str, int]], called: str | None = None, calling: str | None = None,
    tls: ssl.SSLContext | None = None, count: int = 0, wait: float = math.inf,
) -> Iterator[_OtherEnd]:  # fmt: skip
    """The other end, while it listens; of several addresses, those that this host does not have are skipped."""
    global _own_process
    _own_process = False  # a thread of ours encodes, too
    _load_codec()
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        for host, port in endpoints:
            try:
                for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                    listener = socket.create_server(address, family=family, backlog=_MAX_CALLERS)
                    listener.setblocking(False)  # a caller may have gone before it is accepted
                    listeners.append(stack.enter_context(listener))
            except OSError as error:
                if not listeners or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # there is no IPv6
                    why = _reason(error).partition(" (while")[0]  # Python says once more on which
                    raise ValueError(f"cannot listen on {_host_port(host, port)}: {why}") from None
        yield _OtherEnd(listeners, called, calling, tls, count, wait)


@contextlib.contextmanager
def _peer_of_our_own(host: str) -> Iterator[str]:
    """The address of another end in this process, on a free port that only this host can reach."""
    with _listen([(host, 0)]) as end:
        thread = threading.Thread(target=lambda: list(end.visits()), daemon=True)
        thread.start()
        try:
            yield f"{DEFAULT_CALLED_AE_TITLE}@{end.addresses[0]}"
        finally:
            end.end()
            thread.join()


# -- 14. command -------------------------------------------------------------------------------------------------------

_USAGE_ERROR = 2
_INTERRUPTED = 128  # plus the number of the signal
_is_command = False  # _command() sets it: the streams and the signals of this process are ours

_DESCRIPTION = """\
Send a DICOM C-ECHO to one or more nodes and report what happened.
A successful echo does not prove that this AE title may query or store."""
_SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
_EXAMPLES = """\
examples:
  dicom-echo ANY-SCP@pacs:11112                does this node answer?
  dicom-echo -aet MODALITY1 -v PACS@pacs:104   as the modality, with details
  dicom-echo -T nodes.txt --format json        many nodes, for a program"""
_EXIT_CODES = """\
exit codes:
  0    every echo was answered with Success
  1    a peer answered, but not with Success
  2    the command line is wrong and nothing was sent, or the results cannot be
       written
  3    no answer: name, network, TLS, time
  130  interrupted; 143 terminated: the process ends by that signal
With several targets, the highest of their exit codes is returned.
With --format nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."""
_SHORT_HELP = f"""\
usage: dicom-echo [OPTIONS] HOST [HOST ...]

{_DESCRIPTION}

  HOST                [AE-TITLE@]HOST[:PORT]
  -aec AE, -aet AE    called AE title (the peer's), calling AE title (ours)
  -t SECONDS          time limit for a whole echo [{_DEFAULT_TIMEOUT:g}]
  --tls               use TLS and verify the peer's certificate
  -c N, -i SECONDS    send N echoes (0: until interrupted), at this interval
  --wait SECONDS      retry until Success
  -T FILE             many targets, one per line
  -v, -d              show times and details; show every PDU
  --format FORMAT     text, json, nagios or prometheus
  --self-test         start a temporary local peer and echo it
  --listen PORT       be echoed, and show what callers send
  --help              everything else

{_EXAMPLES}

exit codes: 0 Success, 1 another answer, 2 wrong usage, 3 no answer"""


def _complain(message: str, *further: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:  # a process may be started without
            for line in (f"dicom-echo: {message}", *further):
                print(_encodable(_printable(line), sys.stderr), file=sys.stderr)


def _give_up(for_nagios: bool, message: str, *further: str) -> int:
    """Say why there is no result, to a monitoring system on standard output; return the exit code."""
    if not for_nagios:
        _complain(message, *further)
        return _USAGE_ERROR
    with contextlib.suppress(OSError, ValueError):  # nobody reads it, but the exit code tells it too
        print(_encodable(f"DICOM ECHO UNKNOWN - {_plugin_line('; '.join([message, *further]))}", sys.stdout))
    return _State.UNKNOWN


def _encodable(text: str, stream: Any) -> str:
    """A text with what the stream cannot encode escaped; the stream's own settings are not changed."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:  # an application's stream may name an unknown one
        return text.encode("ascii", "backslashreplace").decode()


def _argument(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """Make argparse print why a value is refused, in our own words."""
    from argparse import ArgumentTypeError

    def convert(text: str) -> _T:
        try:
            return read(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return convert


def _given(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _number(low: float, high: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high or number == math.inf:  # `isinf` fails on whole numbers of 310 digits
            what = "a whole number " if kind is int else ""
            limits = f"between {low:g} and {high:.0f}"
            if high == math.inf:
                limits = f"{'of ' if what else ''}at least {low:g}"
            raise ValueError(f"must be {what}{limits}, not {text!r}")
        return number

    return _argument(read)


def _endpoints(text: str) -> list[tuple[str, int]]:
    """[HOST:]PORT to listen on; without HOST, only this host can reach it."""
    host, _, port = text.rpartition(":")
    if not host:
        return [(each, _check_port(port)) for each in ("127.0.0.1", "::1")]
    address = parse_address(text)
    if address.ae_title or address.port is None:
        raise AddressError(f"{text!r} is not [HOST:]PORT")
    return [(address.host, address.port)]


def _parser(for_nagios: bool = False) -> Any:
    import argparse

    class Parser(argparse.ArgumentParser):
        """Reports an error in one line; argparse itself would print the usage before it."""

        def error(self, message: str, *further: str) -> NoReturn:
            see = "" if for_nagios else f" (see {self.prog} --help)"
            raise SystemExit(_give_up(for_nagios, message + see, *further))

    # fmt: off
    width = min(80, _terminal_size(sys.__stdout__)[0])
    parser = Parser(
        prog="dicom-echo", usage="%(prog)s [OPTIONS] HOST [HOST ...]", description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}", add_help=False, allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=width, max_help_position=28),
    )
    text, title = _argument(_given), _argument(_check_ae_title)
    seconds, limit = _number(0, _MAX_SECONDS, float), _number(0, math.inf, float)

    add = parser.add_argument_group("Arguments").add_argument
    add("hosts", metavar="HOST", nargs="*",
        help="[AE-TITLE@]HOST[:PORT]; HOST is a name, an IPv4 address or [IPv6]; PORT defaults to 104, or to 2762 "
        "with --tls")

    add = parser.add_argument_group("DICOM Options").add_argument
    add("-aec", "--called", "--called-ae-title", metavar="AE", type=title,
        help=f"called AE title (the peer's); overrides the one in HOST [{DEFAULT_CALLED_AE_TITLE}]")
    add("-aet", "--calling", "--calling-ae-title", metavar="AE", type=title,
        help=f"calling AE title (ours) [{DEFAULT_CALLING_AE_TITLE}]")
    add("-id", "--id", "--message-id", metavar="ID", type=_number(0, 0xFFFF, int), default=1,
        help="message ID of the first echo, 0-65535 [%(default)s]")
    add("--max-pdu", metavar="BYTES", type=_number(0, 0xFFFFFFFF, int), default=16382,
        help="maximum PDU length to announce; 0 is unlimited [%(default)s]")
    add("--transfer-syntax", metavar="NAME", action="append", type=_argument(_transfer_syntax),
        help="propose implicit, explicit, deflated, big-endian or a UID; repeatable [implicit, explicit]")
    add("--abort", action="store_true", help="end the association with A-ABORT instead of A-RELEASE")

    group = parser.add_argument_group("User Identity Options")
    add, either = group.add_argument, group.add_mutually_exclusive_group().add_argument
    either("--user", metavar="NAME", type=text, help="present this user name; its password, if any, is in "
        "DICOM_ECHO_PASSWORD or --password-file")
    add("--password-file", metavar="FILE", type=text, help="read the password from FILE; - is standard input")
    either("--jwt-file", metavar="FILE", type=text, help="present the JSON Web Token in FILE")
    either("--saml-file", metavar="FILE", type=text, help="present the SAML assertion in FILE")
    either("--kerberos-file", metavar="FILE", type=text, help="present the Kerberos service ticket in FILE")

    group = parser.add_argument_group("Network Options")
    add, either = group.add_argument, group.add_mutually_exclusive_group().add_argument
    add("-t", "--timeout", metavar="SECONDS", type=_number(0.001, _MAX_SECONDS, float),
        help=f"time limit for a whole echo [{_DEFAULT_TIMEOUT:g}]")
    family = group.add_mutually_exclusive_group().add_argument
    family("-4", dest="family", action="store_const", const=socket.AF_INET, default=socket.AF_UNSPEC, help="IPv4 only")
    family("-6", dest="family", action="store_const", const=socket.AF_INET6, help="IPv6 only")
    add("--source", metavar="ADDRESS", type=text, help="local IP address to connect from")
    add("--tls", action="store_true", help="use TLS 1.2 or later and verify the peer's certificate")
    either("--cacert", metavar="FILE|DIR", type=text,
        help="trust the CA certificates in this PEM file or directory instead of the system's")
    add("--cert", metavar="FILE", type=text, help="client certificate (PEM)")
    add("--key", metavar="FILE", type=text, help="private key (PEM), if not in --cert")
    add("--key-password-file", metavar="FILE", type=text,
        help="read the pass phrase of the key from FILE (or set DICOM_ECHO_KEY_PASSWORD)")
    add("--ciphers", metavar="LIST", type=text, help="ciphers to propose, as OpenSSL's cipher list")
    either("-k", "--insecure", action="store_true", help="do not verify the peer's certificate; only for diagnosis")
    add("--server-name", dest="server_hostname", metavar="NAME", type=_argument(_check_host),
        help="name expected in the peer's certificate (and sent as SNI) [HOST]")

    add = parser.add_argument_group("Repeat and Fleet Options").add_argument
    add("-c", "--count", metavar="N", type=_number(0, math.inf, int),
        help="send N echoes to each target; 0: until interrupted [1]")
    add("-i", "--interval", metavar="SECONDS", type=seconds, help="seconds between the starts of two echoes [1]")
    add("--reuse", action="store_true", help="send all echoes over one association")
    add("--wait", metavar="SECONDS", type=seconds, help="retry until Success, for at most SECONDS")
    add("-T", "--targets", metavar="FILE", action="append", default=[], type=text,
        help="read targets from FILE, one per line, optionally followed by ' # label'; - is standard input")
    add("-j", "--jobs", metavar="N", type=_number(1, 10000, int),
        help=f"ask up to N targets in parallel [{_DEFAULT_JOBS}]")

    add = parser.add_argument_group("Output Options").add_argument
    add("-q", "--quiet", action="store_true", help="print nothing; use the exit code")
    add("-v", "--verbose", action="store_true", help="show the time of each phase and the peer's details")
    add("-d", "--debug", action="store_true", help="like -v, and print every PDU on standard error")
    add("--format", choices=["text", "json", "nagios", "prometheus"], default="text", metavar="FORMAT",
        help="text, json, nagios or prometheus [%(default)s]")
    add("--warning", metavar="MS", type=limit, help="nagios: WARNING if the echo takes longer")
    add("--critical", metavar="MS", type=limit, help="nagios: CRITICAL if the echo takes longer")
    add("--warning-cert", metavar="DAYS", type=limit, help="nagios: WARNING if the certificate expires sooner")
    add("--critical-cert", metavar="DAYS", type=limit, help="nagios: CRITICAL if the certificate expires sooner")
    add("--output", metavar="FILE", type=text, help="write results to FILE, replacing it atomically")
    add("--color", choices=["auto", "always", "never"], default="auto", metavar="WHEN",
        help="auto, always or never; auto honours NO_COLOR and FORCE_COLOR [%(default)s]")

    add = parser.add_argument_group("Other Options").add_argument
    add("--self-test", action="store_true", help="start a temporary local peer and echo it")
    add("--listen", metavar="[HOST:]PORT", type=_argument(_endpoints),
        help="be the peer: answer callers, and print what each of them sent; HOST defaults to 127.0.0.1 and ::1 "
        "(0.0.0.0 and [::] are all addresses). -aec and -aet reject other titles, -c ends after N echoes, -t if none "
        "was answered within SECONDS, --tls requires --cert, --cacert requires callers to present a certificate")
    for option, what in (
        ("--show-completion", "print the shell completion script for SHELL: bash, zsh, fish, tcsh or powershell"),
        ("--install-completion", "install that script where SHELL looks for it"),
    ):
        add(option, metavar="SHELL", nargs="?", choices=_SHELLS, const=True, help=f"{what} [the login shell]")
    add("-V", "--version", action="store_true", help="print versions; with -v, list the archive's contents")
    add("-h", dest="help", action="store_const", const="short", help="print a short help")
    add("--help", action="store_true", help="print this help")
    # fmt: on
    return parser


def _login_shell() -> str:
    from pathlib import Path

    path = os.environ.get("SHELL", "powershell" if os.name == "nt" else "")
    shell = {"csh": "tcsh", "pwsh": "powershell"}.get(Path(path).stem, Path(path).stem)
    if shell not in _SHELLS:
        raise ValueError(f"cannot tell the shell (SHELL={path!r}); name one: {', '.join(_SHELLS)}")
    return shell


def _completion_script(shell: str) -> str:
    try:
        import shtab
    except ImportError:
        raise ValueError("completion requires shtab: pip install 'dicom-echo[completion]', or shtab alone") from None
    hosts = {
        "bash": "_dicom_echo_hosts", "zsh": "_hosts", "fish": "(__fish_print_hostnames)",
        "preamble": {"bash": '_dicom_echo_hosts() { compgen -A hostname -- "$1"; }'},
    }  # fmt: skip
    complete = {"HOST": hosts, "FILE": shtab.FILE, "FILE|DIR": shtab.FILE}
    parser = _parser()
    for action in parser._actions:
        if action.metavar in complete:
            action.complete = complete[action.metavar]  # how shtab is told
    return shtab.complete(parser, shell)


def _install_completion(shell: str) -> str:
    """Write the script where the shell looks by itself; return what to tell the user."""
    import subprocess

    script = _completion_script(shell)
    try:
        file = _completion_file(shell)
        if shell in ("tcsh", "powershell"):  # they only read a startup file: append to it, or replace what we appended
            begin, end = "# >>> dicom-echo >>>\n", "# <<< dicom-echo <<<\n"
            before = file.read_bytes().decode() if file.exists() else ""
            before = re.sub(f"{begin}.*?{end}", "", before, flags=re.DOTALL)
            script = before + "\n" * (before[-1:] not in ("", "\n")) + begin + script + "\n" + end
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(script.encode())
    except (OSError, UnicodeError, subprocess.SubprocessError) as error:
        raise ValueError(f"cannot install the completion: {error} (--show-completion prints it)") from None
    needs = {"bash": " with the package bash-completion", "zsh": " that runs compinit"}.get(shell, "")
    return f"wrote {file}: each new {shell}{needs} completes the command dicom-echo (not: python dicom-echo.pyz)"


def _completion_file(shell: str) -> Path:
    import shutil
    import subprocess
    from pathlib import Path

    def ask(*command: str) -> list[str]:  # in a session of its own, so that it cannot take the terminal from us
        quiet: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        answer: str = subprocess.check_output(command, timeout=30, encoding="utf-8", **quiet)  # noqa: S603  # a shell
        return answer.splitlines()

    home = Path.home()
    if shell == "bash":
        data = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
        folder = os.environ.get("BASH_COMPLETION_USER_DIR") or Path(data, "bash-completion")
        return Path(folder, "completions", "dicom-echo")
    if shell == "fish":
        return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "fish/completions/dicom-echo.fish")
    if shell == "zsh":
        for folder in ask("zsh", "-ic", "print -l $fpath"):
            if folder.startswith("/") and os.access(folder, os.W_OK):
                return Path(folder, "_dicom-echo")
        raise OSError("no folder in zsh's fpath is writable; add one in .zshrc, before compinit")
    if shell == "tcsh":  # which ignores .cshrc where there is a .tcshrc
        return home / (".cshrc" if (home / ".cshrc").exists() and not (home / ".tcshrc").exists() else ".tcshrc")
    program = shutil.which("pwsh") or "powershell"
    return Path(ask(program, "-NoProfile", "-NonInteractive", "-Command", "$PROFILE.CurrentUserAllHosts")[0])


# An option that would do nothing is a mistake. Which options require the one before them, and which exclude it:
_REQUIRED_BY = {
    "--tls": "--cacert --cert --key --key-password-file --ciphers --insecure --server-name --warning-cert "
    "--critical-cert",
    "--cert": "--key --key-password-file",
    "--user": "--password-file",
    "--count": "--interval --reuse",
    "--format=nagios": "--warning --critical --warning-cert --critical-cert",
}
_EXCLUDED_BY = {
    "--self-test": "HOST --targets --tls",
    "--listen": "HOST --targets --self-test --id --max-pdu --transfer-syntax --abort --user --jwt-file --saml-file "
    "--kerberos-file -4 -6 --source --insecure --server-name --interval --reuse --wait --jobs --verbose --debug "
    "--format=nagios --format=prometheus",
    "--wait": "--count --reuse",
    "--quiet": "--verbose --format --output",
    "--verbose": "--format",
}


def _check_combinations(args: argparse.Namespace, parser: Any) -> None:
    given = {f"--format={args.format}"}
    for action in parser._actions:
        value = getattr(args, action.dest)
        is_given = value not in (None, [], action.default)
        if action.const is not None:  # an option without a value: -4 and -6 share a destination
            is_given = value == action.const
        if is_given:
            given.add((action.option_strings or ["HOST"])[-1])
    if args.count == 1:
        given.discard("--count")
    for needed, options in _REQUIRED_BY.items():
        for option in options.split():
            if option in given and needed not in given:
                raise ValueError(f"{option} requires {needed}")
    for option, others in _EXCLUDED_BY.items():
        for other in others.split():
            if {option, other} <= given:
                raise ValueError(f"{option} cannot be combined with {other}")
    files = *args.targets, args.password_file, args.jwt_file, args.saml_file, args.kerberos_file, args.key_password_file
    for broken, rule in (
        (files.count("-") > 1, "standard input can be read only once"),
        (not given & {"HOST", "--targets", "--self-test", "--listen"}, f"no HOST given; expected {_FORM}"),
        (args.listen and args.tls and not args.cert, "--listen with --tls requires --cert"),
        (args.jobs and not args.targets and len(args.hosts) == 1, "--jobs requires several targets"),
        (args.count == 0 and args.format in ("nagios", "prometheus"),
         f"--count 0 cannot be combined with --format {args.format}"),
        (args.critical is not None and (args.warning or 0) > args.critical, "--warning must not be above --critical"),
        (args.warning_cert is not None and args.warning_cert < (args.critical_cert or 0),
         "--warning-cert must not be below --critical-cert"),
    ):  # fmt: skip
        if broken:
            raise ValueError(rule)


def _versions(verbose: bool) -> Iterator[str]:
    python = f"Python {'.'.join(map(str, sys.version_info[:3]))}"
    yield f"dicom-echo {__version__} ({', '.join([*_codec_versions(), python])})"
    if verbose:
        import json

        with contextlib.suppress(OSError, AttributeError):  # what packaging/build_pyz.py puts beside this module
            loader: Any = __spec__.loader
            build = json.loads(loader.get_data(os.path.join(os.path.dirname(__file__), "dicom_echo_build.json")))
            yield f"build {build['build_id']}, with bytecode for {', '.join(build['bytecode'])}"
            yield from (f"contains {name} {number}" for name, number in build["contents"].items())


# Ciphers as Python has them from 3.10 on, so that 3.9, and builds with a default of their own, agree. They are those of
# BCP 195 (PS3.15 B.12, B.13) and some more; the level refuses keys of less than 112 bits of security.
_CIPHERS = "@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"
_PARTIAL_CHAIN = 0x80000  # ssl.VERIFY_X509_PARTIAL_CHAIN, which Python 3.9 has no name for


def _tls_context(args: argparse.Namespace) -> ssl.SSLContext:
    """TLS as PS3.15 B.12 requires it (BCP 195): 1.2 or later, the peer verified unless told otherwise.

    Everything is set here, and nothing left to `ssl.create_default_context`, whose settings differ between Pythons.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if args.listen else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A CA certificate or the peer's own is a trust anchor, even if it is not self-signed; nothing else is relaxed.
    context.verify_flags = ssl.VerifyFlags(ssl.VERIFY_X509_TRUSTED_FIRST | _PARTIAL_CHAIN)
    context.set_ciphers(_CIPHERS)
    if args.ciphers is not None:
        try:
            context.set_ciphers(args.ciphers)
        except (ssl.SSLError, ValueError):
            raise ValueError(f"--ciphers: no cipher known to {ssl.OPENSSL_VERSION} in {args.ciphers!r}") from None
    context.check_hostname = False  # `_check_names` does it
    if args.insecure or (args.listen and args.cacert is None):
        context.verify_mode = ssl.CERT_NONE
    elif args.cacert is None:
        context.load_default_certs()
    else:
        _load_authorities(context, args.cacert)
        context.verify_mode = ssl.CERT_REQUIRED  # of a caller, too
    if args.cert is not None:
        password = os.environ.get("DICOM_ECHO_KEY_PASSWORD", "").encode("utf-8", "surrogateescape") or None
        password = _secret(args.key_password_file) if args.key_password_file else password
        _load_certificate(context, args.cert, args.key or args.cert, password)
    vars(context)["_has_certificate"] = args.cert is not None  # the context itself cannot be asked
    return context


def _load_authorities(context: ssl.SSLContext, cacert: str) -> None:
    """Trust the CA certificates of a file, or of all files of a directory, whatever their names."""
    import ssl
    from pathlib import Path

    file = path = Path(cacert)
    try:
        for file in filter(Path.is_file, path.iterdir()) if path.is_dir() else [path]:
            try:
                context.load_verify_locations(file)  # before we look: a pipe is read once
            except ssl.SSLError:
                if _has_pem(file, "CERTIFICATE"):
                    raise ValueError(f"cannot use {file}: a certificate in it is damaged") from None
    except OSError as error:
        raise ValueError(f"cannot use {error.filename or file}: {_reason(error)}") from None
    if not context.cert_store_stats()["x509"]:
        raise ValueError(f"cannot use {cacert}: contains no certificate in PEM format")


def _load_certificate(context: ssl.SSLContext, cert: str, key: str, password: bytes | None) -> None:
    """Load the client certificate and its key. OpenSSL does not say what is wrong in most cases: find out."""
    import ssl

    encrypted = False

    def pass_phrase() -> bytes:
        nonlocal encrypted
        encrypted = True
        if password is None:  # OpenSSL itself would ask at the terminal, and wait
            raise ValueError(
                f"cannot use {key}: the key is encrypted: pass --key-password-file FILE or DICOM_ECHO_KEY_PASSWORD"
            )
        return password

    try:
        context.load_cert_chain(cert, key, pass_phrase)
        return
    except ssl.SSLError as error:
        reason = error.reason or ""
    except OSError as error:  # which does not name the file
        file = key if os.access(cert, os.R_OK) and not os.path.isdir(cert) else cert
        raise ValueError(f"cannot use {file}: {_reason(error)}") from None
    mismatch = "MISMATCH" in reason or reason == "NO_CERTIFICATE_ASSIGNED"
    for is_so, file, why in (
        ("KEY_TOO_SMALL" in reason, cert, "the key of a certificate is too weak (RSA needs 2048 bits)"),
        ("MD_TOO_WEAK" in reason, cert, "the signature of a certificate is too weak (MD5 or SHA-1)"),
        (not _has_pem(cert, "CERTIFICATE"), cert, "contains no certificate in PEM format"),
        (not _has_pem(key, "PRIVATE KEY"), key, "contains no private key in PEM format"),
        (mismatch, key, f"the key does not belong to the certificate in {cert}"),
        (encrypted, key, "the pass phrase is wrong"),
        (True, ", ".join(dict.fromkeys((cert, key))), "a certificate or key is damaged"),
    ):
        if is_so:
            raise ValueError(f"cannot use {file}: {why}")


def _has_pem(file: Any, what: str) -> bool:
    """Whether a file contains the PEM header of a certificate or key (RFC 7468)."""
    with open(file, "rb") as stream:
        return re.search(rb"-----BEGIN [A-Z0-9 ]*" + what.encode() + b"-----", stream.read()) is not None


def _identity(args: argparse.Namespace) -> Identity | None:
    """The user identity; its secrets come from files or the environment, since others can see a command line."""
    if args.user:
        password = os.environ.get("DICOM_ECHO_PASSWORD")
        if args.password_file:
            password = _secret(args.password_file).decode("utf-8", "surrogateescape")
        return Identity(user=args.user, password=password)
    files = {"jwt": args.jwt_file, "saml": args.saml_file, "kerberos": args.kerberos_file}
    secret: Any = {kind: _secret(file) for kind, file in files.items() if file}
    return Identity(**secret) if secret else None


def _secret(file: str) -> bytes:
    """A secret without the end of its line."""
    secret = _read(file).rstrip(b"\r\n")
    if not secret:
        raise ValueError(f"{file} is empty")
    return secret


def _targets(args: argparse.Namespace, tls: ssl.SSLContext | None) -> list[_Request]:
    """All peers of the command line and the files; raises one error for all that is wrong with them."""
    options: Options = {
        "timeout": args.timeout or _DEFAULT_TIMEOUT, "family": args.family, "source": args.source, "tls": tls,
        "server_hostname": args.server_hostname, "identity": _identity(args), "max_pdu": args.max_pdu,
        "transfer_syntaxes": args.transfer_syntax or ("implicit", "explicit"), "abort": args.abort,
    }  # fmt: skip
    named: list[tuple[str, str, str | None]] = [("argument HOST", host, None) for host in args.hosts]
    wrong: list[str] = []
    for file in args.targets:
        named += _read_targets(file, wrong)
    found = []
    for where, text, label in named:
        try:
            address = parse_address(text)
            title = args.called or address.ae_title or DEFAULT_CALLED_AE_TITLE
            address = address._replace(ae_title=None)  # its title, used above, would override `-aec ANY-SCP`
            found.append(_Request(address, title, args.calling or DEFAULT_CALLING_AE_TITLE, label, **options))
        except AddressError as error:
            wrong.append(f"{where}: {error}")
    if wrong:
        raise ValueError(*wrong) if not args.targets else ValueError("invalid addresses; nothing was sent", *wrong)
    return found


def _read_targets(file: str, wrong: list[str]) -> list[tuple[str, str, str | None]]:
    """The place, address and label of each target; bad lines are added to ``wrong``."""
    data, found = _read(file), []
    is_utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = data.decode("utf-16", "replace") if is_utf_16 else data.decode("utf-8", "surrogateescape")
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        where = f"{file}:{number}"
        address, label, *_ = *map(str.strip, re.split(r"\s#", line.strip("\ufeff"), maxsplit=1)), ""
        if not address or address.startswith("#"):
            continue
        if undecoded := re.search("[\udc80-\udcff]", address):
            wrong.append(f"{where}: byte {ord(undecoded[0]) - 0xDC00:02X}H is not UTF-8; save the file as UTF-8")
        elif "#" in address.rpartition("@")[2]:
            wrong.append(f'{where}: a label needs a space before its "#"')
        else:
            label = label.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            found.append((where, address, label or None))
    if not found and not wrong:
        raise ValueError(f"{file} contains no addresses")
    return found


def _read(file: str) -> bytes:
    try:
        if file != "-":
            with open(file, "rb") as stream:
                return stream.read()
        if sys.stdin is None:  # a process may be started without
            raise ValueError("standard input is closed")
        binary = getattr(sys.stdin, "buffer", None)  # an application may have put something else there
        return bytes(binary.read()) if binary else str(sys.stdin.read()).encode("utf-8", "surrogateescape")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {_reason(error)}") from None


def _jobs(wanted: int | None, targets: int) -> int:
    """How many targets to ask in parallel: as many as wanted, or as the system has room for."""
    jobs = min(wanted or _DEFAULT_JOBS, targets)
    if sys.platform == "win32":
        room = 500  # its select takes 512 sockets
    else:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = jobs + 64  # the rest of the process has files open too
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if jobs > 1 and resource.RLIM_INFINITY != soft < allowed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        room = max(1, allowed - 64)
    return min(jobs, room)


def _named_descriptor(file: str) -> int | None:
    """Which of our open descriptors a path names, as /dev/stdout, /dev/fd/3 and links to such do."""
    own = re.compile(rf"(?:/dev|/proc/{os.getpid()}(?:/task/\d+)?)/fd/(\d+)")
    for _ in range(40):  # as many links as Linux follows
        folder, name = os.path.split(file)
        file = os.path.join(os.path.realpath(folder), name)
        if found := own.fullmatch(file):
            return int(found[1])
        if not os.path.islink(file):
            return None
        file = os.path.join(os.path.dirname(file), os.readlink(file))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


@contextlib.contextmanager
def _output(file: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that replaces the old one once it is complete."""
    if file is None or file == "-":
        closed = sys.stdout is None or getattr(sys.stdout, "closed", False)  # a process may be started without
        yield io.StringIO() if closed else sys.stdout
        return
    final = os.path.realpath(file)
    draft = os.path.join(os.path.dirname(final), f".{os.path.basename(final)}.{os.urandom(4).hex()}.tmp")
    try:
        number = _named_descriptor(file)
        replaces = number is None and (
            not os.path.exists(final) or (os.path.isfile(final) and not file.startswith("/proc/"))
        )
        if replaces:
            _check_folder(os.path.dirname(final), final)
        stream = open(draft, "x", encoding="utf-8") if replaces else _open_in_place(file, number)  # noqa: SIM115  # closed below
    except (OSError, ValueError) as error:
        why = "nobody reads it" if getattr(error, "errno", None) == errno.ENXIO else _reason(error)
        raise ValueError(f"cannot write {file}: {why}") from None
    try:
        with stream:
            yield stream
        if replaces and (os.path.getsize(draft) or not os.path.exists(final)):  # an interrupted run may have nothing
            with contextlib.suppress(OSError):  # there is no old file
                old = os.stat(final)
                with contextlib.suppress(OSError):  # this user may not give away its group
                    if hasattr(os, "chown"):
                        os.chown(draft, -1, old.st_gid)
                os.chmod(draft, old.st_mode & 0o7777)  # last, since a new group clears bits of it
            os.replace(draft, final)
    finally:
        if replaces:
            with contextlib.suppress(OSError):
                os.unlink(draft)


def _open_in_place(file: str, number: int | None) -> TextIO:
    """Open a descriptor of this process, if the file has a number, otherwise a pipe or a device."""
    if number is not None:  # opening it again would write from its start
        return open(os.dup(number), "w", encoding="utf-8")
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody reads must not be waited for
    stream = open(file, "w", encoding="utf-8", opener=lambda path, _: os.open(path, flags))  # noqa: SIM115  # the caller closes it
    if hasattr(os, "set_blocking"):
        os.set_blocking(stream.fileno(), True)
    return stream


def _check_folder(folder: str, file: str) -> None:
    """Raise before the first echo if a file cannot be created or replaced in a folder."""
    status = os.stat(os.path.join(folder, ""))  # which no file is
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    sticky = status.st_mode & 0o1000 and os.path.exists(file) and user not in (0, status.st_uid, os.stat(file).st_uid)
    if not os.access(folder, os.W_OK | os.X_OK) or sticky:
        raise ValueError(f"this user may not replace files in {folder}")


def _descriptor(stream: Any) -> int:
    """The file descriptor of a stream; -1, which is none, for what an application may have put in its place."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        return int(stream.fileno())
    return -1


def _is_terminal(stream: Any) -> bool:
    """Whether a stream says that it is a terminal, and it is one that can rewrite lines."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):  # closed, or an application's own
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    return False


def _terminal_size(stream: Any) -> tuple[int, int]:
    """Columns and lines; columns without limit, and no lines, where there is no terminal."""
    try:
        # A notebook's stream has the descriptor of a terminal without being one.
        width, height = os.get_terminal_size(_descriptor(stream) if stream.isatty() else -1)
    except (OSError, ValueError, AttributeError, TypeError):  # none, closed, or an application's own
        return sys.maxsize, 0
    columns = os.environ.get("COLUMNS", "")
    return (int(columns) if columns.isdecimal() else 0) or width or 80, height


def _style(choice: str, verbose: bool, stream: Any) -> _Style:
    """Fit a report to the stream: never a character that it cannot encode."""
    terminal = _is_terminal(stream)
    wanted = (terminal or bool(os.environ.get("FORCE_COLOR"))) and not os.environ.get("NO_COLOR")
    colour = choice == "always" or (choice == "auto" and wanted)
    if colour and os.name == "nt":
        os.system("")  # noqa: S605, S607  # runs nothing, but makes older Windows consoles understand colours
    width, height = _terminal_size(stream)
    symbols = "".join(symbol for symbol, _ in _SYMBOLS.values())
    return _Style(colour, _encodable(symbols, stream) == symbols, verbose, width, height if terminal else 0)


def _progress(tally: _Tally) -> str:
    done = f"{tally.finished} of {len(tally.targets)} done, " if len(tally.targets) > 1 else ""
    return f"{done}waiting for {next(iter(tally.under_way), tally.targets[0]).target} ..."


def _shows_progress(args: argparse.Namespace, stream: Any) -> bool:
    """Whether a progress line on standard error would be seen, and not disturb what reads the results."""
    if args.quiet or args.debug or not _is_terminal(sys.stderr):
        return False
    # None beside a table that is kept up to date; nor beside a pipe, whose reader may write to the same terminal.
    return bool(args.count != 0) if _is_terminal(stream) else os.path.isfile(_descriptor(stream))


def _show_progress(text: str) -> None:
    """Replace the progress line; an empty text clears it."""
    text = text[: _terminal_size(sys.stderr)[0] - 1]  # a wrapped line cannot be overwritten
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        print(f"\r\x1b[K{_encodable(text, sys.stderr)}", end="", file=sys.stderr, flush=True)


def _unwritten(error: Exception, stream: Any, for_nagios: bool) -> int:
    """The exit code for a write error, which is reported unless it is a broken pipe."""
    if stream is sys.stdout:
        _silence(stream)
    if isinstance(error, BrokenPipeError):
        return 0
    _complain(f"cannot write the results: {_reason(error)}")
    return _State.UNKNOWN if for_nagios else _USAGE_ERROR


def _silence(stream: Any) -> None:
    """Point a broken standard stream at devnull, if the process is ours, so that nothing reports it again."""
    if _is_command:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _flush(for_nagios: bool) -> int:
    """Flush the standard streams; return 0, or an exit code if the results cannot be written."""
    code = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if stream is sys.stdout:
                code = _unwritten(error, stream, for_nagios)
            else:
                _silence(stream)
        except (ValueError, AttributeError):
            pass  # closed, an application's own, or None: a process may be started without
    return code


def _stop_signals() -> list[int]:
    """Those that end a process and are not ignored, as SIGINT is in a job put into the background."""
    import signal

    named = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))  # Windows has no SIGHUP
    return [number for number in named if number and signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def _ended_by_signal(results: _Stream, last_word: bool) -> Iterator[list[int]]:
    """Let SIGINT, SIGTERM and SIGHUP end a stream; a second one does what it would have done without us.

    Yields a list that receives the number of the first. With ``last_word``, what has been printed is the last word:
    the signals are ignored from the end of the block on, so that none leads to another line or exit code.
    """
    import signal

    caught: list[int] = []
    caught_at = 0.0
    before: dict[int, Any] = {}

    def on_signal(number: int, _frame: object) -> None:
        nonlocal caught_at
        if not caught:
            caught_at = time.monotonic()
            caught.append(number)
            results.end()
        elif time.monotonic() - caught_at > 0.1:  # sooner, it is the same one: sent to the process and to its group
            signal.signal(number, before[number])
            signal.raise_signal(number)

    try:
        for number in _stop_signals():
            with contextlib.suppress(ValueError):  # not the main thread, or not the main interpreter
                before[number] = signal.signal(number, on_signal) or signal.SIG_DFL  # None: not Python's
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last_word else handler)


def _can_write(stream: Any, caught: list[int]) -> bool:
    """Wait until the reader takes more; after an interruption no longer than a second."""
    waited = 0.0
    with contextlib.suppress(OSError, ValueError), _selector(1) as selector:  # raised if it cannot be polled
        selector.register(stream, selectors.EVENT_WRITE)
        while not selector.select(0.25):
            waited = waited + 0.25 if caught else 0.0
            if waited > 1.0:
                return False
    return True


@contextlib.contextmanager
def _debugging() -> Iterator[None]:
    """Show on standard error what is logged."""
    import logging

    log, handler = logging.getLogger("dicom_echo"), logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _run(arguments: list[str], parser: Any) -> int:
    args = parser.parse_intermixed_args(arguments)
    if args.help:  # argparse's own action would ignore an error when printing
        print(_SHORT_HELP if args.help == "short" else parser.format_help().rstrip())
        return 0
    if args.version:
        print(*_versions(args.verbose), sep="\n")
        return 0
    with contextlib.ExitStack() as stack:
        try:
            if shell := args.show_completion or args.install_completion:
                complete = _completion_script if args.show_completion else _install_completion
                print(complete(_login_shell() if shell is True else shell))
                return 0
            _check_combinations(args, parser)
            if args.self_test:
                own = _peer_of_our_own("::1" if args.family == socket.AF_INET6 else "127.0.0.1")
                args.hosts = [stack.enter_context(own)]
            tls = _tls_context(args) if args.tls else None
            if args.listen:
                wait = args.timeout or math.inf
                other_end = _listen(args.listen, args.called, args.calling, tls, args.count or 0, wait)
                results: _Stream = stack.enter_context(other_end)
            else:
                targets = _targets(args, tls)
                count, interval = (1 if each is None else each for each in (args.count, args.interval))
                plan = _Plan(args.id, count, interval, args.reuse, args.wait)
                results = _campaign(targets, plan, _jobs(args.jobs, len(targets)))
            # Only now: while standard input is read, a signal must end the process.
            caught = stack.enter_context(_ended_by_signal(results, _is_command and args.format == "nagios"))
            stream = stack.enter_context(_output(args.output))
        except ValueError as error:
            # A message that begins with a parameter of the API begins with the option instead.
            parameters = {"source": "--source", "max_pdu": "--max-pdu", "transfer_syntaxes": "--transfer-syntax"}
            wrong = [str(each).partition(" ") for each in error.args]
            parser.error(*(parameters.get(first, first) + space + rest for first, space, rest in wrong))
        if isinstance(results, _OtherEnd):
            code = _print_visits(args, results, stream, caught, stack)
        else:
            code = _print_echoes(args, results, targets, stream, caught, stack)
        return max(code, _INTERRUPTED + caught[0]) if caught and args.format != "nagios" else code


def _print(
    args: argparse.Namespace, lines: Iterable[str], stream: TextIO, caught: list[int], stack: contextlib.ExitStack,
    show_progress: Callable[[str], None] = lambda _: None,
) -> int:  # fmt: skip
    """Print a report as it comes; return 0, or an exit code if it cannot be written."""
    if args.debug:
        stack.enter_context(_debugging())
    try:
        with stack.pop_all():  # closing the output may fail, too
            for line in lines:
                show_progress("")
                if args.quiet:
                    continue
                if not _can_write(stream, caught):
                    break
                if caught and _is_terminal(stream):
                    print("\r\x1b[K", end="", file=stream)  # over the ^C that the terminal has put there
                print(_encodable(line, stream), file=stream, flush=hasattr(stream, "flush"))
            show_progress("")
    except OSError as error:  # everything else that may fail is in a result
        return _unwritten(error, stream, args.format == "nagios")
    return 0


def _print_echoes(
    args: argparse.Namespace, campaign: _Stream, targets: Sequence[_Request], stream: TextIO, caught: list[int],
    stack: contextlib.ExitStack,
) -> int:  # fmt: skip
    show_progress = _show_progress if _shows_progress(args, stream) else lambda _: None  # asked once, not for each line
    outcomes = campaign.outcomes(lambda: show_progress(_progress(tally)))
    tally = _Tally(stack.enter_context(contextlib.closing(outcomes)), targets)
    style = _style(args.color, args.verbose or args.debug, stream)
    thresholds = _Thresholds(args.warning, args.critical, args.warning_cert, args.critical_cert)
    repeated = args.count not in (None, 1)
    fleet = len(targets) > 1 or bool(args.targets)  # a file of one line, too: its reader expects a table
    if args.format == "json":
        lines = _json_lines(tally, summary=repeated or fleet)
    elif args.format == "nagios":
        lines = _nagios(tally, thresholds)
    elif args.format == "prometheus":
        lines = _prometheus(tally)
    elif fleet:
        lines = _table(tally, style, repeated, args.count == 0)
    else:
        lines = _text_on_repeats(tally, style) if repeated else _text_on_one(tally, style)
    unwritten = _print(args, lines, stream, caught, stack, show_progress)
    if args.format == "nagios":
        return unwritten or _nagios_state(tally, thresholds)
    answered = ("status", "rejected", "not-supported", "aborted", "protocol")
    codes = [0 if kind == "ok" else 1 if kind in answered else 3 for kind in tally.total.kinds]
    return max(0, unwritten, *codes)


def _print_visits(
    args: argparse.Namespace, end: _OtherEnd, stream: TextIO, caught: list[int], stack: contextlib.ExitStack
) -> int:
    if not args.quiet:
        _complain(f"listening on {' and '.join(end.addresses)}")
    visits = stack.enter_context(contextlib.closing(end.visits()))
    style = None if args.format == "json" else _style(args.color, False, stream)
    unwritten = _print(args, _visits(visits, style), stream, caught, stack)
    if end.missed and not args.quiet:
        _complain(end.missed)
    return max(unwritten, 0 if end.answered else 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code; ``--help`` lists them.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    for_nagios = _for_nagios(arguments)
    try:
        code = _run(arguments, _parser(for_nagios))
    except SystemExit as left:  # of argparse
        code = int(left.code or 0)
    except ImportError as error:  # pynetdicom cannot be loaded
        code = _give_up(for_nagios, str(error))
    except OSError as error:
        code = _unwritten(error, sys.stdout, for_nagios)
    except Exception as error:  # any: a bug; no monitoring system shall read more into it than that
        what = f"internal error: {type(error).__name__}: {error}"
        code = _give_up(for_nagios, f"{what}; please report it at https://github.com/rusty-dicom/dicom-echo/issues")
    return max(code, _flush(for_nagios))


def _for_nagios(arguments: Sequence[str]) -> bool:
    """Whether to report as a monitoring plugin does, even that the arguments are wrong: they are not parsed yet."""
    return "--format=nagios" in arguments or ("--format", "nagios") in zip(arguments, arguments[1:])


def _command() -> NoReturn:
    """Run the command in a process of its own: the console script, ``python -m``, the archive."""
    global _own_process, _is_command
    import signal

    _is_command = True
    _own_process = threading.active_count() == 1  # a debugger, or a sitecustomize.py, may run threads of its own
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while no echo runs, Ctrl-C ends the process: no traceback
    if _for_nagios(sys.argv):

        def on_signal(*_: object) -> NoReturn:
            with contextlib.suppress(OSError):
                os.write(1, b"DICOM ECHO UNKNOWN - interrupted\n")
            os._exit(_State.UNKNOWN)

        for number in _stop_signals():
            signal.signal(number, on_signal)
    code = main()
    if code > _INTERRUPTED and os.name == "posix":
        signal.signal(code - _INTERRUPTED, signal.SIG_DFL)  # so that a shell's loop around the command ends, too
        os.kill(os.getpid(), code - _INTERRUPTED)
    raise SystemExit(code)


if __name__ == "__main__":
    _command()
