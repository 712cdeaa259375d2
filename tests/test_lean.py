"""A command of our own imports of pynetdicom and pydicom only what encodes its requests, and sends the same bytes.

Each comparison is made between fresh processes, as imports are of a whole process.
"""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import MODULE, command_line, environment, run_main
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
        print(dicom_echo._encode_c_echo(message_id, length).hex())
"""


# What a process that imports all of it has afterwards.
WHOLE = """
import pydicom, pynetdicom, pydicom.pixel_data_handlers
from pynetdicom.sop_class import CTImageStorage
context = pynetdicom.build_context(CTImageStorage)
of_storage = len(pynetdicom.StoragePresentationContexts)
import hashlib, inspect, json, pathlib, tempfile, uuid
assert hashlib.sha256 and inspect.signature and json.dumps and pathlib.Path and tempfile.mkdtemp and uuid.uuid4
print(pydicom.dcmread.__module__, pynetdicom.AE.__module__, context.abstract_syntax.name, of_storage)
print(dicom_echo._encode_c_echo.__module__, dicom_echo._encode_c_echo_once.__wrapped__("C_ECHO_RQ", 1, 0)[0].hex())
"""


def run(script: str) -> list[str]:
    """The lines that a script prints in a fresh process."""
    paths = os.pathsep.join(map(str, (MODULE.parent, Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(PYTHONPATH=paths), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def ordinary() -> list[str]:
    """The requests as pynetdicom makes them when all of it is imported, and what is there afterwards."""
    report = "print('pydicom.config' in sys.modules)"
    *lines, imported, whole, again = run(ENCODE.format(own=False) + report + WHOLE)
    assert (len(lines), imported) == (6 * 2 * 3 + 6 * 4, "True")
    assert whole.startswith("pydicom.filereader pynetdicom.ae CT Image Storage 1")
    return [*lines, whole, again]


def test_the_same_bytes_for_much_less_and_an_ordinary_import_afterwards_is_whole(ordinary: list[str]) -> None:
    """What is for images, storage and serving is left out; -d imports it after all, to show PDUs decoded."""
    report = """
print(dicom_echo._own_process, *[name for name, module in sys.modules.items()
                                 if name.startswith('py') or isinstance(module, dicom_echo._HollowModule)])
print(*[name for name, module in dicom_echo._lean_modules.items()
        if name.startswith('py') and '__file__' in vars(module)])
"""
    *lines, left, imported, whole, again = run(ENCODE.format(own=True) + report + WHOLE)
    assert [*lines, whole, again] == ordinary
    assert left == "True"  # it has not fallen back, and nothing is left in sys.modules
    names = set(imported.split())
    assert len(names) < 30
    assert {"pydicom.dataset", "pynetdicom.pdu"} <= names
    assert not {"pydicom.pixels", "pydicom.pixel_data_handlers", "pynetdicom.ae", "pynetdicom.sop_class"} & names


def test_what_is_needed_after_all(ordinary: list[str]) -> None:
    """By another release of pydicom, say: the stand-in refuses, and all is imported."""
    changes = (
        "_LEFT_OUT.add('pydicom.charset')", "_LEFT_OUT.add('pynetdicom.pdu_items')", "_LEFT_OUT.add('struct')",
        "_DICTIONARY.pop(0x1005)",
    )  # fmt: skip
    report = "print(dicom_echo._own_process, 'pydicom.config' in sys.modules)"
    scripts = [f"import dicom_echo\ndicom_echo.{change}\n{ENCODE.format(own=True)}{report}" for change in changes]
    assert list(map(run, scripts)) == [[*ordinary[:-2], "False True"]] * len(changes)


def test_no_stand_in_is_left_for_the_ordinary_import(ordinary: list[str], tmp_path: Path) -> None:
    """In the standard library: as dataclasses would have one for inspect, if pydicom imports it some day."""
    tmp_path.joinpath("a_package").mkdir()
    tmp_path.joinpath("a_package", "a_module.py").write_text("import json\n")
    more = "\nfrom a_package import a_module\n"
    tmp_path.joinpath("copy.py").write_text(inspect.getsource(copy) + more)  # pydicom imports it
    path = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport dicom_echo\n"
    for change, own in (("", True), ("dicom_echo._DICTIONARY.pop(0x1005)\n", False)):  # looked up late
        report = "import copy\nprint(dicom_echo._own_process, type(copy.a_module.json).__name__)"
        kind = "_HollowModule" if own else "module"
        assert run(path + change + ENCODE.format(own=True) + report) == [*ordinary[:-2], f"{own} {kind}"]


def test_packages_that_are_imported_already_are_used_as_they_are(ordinary: list[str]) -> None:
    report = "import pydicom\nprint(dicom_echo._lean_modules, pydicom is before)"
    assert run(f"import pydicom as before\n{ENCODE.format(own=True)}{report}") == [*ordinary[:-2], "{} True"]


def test_numpy_is_not_imported(ordinary: list[str], tmp_path: Path) -> None:
    """It takes as long as all else, and may be broken."""
    tmp_path.joinpath("numpy.py").write_text("raise SystemExit('numpy was imported')\n")
    assert run(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{ENCODE.format(own=True)}") == ordinary[:-2]


def test_a_host_program_is_left_alone() -> None:
    """Where main() is called or the module imported, all is imported as usual and stays."""
    script = """
import sys
import dicom_echo
assert dicom_echo.main(["-q", "--self-test"]) == 0
print("pydicom.filereader" in sys.modules, dicom_echo._lean_modules)
"""
    assert run(script) == ["True {}"]


def test_a_thread_of_others_never_sees_a_hollow_module(tmp_path: Path) -> None:
    """Of a debugger or a profiler, for example."""
    tmp_path.joinpath("sitecustomize.py").write_text(
        """
import sys, threading, time

def import_json():
    while "pydicom" not in sys.modules:
        time.sleep(0.0002)
    import json
    print(json.dumps("seen"), file=sys.stderr)

threading.Thread(target=import_json).start()
"""
    )
    paths = os.pathsep.join(map(str, (tmp_path, MODULE.parent)))
    with RawPeer() as peer:
        command = command_line("-q", peer.address)
        done = subprocess.run(command, env=environment(PYTHONPATH=paths), capture_output=True, text=True, check=True)
    assert done.stderr == '"seen"\n'


@pytest.mark.parametrize(
    "options", [[], ["-d", "-c", "2", "-i", "0", "--max-pdu", "0", "--transfer-syntax", "deflated"]], ids=" ".join
)
def test_the_command_sends_what_main_sends(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as peer:
        subprocess.run(command_line(*options, peer.address), env=environment(), check=True, capture_output=True)
        assert run_main(capsys, *options, peer.address).code == 0
        number = len(peer.received) // 2
        sent = [bytes(peer.conversation(each).raw) for each in range(2 * number)]
    assert sent[:number] == sent[number:]
    assert all(sent)
