"""For `import dicom_echo` and `python -m dicom_echo` with the archive on sys.path: gives way to the real module."""

import sys

if sys.version_info < (3, 10):
    raise ImportError("dicom-echo needs Python 3.10 or later")

import dicom_echo_start

real = None


def __getattr__(name):
    """For a thread whose own import came while another one was at this, and was given us."""
    return getattr(real, name)


real = dicom_echo_start.give_way("dicom_echo", __spec__.loader.archive)
if __name__ == "__main__":
    sys.exit(real.main())
