"""Merging by likeness, against sums worked out one token after the other."""

import pytest
import torch

from prunetune.restorers.similarity_merge import SimilarityMerge
from prunetune.tokens import grid_geometry


def by_hand(states, keep, share):
    mean = states.mean(0)
    joined = {s: [] for s in keep}
    for u in range(len(states)):
        if u not in joined:
            near = [
                float(torch.cosine_similarity(states[u] - mean, states[s] - mean, 0)) for s in keep
            ]
            joined[keep[near.index(max(near))]].append(u)
    return torch.stack(
        [
            (states[s] + share * sum(states[u] for u in joined[s])) / (1 + share * len(joined[s]))
            for s in keep
        ]
    )


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("count", [1, 3, 11, 24])
def test_each_dropped_token_joins_what_it_resembles(count, share):
    states = torch.randn(25, 8, generator=torch.Generator().manual_seed(count))
    keep = torch.randperm(25, generator=torch.Generator().manual_seed(9))[:count].sort().values
    restorer = SimilarityMerge(share=share)
    before, weights = states.clone(), torch.ones(25)
    new = restorer.blend(states, torch.zeros(25), keep, grid_geometry(5, 5), weights)
    assert torch.allclose(new, by_hand(states, keep.tolist(), share), atol=1e-5)
    assert torch.equal(states, before)


def test_a_group_of_all_is_the_mean():
    states = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([5])
    new = SimilarityMerge(share=1.0).blend(
        states, torch.zeros(16), keep, grid_geometry(4, 4), torch.ones(16)
    )
    assert torch.allclose(new[0], states.mean(0), atol=1e-6)


@pytest.mark.parametrize(("share", "count"), [(0.0, 3), (0.5, 16)])
def test_nothing_to_merge_changes_nothing(share, count):
    states = torch.randn(16, 4)
    keep = torch.arange(count)
    assert (
        SimilarityMerge(share=share).blend(
            states, torch.zeros(16), keep, grid_geometry(4, 4), torch.ones(16)
        )
        is None
    )


def test_half_precision_is_summed_in_single():
    states = torch.randn(400, 8, generator=torch.Generator().manual_seed(1)).half() * 100
    keep = torch.tensor([0, 7])
    new = SimilarityMerge(share=1.0).blend(
        states, torch.zeros(400), keep, grid_geometry(20, 20), torch.ones(400)
    )
    assert new.dtype == torch.float32
    assert torch.allclose(new, by_hand(states.float(), [0, 7], 1.0), atol=1e-2)
