"""Philox: the authors' vectors in Python and in C++, the same words from both, and what is made of them."""
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sparsekern.ops._philox import SAMPLES, SIGNS, multiply_high, philox, random_signs, random_words, words_of

ROOT = Path(__file__).parent.parent
CXX = shutil.which("g++") or shutil.which("c++")
ONES = 0xFFFFFFFF


def tensors(*numbers):
    return tuple(torch.tensor(n) for n in numbers)


# ---- worked examples: the known answers that come with the generator ----

@pytest.mark.parametrize("counter, key, words", [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
], ids=["zeros", "ones", "pi"])
def test_known_answers(counter, key, words):
    assert tuple(map(int, philox(tensors(*counter), tensors(*key)))) == words


def test_words_of_negative_numbers_are_unsigned():
    assert [int(w) for w in words_of(torch.tensor(-2))] == [ONES - 1, ONES]
    assert [int(w) for w in words_of(torch.tensor(5 + (7 << 32)))] == [5, 7]


def test_numbers_purpose_and_seed_make_the_counter():
    number, seed = torch.tensor([3 + (9 << 32)]), torch.tensor(-1)
    for purpose in (SAMPLES, SIGNS):
        want = philox(tensors(3, 9, 0, purpose), tensors(ONES, ONES))
        assert [w.item() for w in random_words(seed, number, purpose)] == list(map(int, want))


# ---- agreement ----

@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if CXX is None:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("native") / "philox_check"
    source = ROOT / "tests/native/philox_check.cpp"
    subprocess.run([CXX, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "csrc", source, "-o", target], check=True, timeout=120)
    return target


@pytest.mark.parametrize("seed", [0, 12345, -1, -(2**63), 2**63 - 1])
def test_cpp_and_python_agree(program, seed):
    numbers = torch.cat([torch.tensor([0, 1, 2**32 - 1, 2**32, 2**63 - 1]), torch.randint(2**62, (60,))])
    done = subprocess.run([program, str(seed % 2**64), *map(str, numbers.tolist())], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
    words = [torch.stack(random_words(torch.tensor(seed), numbers, purpose), 1) for purpose in (SAMPLES, SIGNS)]
    assert list(map(int, done.stdout.split()[:-1])) == torch.cat(words, 1).flatten().tolist()


def test_high_half_of_a_product():
    x = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 0xE169C58D6627E8D5] + [int(v) * 2 + 1 for v in torch.randint(2**62, (50,))]
    for y in (1, 3, 2**32 + 1, 2**38, 2**62, 2**62 - 1, 2**63 - 1, 0x9B00DBD8BC57AC4C >> 1):
        low, high = torch.tensor([v & ONES for v in x]), torch.tensor([v >> 32 for v in x])
        assert multiply_high((low, high), torch.tensor(y)).tolist() == [v * y >> 64 for v in x]


# ---- signs ----

def test_signs_are_bits_of_blocks_of_128():
    seed, first, count = torch.tensor(41), 2**34 + 77, 300
    signs = random_signs(seed, first, count).tolist()
    for k in range(count):
        i = first + k
        block = random_words(seed, torch.tensor([i >> 7]), SIGNS)
        assert signs[k] == 1 - 2 * (int(block[(i >> 5) & 3]) >> (i & 31) & 1)


@pytest.mark.parametrize("first, count", [(0, 0), (5, 0), (0, 1), (127, 1), (127, 2), (128, 128), (1000, 1001)])
def test_signs_depend_on_their_number_only(first, count):
    assert torch.equal(random_signs(torch.tensor(3), first, count), random_signs(torch.tensor(3), 0, first + count)[first:])


def test_signs_are_fair_and_independent():
    n = 2**16
    a, b = (random_signs(torch.tensor(seed), 0, n).double() for seed in (1, 2))
    for mean in (a.mean(), b.mean(), (a * b).mean(), (a[1:] * a[:-1]).mean(), (a[32:] * a[:-32]).mean(), (a[128:] * a[:-128]).mean()):
        assert mean.abs() < 4.5 / n**0.5
