"""Noise sources: the seeded one is a function of seed and key, the others follow a generator."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_core.sampling.noise import NOISE_SOURCES, AuthorsNoise, DiffusersNoise, SeededNoise, noise_source
from tests import reference

KEYS = [("chunk", 0), ("chunk", 1), ("renoise", 0, 1), ("renoise", 0, 2), ("renoise", 1, 1), ("image",), ("tail",)]
keys = st.tuples(st.sampled_from(["chunk", "renoise", "image"]), st.integers(0, 40), st.integers(0, 3))
seeds = st.integers(0, 2**64 - 1)


@given(order=st.permutations(KEYS), left_out=st.sets(st.sampled_from(KEYS)), seed=seeds)
def test_seeded_noise_does_not_depend_on_the_order_of_draws_or_on_other_draws(order, left_out, seed):
    alone = {key: SeededNoise(seed).normal((2, 3), key) for key in KEYS}
    together = SeededNoise(seed)
    for key in order:
        if key not in left_out:
            together.uniform((5,), key)
            assert torch.equal(together.normal((2, 3), key), alone[key])


@given(first=st.tuples(seeds, keys), second=st.tuples(seeds, keys))
def test_seeded_noise_differs_for_every_seed_and_key(first, second):
    draws = [SeededNoise(seed).normal((4,), key) for seed, key in (first, second)]
    assert torch.equal(*draws) == (first == second)


def test_seeded_noise_leaves_torchs_global_generator_alone():
    state = torch.get_rng_state()
    SeededNoise(3).normal((100,), ("chunk", 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_neighbouring_seeds_and_keys_are_uncorrelated():
    draws = [SeededNoise(seed).normal((20_000,), key) for seed in (0, 1) for key in KEYS]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.04  # five standard errors, 1 / sqrt(20000) each


@pytest.mark.parametrize(
    "source", [SeededNoise(5), DiffusersNoise(reference.generator(5))], ids=["seeded", "diffusers"]
)
def test_normal_draws_are_normal_and_uniform_ones_uniform(source):
    normal, uniform = source.normal((40_000,), ("chunk", 0)), source.uniform((40_000,), ("image", "sigma"))
    assert normal.dtype == uniform.dtype == torch.float32
    assert abs(normal.mean()) < 0.025
    assert abs(normal.std() - 1) < 0.02
    assert 0 <= uniform.min() < 0.001
    assert 0.999 < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01


def test_diffusers_noise_draws_one_after_another_from_the_generator():
    expected, source = reference.generator(9), DiffusersNoise(reference.generator(9))
    assert source.seed == 9
    for key in (("chunk", 0), ("renoise", 0, 1), ("chunk", 0)):
        assert torch.equal(source.normal((3, 4), key), torch.randn(3, 4, generator=expected))
        assert torch.equal(source.uniform((2,), key), torch.rand(2, generator=expected))


def test_authors_noise_between_stages_is_always_the_same_and_takes_nothing_from_the_generator():
    expected, source = reference.generator(9), AuthorsNoise(reference.generator(9))
    torchs_default = torch.randn(8, 4, generator=torch.Generator())
    for chunk in range(2):
        assert torch.equal(source.normal((3, 4), ("chunk", chunk)), torch.randn(3, 4, generator=expected))
        for stage in (1, 2):
            assert torch.equal(source.normal((8, 4), ("renoise", chunk, stage)), torchs_default)


def test_a_source_is_found_by_its_name():
    found = [noise_source(name, 9, "cpu") for name in NOISE_SOURCES]
    assert [type(source) for source in found] == [SeededNoise, DiffusersNoise, AuthorsNoise]
    fresh = [SeededNoise(9), DiffusersNoise(reference.generator(9)), AuthorsNoise(reference.generator(9))]
    for source, expected in zip(found, fresh, strict=True):
        assert torch.equal(source.normal((3,), ("chunk", 0)), expected.normal((3,), ("chunk", 0)))
    with pytest.raises(ValueError, match="'torch'; allowed: seeded, diffusers, authors"):
        noise_source("torch", 9, "cpu")
