"""`import dicom_echo` from the archive: this becomes the real module, from the folder that is for this Python."""

import sys

if sys.version_info < (3, 9):
    raise ImportError("dicom-echo needs Python 3.9 or later")

__spec__._initializing = True  # so that other threads wait for this import: in Python 3.9 zipimport does not see to it


def code_for_this_python(spec):
    """Extend sys.path by the folder; return the code of the real module."""
    import os
    from importlib.util import MAGIC_NUMBER
    from zipimport import ZipImportError, zipimporter

    path = spec.loader.archive
    archive = os.path.abspath(path)  # whatever the working directory becomes: pynetdicom is imported later
    folder = "lib/%s-%s" % (sys.implementation.cache_tag, MAGIC_NUMBER.hex())
    sources = "site-packages/py39" if sys.version_info < (3, 10) else "site-packages"
    try:
        spec.loader = zipimporter(archive + "/" + folder)
        code = spec.loader.get_code("dicom_echo")
    except ZipImportError:  # a Python that the build was not told of: it compiles for itself, at each start
        folder = sources
        spec.loader = zipimporter(archive + "/" + folder)
        code = spec.loader.get_code("dicom_echo")
    place = sys.path.index(path) if path in sys.path else 0  # it may be spelt otherwise there
    sys.path[place:place] = [archive + "/" + folder, archive]
    if sys.version_info < (3, 10):
        sys.meta_path.insert(0, MetadataFinder())
        MetadataFinder.place = archive, sources + "/"
    return code


class MetadataFinder:
    """importlib.metadata looks only at the top of an archive; the metadata of what is for Python 3.9 lie elsewhere."""

    def find_spec(self, *_):
        return None

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
