"""`import dicom_echo` from the archive: this becomes the real module, and makes what it needs importable."""

import sys

if sys.version_info < (3, 9):
    raise ImportError("dicom-echo needs Python 3.9 or later")

__spec__._initializing = True  # so that other threads wait for this import; in Python 3.9 zipimport does not set it


def importer_of_sources(path):
    """Extend sys.path by the folders of sources; return the importer of the one with the real module."""
    import os
    import zipimport
    from contextlib import suppress
    from importlib.util import MAGIC_NUMBER
    from marshal import loads
    from types import SimpleNamespace
    from zlib import crc32, decompress

    # A script may change its directory before it imports pynetdicom. The command does not, and saves 6 ms.
    archive = path if path == sys.argv[0] else os.path.abspath(path)
    compiled = {}

    def distributions_for_39(context):
        """importlib.metadata looks only at the top of an archive, where the metadata for later Pythons are."""
        from fnmatch import fnmatch
        from importlib.metadata import PathDistribution
        from zipfile import Path

        paths, wanted = Path(archive, "site-packages/py39/").iterdir(), (context.name or "*") + "-*.dist-info"
        return [PathDistribution(path) for path in paths if fnmatch(path.name, wanted)]

    class Importer(zipimport.zipimporter):
        """Takes all code from one file, if there is one for this Python. zipimport would load each module twice."""

        def __init__(self, path):
            if not path.startswith(archive + os.sep):
                raise ImportError(path)
            zipimport.zipimporter.__init__(self, path)

        def get_filename(self, name):
            parts = [name.rpartition(".")[2]] + ["__init__"] * self.is_package(name)
            return os.path.join(self.archive, self.prefix, *parts) + ".py"

        def get_code(self, name):
            if name in compiled:
                return loads(decompress(compiled[name]))
            path = self.get_filename(name)
            return compile(self.get_data(path), path, "exec", dont_inherit=True)

        def get_data(self, path):
            """Python crashes on bytecode in which a single bit is wrong, and zipimport ignores the checksums."""
            data = zipimport.zipimporter.get_data(self, path)
            entry = getattr(zipimport, "_zip_directory_cache", {}).get(archive, {}).get(path[len(archive) + 1 :])
            if entry and crc32(data) != entry[7]:
                raise ImportError(path + " is damaged")
            return data

        create_module = staticmethod(lambda spec: None)  # Python 3.9 needs this and the next

        def exec_module(self, module):
            exec(self.get_code(module.__name__), module.__dict__)

    folders = [os.path.join(archive, "site-packages")]
    importer = Importer(folders[0])
    tag = "%s-%s" % (sys.implementation.cache_tag, MAGIC_NUMBER.hex())
    with suppress(OSError):  # the build may not have known this Python, which compiles the sources at each start
        compiled.update(loads(importer.get_data(os.path.join(archive, "bytecode", tag))))
    if sys.version_info < (3, 10):
        folders.insert(0, os.path.join(folders[0], "py39"))
        sys.meta_path.insert(0, SimpleNamespace(find_spec=lambda *_: None, find_distributions=distributions_for_39))
    sys.path_hooks.insert(0, Importer)
    place = sys.path.index(path) if path in sys.path else 0  # sys.path may have it in another form
    sys.path[place:place] = folders + [archive] * (archive != path)
    return importer


__loader__ = __spec__.loader = importer_of_sources(__spec__.loader.archive)
__file__ = __loader__.get_filename("dicom_echo")
exec(__loader__.get_code("dicom_echo"))
__spec__._initializing = False
