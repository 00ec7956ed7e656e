"""The replay memory: which samples are kept and drawn, by hand and by count."""

from __future__ import annotations

import pytest
import torch

from perdure import checkpoint
from perdure.errors import DataError, RecipeError
from perdure.families.rehearsal.buffer import Draws, Memory, herding, reservoir_slots


class Fixed(Draws):
    """Hands out given numbers; orders are as they come."""

    def __init__(self, *uniforms: float) -> None:
        self.numbers = list(uniforms)

    def uniforms(self, *shape, of):
        count = torch.Size(shape).numel()
        taken, self.numbers = self.numbers[:count], self.numbers[count:]
        return torch.tensor(taken, dtype=torch.float64).view(*shape)

    def order(self, n, *, of):
        return torch.arange(n)


def ids(*numbers: int) -> dict[str, torch.Tensor]:
    return {"id": torch.tensor(numbers)}


def test_a_reservoir_fills_then_replaces_the_drawn_slot():
    memory = Memory(3)
    memory.add(ids(10, 11, 12), Fixed())
    # Sample number 3: floor(0.30 x 4) = 1 replaces slot 1. Number 4: floor(0.90 x 5) = 4 is no slot: dropped.
    memory.add(ids(13, 14), Fixed(0.30, 0.90))
    assert memory.columns["id"].tolist() == [10, 13, 12]
    assert memory.seen == 5


def test_of_two_samples_in_one_slot_the_later_stays():
    memory = Memory(2)
    memory.add(ids(1, 2), Fixed())
    memory.add(ids(3, 4), Fixed(0.0, 0.0))
    assert memory.columns["id"].tolist() == [4, 2]


def test_adding_one_by_one_equals_adding_at_once():
    generator = torch.Generator().manual_seed(3)
    numbers = torch.rand(90, dtype=torch.float64, generator=generator).tolist()
    at_once, one_by_one = Memory(10), Memory(10)
    draws, again = Fixed(*numbers), Fixed(*numbers)
    for start in range(0, 100, 7):
        at_once.add(ids(*range(start, min(start + 7, 100))), draws)
    for i in range(100):
        one_by_one.add(ids(i), again)
    assert torch.equal(at_once.columns["id"], one_by_one.columns["id"])


def test_every_position_of_a_stream_is_kept_equally_often():
    trials, count, capacity = 2000, 30, 6
    uniforms = torch.rand(trials, count - capacity, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = torch.zeros(count)
    for row in uniforms:
        last = {s: i for i, s in enumerate(reservoir_slots(0, count, capacity, row).tolist()) if s >= 0}
        kept[list(last.values())] += 1
    share = capacity / count
    assert ((kept - trials * share).abs() < 5 * (trials * share * (1 - share)) ** 0.5).all()


def test_slots_that_were_passed_over_are_not_drawn():
    memory = Memory(4)
    memory.add(ids(7, 8, 9), Fixed(), among=torch.tensor([False, True, False]))
    drawn = memory.draw(4, Fixed())
    assert drawn is not None and drawn["id"].tolist() == [8]
    assert memory.seen == 3


def test_parity_draws_passed_over_slots_as_zeros():
    memory = Memory(4, replay_unfilled_slots=True)
    memory.add(ids(7, 8, 9), Fixed(), among=torch.tensor([False, True, False]))
    drawn = memory.draw(4, Fixed())
    assert drawn is not None and drawn["id"].tolist() == [0, 8, 0]


def test_nothing_is_drawn_while_no_slot_is_filled():
    memory = Memory(4)
    memory.add(ids(1, 2), Fixed(), among=torch.tensor([False, False]))
    assert memory.draw(2, Fixed()) is None


def test_a_memory_without_slots_keeps_nothing():
    memory = Memory(0)
    memory.add(ids(1, 2, 3), Draws())
    assert memory.draw(2, Draws()) is None
    assert len(memory) == 0


def test_a_negative_capacity_is_refused():
    with pytest.raises(RecipeError, match="0 or more"):
        Memory(-1)


def test_a_draw_is_without_repetition_and_not_longer_than_the_content():
    memory = Memory(10)
    memory.add(ids(*range(7)), Draws())
    drawn = memory.draw(20, Draws())
    assert drawn is not None and sorted(drawn["id"].tolist()) == list(range(7))


def test_columns_keep_type_and_shape():
    memory = Memory(2)
    image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    memory.add({"image": image, "logits": torch.randn(2, 5), "label": torch.tensor([1, 0])}, Draws())
    assert torch.equal(memory.columns["image"], image)
    assert memory.columns["logits"].dtype == torch.float32


def test_another_image_size_is_refused():
    memory = Memory(2)
    memory.add({"image": torch.zeros(1, 3, 4, 4)}, Draws())
    with pytest.raises(DataError, match=r"\[3, 5, 5\], earlier samples have \[3, 4, 4\]"):
        memory.add({"image": torch.zeros(1, 3, 5, 5)}, Draws())


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
def test_saved_and_loaded_it_goes_on_bit_for_bit(policy, tmp_path):
    def feed(memory: Memory, start: int) -> None:
        torch.manual_seed(start)
        for i in range(start, start + 40, 4):
            labels = torch.arange(i, i + 4) % 3
            memory.add({"id": torch.arange(i, i + 4), "label": labels}, Draws(), among=labels != 2)

    whole, first = Memory(9, policy=policy), Memory(9, policy=policy)
    feed(whole, 0)
    feed(first, 0)
    checkpoint.save(tmp_path / "memory.safetensors", first.state_dict())
    second = Memory(9, policy=policy)
    second.load_state_dict(checkpoint.load(tmp_path / "memory.safetensors"))
    feed(whole, 40)
    feed(second, 40)
    assert torch.equal(whole.columns["id"], second.columns["id"])
    assert torch.equal(whole.written, second.written)
    assert whole.seen == second.seen == 80


def test_a_saved_memory_of_another_capacity_is_refused():
    with pytest.raises(RecipeError, match="3 slots"):
        Memory(4).load_state_dict(Memory(3).state_dict())


def test_class_balance_holds_in_an_unbalanced_stream():
    torch.manual_seed(0)
    memory = Memory(30, policy="class_balanced")
    labels = torch.cat([torch.zeros(600), torch.ones(60), torch.full((15,), 2)]).long()
    for part in labels.split(8):
        memory.add({"label": part}, Draws())
    assert torch.bincount(memory.columns["label"]).tolist() == [10, 10, 10]


def test_a_rare_class_is_kept_whole():
    torch.manual_seed(0)
    memory = Memory(30, policy="class_balanced")
    labels = torch.cat([torch.zeros(200), torch.tensor([1, 1, 1]), torch.zeros(200)]).long()
    for part in labels.split(8):
        memory.add({"label": part}, Draws())
    assert torch.bincount(memory.columns["label"]).tolist() == [27, 3]


def test_herding_takes_the_sample_nearest_the_mean_first():
    # Mean 2. First: 2 itself. Then (f + 2)/2 nearest 2: of 0, 1, 3, 4 both 1 and 3 are .5 off: the first, 1.
    # Then (f + 3)/3 nearest 2: 3 gives exactly 2.
    features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    assert herding(features, 3).tolist() == [2, 1, 3]


def test_herding_more_than_there_are_takes_all():
    assert sorted(herding(torch.randn(4, 2), 9).tolist()) == [0, 1, 2, 3]
