"""Codecs: shapes, exactness and what a picture looks like after a round trip, against diffusers' Wan VAE."""

import math

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from benchmarks.diffusers_vae import DiffusersWanCodec
from helios_core.vae.codec import WanCodec
from helios_core.vae.wan_vae import WanVAE

torch.set_num_threads(1)


def pixels_of(picture, num_frames=1, size=256, speed=0):
    """A window over a picture as pixels (1, 3, T, size, size), moving `speed` pixels a frame to the right."""
    windows = [picture[:size, frame * speed : frame * speed + size] for frame in range(num_frames)]
    frames = torch.from_numpy(np.stack(windows))
    return (frames.float() / 127.5 - 1).permute(3, 0, 1, 2)[None]


def psnr(a, b):
    return 10 * math.log10(4 / (a - b).square().mean().item())


@pytest.fixture(scope="module")
def vae():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(base_dim=8, z_dim=16).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return WanCodec(WanVAE(dim=4))


@pytest.mark.parametrize(
    ("num_frames", "num_latent_frames"), [(1, 1), (5, 2), (29, 8), (33, 9), (66, 18), (165, 45)]
)
def test_frames_and_latent_frames_follow_the_chunks_both_ways(codec, num_frames, num_latent_frames):
    latents = codec.encode(torch.zeros(2, 3, num_frames, 16, 24))
    assert latents.shape == (2, 16, num_latent_frames, 2, 3)
    assert codec.decode(latents).shape == (2, 3, num_frames, 16, 24)


def test_each_chunk_is_coded_as_if_it_were_alone(codec):
    pixels = pixels_of(astronaut(), num_frames=66, size=64, speed=2)
    both = codec.encode(pixels)
    assert torch.equal(both[:, :, 9:], codec.encode(pixels[:, :, 33:]))
    assert torch.equal(codec.decode(both)[:, :, 33:], codec.decode(both[:, :, 9:]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 16, 16), "4 frames cannot be encoded; allowed: 1, 5, 9"),
        ((1, 3, 37, 16, 16), "37 frames"),
        ((1, 3, 0, 16, 16), "expected \\(B, 3, T, H, W\\)"),
        ((1, 3, 5, 20, 16), "16x20; width and height must be multiples of 8"),
        ((1, 4, 5, 16, 16), "expected \\(B, 3, T, H, W\\)"),
        ((3, 5, 16, 16), "expected \\(B, 3, T, H, W\\)"),
    ],
)
def test_pixels_that_do_not_fit_are_refused_with_what_does(codec, shape, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 16, 10, 2, 2), "10 latent frames"),
        ((1, 8, 9, 2, 2), "expected \\(B, 16"),
        ((16, 9, 2, 2), "expected \\(B, 16"),
    ],
)
def test_latents_that_do_not_fit_are_refused_with_what_does(codec, shape, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(torch.zeros(shape))


def reference_statistics(vae):
    mean = torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1, 1)
    return mean, 1.0 / torch.tensor(vae.config.latents_std).view(1, 16, 1, 1, 1)


def test_wan_encoding_is_the_normalised_posterior_mean_of_diffusers(vae):
    pixels = pixels_of(astronaut(), num_frames=5, size=32, speed=2)
    mean, inverse_std = reference_statistics(vae)
    expected = (vae.encode(pixels).latent_dist.mean - mean) * inverse_std
    assert torch.equal(DiffusersWanCodec(vae).encode(pixels), expected)


def test_wan_encoding_with_noise_draws_the_posterior_sample_of_diffusers_chunk_by_chunk(vae):
    pixels = pixels_of(astronaut(), num_frames=66, size=16, speed=2)
    mean, inverse_std = reference_statistics(vae)
    theirs, ours = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    expected = [
        (vae.encode(chunk).latent_dist.sample(generator=theirs) - mean) * inverse_std
        for chunk in pixels.split(33, dim=2)
    ]
    codec = DiffusersWanCodec(vae, noise=lambda shape: torch.randn(shape, generator=ours))
    assert torch.equal(codec.encode(pixels), torch.cat(expected, dim=2))


def test_wan_decoding_takes_chunks_through_the_vae_one_at_a_time_as_diffusers_does(vae):
    latents = torch.randn(1, 16, 18, 2, 2, generator=torch.Generator().manual_seed(2))
    mean, inverse_std = reference_statistics(vae)
    expected = [vae.decode(chunk / inverse_std + mean).sample for chunk in latents.split(9, dim=2)]
    pixels = DiffusersWanCodec(vae).decode(latents)
    assert pixels.shape == (1, 3, 66, 16, 16)
    assert torch.equal(pixels, torch.cat(expected, dim=2))
