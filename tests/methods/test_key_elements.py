"""Key elements and their penalty, followed by hand."""

import pytest
import torch

from perdure.methods.sefe.key_elements import Elements, accumulate, dense_mean_magnitude, key_elements, mean_magnitude

B = torch.tensor([[1.0], [-2.0]])
A = torch.tensor([[3.0, 0.0, 1.0]])
# D = B A = [[3, 0, 1], [-6, 0, -2]]


def test_the_largest_third_of_six_elements_is_two_the_largest_first():
    assert key_elements(A, B, fraction=1 / 3).tolist() == [[1, 0], [0, 0]]


def test_fraction_of_a_matrix_is_rounded_down():
    for outputs, inputs, expected in ((32, 48, 30), (32, 32, 20), (4, 4, 0)):
        found = key_elements(torch.randn(2, inputs), torch.randn(outputs, 2), fraction=0.02)
        assert len(found) == expected


def test_repeated_elements_weigh_double_in_value_and_gradient():
    # I = {(1,0), (0,0), (1,0)}: l = (6 + 3 + 6) / 3 = 5; dl/dD = [[1/3, 0, 0], [-2/3, 0, 0]].
    pairs = accumulate(torch.tensor([[1, 0]]), torch.tensor([[0, 0], [1, 0]]))
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    value = mean_magnitude(a, b, Elements.of(pairs, (2, 3)))
    value.backward()
    assert value.item() == 5
    torch.testing.assert_close(b.grad, torch.tensor([[1.0], [-2.0]]))
    torch.testing.assert_close(a.grad, torch.tensor([[5 / 3, 0, 0]]))


def test_union_counts_every_position_once():
    pairs = torch.tensor([[1, 0], [0, 0], [1, 0]])
    elements = Elements.of(pairs, (2, 3), multiplicity="union")
    assert mean_magnitude(A, B, elements).item() == pytest.approx((6 + 3) / 2)


def test_union_equals_count_for_disjoint_sets():
    first, second = torch.tensor([[0, 0], [1, 2]]), torch.tensor([[1, 0]])
    counted = Elements.of(first, (2, 3)).add(second)
    united = Elements.of(first, (2, 3), multiplicity="union").add(second, multiplicity="union")
    assert torch.equal(mean_magnitude(A, B, counted), mean_magnitude(A, B, united))


def test_zero_b_gives_exactly_zero_value_and_gradients():
    a, b = A.clone().requires_grad_(), torch.zeros(2, 1, requires_grad=True)
    value = mean_magnitude(a, b, Elements.of(torch.tensor([[0, 0], [1, 2]]), (2, 3)))
    value.backward()
    assert value.item() == 0 and not a.grad.any() and not b.grad.any()


def test_no_elements_give_zero_not_nan():
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    value = mean_magnitude(a, b, Elements.of(torch.zeros(0, 2, dtype=torch.long), (2, 3)))
    value.backward()
    assert value.item() == 0 and not a.grad.any() and not b.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("outputs", "inputs", "fraction"),
    [(47, 33, 0.1), (1030, 2100, 0.1), (600, 33, 0.4), (300, 1100, 0.4)],
    ids=["entries", "entries of many tiles", "whole", "whole, many tiles"],
)
def test_penalty_and_gradients_equal_the_dense_schedule(dtype, outputs, inputs, fraction):
    torch.manual_seed(0)
    a, b = torch.randn(5, inputs, dtype=dtype), torch.randn(outputs, 5, dtype=dtype)
    others = key_elements(torch.randn(5, inputs), torch.randn(outputs, 5))
    pairs = torch.cat([key_elements(a, b, fraction=fraction), others])
    grads = []
    for penalty in (
        lambda a, b: mean_magnitude(a, b, Elements.of(pairs, (outputs, inputs))),
        lambda a, b: dense_mean_magnitude(a, b, pairs),
    ):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = penalty(x, y)
        (3 * value).backward()
        grads.append((value.detach(), x.grad, y.grad))
    for ours, plain in zip(*grads):
        torch.testing.assert_close(ours, plain)


def test_bfloat16_factors_get_gradients_made_in_float32():
    torch.manual_seed(0)
    a, b = torch.randn(5, 33).bfloat16(), torch.randn(47, 5).bfloat16()
    pairs = key_elements(a, b, fraction=0.1)
    grads = []
    for dtype in (torch.bfloat16, torch.float32):
        x, y = a.to(dtype, copy=True).requires_grad_(), b.to(dtype, copy=True).requires_grad_()
        mean_magnitude(x, y, Elements.of(pairs, (47, 33))).backward()
        grads.append((x.grad, y.grad))
    for low, full in zip(*grads):
        assert torch.equal(low, full.bfloat16())


def test_adding_tasks_one_by_one_equals_the_published_list():
    torch.manual_seed(1)
    pairs, elements = None, None
    for _ in range(3):
        new = key_elements(torch.randn(3, 2000), torch.randn(10, 3), fraction=0.3)
        pairs = accumulate(new, pairs)
        elements = Elements.of(new, (10, 2000)) if elements is None else elements.add(new)
    whole = Elements.of(pairs, (10, 2000))
    assert elements.chosen == len(pairs) == 18000
    assert torch.equal(elements.row_ends, whole.row_ends)
    listed = elements.flat().repeat_interleave(elements.counts.long()).sort().values
    assert torch.equal(listed, (pairs[:, 0] * 2000 + pairs[:, 1]).sort().values)
    assert torch.equal(elements.columns, whole.columns) and torch.equal(elements.counts, whole.counts)


def test_state_survives_and_takes_a_fourth_of_the_published_list():
    torch.manual_seed(2)
    pairs = key_elements(torch.randn(4, 500), torch.randn(400, 4), fraction=0.05)
    elements = Elements.of(pairs, (400, 500))
    again = Elements.from_state(elements.state_dict())
    assert torch.equal(again.flat(), elements.flat()) and again.shape == (400, 500)
    assert elements.stored_bytes <= pairs.numel() * 8 / 4


def test_the_worked_example_of_the_module():
    a, b = torch.tensor([[3.0, -1.0]], requires_grad=True), torch.tensor([[1.0], [2.0]], requires_grad=True)
    pairs = key_elements(a, b, fraction=0.5)
    assert pairs.tolist() == [[1, 0], [0, 0]]
    value = mean_magnitude(a, b, Elements.of(pairs, (2, 2)))
    value.backward()
    assert (value.item(), b.grad.tolist(), a.grad.tolist()) == (4.5, [[1.5], [1.5]], [[1.5, 0.0]])
