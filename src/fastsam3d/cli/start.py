"""The process of one command: what can be done sooner, later or not at all because it runs alone.

Of a click on a large scan, from its file to a saved mask, importing torch is the longest part, and
most of that holds Python's lock. The dynamic linker does not need the lock, so torch's libraries
are loaded while the command line is parsed; modules that only tracing needs wait until something
traces; and nothing is searched for cycles, neither in what imports leave for good nor, at the end,
in what the system takes back anyway.
"""

from __future__ import annotations

import gc
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
# In torch's own order: the first finds what the second needs.
_LIBRARIES: Final = ("libtorch_global_deps.so", "libtorch_cpu.so")


def run() -> int:
    """Run the command of this process, which ends with it.

    Returns:
        The exit code, see `fastsam3d.cli.main`.
    """
    words = sys.argv[1:]
    if is_brief(words):
        gc.disable()
        Thread(target=load_libraries, daemon=True).start()
    from fastsam3d.cli.main import main

    code = main(words)
    # Ending, Python searches everything for cycles three times over: 0.35 s with torch.
    gc.freeze()
    return code


def is_brief(words: Sequence[str]) -> bool:
    """Whether a command line asks for one of `BRIEF_COMMANDS`, and not for its help."""
    return bool(words) and words[0] in BRIEF_COMMANDS and not {"-h", "--help"} & set(words)


def load_libraries() -> None:
    """Load torch's libraries; where they lie elsewhere, importing torch will find them."""
    import ctypes

    spec = find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        with suppress(OSError):
            for number, name in enumerate(_LIBRARIES):
                path = Path(folder, "lib", name)
                ctypes.CDLL(str(path), ctypes.DEFAULT_MODE if number else ctypes.RTLD_GLOBAL)


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
