"""`import dicom_echo` from the archive: this becomes the real module, and makes what it needs importable."""

import sys

if sys.version_info < (3, 9):
    raise ImportError("dicom-echo needs Python 3.9 or later")

__spec__._initializing = True  # so that other threads wait for this import; in Python 3.9 zipimport does not set it


def importer_of_sources(path):
    """Extend sys.path by the folders of sources; return the importer of the one with the real module."""
    import marshal
    import os
    from importlib.util import MAGIC_NUMBER
    from zipimport import zipimporter
    from zlib import decompress

    # A script may change its directory before it imports pynetdicom. The command does not, and saves 6 ms.
    archive = path if path == sys.argv[0] else os.path.abspath(path)
    try:
        tag = "%s-%s" % (sys.implementation.cache_tag, MAGIC_NUMBER.hex())
        compiled = marshal.loads(zipimporter(archive).get_data(os.path.join("bytecode", tag)))
    except OSError:  # the build did not know this Python, which compiles the sources at each start
        compiled = {}

    class Importer(zipimporter):
        """Takes code from one file for all modules. zipimport reads, and compiles, each twice: for its file's name."""

        def __init__(self, path):
            if not path.startswith(archive + os.sep):
                raise ImportError(path)
            zipimporter.__init__(self, path)

        def get_code(self, name):
            if name in compiled:
                return marshal.loads(decompress(compiled[name]))
            return zipimporter.get_code(self, name)

        def get_filename(self, name):
            parts = [name.rpartition(".")[2]] + ["__init__"] * self.is_package(name)
            return os.path.join(self.archive, self.prefix, *parts) + ".py"

        def create_module(self, spec):
            """Python 3.9 needs this and the next."""

        def exec_module(self, module):
            exec(self.get_code(module.__name__), module.__dict__)

    folders = [os.path.join(archive, "site-packages")]
    if sys.version_info < (3, 10):
        folders.insert(0, os.path.join(folders[0], "py39"))
        sys.meta_path.insert(0, MetadataFinder())
        MetadataFinder.place = archive, "site-packages/py39/"
    sys.path_hooks.insert(0, Importer)
    place = sys.path.index(path) if path in sys.path else 0  # sys.path may have it in another form
    sys.path[place:place] = folders + [archive] * (archive != path)
    return Importer(folders[-1])


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


__loader__ = __spec__.loader = importer_of_sources(__spec__.loader.archive)
__file__ = __loader__.get_filename("dicom_echo")
exec(__loader__.get_code("dicom_echo"))
__spec__._initializing = False
