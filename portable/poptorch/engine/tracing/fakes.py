"""The fake tensors that `forward` is traced with: shapes and types without values, by torch's FakeTensorMode."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.fake_tensor import FakeTensorConverter, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

_aten = torch.ops.aten
# torch has functions for the results of these that call others on fake tensors, with the mode switched off; each of
# those then looks for a DTensor, which loads torch.distributed.tensor. Here the mode stays on.
_IN_STEPS = {_aten.native_layer_norm.default, _aten.view.default, _aten._unsafe_view.default, _aten.select.int}
_IN_STEPS.add(_aten.slice.Tensor)


class FakeMode(FakeTensorMode):
    """torch's mode, real tensors among the operands being allowed, as constants."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.fake_tensor_converter = _Converter()

    def _dispatch_impl(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func not in _IN_STEPS or not all(map(self._is_unknown, args)):
            return super()._dispatch_impl(func, types, args, kwargs)
        with self:
            return op_implementations_dict[func](self, func, *args, **kwargs)

    def _is_unknown(self, value: Any) -> bool:
        """Whether `value` is no tensor, or a fake one that does not stand for a constant."""
        return not isinstance(value, torch.Tensor) or (self.is_our_fake(value) and value.constant is None)


class _Converter(FakeTensorConverter):
    """Makes the fake of a plain tensor from its shape, strides and type, and of any other one as torch does.

    torch's way is for shapes that vary, too: it takes longer, and needs torch._dynamo (without_dynamo.py).
    """

    def from_real_tensor(
        self, fake_mode: FakeTensorMode, t: torch.Tensor, make_constant: bool = False, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if not _is_plain(t):
            return super().from_real_tensor(fake_mode, t, make_constant, *args, **kwargs)
        known = self._get_memo(t)
        if known is not None:
            return known
        with no_dispatch(), torch.no_grad():
            elements = t.untyped_storage().nbytes() // t.element_size()
            memory = torch.empty(elements, dtype=t.dtype, device="meta")
            meta = memory.as_strided(t.shape, t.stride(), t.storage_offset())
            fake = self.from_meta_and_device(fake_mode, meta, t.device)
        fake.requires_grad_(t.requires_grad)
        for name in ("_is_buffer", "persistent"):  # of a torch.nn.Buffer
            if hasattr(t, name):
                setattr(fake, name, getattr(t, name))
        if isinstance(t, torch.nn.Parameter):
            fake._is_param = True
        if make_constant:
            fake.constant = t
            self.add_constant_storage_mapping(fake)
        self.set_tensor_memo(t, fake)
        return fake


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether shape, strides and type are all there is to know about `tensor`."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or torch._is_functional_tensor(tensor):
        return False
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_inference() or tensor.is_meta:
        return False
    # A view of a tensor with gradients is one in the program, too.
    has_past = tensor.requires_grad and (not tensor.is_leaf or tensor._is_view())
    return not has_past and tensor.grad is None
