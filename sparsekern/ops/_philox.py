"""Philox 4x32-10, the counter-based generator of the sampled growth ops, in int64 arithmetic: bit-equal to csrc/common/philox.h.

A draw depends on the seed and on its own number only, so any backend may make it anywhere and in any order. Words are
unsigned 32-bit numbers held in int64. Of a seed (int64) the key is (its low word, its high word). Counters of number `i`:

    samples   (low word of i, high word of i, 0, 0): words 0 and 1 are the low and high half of the row's 64-bit uniform,
              words 2 and 3 those of the column's
    signs     (low word of i >> 7, high word of i >> 7, 0, 1): the 128 signs of i's block; the sign of i is bit i & 31 of
              word (i >> 5) & 3, and a set bit is -1

Source: Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
"""
import torch
from torch import Tensor

SAMPLES, SIGNS = 0, 1                                       # the last word of the counter: what the number is for
_WORD = 0xFFFFFFFF
_MULTIPLIERS, _WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def words_of(number: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32-bit word of int64 numbers, as unsigned values in int64."""
    return number & _WORD, number >> 32 & _WORD


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for each counter of four words, under a key of two; all int64, of shapes that broadcast."""
    a, b, c, d = counter
    for turn in range(10):
        low_0, high_0 = words_of(a * _MULTIPLIERS[0])       # the product wraps past 2^63, its 64 bits are right
        low_1, high_1 = words_of(c * _MULTIPLIERS[1])
        k0, k1 = ((k + turn * w) & _WORD for k, w in zip(key, _WEYL))
        a, b, c, d = high_1 ^ b ^ k0, low_1, high_0 ^ d ^ k1, low_0
    return a, b, c, d


def random_words(seed: Tensor, number: Tensor, purpose: int) -> Words:
    """The four words of each `number` (int64) under `seed` (int64, one element) for SAMPLES or SIGNS."""
    zero = torch.zeros_like(number)
    return philox((*words_of(number), zero, zero + purpose), words_of(seed.reshape(())))


def random_signs(seed: Tensor, first: int, count: int) -> Tensor:
    """[count] int64 of +1 and -1: the signs of the numbers first, first + 1, ..."""
    number = torch.arange(first, first + count, device=seed.device)
    start = first >> 7
    blocks = torch.arange(start, (first + count + 127 >> 7) if count else start, device=seed.device)
    words = torch.stack(random_words(seed, blocks, SIGNS), dim=1).reshape(-1)
    return 1 - 2 * (words[(number >> 5) - 4 * start] >> (number & 31) & 1)


def multiply_high(x: Words, y: Tensor) -> Tensor:
    """floor(x * y / 2^64) for unsigned 64-bit x, given as (low word, high word), and y below 2^63."""
    (x0, x1), (y0, y1) = x, words_of(y)
    low = words_of(x0 * y0)[1]                              # of 64-bit products only the words are read: wrapping does no harm
    middle_0, middle_1 = words_of(x1 * y0), words_of(x0 * y1)
    return x1 * y1 + middle_0[1] + middle_1[1] + (low + middle_0[0] + middle_1[0] >> 32)


def check_seed(op: str, seed: Tensor, device: torch.device) -> None:
    """One int64 element on the device of the other arguments."""
    if seed.dtype != torch.int64:
        raise TypeError(f"{op}: seed: expected int64, got {seed.dtype}")
    if seed.numel() != 1:
        raise ValueError(f"{op}: seed: expected one number, got shape {list(seed.shape)}")
    if seed.device != device:
        raise ValueError(f"{op}: seed: expected a tensor on {device}, got {seed.device}; move it with .to()")
