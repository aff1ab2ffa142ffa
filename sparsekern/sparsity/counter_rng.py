"""Random numbers that are functions of counters alone: the same on every device, on every rank and after a resume."""
import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def _mix(x):
    """Murmur3's finaliser on 32-bit words held in int64 (a product may wrap: its low 32 bits are right)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)


def words(places: Tensor, *keys: int) -> Tensor:
    """One 32-bit word, held in int64, for every place (int64) under the keys."""
    word = _mix((places & _WORD) ^ _mix(places >> 32))
    for key in keys:
        word = _mix(word ^ _mix((key + 0x9E3779B9) & _WORD))
    return word


def uniform(like: Tensor, *keys: int) -> Tensor:
    """float32 in [0, 1), one for every position of `like`."""
    places = torch.arange(like.numel(), device=like.device)
    return (words(places, *keys) >> 8).to(torch.float32).div_(1 << 24).view(like.shape)


def seed(*keys: int) -> int:
    """A 63-bit seed from several numbers, for generators that take one."""
    value = 0
    for key in keys:                                                                # SplitMix64's finaliser between the keys
        value = (value + key + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1
