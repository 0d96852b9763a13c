"""Pooling of feature maps: against loops, and what it tells apart."""

import numpy as np
import oracle
import pytest
import torch

from asdlib import errors
from asdlib.scoring import pooling


@pytest.mark.parametrize("how", list(pooling.POOLING))
@pytest.mark.parametrize("shape", [(2, 3, 11, 7), (1, 2, 16, 4), (2, 4, 1, 1), (1, 1, 3, 5)])
def test_pooling_by_loops(how, shape):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = pooling.pool([maps], how)
    expected = np.array([oracle.pooled(one.numpy(), how) for one in maps])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_layers_stand_side_by_side():
    one, two = torch.randn(3, 2, 8, 6), torch.randn(3, 4, 4, 3)
    for how in pooling.POOLING:
        both = pooling.pool([one, two], how)
        assert torch.equal(both, torch.cat([pooling.pool([one], how), pooling.pool([two], how)], 1))


def test_what_pooling_tells_apart():
    """A tone in one band and one in another: equal means, different bands; a pulse train: std over time."""
    low, high = torch.zeros(1, 1, 8, 10), torch.zeros(1, 1, 8, 10)
    low[:, :, 1], high[:, :, 6] = 1.0, 1.0
    assert torch.equal(pooling.mean(low), pooling.mean(high))
    assert not torch.equal(pooling.bands(low), pooling.bands(high))
    pulses = torch.zeros(1, 1, 8, 10)
    pulses[..., ::2] = 1.0
    steady = torch.full((1, 1, 8, 10), 0.5)
    torch.testing.assert_close(pooling.mean_std(pulses), torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(pooling.mean_std(steady), torch.tensor([[0.5, 0.0, 0.0]]))


def test_pooling_refusals():
    with pytest.raises(errors.InputError, match="did you mean"):
        pooling.pool([torch.zeros(1, 1, 2, 2)], "means")
    with pytest.raises(errors.InputError, match=r"has shape \(1, 2, 2\)"):
        pooling.pool([torch.zeros(1, 2, 2)], "mean")
