"""Attention within each text of a packed row of tokens, and the dropout that belongs to it.

Packed: the texts of a batch lie one after the other in one row of T tokens, without padding. Attention is the only part
of an encoder in which tokens meet, so it alone has to know where a text ends.

On the CPU the small matrices of each text and head are brought side by side by one gather, multiplied as batches of
texts of the same length, and brought back by the inverse gather. On a GPU one kernel takes all texts of the row.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

LEVELS = 1 << 16
"""Dropout rates on the CPU are multiples of 1/65536: 0.1 becomes 0.100006. The scale is that of the rate in use."""


class Layout:
    """Where each text lies in a packed row; texts of the same length are best neighbours.

    Args:
        lengths: tokens of each text, [texts].
    """

    def __init__(self, lengths: NDArray[np.int64], device: torch.device) -> None:
        self.device = device
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.tokens = int(self.starts[-1])
        self.longest = int(lengths.max())
        self._gathers: dict[int, tuple[Tensor, ...]] = {}

    @classmethod
    def of_buffers(cls, tokens: int, longest: int, **buffers: Tensor) -> Layout:
        """A layout whose tensors are given, by name; their contents may change, as those of a CUDA graph do."""
        layout = cls.__new__(cls)
        layout.tokens, layout.longest = tokens, longest
        # Where cached properties keep their values.
        layout.__dict__.update(buffers)
        return layout

    @cached_property
    def first(self) -> Tensor:
        """Index of each text's first token, int64 [texts]."""
        return torch.from_numpy(self.starts[:-1]).to(self.device)

    @cached_property
    def text_of_token(self) -> Tensor:
        """int64 [tokens]."""
        return torch.from_numpy(np.repeat(np.arange(len(self.lengths)), self.lengths)).to(self.device)

    @cached_property
    def place_in_text(self) -> Tensor:
        """Position of each token within its text, from 0, int64 [tokens]."""
        return torch.arange(self.tokens, device=self.device) - self.first[self.text_of_token]

    @cached_property
    def bounds(self) -> Tensor:
        """Cumulative lengths, int32 [texts + 1], as varlen kernels want them."""
        return torch.from_numpy(self.starts.astype(np.int32)).to(self.device)

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """(length, how many neighbours have it), in order."""
        changes = np.flatnonzero(np.diff(self.lengths, prepend=-1))
        counts = np.diff(changes, append=len(self.lengths))
        return [(int(self.lengths[at]), int(count)) for at, count in zip(changes, counts, strict=True)]

    def gathers(self, heads: int) -> tuple[Tensor, ...]:
        """Indices into rows of one head's width: of qkv by text and head, back again; then of one of the three.

        `[tokens, 3, heads]` becomes `[3, text, head, token]`, and `[tokens, heads]` becomes `[text, head, token]`.
        """
        if heads not in self._gathers:
            head = np.arange(heads)
            parts = []
            start = 0
            for length, count in self.groups:
                token = start + np.arange(count * length).reshape(count, 1, length)
                parts.append((token * heads + head[None, :, None]).ravel())
                start += count * length
            one = np.concatenate(parts)
            token, head_of = np.divmod(one, heads)
            three = (token * 3 * heads + head_of + heads * np.arange(3)[:, None]).ravel()
            self._gathers[heads] = tuple(
                torch.from_numpy(index) for index in (three, _inverse(three), one, _inverse(one))
            )
        return self._gathers[heads]


class Dropout:
    """Dropout with masks of sixteen random bits an element on the CPU, where torch's own take longer than GELU.

    Elsewhere, and under autocast, it is torch's. `seed` starts the sequence of masks.
    """

    def __init__(self) -> None:
        self._generator = np.random.Generator(np.random.SFC64(0))

    def seed(self, *entropy: int) -> None:
        self._generator = np.random.Generator(np.random.SFC64(list(entropy)))

    def mask(self, count: int, rate: float, like: Tensor) -> tuple[Tensor | None, float]:
        """Ones and zeros, [count], in `like`'s dtype, and what the kept are multiplied by; None keeps everything."""
        threshold = round(rate * LEVELS)
        if not threshold:
            return None, 1.0
        raw = self._generator.integers(0, 1 << 64, -(-count // 4), dtype=np.uint64)
        bits = torch.from_numpy(raw.view(np.int16))[:count]
        kept = torch.ge(bits, threshold - LEVELS // 2, out=torch.empty(count, dtype=like.dtype))
        return kept, LEVELS / (LEVELS - threshold)

    def add(self, residual: Tensor, values: Tensor, rate: float) -> Tensor:
        """`residual + dropout(values)`."""
        if not rate or values.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return residual + (functional.dropout(values, rate) if rate else values)
        mask, scale = self.mask(values.numel(), rate, values)
        if mask is None:
            return residual + values
        added: Tensor = _AddKept.apply(residual, values, mask.view_as(values), scale)  # type: ignore[no-untyped-call]
        return added


class _AddKept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.addcmul(residual, values, mask, value=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return gradient, torch.mul(gradient, mask).mul_(ctx.scale), None, None


def attend(qkv: Tensor, layout: Layout, heads: int, dropout: Dropout, rate: float) -> Tensor:
    """Self-attention of every token within its text: [tokens, 3 x width] to [tokens, width]."""
    if qkv.device.type == "cuda":
        return _attend_on_gpu(qkv, layout, heads, rate)
    cells = heads * int((layout.lengths**2).sum())
    mask, scale = dropout.mask(cells, rate, qkv)
    attended: Tensor = _Attention.apply(qkv, layout, heads, mask, scale)  # type: ignore[no-untyped-call]
    return attended


def attend_from_first(query: Tensor, key: Tensor, value: Tensor, layout: Layout, heads: int, rate: float) -> Tensor:
    """What each text's first token attends to: query [texts, width], key and value [tokens, width] to [texts, width].

    Plain operations of fixed shape, so that autograd, every device and a CUDA graph take them as they are.
    """
    texts, width = query.shape
    tokens, of = key.shape[0], layout.text_of_token
    # Half precision is for matrix products; sums over a text are taken in float32.
    query, key, value = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (query, key, value))
    scores = (query.view(texts, heads, -1)[of] * key.view(tokens, heads, -1)).sum(-1) * (width // heads) ** -0.5
    cells = of * layout.longest + layout.place_in_text
    table = scores.new_full((texts * layout.longest, heads), -torch.inf).index_copy(0, cells, scores)
    weights = functional.dropout(table.view(texts, layout.longest, heads).softmax(1), rate)
    weights = weights.view(-1, heads)[cells]
    weighted = weights[..., None] * value.view(tokens, heads, -1)
    return weighted.new_zeros(texts, heads, width // heads).index_add(0, of, weighted).view(texts, width)


class _Attention(torch.autograd.Function):
    """softmax(q k' / sqrt(d)) v of each text and head, with dropout of the probabilities by a given mask."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: Layout, heads: int, mask: Tensor | None, scale: float) -> Tensor:
        tokens, width = qkv.shape[0], qkv.shape[1] // 3
        gather, _, _, scatter = layout.gathers(heads)
        rows = qkv.reshape(-1, width // heads).index_select(0, gather)
        query, key, value = (_by_text(part, layout, heads) for part in rows.chunk(3))
        probabilities = qkv.new_empty(heads * int((layout.lengths**2).sum()))
        out = qkv.new_empty(tokens * heads, width // heads)
        for square, q, k in zip(_squares(probabilities, layout, heads), query, key, strict=True):
            torch.baddbmm(square, q, k.transpose(1, 2), beta=0, alpha=(width // heads) ** -0.5, out=square)
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
        _, scatter, gather, _ = layout.gathers(heads)
        coming = gradient.reshape(-1, width // heads).index_select(0, gather)
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
    """Views [texts x heads, length, head width] of `rows`, one for each group of texts of the same length."""
    parts = torch.split(rows, [count * heads * length for length, count in layout.groups])
    return [part.view(count * heads, length, -1) for part, (length, count) in zip(parts, layout.groups, strict=True)]


def _squares(cells: Tensor, layout: Layout, heads: int) -> list[Tensor]:
    """Views [texts x heads, length, length] of `cells`."""
    parts = torch.split(cells, [count * heads * length * length for length, count in layout.groups])
    return [
        part.view(count * heads, length, length) for part, (length, count) in zip(parts, layout.groups, strict=True)
    ]


def _inverse(permutation: NDArray[np.int64]) -> NDArray[np.int64]:
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation))
    return inverse
