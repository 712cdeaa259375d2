"""A scripted DICOM peer on a bare socket, every byte of it encoded by hand (PS3.7, PS3.8).

The standard library only: what shares no code with the tool shares no bug with it either.

    with RawPeer(script(echo=echo_rsp(1, status=0x0122))) as peer:
        ...                                     # echo peer.address
    peer.conversation().types                   # [A_ASSOCIATE_RQ, P_DATA_TF, A_RELEASE_RQ]

From top to bottom: endpoints, encoding, decoding, steps and scripts, the peer itself.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

A_ASSOCIATE_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, P_DATA_TF, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = range(1, 8)

VERIFICATION = "1.2.840.10008.1.1"
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
IMPLEMENTATION_CLASS_UID = "2.25.57005"
VERSION_NAME = "RAWPEER"

# Element numbers of the command group (PS3.7 E.1).
GROUP_LENGTH, AFFECTED_SOP_CLASS_UID, COMMAND_FIELD, MESSAGE_ID = 0x0000, 0x0002, 0x0100, 0x0110
MESSAGE_ID_RESPONDED_TO, DATA_SET_TYPE, STATUS, ERROR_COMMENT = 0x0120, 0x0800, 0x0900, 0x0902

C_ECHO_RQ, C_ECHO_RSP, NO_DATA_SET = 0x0030, 0x8030, 0x0101

# Bits of a PDV's message control header (PS3.8 E.2).
COMMAND, LAST = 0b01, 0b10


# --- Endpoints -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
    """Where a peer is to be found, and as whom."""

    host: str
    port: int
    ae_title: str = "ANY-SCP"

    @property
    def host_port(self) -> str:
        """`HOST:PORT`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> str:
        """`AE@HOST:PORT`, as a user types it."""
        return f"{self.ae_title}@{self.host_port}"


def family_of(host: str) -> socket.AddressFamily:
    """The address family of a literal IP address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def closed_port(host: str = "127.0.0.1") -> Iterator[Endpoint]:
    """A port that refuses connections: bound, so that nobody else can take it, but not listening."""
    with socket.socket(family_of(host)) as holder:
        holder.bind((host, 0))
        yield Endpoint(host, holder.getsockname()[1])


@contextlib.contextmanager
def silent_listener(host: str = "127.0.0.1") -> Iterator[Endpoint]:
    """A port where every connection succeeds (the kernel completes it) and nobody ever reads or answers."""
    with socket.create_server((host, 0), family=family_of(host)) as listener:
        yield Endpoint(host, listener.getsockname()[1])


@contextlib.contextmanager
def full_listener(host: str = "127.0.0.1") -> Iterator[Endpoint]:
    """A port that neither accepts nor refuses: its backlog is full, so the kernel drops every further SYN.

    This is how a host behind a dropping firewall looks. Linux does it; elsewhere, a RuntimeError says that it does not.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, 0), family=family_of(host), backlog=0))
        address = listener.getsockname()
        for _ in range(16):
            filler = stack.enter_context(socket.socket(family_of(host)))
            filler.settimeout(0.2)
            try:
                filler.connect(address)
            except socket.timeout:
                yield Endpoint(host, address[1])
                return
        raise RuntimeError("this system still accepts connections when the backlog is full")


# --- Encoding (PS3.8 9.3) --------------------------------------------------------------------------------------------


class Pdv(NamedTuple):
    """A presentation data value: one fragment of a command set or a data set."""

    context_id: int
    control: int
    data: bytes


def pdu(pdu_type: int, body: bytes, length: int | None = None) -> bytes:
    """A PDU; `length` is the length it claims to have, where that is not the true one."""
    return struct.pack(">BxL", pdu_type, len(body) if length is None else length) + body


def item(item_type: int, data: bytes) -> bytes:
    """An item or sub-item of an A-ASSOCIATE PDU."""
    return struct.pack(">BxH", item_type, len(data)) + data


def text_item(item_type: int, text: str | None) -> bytes:
    """An item that holds a text; nothing where there is none."""
    return b"" if text is None else item(item_type, text.encode())


def user_information(
    max_length: int | None = 16384,
    implementation_class_uid: str | None = IMPLEMENTATION_CLASS_UID,
    version_name: str | None = VERSION_NAME,
    extra_user_items: bytes = b"",
) -> bytes:
    """A user information item; None leaves a sub-item out, the extra ones are appended as they are (9.3.3.3, D.1)."""
    items = b"" if max_length is None else item(0x51, struct.pack(">L", max_length))
    items += text_item(0x52, implementation_class_uid) + text_item(0x55, version_name) + extra_user_items
    return item(0x50, items)


def associate_ac(
    contexts: Iterable[tuple[int, int, str | None]] = ((1, 0, IMPLICIT_VR_LITTLE_ENDIAN),),
    *,
    called_field: bytes = b"ANY-SCP         ",
    calling_field: bytes = b"ECHOSCU         ",
    protocol_version: int = 1,
    **user: Any,
) -> bytes:
    """An A-ASSOCIATE-AC; `contexts` are triples of context id, result and transfer syntax (None leaves it out).

    The two title fields go out as they are given: they are reserved here, and a peer may put anything into them.
    """
    items = text_item(0x10, APPLICATION_CONTEXT)
    for context_id, result, transfer_syntax in contexts:
        items += item(0x21, struct.pack(">BxBx", context_id, result) + text_item(0x40, transfer_syntax))
    fixed = struct.pack(">H2x16s16s32x", protocol_version, called_field, calling_field)
    return pdu(A_ASSOCIATE_AC, fixed + items + user_information(**user))


def associate_rj(result: int, source: int, reason: int) -> bytes:
    return pdu(A_ASSOCIATE_RJ, struct.pack(">xBBB", result, source, reason))


def p_data(pdvs: Iterable[tuple[int, int, bytes]]) -> bytes:
    """A P-DATA-TF of any number of PDVs: triples of context id, control header and data."""
    items = [struct.pack(">LBB", len(data) + 2, context_id, control) + data for context_id, control, data in pdvs]
    return pdu(P_DATA_TF, b"".join(items))


def release_rq() -> bytes:
    return pdu(A_RELEASE_RQ, bytes(4))


def release_rp() -> bytes:
    return pdu(A_RELEASE_RP, bytes(4))


def abort(source: int = 2, reason: int = 0) -> bytes:
    return pdu(A_ABORT, struct.pack(">xxBB", source, reason))


def command_element(element: int, value: bytes) -> bytes:
    """An element of the command group in Implicit VR Little Endian; its value may be of any length, odd too."""
    return struct.pack("<HHL", 0x0000, element, len(value)) + value


def echo_rsp_command(
    message_id: int = 1,
    status: int = 0x0000,
    *,
    command_field: int = C_ECHO_RSP,
    error_comment: str | None = None,
    omit: Collection[int] = (),
    replace: Mapping[int, bytes] | None = None,
) -> bytes:
    """The command set of a C-ECHO-RSP (PS3.7 9.3.5.2).

    `omit` names elements to leave out (GROUP_LENGTH too), `replace` gives elements raw values instead, of any length;
    elements that are not there yet are added. The group length is right unless it is replaced.
    """
    values = {
        AFFECTED_SOP_CLASS_UID: VERIFICATION.encode() + b"\0",
        COMMAND_FIELD: struct.pack("<H", command_field),
        MESSAGE_ID_RESPONDED_TO: struct.pack("<H", message_id),
        DATA_SET_TYPE: struct.pack("<H", NO_DATA_SET),
        STATUS: struct.pack("<H", status),
    }
    if error_comment is not None:
        comment = error_comment.encode()
        values[ERROR_COMMENT] = comment + b" " * (len(comment) % 2)
    values.update(replace or {})
    group_length = values.pop(GROUP_LENGTH, None)
    rest = b"".join(command_element(number, values[number]) for number in sorted(values) if number not in omit)
    if GROUP_LENGTH in omit:
        return rest
    return command_element(GROUP_LENGTH, group_length or struct.pack("<L", len(rest))) + rest


def fragments(command: bytes, size: int, context_id: int = 1) -> list[Pdv]:
    """A command set cut into PDVs of at most `size` bytes of it, the last one marked so (DCMTK wants even sizes)."""
    starts = range(0, len(command), size)
    return [Pdv(context_id, COMMAND | (LAST if i == starts[-1] else 0), command[i : i + size]) for i in starts]


def command_pdu(command: bytes, context_id: int = 1) -> bytes:
    """A whole command set in one PDV in one P-DATA-TF."""
    return p_data([Pdv(context_id, COMMAND | LAST, command)])


def echo_rsp(message_id: int = 1, status: int = 0x0000, *, context_id: int = 1) -> bytes:
    """The P-DATA-TF of an ordinary C-ECHO-RSP; for others, `command_pdu(echo_rsp_command(...))`."""
    return command_pdu(echo_rsp_command(message_id, status), context_id)


# What a good peer sends to a client that proposes context 1 and uses message id 1: the stuff to mutate.
GOOD_ACCEPT = associate_ac()
GOOD_ECHO = echo_rsp()
GOOD_RELEASE = release_rp()
GOOD_STREAM = GOOD_ACCEPT + GOOD_ECHO + GOOD_RELEASE


# --- Decoding what the client sent -----------------------------------------------------------------------------------


class ReceivedPdu(NamedTuple):
    type: int
    body: bytes


class ProposedContext(NamedTuple):
    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ; `user_items` holds every user information sub-item, known or not."""

    protocol_version: int
    called_field: bytes
    calling_field: bytes
    application_context: str
    contexts: tuple[ProposedContext, ...]
    user_items: dict[int, bytes]

    @property
    def called(self) -> str:
        return self.called_field.decode("ascii").strip(" ")

    @property
    def calling(self) -> str:
        return self.calling_field.decode("ascii").strip(" ")

    @property
    def max_length(self) -> int | None:
        """The longest P-DATA-TF body that the client takes; 0 is no limit, None is not stated."""
        return int.from_bytes(self.user_items[0x51], "big") if 0x51 in self.user_items else None


def split_pdus(stream: bytes) -> tuple[list[ReceivedPdu], bytes]:
    """The whole PDUs at the start of a stream, and the rest: an unfinished PDU, or what is no PDU at all."""
    pdus = []
    while len(stream) >= 6 and A_ASSOCIATE_RQ <= stream[0] <= A_ABORT:
        end = 6 + int.from_bytes(stream[2:6], "big")
        if len(stream) < end:
            break
        pdus.append(ReceivedPdu(stream[0], stream[6:end]))
        stream = stream[end:]
    return pdus, stream


def split_items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The items in the variable part of an A-ASSOCIATE PDU, or the sub-items in an item."""
    while data:
        item_type, length = struct.unpack_from(">BxH", data)
        assert len(data) >= 4 + length, "the client sent an item that is cut short"
        yield item_type, data[4 : 4 + length]
        data = data[4 + length :]


def texts(data: bytes, kind: int) -> tuple[str, ...]:
    """The texts of the items of a type."""
    return tuple(value.decode("ascii") for each, value in split_items(data) if each == kind)


def decode_associate_rq(body: bytes) -> AssociateRequest:
    version, called, calling = struct.unpack_from(">H2x16s16s", body)
    [application], contexts = texts(body[68:], 0x10), []
    for kind, value in split_items(body[68:]):
        if kind == 0x20:
            [abstract] = texts(value[4:], 0x30)
            contexts.append(ProposedContext(value[0], abstract, texts(value[4:], 0x40)))
    [user] = (dict(split_items(value)) for kind, value in split_items(body[68:]) if kind == 0x50)
    return AssociateRequest(version, called, calling, application, tuple(contexts), user)


def decode_pdvs(body: bytes) -> list[Pdv]:
    """The PDVs in the body of a P-DATA-TF."""
    pdvs = []
    while body:
        length, context_id, control = struct.unpack_from(">LBB", body)
        assert 2 <= length <= len(body) - 4, "the client sent a PDV with a wrong length"
        pdvs.append(Pdv(context_id, control, body[6 : 4 + length]))
        body = body[4 + length :]
    return pdvs


def decode_command(data: bytes) -> dict[int, bytes]:
    """A command set as raw values by element number."""
    values = {}
    while data:
        group, element, length = struct.unpack_from("<HHL", data)
        assert group == 0x0000, "the client sent an element that is not of the command group"
        assert len(data) >= 8 + length, "the client sent a command set that is cut short"
        values[element] = data[8 : 8 + length]
        data = data[8 + length :]
    return values


class Conversation:
    """All that one connection brought, in the order of arrival; `ended` is set when the connection is over."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.ended = threading.Event()

    @property
    def pdus(self) -> list[ReceivedPdu]:
        return split_pdus(bytes(self.raw))[0]

    @property
    def types(self) -> list[int]:
        return [received.type for received in self.pdus]

    @property
    def request(self) -> AssociateRequest:
        return decode_associate_rq(next(received.body for received in self.pdus if received.type == A_ASSOCIATE_RQ))

    @property
    def pdvs(self) -> list[Pdv]:
        return [pdv for received in self.pdus if received.type == P_DATA_TF for pdv in decode_pdvs(received.body)]

    @property
    def commands(self) -> list[dict[int, bytes]]:
        """Every whole command set, put together from its fragments."""
        commands, pending = [], b""
        for pdv in self.pdvs:
            pending += pdv.data
            if pdv.control & LAST:
                commands.append(decode_command(pending))
                pending = b""
        return commands

    @property
    def message_ids(self) -> list[int]:
        return [int.from_bytes(command[MESSAGE_ID], "little") for command in self.commands]


# --- Steps and scripts -----------------------------------------------------------------------------------------------


class Over(Exception):
    """There is nothing left to do on this connection: it is closed, or the test has ended."""


class Link(Conversation):
    """One connection, as the steps of a script see it."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        super().__init__()
        self.sock = sock
        self._stopping = stopping
        self._taken = 0

    def receive(self) -> None:
        """Wait for any bytes, DICOM or not."""
        data = self.sock.recv(65536)
        if not data:
            raise Over
        self.raw += data

    def next_pdu(self) -> ReceivedPdu:
        """The next PDU; for a P-DATA-TF, the one that completes the command."""
        while True:
            pdus, rest = split_pdus(bytes(self.raw))
            for received in pdus[self._taken :]:
                self._taken += 1
                if received.type != P_DATA_TF or decode_pdvs(received.body)[-1].control & LAST:
                    return received
            assert not rest or A_ASSOCIATE_RQ <= rest[0] <= A_ABORT, f"the client sent no DICOM: {rest[:64]!r}"
            self.receive()

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than the test."""
        if self._stopping.wait(seconds):
            raise Over

    def perform(self, step: Step) -> None:
        if isinstance(step, int):  # another type is an error, but an A-ABORT may come at any time: it ends the script
            received = self.next_pdu().type
            if received == A_ABORT != step:
                raise Over
            assert received == step, f"PDU type {step} was due, the client sent {received}"
        elif said := step if isinstance(step, bytes) else (step or stay_silent)(self):
            self.sock.sendall(said)

    def interrupt(self) -> None:
        """Wake the thread that reads from or writes to this connection.

        An SSLSocket's own shutdown drops its TLS state under the reader's feet, the plain one does not.
        """
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


# What a scripted peer does: wait for a PDU of a type (a P-DATA-TF: until its command is complete), send bytes, stay
# silent (None), or what a function does with the connection; what it returns is sent.
Step = Union[int, bytes, None, Callable[[Link], Optional[bytes]]]
Script = Sequence[Step]


def stay_silent(link: Link) -> None:
    """Keep the connection open and say nothing, until the client closes it or the test ends.

    Every script ends with this, unless it closes: what the client still sends is recorded.
    """
    while True:
        link.receive()


def close(link: Link) -> None:
    """Close the connection (FIN). What is here already is read first: closing over unread bytes would be a reset."""
    link.sock.setblocking(False)
    with contextlib.suppress(OSError):
        stay_silent(link)
    link.sock.close()
    raise Over


def reset(link: Link) -> None:
    """Close the connection by a reset (RST)."""
    link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.sock.close()
    raise Over


def pause(seconds: float) -> Step:
    return functools.partial(Link.pause, seconds=seconds)


def drip(data: bytes, delay: float = 0.05) -> Step:
    """Send one byte at a time, over and over, which a time limit for each receive would never end."""

    def run(link: Link) -> None:
        for byte in itertools.cycle(data):
            link.sock.sendall(bytes([byte]))
            link.pause(delay)

    return run


def in_pieces(content: bytes | Callable[[Link], bytes], size: int = 1, delay: float = 0.0005) -> Step:
    """Send bytes, or what a function returns, in pieces that are `delay` seconds apart."""

    def run(link: Link) -> None:
        data = content if isinstance(content, bytes) else content(link)
        for start in range(0, len(data), size):
            link.sock.sendall(data[start : start + size])
            link.pause(delay)

    return run


def accept_proposal(link: Conversation) -> bytes:
    """Accept Verification with the first transfer syntax proposed for it, and nothing else."""
    request = link.request
    results = [
        (context.id, 0 if context.abstract_syntax == VERIFICATION else 3, context.transfer_syntaxes[0])
        for context in request.contexts
    ]
    return associate_ac(results, called_field=request.called_field, calling_field=request.calling_field)


def answer_echo(link: Conversation) -> bytes:
    """Success, to the last message id and in the presentation context it came in."""
    return echo_rsp(link.message_ids[-1], context_id=link.pdvs[-1].context_id)


def serve(link: Link) -> bytes:
    """Answer every C-ECHO-RQ with Success, then the release: a good peer from here on."""
    while (received := link.next_pdu()).type == P_DATA_TF:
        link.sock.sendall(answer_echo(link))
    if received.type == A_ABORT:
        raise Over
    assert received.type == A_RELEASE_RQ, f"a C-ECHO-RQ or a release was due, the client sent {received.type}"
    return GOOD_RELEASE


def script(accept: Step = accept_proposal, echo: Step = answer_echo, release: Step = GOOD_RELEASE) -> tuple[Step, ...]:
    """A Verification SCP for one echo, with any of its three answers replaced by another step."""
    return A_ASSOCIATE_RQ, accept, P_DATA_TF, echo, A_RELEASE_RQ, release


GOOD_SCRIPT: Script = (A_ASSOCIATE_RQ, accept_proposal, serve)


# --- The peer --------------------------------------------------------------------------------------------------------


class RawPeer:
    """A peer that serves connection n by script n, and every connection after the last script by that one.

    `received` holds a Conversation for each connection. Leaving the `with` block ends every connection at once and
    raises what went wrong in a script, other than a connection that is gone. With `nodelay` off, Nagle's algorithm is
    on, as in DCMTK: a second small write waits for the client's acknowledgement of the first.
    """

    def __init__(
        self, *scripts: Script, host: str = "127.0.0.1", ssl_context: ssl.SSLContext | None = None, nodelay: bool = True
    ) -> None:
        self.scripts: Sequence[Script] = scripts or (GOOD_SCRIPT,)
        self.host = host
        self.received: list[Link] = []
        self._ssl_context = ssl_context
        self._nodelay = nodelay
        self._stopping = threading.Event()
        self._errors: list[Exception] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> RawPeer:
        self._listener = socket.create_server((self.host, 0), family=family_of(self.host), backlog=128)
        self._listener.settimeout(1)  # in case that it cannot be woken by a connection
        self._acceptor = threading.Thread(target=self._accept, name="RawPeer accepts", daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, _type: object, exc: BaseException | None, _traceback: object) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            socket.create_connection((self.host, self.port), timeout=1).close()  # no other way to wake it is portable
        self._acceptor.join()
        self._listener.close()
        for link in self.received:
            link.interrupt()
        for thread in self._threads:
            thread.join(timeout=1)
            assert not thread.is_alive(), f"a script does not end: {thread.name}"
        if self._errors and exc is None:
            raise self._errors[0]

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.host, self.port)

    @property
    def address(self) -> str:
        """`ANY-SCP@HOST:PORT`."""
        return self.endpoint.address

    def conversation(self, index: int = 0, timeout: float = 2.0) -> Conversation:
        """The conversation of a connection, once it has ended: all that the client sent is in it by then."""
        deadline = time.monotonic() + timeout
        while len(self.received) <= index:
            assert time.monotonic() < deadline, f"connection {index} never came"
            time.sleep(0.002)
        ended = self.received[index].ended.wait(max(0.0, deadline - time.monotonic()))
        assert ended, f"connection {index} is still open after {timeout} s"
        return self.received[index]

    def _accept(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(socket.timeout):
                sock, _ = self._listener.accept()
                if self._stopping.is_set():
                    sock.close()
                    return
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, self._nodelay)
                number, link = len(self.received), Link(sock, self._stopping)
                chosen = self.scripts[min(number, len(self.scripts) - 1)]
                thread = threading.Thread(
                    target=self._serve, args=(link, chosen), name=f"RawPeer {number}", daemon=True
                )
                self.received.append(link)
                self._threads.append(thread)
                thread.start()

    def _serve(self, link: Link, chosen: Script) -> None:
        try:
            if self._ssl_context:  # the socket is replaced first, so that `interrupt` reaches it in the handshake
                link.sock = secured = self._ssl_context.wrap_socket(
                    link.sock, server_side=True, do_handshake_on_connect=False
                )
                secured.do_handshake()
            for step in (*chosen, None):
                link.perform(step)
        except (Over, OSError):
            pass  # the connection is gone, or its TLS handshake failed: for the test to judge at the client's end
        except Exception as error:  # any: it belongs to the test, not to this thread
            self._errors.append(error)
        finally:
            link.sock.close()
            link.ended.set()
