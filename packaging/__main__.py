"""What `python dicom-echo.pyz` runs first: is this Python new enough? Then on to our other two files.

Every Python since 2.7 must be able to read this file: else its answer is a SyntaxError, not a sentence.
"""

import sys

if sys.version_info < (3, 10):
    sys.stderr.write(
        "dicom-echo needs Python 3.10 or later; this is %d.%d.%d (%s)\n"
        % (sys.version_info[0], sys.version_info[1], sys.version_info[2], sys.executable)
    )
    sys.exit(2)

sys.dont_write_bytecode = True  # we write to our own cache, never into the host's Python

try:
    import importlib.util

    # Our start-up and shiv's as bytecode, where the archive has it for this Python; else as source, from its top.
    compiled = "/start/%s-%s" % (sys.implementation.cache_tag, importlib.util.MAGIC_NUMBER.hex())
    sys.path.insert(0, sys.path[0] + compiled)
    import dicom_echo_isolate

    dicom_echo_isolate.forget_host_packages()

    import dicom_echo_start

    dicom_echo_start.run()
except KeyboardInterrupt:  # before there was anybody to say it better
    sys.exit(130)
