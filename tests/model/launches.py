"""How many kernels a computation would launch, if each operation were one."""

from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = frozenset(("addmm", "mm", "bmm", "baddbmm", "convolution", "_addmm_activation"))
# Neither computes: the first may be a view, the second only finds memory.
FREE = frozenset(("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "detach"))


class Launches(NamedTuple):
    """Operations that compute, and those of them that are products of matrices or convolutions."""

    all: int
    products: int


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def launches_of(work) -> Launches:
    # In inference mode a linear layer would count as one whole.
    with torch.inference_mode(mode=False), torch.no_grad(), _Count() as counted:
        work()
    return Launches(len(counted.names), sum(name in PRODUCTS for name in counted.names))
