"""Codecs: shapes, exactness and what a picture looks like after a round trip, against diffusers' Wan VAE."""

import math
import sys

import numpy as np
import pytest
import torch
from skimage.data import astronaut, chelsea

from helios_core.codec import DctCodec, DiffusersWanCodec

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


def test_latents_survive_decoding_and_encoding_unchanged():
    latents = torch.randn(2, 16, 9, 3, 5, generator=torch.Generator().manual_seed(0))
    codec = DctCodec()
    torch.testing.assert_close(codec.encode(codec.decode(latents)), latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("num_frames", "num_latent_frames"), [(1, 1), (5, 2), (29, 8), (33, 9), (66, 18), (165, 45)]
)
def test_frames_and_latent_frames_follow_the_chunks_both_ways(num_frames, num_latent_frames):
    codec = DctCodec()
    latents = codec.encode(torch.zeros(2, 3, num_frames, 16, 24))
    assert latents.shape == (2, 16, num_latent_frames, 2, 3)
    assert codec.decode(latents).shape == (2, 3, num_frames, 16, 24)


def test_each_chunk_is_coded_as_if_it_were_alone():
    pixels = pixels_of(astronaut(), num_frames=66, size=64, speed=2)
    codec = DctCodec()
    both = codec.encode(pixels)
    assert torch.equal(both[:, :, 9:], codec.encode(pixels[:, :, 33:]))
    assert torch.equal(codec.decode(both)[:, :, 33:], codec.decode(both[:, :, 9:]))


@pytest.mark.parametrize("colour", [(-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (0.9, -0.4, 0.1)])
def test_a_still_flat_colour_comes_back_exactly(colour):
    pixels = torch.tensor(colour).view(1, 3, 1, 1, 1).expand(1, 3, 9, 16, 16)
    codec = DctCodec()
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), pixels, atol=1e-5, rtol=0)


def test_a_still_video_has_the_same_lasting_channels_in_first_frame_and_groups():
    latents = DctCodec().encode(pixels_of(astronaut(), num_frames=9, size=128))
    torch.testing.assert_close(latents[:, :10, 1], latents[:, :10, 0], atol=1e-4, rtol=1e-4)
    assert latents[:, 10:, 1:].abs().max() < 1e-4  # nothing moves, so the motion channels are empty


def test_encoding_is_the_nearest_point_the_basis_can_reach():
    # The remainder of an orthogonal projection is orthogonal to everything that can be decoded.
    pixels = pixels_of(chelsea(), num_frames=5, size=64, speed=3)
    codec = DctCodec()
    remainder = pixels - codec.decode(codec.encode(pixels))
    reachable = codec.decode(torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(1)))
    cosine = (remainder * reachable).sum() / (remainder.norm() * reachable.norm())
    assert abs(cosine) < 1e-5


@pytest.mark.parametrize("picture", [astronaut(), chelsea()], ids=["astronaut", "cat"])
def test_a_natural_moving_picture_stays_recognisable_with_latents_of_about_unit_size(picture):
    pixels = pixels_of(picture, num_frames=33, size=192, speed=2)
    codec = DctCodec()
    latents = codec.encode(pixels)
    assert psnr(codec.decode(latents), pixels) > 24
    assert 0.5 < latents.square().mean().sqrt() < 2


def test_the_dct_codec_gives_the_same_bits_every_time_and_float32_from_half():
    pixels = pixels_of(astronaut(), size=64)
    assert torch.equal(DctCodec().encode(pixels), DctCodec().encode(pixels))
    assert DctCodec().encode(pixels.half()).dtype == torch.float32


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
def test_pixels_that_do_not_fit_are_refused_with_what_does(shape, message):
    with pytest.raises(ValueError, match=message):
        DctCodec().encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 16, 10, 2, 2), "10 latent frames"),
        ((1, 8, 9, 2, 2), "expected \\(B, 16"),
        ((16, 9, 2, 2), "expected \\(B, 16"),
    ],
)
def test_latents_that_do_not_fit_are_refused_with_what_does(shape, message):
    with pytest.raises(ValueError, match=message):
        DctCodec().decode(torch.zeros(shape))


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


def test_a_saved_vae_is_found_in_its_own_and_in_the_models_folder(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    latents = torch.randn(1, 16, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    expected = DiffusersWanCodec(vae).decode(latents)
    for folder in (tmp_path, tmp_path / "vae"):
        assert torch.equal(DiffusersWanCodec.from_folder(folder).decode(latents), expected)


def test_a_folder_without_a_vae_is_named_in_the_error(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(FileNotFoundError, match=r"no VAE in .*nothing"):
        DiffusersWanCodec.from_folder(tmp_path / "nothing")


def test_without_diffusers_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="pip install diffusers"):
        DiffusersWanCodec.from_folder(tmp_path)
