"""What a global named in a pickle may become: a rebuilder of plain data, an inert stub, or a refusal.

Nothing in this package imports or calls what a file names. The refusals below are therefore not what keeps a user
safe (the absence of any call is); they stop a file that was plainly made to do harm from being used at all.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fastalter.errors import CheckpointError

_BUILTINS = "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple"
_MODULES = """
    os posix nt posixpath ntpath sys subprocess _posixsubprocess commands popen2 importlib imp runpy pkgutil zipimport
    pty socket _socket socketserver ssl shutil ctypes _ctypes cffi webbrowser antigravity code codeop pickle _pickle
    cPickle dill cloudpickle joblib marshal shelve pdb bdb timeit profile cProfile trace pydoc doctest inspect gc signal
    multiprocessing concurrent asyncio urllib urllib2 http httplib ftplib smtplib telnetlib xmlrpc requests httpx
    aiohttp tempfile fileinput linecache tarfile zipfile sqlite3 pip setuptools distutils site ensurepip venv winreg
    _winreg _winapi msvcrt
"""
_NAMES = """
    types.FunctionType types.LambdaType types.CodeType types.MethodType operator.attrgetter operator.methodcaller
    _operator.attrgetter _operator.methodcaller io.open io.open_code io.FileIO _io.open _io.open_code _io.FileIO
    codecs.open torch.load torch.save torch.hub.load torch.jit.load torch._utils._import_dotted_name
    torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline numpy.load numpy.fromfile numpy.memmap
    numpy.testing._private.utils.runstring numpy.f2py.crackfortran.myeval pandas.read_pickle
"""

HARMLESS_BUILTINS = frozenset(_BUILTINS.split())
BUILTINS = frozenset({"builtins", "__builtin__", "__builtins__"})
DENIED_MODULES = frozenset(_MODULES.split())
DENIED_NAMES = frozenset(_NAMES.split())


@dataclass(frozen=True)
class StubClass:
    """A name from a pickle that stays a name: it is neither imported nor called."""

    name: str


@dataclass(frozen=True, eq=False)
class Stub:
    """What a pickle would have built from a `StubClass`; it holds nothing but the name."""

    name: str


def shown(text: object, limit: int = 100) -> str:
    """`text` from a file, fit for one line of a message: printable and short."""
    line = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 3] + "..."


def check_global(module: str, name: str) -> None:
    """Refuse names that only a pickle made to run code has a use for.

    Raises:
        CheckpointError: naming the global.
    """
    *path, last = name.split(".")
    roots = {module.split(".")[0], *path}
    denied = bool(roots & DENIED_MODULES) or f"{module}.{name}" in DENIED_NAMES
    if module in BUILTINS or roots & BUILTINS:
        denied = denied or bool(path) or last not in HARMLESS_BUILTINS
    if denied:
        raise CheckpointError(
            f"the pickle names {shown(f'{module}.{name}')}, which could run code: nothing was run; "
            "do not use this file, get it again from its publisher"
        )


def is_native_order(order: str) -> bool:
    """Whether "little" or "big" is this machine's byte order."""
    return order == sys.byteorder
