"""A command of our own imports of pynetdicom and pydicom only what encodes its requests, and sends the same bytes.

Each comparison is made between fresh processes, as imports are of a whole process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import MODULE, command_line, environment
from rawpeer import RawPeer

# All kinds of requests: with each identity, many transfer syntaxes, in one PDU and in many.
ENCODE = """
import sys
import dicom_echo
from dicom_echo import Identity
dicom_echo._own_process = {own}
IDENTITIES = [
    None, Identity(user="añb"), Identity(user="a", password="b"), Identity(kerberos=b"ticket"), Identity(saml="<a/>"),
    Identity(jwt="jwt"),
]
SYNTAXES = [("1.2.840.10008.1.2",), ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.3.4")]
for identity in IDENTITIES:
    for syntaxes in SYNTAXES:
        for length in (0, 16382, 2**32 - 1):
            print(dicom_echo._encode_associate_rq("CALLED", "CALLING", length, syntaxes, identity).hex())
for length in (0, 7, 8, 21, 64, 16382):
    for message_id in (0, 1, 0x1234, 0xFFFF):
        print(dicom_echo._encode_c_echo_rq(message_id, length).hex())
"""


def run(script: str, **changes: str) -> list[str]:
    """The lines that a script prints in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(**changes), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_the_same_bytes() -> None:
    """As pynetdicom makes them when all of it is imported."""
    report = """
print(dicom_echo._own_process, *[name for name, module in sys.modules.items()
                                 if name.startswith('py') or isinstance(module, dicom_echo._HollowModule)])
"""
    *lean, lean_report = run(ENCODE.format(own=True) + report)
    *ordinary, ordinary_report = run(ENCODE.format(own=False) + report)
    assert len(lean) == 6 * 2 * 3 + 6 * 4
    assert lean == ordinary
    assert lean_report == "True"  # it has not fallen back, and nothing is left in sys.modules
    assert "pydicom.config" in ordinary_report.split()


def test_much_is_left_out() -> None:
    """What is for images, storage and serving; else there would be no point."""
    report = "\nprint(*[name for name, module in dicom_echo._lean_modules.items() if '__file__' in vars(module)])"
    imported = run(ENCODE.format(own=True) + report)[-1].split()
    assert {"pydicom.dataset", "pynetdicom.pdu"} <= set(imported)
    assert len(imported) < 30
    assert not {"pydicom.pixels", "pydicom.pixel_data_handlers", "pynetdicom.ae", "pynetdicom.sop_class"} & set(
        imported
    )


def test_an_ordinary_import_afterwards_is_whole() -> None:
    """For -d, which shows PDUs decoded."""
    after = """
import pydicom, pynetdicom, pydicom.pixel_data_handlers
from pynetdicom.sop_class import CTImageStorage
context = pynetdicom.build_context(CTImageStorage)
of_storage = len(pynetdicom.StoragePresentationContexts)
import hashlib, inspect, json, pathlib, tempfile, uuid
assert hashlib.sha256 and inspect.signature and json.dumps and pathlib.Path and tempfile.mkdtemp and uuid.uuid4
print(pydicom.dcmread.__module__, pynetdicom.AE.__module__, context.abstract_syntax.name, of_storage)
print(dicom_echo._encode_c_echo_rq.__module__, dicom_echo._encode_c_echo_once.__wrapped__("C_ECHO_RQ", 1, 0)[0].hex())
"""
    *_, whole, again = run(ENCODE.format(own=True) + after)
    *_, ordinary, of_ordinary = run(ENCODE.format(own=False) + after)
    assert whole.startswith("pydicom.filereader pynetdicom.ae CT Image Storage 1")
    assert (whole, again) == (ordinary, of_ordinary)


@pytest.mark.parametrize(
    "change",
    [
        *("_LEAN.remove('pydicom.charset')", "_LEAN.remove('pydicom.config')", "_LEAN.remove('pynetdicom.dsutils')"),
        *("_LEAN.remove('pynetdicom.pdu_items')", "_UNUSED.add('struct')", "_DICTIONARY.pop(0x1005)"),
    ],
)
def test_what_is_needed_after_all(change: str) -> None:
    """By another release of pydicom, say: the stand-in refuses, and all is imported."""
    first = f"import dicom_echo\ndicom_echo.{change}\n"
    *lean, report = run(
        first + ENCODE.format(own=True) + "\nprint(dicom_echo._own_process, 'pydicom.config' in sys.modules)"
    )
    assert lean == run(ENCODE.format(own=False))
    assert report == "False True"


def test_packages_that_are_imported_already() -> None:
    """They are used as they are."""
    report = "\nimport pydicom\nprint(dicom_echo._lean_modules, pydicom is before)"
    *lean, same = run("import pydicom as before\n" + ENCODE.format(own=True) + report)
    assert same == "{} True"
    assert lean == run(ENCODE.format(own=False))


def test_numpy_is_not_imported(tmp_path: Path) -> None:
    """It takes as long as all else, and may be broken."""
    tmp_path.joinpath("numpy.py").write_text("raise SystemExit('numpy was imported')\n")
    first = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
    assert run(first + ENCODE.format(own=True)) == run(ENCODE.format(own=False))


def test_a_host_program_is_left_alone() -> None:
    """Where main() is called or the module imported, all is imported as usual and stays."""
    script = """
import sys
import dicom_echo
with RawPeer() as peer:
    assert dicom_echo.main(["-q", peer.address]) == 0
print("pydicom.filereader" in sys.modules, dicom_echo._lean_modules)
"""
    assert run(
        "from rawpeer import RawPeer" + script,
        PYTHONPATH=os.pathsep.join(map(str, (MODULE.parent, Path(__file__).parent))),
    ) == ["True {}"]


@pytest.mark.parametrize(
    "options", [[], ["-d"], ["-c", "2", "-i", "0"], ["--max-pdu", "0", "--transfer-syntax", "deflated"]]
)
def test_on_the_wire(options: list[str]) -> None:
    """The command sends what main() sends."""
    sent = []
    with RawPeer() as peer:
        for main in ([], ["-c", "import sys, dicom_echo; sys.exit(dicom_echo.main())"]):
            command = [sys.executable, *main] if main else command_line()
            subprocess.run([*command, *options, peer.address], env=environment(), check=True, capture_output=True)
            sent.append([bytes(conversation.raw) for conversation in peer.received])
            peer.received.clear()
    assert sent[0] == sent[1]
    assert sent[0]
