"""What `python dicom-echo.pyz` runs first. Python 2.7 must be able to parse it, to be told what is wrong."""

import gc
import os
import sys

NAGIOS = "--format=nagios" in sys.argv or ("--format", "nagios") in zip(sys.argv, sys.argv[1:])


def give_up(why):
    if NAGIOS:  # a plugin's line and state; exit at once, since an exception in a signal handler can get lost
        os.write(1, ("DICOM ECHO UNKNOWN - %s\n" % why).encode("utf-8"))
        os._exit(3)
    sys.stderr.write("dicom-echo: %s\n" % why)
    sys.exit(2)


def suitable_python():
    """The command for a Python on PATH that is new enough. Each is tried, since a shim may have no Python behind it."""
    import subprocess

    for command in ["python3"] + ["python3.%d" % minor for minor in range(30, 8, -1)]:
        test = [command, "-c", "import sys; sys.exit(sys.version_info < (3, 9))"]
        try:
            if subprocess.call(test, stderr=subprocess.PIPE) == 0:
                return command
        except OSError:
            pass  # there is no such command
    return None


if sys.version_info < (3, 9):
    this, found = "%d.%d.%d (%s)" % (sys.version_info[:3] + (sys.executable,)), suitable_python()
    give_up("Python 3.9 or later is needed; this is " + this + ("; run it with " + found if found else ""))

if any(os.environ.get(name) for name in ("SHIV_INTERPRETER", "SHIV_ENTRY_POINT", "SHIV_FORCE_EXTRACT")):
    from _bootstrap import bootstrap

    sys.path.append(sys.path.pop(0))  # this archive, for its metadata; what shiv unpacks takes precedence
    sys.exit(bootstrap())

import _signal  # signal.py would take a moment longer

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # else it is ignored, under nohup for example
    _signal.signal(_signal.SIGINT, (lambda *_: give_up("interrupted")) if NAGIOS else _signal.SIG_DFL)

# Packages installed on the host must not be used, and a `json.py` on PYTHONPATH is enough to break a Python program:
# only the archive and the standard library stay importable, which is known by its full paths, since any directory could
# be called lib-dynload. What .pth files have imported is dropped.
home = os.path.dirname(getattr(os, "__file__", ""))  # some Pythons have all of it in a zip file, and os frozen
above, name, base = os.path.dirname(home), os.path.basename(home), sys.base_exec_prefix
standard = [home, os.path.join(above, name.replace(".", "") + ".zip")]
standard += [os.path.join(base, lib, name, "lib-dynload") for lib in (above, sys.platlibdir, "lib")]
if sys.platform == "win32":
    standard += [base, os.path.join(base, "DLLs"), os.path.join(base, "python%d%d.zip" % sys.version_info[:2])]
kept = {os.path.normcase(entry) for entry in standard if os.path.isabs(entry)}
sys.path[1:] = [entry for entry in sys.path[1:] if os.path.normcase(entry) in kept]
sys.meta_path[:] = [each for each in sys.meta_path if getattr(each, "__module__", "").startswith("_frozen_importlib")]
for module in [name for name in sys.modules if name.split(".")[0] in ("dicom_echo", "pydicom", "pynetdicom")]:
    del sys.modules[module]
sys.modules["numpy"] = None  # reads as "not installed"
sys.dont_write_bytecode = True  # not into the host's Python either

gc.disable()  # what is imported stays: looking for garbage among it takes 2 ms
try:
    import dicom_echo
except Exception as error:  # any: damage shows in many ways
    give_up("cannot load %r: %s: %s; is the file complete?" % (sys.argv[0], type(error).__name__, error))
gc.enable()
dicom_echo._command()
