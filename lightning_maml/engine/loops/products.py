"""Small matrix products as plain loops, which a compiler fuses with what stands around them."""

from typing import Any

import torch
from torch import Tensor

SMALL = 2**15
"""The multiplications of one task's matrix product up to which plain loops beat a library call on a CPU."""


class WithLoops(torch.fx.Interpreter):
    """A graph with its small matrix products as plain arithmetic, of which the compiler makes one kernel with the rest.

    A product is laid out as it is used: an update in the layout of the weight is one loop with the product itself.
    """

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        super().__init__(traced)
        self.transposes: dict[int, tuple[Tensor, Tensor]] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.target is torch.ops.aten.transpose.int and args[0].ndim == 3 and {d % 3 for d in args[1:]} == {1, 2}:
            return self._transpose(args[0])
        if node.target in (torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default) and not kwargs:
            *bias, a, b = args
            rows, inner, columns = a.shape[1], a.shape[2], b.shape[2]
            if 1 in (rows, inner, columns) or (a.device.type == "cpu" and rows * inner * columns <= SMALL):
                if _turned(node):
                    product = self._transpose(self._product(self._transpose(b), self._transpose(a)))
                else:
                    product = self._product(a, b)
                return bias[0] + product if bias else product
        return super().run_node(node)

    def _transpose(self, value: Tensor) -> Tensor:
        """Of a transpose, the value itself: the compiler then sees that they are one."""
        if id(value) not in self.transposes:
            turned = value.mT
            self.transposes |= {id(value): (value, turned), id(turned): (turned, value)}
        return self.transposes[id(value)][1]

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        rows, inner, columns = *a.shape[1:], b.shape[2]
        if inner == 1:
            return a * b
        if columns == 1:
            return (a * self._transpose(b)).sum(2, keepdim=True)
        if rows == 1:
            return (self._transpose(a) * b).sum(1, keepdim=True)
        a, b = _stored(a), _stored(b)
        if b.stride(2) == 1:
            return _along_columns(a, b)
        if a.stride(1) == 1:
            return self._transpose(_along_columns(self._transpose(b), self._transpose(a)))
        return (a.unsqueeze(2) * b.mT.unsqueeze(1)).sum(3)


def _turned(node: torch.fx.Node) -> bool:
    """Whether nothing but the transpose of a node is used in the end, be it after sums with others."""
    transpose, add = torch.ops.aten.transpose.int, torch.ops.aten.add.Tensor
    return bool(node.users) and all(
        (user.target is transpose and not _turned(user)) or (user.target is add and _turned(user))
        for user in node.users
    )


def _along_columns(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` as a loop along the contiguous columns of ``b``, some terms a turn: twice as fast as one."""
    terms = next((terms for terms in (5, 4, 6, 3, 7, 2) if a.shape[2] % terms == 0), 1)
    a, b = a.unflatten(2, (-1, terms)), b.unflatten(1, (-1, terms))
    total = a[:, :, :, 0:1] * b[:, None, :, 0]
    for term in range(1, terms):
        total = total + a[:, :, :, term : term + 1] * b[:, None, :, term]
    return total.sum(2)


def _stored(value: Tensor) -> Tensor:
    """A hint to the compiler to keep the value in memory as it lies rather than to compute it at each use."""
    return torch.ops.prims.inductor_force_stride_order(value, value.stride())
