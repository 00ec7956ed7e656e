"""How float32 numbers are multiplied is the recipe's choice, for products and convolutions alike."""

import pytest
import torch

from perdure.runtime import Runtime


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(("matmul", "tf32"), [("high", True), ("highest", False)])
def test_products_and_convolutions_follow_one_setting(matmul, tf32):
    Runtime(device="cpu", quiet=True, matmul=matmul)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (matmul, tf32)


def test_a_run_that_does_not_say_multiplies_in_full():
    torch.backends.cudnn.allow_tf32 = True
    Runtime(device="cpu", quiet=True)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
