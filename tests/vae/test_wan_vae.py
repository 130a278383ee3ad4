"""Our Wan VAE against diffusers', in one piece and in many, in every dtype and layout; and its files."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.diffusers_vae import DiffusersWanCodec
from helios_core.checkpoint.checkpoint import CheckpointError
from helios_core.demo.model import VAE_FILE
from helios_core.dtypes import DTYPES
from helios_core.report.cost import vae_bytes
from helios_core.vae.codec import WanCodec
from helios_core.vae.wan_vae import CausalCache, Convolution, Decoding, WanVAE
from helios_core.vae.wan_vae_file import load_wan_vae
from tests.live_tensors import LivePeak

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


@pytest.fixture
def latents():
    return torch.randn(1, 16, 9, 2, 3, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("piece", [1, 2, 3, 8])
def test_a_clip_in_pieces_gives_what_it_gives_at_once(ours, latents, piece):
    pixels = torch.rand(2, 3, 33, 24, 16, generator=torch.Generator().manual_seed(piece)) * 2 - 1
    pieces = WanVAE(dim=8, piece=piece)
    pieces.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(pieces.decode(latents), ours.decode(latents), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(pieces.encode(pixels), ours.encode(pixels), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 6, 64, 64), (2, 8, 3, 8, 8), (1, 64, 5, 80, 8)], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format], ids=str)
def test_a_convolution_is_torchs_below_and_above_the_size_where_torch_turns_to_another_kernel(shape, kernel, layout):
    torch.manual_seed(4)
    stride = (2, 1, 1) if kernel == (3, 1, 1) else 1
    ours = Convolution(shape[1], 5, kernel, stride=stride, padding=(0, kernel[1] // 2, kernel[2] // 2))
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    expected = torch.nn.functional.conv3d(
        x.double(), ours.weight.double(), ours.bias.double(), ours.stride, ours.padding
    )
    out = ours(x)
    assert torch.equal(out, ours(x))
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    wanted = (x, ours.weight, ours.bias)
    downstream = torch.randn_like(out)
    for grad, true in zip(
        torch.autograd.grad(out, wanted, downstream),
        torch.autograd.grad(expected, wanted, downstream.double()),
        strict=True,
    ):
        torch.testing.assert_close(grad, true, atol=1e-3, rtol=1e-4)


def test_noise_makes_a_sample_of_the_posterior_as_the_reference_does(ours, reference):
    pixels = torch.rand(1, 3, 66, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def noise():
        source = torch.Generator().manual_seed(5)
        return lambda shape, key=(): torch.randn(shape, generator=source)

    expected = DiffusersWanCodec(reference, noise=noise()).encode(pixels)
    torch.testing.assert_close(WanCodec(ours, noise=noise()).encode(pixels), expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(expected, DiffusersWanCodec(reference).encode(pixels), atol=1e-2)


def test_a_chunk_is_decoded_in_the_predicted_bytes_however_long_it_is():
    peaks = []
    vae = WanVAE(piece=1).requires_grad_(False)
    for num_latent_frames in (3, 5):
        with LivePeak(vae.parameters()) as live:
            vae.decode(torch.randn(1, 16, num_latent_frames, 2, 2))
        peaks.append(live.peak)
    assert vae_bytes(16, 16, torch.float32) == pytest.approx(peaks[0], rel=0.1)
    frames = 2 * 4 * 3 * 16 * 16 * 4  # two more latent frames
    assert peaks[1] - peaks[0] < 2 * frames


def decode_demo(decoding: Decoding, latents: torch.Tensor) -> torch.Tensor:
    codec = WanCodec.from_file(VAE_FILE)
    codec.vae.piece = 1
    codec.vae.set_decoding(decoding)
    return codec.decode(latents).clamp(-1, 1)


@pytest.mark.parametrize(
    ("decoding", "least_psnr"),
    [
        (Decoding(channels_last=True), 100),
        (Decoding("fp16"), 50),
        (Decoding("bf16"), 35),
        (Decoding("bf16", channels_last=True), 35),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_other_ways_to_decode_give_nearly_the_same_frames(decoding, least_psnr):
    pixels = torch.rand(1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels = torch.nn.functional.interpolate(pixels, (13, 32, 32), mode="trilinear")
    latents = WanCodec.from_file(VAE_FILE).encode(pixels)
    exact, frames = decode_demo(Decoding(), latents), decode_demo(decoding, latents)
    assert frames.dtype == torch.float32
    error = (frames - exact).square().mean().item()
    assert error > 0
    assert 10 * math.log10(4 / error) > least_psnr


def test_encoding_does_not_depend_on_how_is_decoded():
    pixels = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codec = WanCodec.from_file(VAE_FILE)
    expected = codec.encode(pixels)
    codec.vae.set_decoding(Decoding("bf16", channels_last=True))
    assert torch.equal(codec.encode(pixels), expected)


@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_frames_before_a_piece_come_in_its_own_layout(layout):
    piece = torch.randn(1, 8, 2, 4, 5).contiguous(memory_format=layout)
    start = CausalCache(continues=True)
    assert start.before(piece).is_contiguous(memory_format=layout)
    later = CausalCache(start.frames, continues=True)
    joined = later.before(piece + 1)
    assert joined.is_contiguous(memory_format=layout)
    assert torch.equal(joined, torch.cat((piece, piece + 1), dim=2))
    assert start.frames == []  # let go
    assert later.frames[0].untyped_storage().nbytes() == piece.nbytes  # a copy, not a view of all


def test_channels_last_is_how_the_decoders_weights_lie():
    vae = WanVAE(dim=4)
    vae.set_decoding(Decoding(channels_last=True))
    kernels = [weight for weight in vae.decoder.parameters() if weight.ndim == 5]
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in kernels)
    assert vae.encoder.conv1.weight.is_contiguous()


def test_compiled_decoding_is_compiled_in_the_first_chunk_only_and_gives_the_same_frames(latents, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda code, **options: compile_with(code, backend=backend, **options))
    torch._dynamo.reset()
    latents = latents[:, :, :4]
    codec = WanCodec.from_file(VAE_FILE)
    codec.vae.piece = 1
    codec.vae.set_decoding(Decoding(channels_last=True, compiled=True))
    frames = codec.decode(latents)
    assert len(graphs) == 2  # the first latent frame and a later one
    codec.decode(latents + 1)
    assert len(graphs) == 2
    torch.testing.assert_close(frames.clamp(-1, 1), decode_demo(Decoding(), latents), atol=1e-4, rtol=0)


def test_an_unknown_dtype_is_refused_with_what_is_allowed(ours):
    with pytest.raises(ValueError, match="'fp8'; allowed: bf16, fp16, fp32"):
        ours.set_decoding(Decoding("fp8"))


def test_every_way_to_decode_has_a_name_of_its_own_and_the_exact_one_none():
    ways = [Decoding(d, c, j) for d in DTYPES for c in (False, True) for j in (False, True)]
    assert len({way.name for way in ways}) == len(ways)
    assert Decoding().name == ""


def test_a_folder_with_diffusers_names_gives_the_same_vae(ours, reference, tmp_path):
    reference.save_pretrained(tmp_path / "vae")
    loaded = WanCodec.from_folder(tmp_path)
    assert loaded.vae.piece == 1
    for name, weight in ours.state_dict().items():
        assert torch.equal(loaded.vae.state_dict()[name], weight), name
    assert WanCodec.from_folder(tmp_path / "vae").vae.state_dict().keys() == ours.state_dict().keys()


def test_every_published_name_stays(ours, tmp_path):
    save_file(ours.state_dict(), tmp_path / "vae.safetensors")
    loaded = load_wan_vae(tmp_path / "vae.safetensors").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in ours.state_dict().items())


def test_a_folder_without_a_vae_or_with_another_one_is_named(reference, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no VAE in .*nothing"):
        WanCodec.from_folder(tmp_path / "nothing")
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["latents_mean"][0] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="latents_mean are not those of Wan"):
        WanCodec.from_folder(tmp_path)


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
