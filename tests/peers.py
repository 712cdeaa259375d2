"""Real DICOM peers for the tests, each a context manager that starts one, yields a `Peer` and stops it by its pid.

pynetdicom runs in this process, DCMTK and Orthanc in their own. What was learnt about these (DCMTK 3.6.7, Orthanc
1.10.1, both of Debian 12):

- `storescp`, `dcmqrscp` and Orthanc (whose DICOM server is DCMTK's) always listen on all IPv4 addresses of the host:
  DCMTK binds INADDR_ANY, and no option, environment variable or setting changes that. They hold nothing and store
  nothing here, but they are the exception to "loopback only". They do not speak IPv6.
- `storescp` does not look at the called AE title. `dcmqrscp` knows upper from lower case, Orthanc does not.
- `dcmqrscp --single-process` crashes (SIGSEGV) after its first echo, so it runs with a child for each association.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from pynetdicom import AE, evt
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at run time
from rawpeer import Endpoint

START_SECONDS = 20.0
ATTEMPTS = 3


Peer = Endpoint  # of one that runs


# --- Programs and ports ----------------------------------------------------------------------------------------------


def find_program(name: str) -> str | None:
    """The path of an installed program, or None.

    pynetdicom installs scripts of its own called `storescp` and `echoscu`, and an active virtual environment puts them
    first in PATH: Python scripts are passed over (their first line says so, or pip's second).
    """
    for folder in [*os.get_exec_path(), "/usr/local/sbin", "/usr/sbin"]:
        if path := shutil.which(name, path=folder):
            with Path(path).open("rb") as file:
                start = file.read(256)
            if not (start.startswith(b"#!") and b"python" in start):
                return path
    return None


def free_port() -> int:
    """A port that was free a moment ago; who uses it must be ready to find it taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- Processes -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is stopped at the end of the block, with whatever processes of its own it leaves behind."""
    options: dict[str, Any] = {
        "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": log.parent, "start_new_session": True
    }  # fmt: skip
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, **options) as process:
        try:
            yield process
        finally:  # nothing is stored that would suffer
            process.kill()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def run_server(command: Callable[[int], Sequence[str]], ae_title: str, folder: Path) -> Iterator[Peer]:
    """Run a server in a folder; `command` makes its command line for a port. It must still be alive at the end."""
    log = folder / "log.txt"
    for _ in range(ATTEMPTS):
        port = free_port()
        with running(command(port), log) as process:
            if becomes_ready(process, port):
                yield Peer("127.0.0.1", port, ae_title)
                assert process.poll() is None, f"{process.args!r} ended while it was needed:\n{log.read_text()}"
                return
    raise AssertionError(f"{process.args!r} did not start, {ATTEMPTS} times:\n{log.read_text()}")


def becomes_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server accepts connections; False if it ends instead."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:  # which can meet itself, where nobody has the port yet: that does not count
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0 and probe.getsockname()[1] != port:
                return True
        time.sleep(0.02)
    return False


def scrape(program: str, folder: Path) -> str:
    """What a node exporter serves of the text files in a folder."""
    command = [
        program, "--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={folder}",
        "--web.disable-exporter-metrics",
    ]  # fmt: skip
    with run_server(lambda port: [*command, f"--web.listen-address=127.0.0.1:{port}"], "", folder.parent) as server:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{server.host_port}/metrics", timeout=START_SECONDS) as response:
            return str(response.read().decode())


# --- DCMTK -----------------------------------------------------------------------------------------------------------

QUIETLY = ["--verbose", "--disable-host-lookup"]  # without look-ups of host names


@contextlib.contextmanager
def run_storescp(program: str, folder: Path, *options: str) -> Iterator[Peer]:
    """DCMTK's storescp; it takes any called AE title, and stores nothing."""
    command = [program, *QUIETLY, "--ignore", "--aetitle", "STORESCP", *options]
    with run_server(lambda port: [*command, str(port)], "STORESCP", folder) as peer:
        yield peer


@contextlib.contextmanager
def run_dcmqrscp(program: str, folder: Path) -> Iterator[Peer]:
    """DCMTK's dcmqrscp; it refuses any called AE title but its own two: PRIVATE may be called by MODALITY alone."""
    (folder / "storage").mkdir()
    configuration = folder / "dcmqrscp.cfg"
    configuration.write_text(f"""\
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
admitted = (MODALITY, 127.0.0.1, 104)
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
QRSCP {folder / "storage"} RW (1, 1mb) ANY
PRIVATE {folder / "storage"} RW (1, 1mb) admitted
AETable END
""")
    command = [program, *QUIETLY, "--config", str(configuration)]
    with run_server(lambda port: [*command, str(port)], "QRSCP", folder) as peer:
        yield peer


# --- Orthanc ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def run_orthanc(program: str, folder: Path) -> Iterator[Peer]:
    """Orthanc alone; it refuses any called AE title but its own, and ends an association that is idle for a second."""

    def command(port: int) -> list[str]:
        configuration = folder / "orthanc.json"
        settings = {
            "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"), "Plugins": [],
            "HttpServerEnabled": False, "DicomAet": "ORTHANC", "DicomPort": port, "DicomAlwaysAllowEcho": True,
            "DicomCheckCalledAet": True, "DicomScpTimeout": 1,
        }  # fmt: skip
        configuration.write_text(json.dumps(settings))
        return [program, "--verbose", str(configuration)]

    with run_server(command, "ORTHANC", folder) as peer:
        yield peer


# --- pynetdicom ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def run_pynetdicom(
    *, ae_title: str = "PYNETDICOM", check_called_title: bool = False, handlers: list[EventHandlerType] | None = None
) -> Iterator[Peer]:
    """pynetdicom's Verification SCP, in threads of this process."""
    # pynetdicom (3.0.4) drops a socket without closing it when the other side has reset it, as it may after an A-ABORT:
    # a ResourceWarning, which would fail whichever test happens to run then.
    sockets: list[socket.socket] = []

    def remember(event: Event) -> None:
        association_socket = event.assoc.dul.socket
        if association_socket and association_socket.socket:
            sockets.append(association_socket.socket)

    ae = AE(ae_title)
    ae.add_supported_context(Verification)
    ae.require_called_aet = check_called_title
    every = [(evt.EVT_CONN_OPEN, remember), *(handlers or [])]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=every)
    assert server is not None
    try:
        yield Peer("127.0.0.1", server.server_address[1], ae_title)
    finally:
        for _ in range(50):  # pynetdicom stumbles when it is to abort an association that is about to end
            if not ae.active_associations:
                break
            time.sleep(0.02)
        ae.shutdown()
        for sock in sockets:
            sock.close()


# --- TLS -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TlsFiles:
    """What a client needs, as files: the authority's certificate, and a certificate of its own with its key."""

    authority: Path
    certificate: Path
    key: Path


def write_tls_files(authority: trustme.CA, folder: Path) -> TlsFiles:
    """Issue a client certificate and write it with its key and the authority's certificate."""
    files = TlsFiles(folder / "authority.pem", folder / "client.pem", folder / "client-key.pem")
    client = authority.issue_cert("client.test")
    authority.cert_pem.write_to_path(str(files.authority))
    client.private_key_pem.write_to_path(str(files.key))
    for number, pem in enumerate(client.cert_chain_pems):
        pem.write_to_path(str(files.certificate), append=number > 0)
    return files


def client_context(files: TlsFiles, *, with_certificate: bool = False) -> ssl.SSLContext:
    """A TLS client's context made of these files."""
    context = ssl.create_default_context(cafile=str(files.authority))
    if with_certificate:
        context.load_cert_chain(files.certificate, files.key)
    return context
