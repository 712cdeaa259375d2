"""`import dicom_echo` from the archive: this becomes the real module, from the folder that is for this Python."""

import sys

if sys.version_info < (3, 9):
    raise ImportError("dicom-echo needs Python 3.9 or later")

__spec__._initializing = True  # so that other threads wait for this import; in Python 3.9 zipimport does not set it


def code_for_this_python(spec):
    """Extend sys.path by the folder; return the code of the real module."""
    import os
    from importlib.util import MAGIC_NUMBER
    from zipimport import ZipImportError, zipimporter

    path = spec.loader.archive
    # A script may change its directory before it imports pynetdicom. The command does not, and saves 6 ms.
    archive = path if path == sys.argv[0] else os.path.abspath(path)
    folders = ["lib/%s-%s" % (sys.implementation.cache_tag, MAGIC_NUMBER.hex())]
    for_39 = ["site-packages/py39"] if sys.version_info < (3, 10) else []
    try:
        spec.loader = zipimporter(archive + "/" + folders[0])
        code = spec.loader.get_code("dicom_echo")
    except ZipImportError:  # no bytecode for this Python: it compiles the source at each start
        folders = for_39 + ["site-packages"]
        spec.loader = zipimporter(archive + "/site-packages")
        code = spec.loader.get_code("dicom_echo")
    place = sys.path.index(path) if path in sys.path else 0  # sys.path may have it in another form
    sys.path[place:place] = [archive + "/" + folder for folder in folders] + [archive] * (archive != path)
    if for_39:
        sys.meta_path.insert(0, MetadataFinder())
        MetadataFinder.place = archive, for_39[0] + "/"
    return code


class MetadataFinder:
    """importlib.metadata looks only at the top of an archive; the metadata for Python 3.9 are elsewhere."""

    find_spec = staticmethod(lambda *_: None)

    def find_distributions(self, context):
        from importlib.metadata import PathDistribution
        from zipfile import Path

        begins = context.name + "-" if context.name else ""
        for found in Path(*self.place).iterdir():
            if found.name.startswith(begins) and found.name.endswith(".dist-info"):
                yield PathDistribution(found)


_code = code_for_this_python(__spec__)
__loader__, __file__ = __spec__.loader, __spec__.loader.get_filename("dicom_echo")
exec(_code)
__spec__._initializing = False
