"""Self-attention within each text of a packed batch.

The texts of a packed batch are concatenated into one row of tokens, without padding. Attention is the only part of an
encoder in which tokens interact, so it alone needs the bounds of each text.

On the CPU one gather brings the rows of each text and head together, texts of similar length are multiplied in one
batched product, and a second gather restores the order of tokens. On a GPU one varlen kernel takes the whole row.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nightgate.engine.dropout import Dropout
from nightgate.engine.partition import cut

CELLS_PER_GROUP = 4200
"""Overhead of one more group, in cells of a probability matrix: 0.4 ms and 90 ns a cell on two cores, in float32.
Dropout draws a mask for each cell: another value is another training.
"""
CELLS_PER_GROUP_WITHOUT_GRADIENTS = 8000
"""The same for an evaluation, whose cells cost less: 3 to 6 % faster in bf16."""


class Layout:
    """Bounds of the texts of a packed batch.

    Args:
        lengths: tokens of each text, [texts]; ascending for attention on the CPU.
    """

    def __init__(self, lengths: NDArray[np.int64], device: torch.device) -> None:
        self.device = device
        self.lengths = np.ascontiguousarray(lengths, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.tokens = int(self.starts[-1])
        self.longest = int(lengths.max())
        self._gathers: dict[int, tuple[Tensor, ...]] = {}

    @classmethod
    def of_buffers(cls, tokens: int, longest: int, **buffers: Tensor) -> Layout:
        """A layout of given tensors, by the names of its cached properties; a CUDA graph refills them."""
        layout = cls.__new__(cls)
        layout.tokens, layout.longest = tokens, longest
        layout.__dict__.update(buffers)  # where cached properties keep their values
        return layout

    @cached_property
    def first(self) -> Tensor:
        """Index of each text's first token, int64 [texts]."""
        return torch.from_numpy(self.starts[:-1]).to(self.device)

    @cached_property
    def text_of_token(self) -> Tensor:
        """Index of each token's text, int64 [tokens]."""
        return torch.from_numpy(np.repeat(np.arange(len(self.lengths)), self.lengths)).to(self.device)

    @cached_property
    def place_in_text(self) -> Tensor:
        """Position of each token within its text, from 0, int64 [tokens]."""
        return torch.arange(self.tokens, device=self.device) - self.first[self.text_of_token]

    @cached_property
    def bounds(self) -> Tensor:
        """Cumulative lengths for varlen kernels, int32 [texts + 1]."""
        return torch.from_numpy(self.starts.astype(np.int32)).to(self.device)

    @cached_property
    def groups(self) -> list[Group]:
        """Neighbouring texts that are multiplied together, in order."""
        assert (np.diff(self.lengths) >= 0).all(), "texts come in order of length"
        group_cost = CELLS_PER_GROUP if torch.is_grad_enabled() else CELLS_PER_GROUP_WITHOUT_GRADIENTS
        return [
            Group(int(self.lengths[part].max()), self.lengths[part], self.starts[:-1][part])
            for part in cut(self.lengths, 2, group_cost)
        ]

    def gathers(self, heads: int) -> tuple[Tensor, ...]:
        """Indices of the gathers to and from groups: (qkv to, qkv from, one of the three to, one of the three from).

        `[tokens, 3, heads]` becomes `[3, text, head, place]`, and `[tokens, heads]` becomes `[text, head, place]`.
        Places after a text's end repeat its first token and are not gathered back. The last tensor is false for them,
        [text x head x place, 1].
        """
        if heads not in self._gathers:
            head = np.arange(heads)[:, None]
            token = [group.tokens[:, None, :] for group in self.groups]
            one = np.concatenate([(tokens * heads + head).ravel() for tokens in token])
            valid = np.concatenate([np.repeat(group.valid[:, None], heads, 1).ravel() for group in self.groups])
            back = np.empty(self.tokens * heads, np.int64)
            back[one[valid]] = np.flatnonzero(valid)
            token_of, head_of = np.divmod(one, heads)
            part = np.arange(3)
            three = (token_of * 3 * heads + head_of + heads * part[:, None]).ravel()
            back_three = (back.reshape(self.tokens, 1, heads) + len(one) * part[:, None]).ravel()
            found = three, back_three, one, back, valid[:, None]
            self._gathers[heads] = tuple(torch.from_numpy(index) for index in found)
        return self._gathers[heads]


class Group:
    """Texts padded to a common width, [count, width]."""

    def __init__(self, width: int, lengths: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        self.width, self.count = width, len(lengths)
        place = np.arange(width)
        self.valid = place < lengths[:, None]
        self.tokens = starts[:, None] + np.where(self.valid, place, 0)
        self.padding = None if self.valid.all() else torch.from_numpy(np.where(self.valid, 0, -np.inf))[:, None, None]
        """What is added to scores, [count, 1, 1, width]: -inf after a text's end; None where texts have one length."""


def attend(qkv: Tensor, layout: Layout, heads: int, dropout: Dropout, rate: float) -> Tensor:
    """Self-attention of every token within its text: [tokens, 3 x width] to [tokens, width]."""
    if qkv.device.type == "cuda":
        return _attend_on_gpu(qkv, layout, heads, rate)
    mask, scale = dropout.mask(_num_cells(layout, heads), rate, qkv.dtype)
    attended: Tensor = _Attention.apply(qkv, layout, heads, mask, scale)  # type: ignore[no-untyped-call]
    return attended


def attend_from_first(
    query: Tensor, key_value: Tensor, layout: Layout, heads: int, dropout: Dropout, rate: float
) -> Tensor:
    """Attention of each text's first token: query [texts, width], key_value [tokens, 2 x width] to [texts, width].

    Plain operations of fixed shape, for autograd, every device and CUDA graphs.
    """
    texts, width = query.shape
    tokens, of = key_value.shape[0], layout.text_of_token
    # Half precision is for matrix products; sums over a text are taken in float32.
    query, key_value = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (query, key_value))
    key, value = key_value.view(tokens, 2, heads, -1).unbind(1)
    # index_select and not [of], whose gradient is summed by threads in an order that varies.
    of_token = query.index_select(0, of).view(tokens, heads, -1)
    scores = (of_token * key).sum(-1) * (width // heads) ** -0.5
    cells = of * layout.longest + layout.place_in_text
    table = scores.new_full((texts * layout.longest, heads), -torch.inf).index_copy(0, cells, scores)
    weights = table.view(texts, layout.longest, heads).softmax(1).view(-1, heads).index_select(0, cells)
    if query.device.type == "cuda":
        weights = functional.dropout(weights, rate)
    else:
        mask, scale = dropout.mask(weights.numel(), rate, weights.dtype)
        weights = weights if mask is None else weights * mask.view_as(weights) * scale
    weighted: Tensor = weights[..., None] * value
    return weighted.new_zeros(texts, heads, width // heads).index_add(0, of, weighted).view(texts, width)


class _Attention(torch.autograd.Function):
    """softmax(q k' / sqrt(d)) v of each text and head, with a given dropout mask on the probabilities."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: Layout, heads: int, mask: Tensor | None, scale: float) -> Tensor:
        tokens, width = qkv.shape[0], qkv.shape[1] // 3
        gather, _, one, scatter, _ = layout.gathers(heads)
        rows = qkv.reshape(-1, width // heads).index_select(0, gather)
        query, key, value = (_by_text(part, layout, heads) for part in rows.chunk(3))
        probabilities = qkv.new_empty(_num_cells(layout, heads))
        out = qkv.new_empty(len(one), width // heads)
        squares = _squares(probabilities, layout, heads)
        for group, square, q, k in zip(layout.groups, squares, query, key, strict=True):
            torch.baddbmm(square, q, k.transpose(1, 2), beta=0, alpha=(width // heads) ** -0.5, out=square)
            if group.padding is not None:
                square.view(group.count, heads, group.width, group.width).add_(group.padding.to(square.dtype))
            torch.softmax(square, -1, out=square)
        kept = probabilities if mask is None else probabilities * mask
        for square, v, o in zip(_squares(kept, layout, heads), value, _by_text(out, layout, heads), strict=True):
            torch.bmm(square, v, out=o)
        ctx.save_for_backward(rows, probabilities, kept, mask)
        ctx.layout, ctx.heads, ctx.scale = layout, heads, scale
        attended = out.index_select(0, scatter).view(tokens, width)
        return attended if mask is None else attended.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, probabilities, kept, mask = ctx.saved_tensors
        layout, heads = ctx.layout, ctx.heads
        tokens, width = gradient.shape
        _, scatter, gather, _, valid = layout.gathers(heads)
        coming = gradient.reshape(-1, width // heads).index_select(0, gather)
        # Outputs after a text's end were not gathered back.
        coming.mul_(valid.to(coming.dtype))
        if mask is not None:
            coming.mul_(ctx.scale)
        going = torch.empty_like(rows)
        query, key, value = (_by_text(part, layout, heads) for part in rows.chunk(3))
        d_query, d_key, d_value = (_by_text(part, layout, heads) for part in going.chunk(3))
        d_kept = torch.empty_like(probabilities)
        squares = _squares(d_kept, layout, heads)
        for square, k, g, v, dv in zip(
            squares, _squares(kept, layout, heads), _by_text(coming, layout, heads), value, d_value, strict=True
        ):
            torch.bmm(g, v.transpose(1, 2), out=square)
            torch.bmm(k.transpose(1, 2), g, out=dv)
        if mask is not None:
            d_kept.mul_(mask)
        factor = (width // heads) ** -0.5
        for square, p, q, k, dq, dk in zip(
            squares, _squares(probabilities, layout, heads), query, key, d_query, d_key, strict=True
        ):
            d_scores = torch.ops.aten._softmax_backward_data(square, p, -1, p.dtype)
            torch.baddbmm(dq, d_scores, k, beta=0, alpha=factor, out=dq)
            torch.baddbmm(dk, d_scores.transpose(1, 2), q, beta=0, alpha=factor, out=dk)
        return going.index_select(0, scatter).view(tokens, 3 * width), None, None, None, None


def _attend_on_gpu(qkv: Tensor, layout: Layout, heads: int, rate: float) -> Tensor:
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    query, key, value = qkv.view(tokens, 3, heads, width // heads).unbind(1)
    bounds, longest = layout.bounds, layout.longest
    if qkv.dtype in (torch.float16, torch.bfloat16) and torch.cuda.get_device_capability(qkv.device) >= (8, 0):
        # torch's own varlen_attn takes no dropout; the operator below it does.
        out = torch.ops.aten._flash_attention_forward(
            query, key, value, bounds, bounds, longest, longest, rate, False, False
        )[0]
    else:
        out = torch.ops.aten._efficient_attention_forward(
            query[None], key[None], value[None], None, bounds, bounds, longest, longest, rate, 0, True
        )[0][0]
    attended: Tensor = out.reshape(tokens, width)
    return attended


def _by_text(rows: Tensor, layout: Layout, heads: int) -> list[Tensor]:
    """Views [texts x heads, width of the group, head width] of `rows`, one for each group."""
    parts = torch.split(rows, [group.count * heads * group.width for group in layout.groups])
    return [part.view(group.count * heads, group.width, -1) for part, group in zip(parts, layout.groups, strict=True)]


def _squares(cells: Tensor, layout: Layout, heads: int) -> list[Tensor]:
    """Views [texts x heads, width of the group, the same] of `cells`, one for each group."""
    parts = torch.split(cells, [group.count * heads * group.width**2 for group in layout.groups])
    return [
        part.view(group.count * heads, group.width, group.width)
        for part, group in zip(parts, layout.groups, strict=True)
    ]


def _num_cells(layout: Layout, heads: int) -> int:
    return heads * sum(group.count * group.width**2 for group in layout.groups)
