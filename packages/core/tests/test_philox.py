import torch

from ssl_core.philox import permutation, philox, reference_uniform, uniform


def test_philox_matches_the_published_known_answers():
    # Random123's kat_vectors: philox4x32, 10 rounds.
    zeros = torch.zeros(1, 4, dtype=torch.int64)
    ones = torch.full((1, 4), 0xFFFFFFFF)
    pi = torch.tensor([[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]])
    assert philox(0, zeros).tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]
    assert philox(2**64 - 1, ones).tolist() == [[0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]]
    assert philox(0x299F31D0A4093822, pi).tolist() == [[0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]]


def test_a_row_draws_the_same_alone_and_in_a_batch():
    streams = torch.stack([torch.arange(5), torch.full((5,), 3), torch.full((5,), 1)], dim=1)
    together = uniform(7, streams, 9)
    alone = torch.cat([uniform(7, row[None], 9) for row in streams])
    assert torch.equal(together, alone)
    assert torch.equal(together[:, :2], uniform(7, streams, 2))


def test_uniform_numbers_are_the_words_of_counters_from_zero_on():
    streams = torch.tensor([[5, 3, 1], [6, 3, 1]])
    counters = torch.tensor([[5, 3, 1, 0], [5, 3, 1, 1], [6, 3, 1, 0], [6, 3, 1, 1]])
    expected = philox(7, counters).view(2, 8)[:, :6].double() / 2**32
    assert torch.equal(reference_uniform(7, streams, 6), expected)


def test_uniform_fills_the_unit_interval_evenly():
    streams = torch.stack([torch.arange(4096), torch.zeros(4096).long(), torch.zeros(4096).long()], 1)
    draws = uniform(0, streams, 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    # Four standard errors of the mean, of uniform numbers' variance 1/12.
    assert abs(draws.mean().item() - 0.5) < 4 / (12 * draws.numel()) ** 0.5
    assert len(draws.unique()) == draws.numel()


def test_permutation_is_one_and_changes_with_seed_and_stream():
    order = permutation(1, (2, 3), 1000)
    assert order.sort().values.tolist() == list(range(1000))
    for other in (permutation(2, (2, 3), 1000), permutation(1, (2, 4), 1000)):
        assert not torch.equal(order, other)
    assert torch.equal(order, permutation(1, (2, 3), 1000))
