"""The adapter's attention: the published formula, for queries of one frame and of all frames."""

import pytest
import torch

from perdure.families.audio_visual.adapter import attend


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 6)])
def test_queries_average_tokens_by_unscaled_products(shape):
    queries, tokens = torch.randn(shape), torch.randn(3, 5, 6)
    weights = torch.einsum("fqd,ftd->fqt", queries.expand(3, 4, 6), tokens).exp()
    expected = torch.einsum("fqt,ftd->fqd", weights / weights.sum(2, keepdim=True), tokens)
    torch.testing.assert_close(attend(queries, tokens), expected)
