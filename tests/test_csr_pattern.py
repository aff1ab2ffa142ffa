"""The check of patterns on the CPU: done once per tensor and version, and again whenever something may have changed."""
import gc

import pytest
import torch

from sparsekern._native import native
from sparsekern.ops import csr_plan, csr_sddmm, csr_spmm_t
from sparsekern.testing import random_csr

pytestmark = pytest.mark.skipif(not native.available, reason="compiled kernels are not there")
A, B = torch.ones(20, 3), torch.ones(30, 3)


def assert_refused(crow, col, words="col: expected columns in"):
    with pytest.raises(ValueError, match=words):
        csr_sddmm(crow, col, A, B)


@pytest.fixture(params=[False, True], ids=["int32", "int64"])
def pattern(request):
    """A pattern that has been checked and is remembered."""
    crow, col, _ = random_csr(20, 30, 0.5, index64=request.param)
    for _ in range(2):
        assert csr_sddmm(crow, col, A, B).tolist() == [3.0] * col.numel()
    return crow, col


def test_a_change_in_place_is_seen(pattern):
    crow, col = pattern
    col[7] = 30
    assert_refused(crow, col)
    col[7] = 29
    csr_sddmm(crow, col, A, B)
    crow[3] = 300
    assert_refused(crow, col, "crow: expected row pointers that never fall")


def test_a_change_through_a_view_is_seen(pattern):
    crow, col = pattern
    col.view(2, -1)[1, 3] = -5
    assert_refused(crow, col)
    whole = torch.arange(40, dtype=torch.int32) % 30
    part = whole[5:15]
    pointers = torch.tensor([0] + [10] * 20)
    csr_sddmm(pointers, part, A, B)
    whole[9] = 99
    assert_refused(pointers, part)


def test_exchanged_data_is_seen(pattern):
    """`x.data = y` leaves tensor and version as they were."""
    crow, col = pattern
    col.data = torch.full_like(col, 77)
    assert_refused(crow, col)


def test_an_address_used_again_fools_nobody():
    """New storages and tensors come to lie where sound ones lay: all are looked at."""
    crow, col, _ = random_csr(20, 30, 0.5)
    csr_sddmm(crow, col, A, B)
    addresses = {col.data_ptr()}
    for turn in range(200):
        col.data = torch.empty(0, dtype=torch.int32)                    # frees the storage ...
        col.data = torch.full((300,), 30 if turn % 2 else 7, dtype=torch.int32)         # ... whose block comes back
        addresses.add(col.data_ptr())
        if turn % 2:
            assert_refused(crow, col)
        else:
            csr_sddmm(crow, col, A, B)
    assert len(addresses) < 100                                         # addresses did come back
    for turn in range(200):
        fresh = torch.full((300,), -1 if turn % 2 else 3, dtype=torch.int32)
        if turn % 2:
            assert_refused(crow, fresh)
        else:
            csr_sddmm(crow, fresh, A, B)
        del fresh
        gc.collect(0)


def test_other_limits_are_other_checks(pattern):
    crow, col = pattern
    refuses_now = int(col.max())
    with pytest.raises(ValueError, match=rf"columns in \[0, {refuses_now}\)"):
        csr_sddmm(crow, col, A, B[:refuses_now])
    with pytest.raises(ValueError, match="expected 20 row pointers for 19 rows, got 21"):
        csr_sddmm(crow, col, A[:19], B)
    with pytest.raises(ValueError, match="number of columns stored"):
        csr_sddmm(crow, col[:-1], A, B)


def test_pointers_of_another_pattern_are_checked():
    """The same columns under other pointers."""
    crow, col, _ = random_csr(20, 30, 0.5)
    csr_sddmm(crow, col, A, B)
    assert_refused(crow.flip(0), col, "crow: expected to start at 0")


def test_inference_tensors_are_checked_each_time():
    with torch.inference_mode():
        crow, col, _ = random_csr(20, 30, 0.5)
        csr_sddmm(crow, col, A, B)
        col[4] = 1000                                                   # no version tells of this
        assert_refused(crow, col)


def test_positions_are_checked_again():
    crow, col, val = random_csr(20, 30, 0.5)
    _, crow_t, row_t, perm = csr_plan(crow, col, 20, 30)
    csr_spmm_t(crow_t, row_t, perm, val, A, 20, 30)
    perm[5] = col.numel()
    with pytest.raises(ValueError, match="perm: expected positions in"):
        csr_spmm_t(crow_t, row_t, perm, val, A, 20, 30)


def test_more_patterns_than_are_remembered():
    kept = [random_csr(20, 30, 0.5, seed=seed)[:2] for seed in range(700)]
    for _ in range(2):
        for crow, col in kept:
            csr_sddmm(crow, col, A, B)
    for crow, col in kept[::50]:
        col[0] = -1
        assert_refused(crow, col)


def test_sides_at_the_ends_of_the_number_range():
    crow, col, val = random_csr(20, 30, 0.5)
    for rows in (-1, 2**63 - 1, -2**63):
        with pytest.raises(ValueError, match="sides >= 0|row pointers for"):
            csr_plan(crow, col, rows, 30)
    with pytest.raises(ValueError, match="sides >= 0 and at most 2\\^31 columns"):
        csr_plan(crow, col, 20, 2**63 - 1)
