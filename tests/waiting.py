"""A mode that refuses what makes the host wait for a device, where there is no such device to wait for."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Their result, or its shape, depends on numbers that lie on the device.
WAITING = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "masked_select", "bincount", "histc", "isin"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "repeat_interleave"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
COPIES = {"_to_copy", "copy_", "_copy_from"}


class NoWaiting(TorchDispatchMode):
    """Raise an error where an operation inside the block would wait.

    Parameters
    ----------
    device : str
        Where tensors count as lying on a device.
    """

    def __init__(self, device):
        super().__init__()
        self.device, self.n_operations = device, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
        there = [part for part in tensors if part.device.type == self.device]
        self.n_operations += bool(there)
        if there and name in WAITING:
            raise AssertionError(f"{function} waits for the device.")
        if there and name in INDEXING and any(part is not None and part.dtype == torch.bool for part in args[1]):
            raise AssertionError(f"{function} with a mask waits for the device.")
        result = function(*args, **kwargs)
        if name in COPIES:
            devices = {part.device.type for part in [*tensors, result]}
            free = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if len(devices) > 1 and not free:
                raise AssertionError(f"{function} between {' and '.join(sorted(devices))} waits for the device.")
        return result
