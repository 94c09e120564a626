"""Whether there is Triton, and the modules of kernels that need it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

HAS_TRITON = find_spec("triton") is not None


def load_kernels(module: str) -> Any:
    """Import kernels, which registers their operators; not while a compiler traces their callers.

    Args:
        module: Full name.

    Returns:
        The module, or None without Triton.
    """
    return import_module(module) if HAS_TRITON else None
