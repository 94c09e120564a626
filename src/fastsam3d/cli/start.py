"""The process of one command: what can be done sooner, later or not at all because it runs alone.

Of a click on a large scan, from its file to a saved mask, importing torch is the longest part, and
most of that holds Python's lock. The dynamic linker does not need the lock, so torch's libraries
are loaded while the command line is parsed; what only tracing needs is left out where nothing is
traced; what imports leave for good is not searched for cycles; and in the end nothing is taken
apart that goes with the process.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

BRIEF_COMMANDS: Final = frozenset({"segment"})
"""Commands that load a model, answer once and end."""
# Kernels for tensors without data, which torch registers as it is imported: 0.35 s. Compiling and
# exporting need them, and must import them first.
_LATER: Final = ("torch._meta_registrations",)
# The linker takes one library at a time, and whoever waits for it holds Python's lock: what the
# command line's modules load of their own is loaded before.
_FIRST: Final = ("fastsam3d.io", "concurrent.futures.thread", "hashlib", "unicodedata")
# In torch's own order: the first finds what the second needs, for all to see.
_LIBRARIES: Final = ("libtorch_global_deps.so", "libtorch_cpu.so")


def run() -> int:
    """Run the command of this process, which ends with it.

    Returns:
        The exit code, see `fastsam3d.cli.main`.
    """
    words = sys.argv[1:]
    if is_brief(words):
        _prepare()
    from fastsam3d.cli.main import main

    code = main(words)
    if is_brief(words):
        _end(code)
    return code


def _prepare() -> None:
    gc.disable()
    # numpy multiplies nothing large here; torch has threads of its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in _FIRST:
        import_module(name)
    Thread(target=load_libraries, daemon=True).start()


def _end(code: int) -> None:
    """End the process without taking apart what the system takes back at once: 0.4 s with torch.

    All files are closed and all threads joined by now. Output that cannot be written is left to
    Python, which tells of it.
    """
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def is_brief(words: Sequence[str]) -> bool:
    """Whether a command line asks for one of `BRIEF_COMMANDS`, and not for its help."""
    return bool(words) and words[0] in BRIEF_COMMANDS and not {"-h", "--help"} & set(words)


def load_libraries() -> None:
    """Load torch's libraries where that is known to work; importing torch finds them either way."""
    if sys.platform != "linux":
        return
    # As a function of C, since `ctypes.CDLL` holds Python's lock meanwhile.
    load = ctypes.CDLL(None).dlopen
    load.argtypes, load.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    spec = find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        for name, scope in zip(_LIBRARIES, (os.RTLD_GLOBAL, os.RTLD_LOCAL), strict=True):
            load(os.fsencode(Path(folder, "lib", name)), os.RTLD_NOW | scope)


@contextmanager
def tracing_later() -> Generator[None]:
    """Import torch within the block without what only tracing needs: for eager models on a CPU.

    Where torch is there already nothing is put off, and where it sees a GPU, until the block's end.
    """
    waiting = [] if "torch" in sys.modules else [_Waiting(name) for name in _LATER]
    sys.modules.update({module.__name__: module for module in waiting})
    try:
        yield
    finally:
        for module in waiting:
            module.leave()
    if waiting and sys.modules["torch"].cuda.is_available():
        for module in waiting:
            import_module(module.__name__)


class _Waiting(ModuleType):
    """Stands for a module that is imported for its side effects, until one wants more of it."""

    def __getattr__(self, name: str) -> Any:
        """Return what the module itself has of a name."""
        if name.startswith("__"):  # what inspect asks every module for
            raise AttributeError(name)
        self.leave()
        return getattr(import_module(self.__name__), name)

    def leave(self) -> None:
        """Give the place to the module itself, which is imported when it is wanted."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        parent, _, child = self.__name__.rpartition(".")
        if vars(sys.modules.get(parent, self)).get(child) is self:
            delattr(sys.modules[parent], child)
