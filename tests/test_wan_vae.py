"""Our Wan VAE against diffusers', and what it says to files that are none."""

import pytest
import torch
from safetensors.torch import save_file

from helios_core.checkpoint import CheckpointError
from helios_core.codec import DiffusersWanCodec, WanCodec
from helios_core.demo.model import VAE_FILE
from helios_core.wan_vae import WanVAE, load_wan_vae

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ours():
    torch.manual_seed(0)
    return WanVAE(dim=8)


@pytest.fixture(scope="module")
def reference(ours):
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    vae = AutoencoderKLWan(base_dim=8, z_dim=16)
    vae.load_state_dict(convert_wan_vae_to_diffusers(dict(ours.state_dict())))
    return vae.eval().requires_grad_(False)


@pytest.mark.parametrize("num_frames", [1, 5, 33])
def test_a_clip_at_once_gives_what_the_reference_gives_frame_by_frame(ours, reference, num_frames):
    pixels = torch.rand(2, 3, num_frames, 24, 16, generator=torch.Generator().manual_seed(num_frames)) * 2 - 1
    our_codec, their_codec = WanCodec(ours), DiffusersWanCodec(reference)
    latents = their_codec.encode(pixels)
    torch.testing.assert_close(our_codec.encode(pixels), latents, atol=2e-5, rtol=1e-4)
    # diffusers clamps what it decodes.
    decoded = our_codec.decode(latents).clamp(-1, 1)
    torch.testing.assert_close(decoded, their_codec.decode(latents), atol=2e-5, rtol=1e-4)


def test_gradients_reach_every_weight():
    vae = WanVAE(dim=8)
    vae.decode(vae.encode(torch.rand(1, 3, 9, 16, 16))).square().mean().backward()
    assert [name for name, weight in vae.named_parameters() if weight.grad is None] == []


def test_the_width_is_that_of_the_weights(ours, tmp_path):
    save_file(ours.state_dict(), tmp_path / "vae.safetensors")
    assert load_wan_vae(tmp_path / "vae.safetensors").decoder.head[0].gamma.shape[0] == 8


def test_a_file_that_is_no_wan_vae_is_named_in_the_error(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not a Wan VAE"):
        load_wan_vae(path)
    path.write_bytes(VAE_FILE.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not a Wan VAE"):
        load_wan_vae(path)
