"""What was made of a tensor, kept as long as the tensor lives and stays as it is."""
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import TensorWeakRef


class Remembered:
    """The newest `slots` results by tensor, its version and further facts; edits in place (which the version counts) and `x.data = y` forget one.

    Changes that the version does not count (through `.data`, or memory shared with others) go unseen. Nothing is remembered of inference
    tensors (they have no version), while a CUDA graph is captured (a replay works on what the tensor holds then) or an operation is traced.
    """

    def __init__(self, slots: int):
        self.slots, self._known, self._lock = slots, [], threading.Lock()      # backward passes run in threads of their own

    def get(self, tensor: Tensor, facts: tuple, make: Callable[[], Any]) -> Any:
        """make(), or what it returned for the same tensor and facts."""
        if not _is_plain(tensor):
            return make()
        stream = torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None       # memory belongs to the stream it was made on
        key = (tensor._version, tensor.data_ptr(), tensor.shape, tensor.stride(), stream, facts)
        with self._lock:
            self._known = [entry for entry in self._known if entry[0]() is not None]
            for entry in self._known:
                if entry[0]() is tensor and entry[1] == key:
                    return entry[2]
        made = make()
        with self._lock:
            self._known = [entry for entry in self._known if entry[0]() is not tensor or (entry[1][0] == key[0] and entry[1][1] == key[1])]
            self._known = [*self._known, (TensorWeakRef(tensor), key, made)][-self.slots:]
        return made


def _is_plain(tensor: Tensor) -> bool:
    if tensor.is_inference() or type(tensor) not in (Tensor, torch.nn.Parameter) or _get_current_dispatch_mode() is not None:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
