"""Step: what an edit may know, looked up by row of the user's batch."""

import torch

from steer.step import Step


def a_step() -> Step:
    return Step(
        positions=torch.tensor([[-1, 0, 1, 2], [0, 1, 2, 3], [-1, -1, 0, 1]]),
        rows=torch.tensor([2, 0, 1]),
        prompt_lengths=torch.tensor([2, 4, 1]),
        token_ids=torch.arange(12).reshape(3, 4),
        rank=torch.arange(12).reshape(3, 4) - 1,
        reads={
            "each": torch.arange(12.0).reshape(3, 4),
            "row": torch.tensor([[1.0], [2.0], [3.0]]),
        },
    )


def test_padding_is_masked_and_generated_tokens_follow_the_prompt():
    step = a_step()
    assert step.mask.tolist() == [[False, True, True, True], [True] * 4, [False, False, True, True]]
    assert step.generated.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_without_prompt_lengths_no_token_counts_as_generated():
    assert not bool(Step(torch.arange(3)[None], torch.zeros(1, dtype=torch.long)).generated.any())


def test_values_per_row_are_looked_up_by_the_row_of_the_batch():
    step = a_step()
    like = torch.zeros(3, 4, 5)
    numbers = torch.tensor([10.0, 20.0, 30.0])
    assert step.of_row(numbers, like).shape == (3, 1, 1)
    assert step.of_row(numbers, like).flatten().tolist() == [30.0, 10.0, 20.0]
    vectors = torch.arange(15.0).reshape(3, 5)
    found = step.of_row(vectors, like)
    assert found.shape == (3, 1, 5)
    assert torch.equal(found[:, 0], vectors[[2, 0, 1]])
    heads = torch.zeros(3, 4, 2, 5)
    assert step.of_row(numbers, heads).shape == (3, 1, 1, 1)
    assert step.of_row(vectors, heads).shape == (3, 1, 1, 5)


def test_gathered_tokens_keep_everything_that_belongs_to_them():
    step = a_step()
    row, column = torch.tensor([2, 0, 0]), torch.tensor([3, 1, 3])
    few = step.gather(row, column)
    assert few.positions.tolist() == [[1], [0], [2]]
    assert few.rows.tolist() == [1, 2, 2]
    assert few.prompt_lengths is not None
    assert few.prompt_lengths.tolist() == [1, 2, 2]
    assert few.token_ids is not None
    assert few.rank is not None
    assert few.token_ids.tolist() == [[11], [1], [3]]
    assert few.rank.tolist() == [[10], [0], [2]]
    assert few.reads["each"].tolist() == [[11.0], [1.0], [3.0]]
    assert few.reads["row"].tolist() == [[3.0], [1.0], [1.0]]
    assert few.generated.tolist() == [[True], [False], [True]]
