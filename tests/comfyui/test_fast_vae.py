"""Helios Fast VAE in real graphs, and decoding beside the sampling: what it decides, and that the video is the same."""

import logging
import re
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from harness.inprocess import GraphRejected
from harness.samples import small_graph, the_node

from helios_core.demo.model import VAE_FILE
from helios_core.media.reader import read_video
from helios_core.vae.codec import WanCodec


def module_of(name):
    (module,) = [found for path, found in sys.modules.items() if path.endswith(f"ComfyUI-Helios.nodes.{name}")]
    return module


@pytest.fixture(scope="module")
def demo_vae(comfyui):
    return module_of("host.demo_models").load_vae()


@pytest.fixture(scope="module")
def node(comfyui):
    return module_of("fast_vae").HeliosFastVAE


def fast(node, vae, dtype="auto", channels_last=False, compile=False):
    (made,) = node.execute(vae, dtype, channels_last, compile).args
    return made


@pytest.fixture(scope="module")
def latents():
    """Two clips (2, 16, 3, 4, 4) of a moving gradient, VAE space; short, as half precision is slow on a CPU."""
    x = torch.linspace(-0.8, 0.8, 32)
    frames = torch.stack([(x + t / 40).expand(32, 32) for t in range(18)]).clamp(-1, 1).expand(1, 3, 18, 32, 32)
    codec = WanCodec.from_file(VAE_FILE)
    return torch.cat([codec.vae.encode(clip) for clip in frames.split(9, dim=2)]).detach()


def psnr(frames, exact):
    return 10 * (1 / (frames - exact).square().mean()).log10().item()


@pytest.mark.parametrize(
    ("options", "least_psnr"),
    [
        ({}, 100),
        ({"dtype": "fp32", "channels_last": True}, 100),
        ({"dtype": "fp16"}, 50),
        ({"dtype": "bf16", "channels_last": True}, 35),
    ],
)
def test_the_fast_vae_decodes_nearly_what_comfyuis_own_does_and_leaves_that_alone(
    node, demo_vae, latents, options, least_psnr
):
    before = {name: value.clone() for name, value in demo_vae.first_stage_model.state_dict().items()}
    exact = demo_vae.decode(latents)
    made = fast(node, demo_vae, **options)
    frames = made.decode(latents)
    assert frames.shape == exact.shape == (2, 9, 32, 32, 3)
    assert psnr(frames, exact) > least_psnr
    assert made.patcher is not demo_vae.patcher
    assert made.first_stage_model is not demo_vae.first_stage_model
    after = demo_vae.first_stage_model.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    assert torch.equal(demo_vae.decode(latents), exact)


def test_it_encodes_as_well(node, demo_vae):
    pictures = torch.rand(5, 64, 64, 3)
    torch.testing.assert_close(fast(node, demo_vae).encode(pictures), demo_vae.encode(pictures), atol=1e-4, rtol=1e-4)


def test_it_decodes_in_tiles(node, demo_vae, latents):
    tiles = {"tile_x": 3, "tile_y": 3, "overlap": 1}
    with torch.inference_mode():  # as ComfyUI's executor, without which its own tiles cannot be changed in place
        made = fast(node, demo_vae).decode_tiled(latents[:1], **tiles)
        exact = demo_vae.decode_tiled(latents[:1], **tiles)
    torch.testing.assert_close(made, exact, atol=1e-4, rtol=1e-4)


def test_what_it_gives_has_a_name_of_its_own_and_can_be_made_fast_again(node, demo_vae):
    identity = module_of("host.identity").vae_identity
    ways = [demo_vae, fast(node, demo_vae), fast(node, demo_vae, channels_last=True), fast(node, demo_vae, "bf16")]
    assert len({identity(vae) for vae in ways}) == len(ways)
    assert identity(fast(node, ways[2])) == identity(ways[1])


def test_a_vae_of_another_kind_is_refused(node, comfyui, models):
    """The tests' tiny VAE has a block less in each level than Wan's."""
    graph = {
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "wan_2.1_vae.safetensors"}},
        "fast": {
            "class_type": "HeliosFastVAE",
            "inputs": {"vae": ["vae", 0], "dtype": "auto", "channels_last": False, "compile": False},
        },
        "latents": {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 64, "height": 64, "length": 33,
                                                                       "batch_size": 1}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["latents", 0], "vae": ["fast", 0]}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }  # fmt: skip
    assert "is not the Wan 2.1 VAE that Helios Fast VAE can run" in comfyui.run_graph(graph).error
    graph["fast"]["inputs"]["dtype"] = "fp8"
    try:
        fault = str(comfyui.run_graph(graph).error)
    except GraphRejected as refusal:
        fault = str(refusal)
    assert "dtype" in fault
    assert "fp8" in fault


@pytest.fixture
def demo_graph(comfyui, request):
    """A Long Video of two chunks with the demo models, in a run folder of this test's own."""
    graph = small_graph("long_t2v", comfyui.object_info(), width=64, height=64)
    node, inputs = the_node(graph, "HeliosLongVideo")
    graph["demo"] = {"class_type": "HeliosDemoModels", "inputs": {}}
    for side, text in (("positive", "a red circle moving right on a black background"), ("negative", "")):
        graph[side] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": text}}
    inputs.update(
        model=["demo", 0], vae=["demo", 2], positive=["positive", 0], negative=["negative", 0], seconds=0.0, chunks=2,
        steps="1,1", guidance_scale=1.0, amplify_first_chunk=False,
        run_name=re.sub(r"\W+", " ", request.node.name)[:80],
    )  # fmt: skip
    keep = {node, "demo", "positive", "negative", the_node(graph, "HeliosContext")[0]}
    return {name: part for name, part in graph.items() if name in keep}


def frames_of(run, graph, home):
    assert run.success, run.error
    node, _ = the_node(graph, "HeliosLongVideo")
    return read_video(home.saved_files({"outputs": {node: run.history["outputs"][node]}})[0]).frames


def test_a_long_video_decodes_again_but_samples_nothing_again_with_a_fast_vae(comfyui, home, demo_graph):
    _, inputs = the_node(demo_graph, "HeliosLongVideo")
    plain = frames_of(comfyui.run_graph(demo_graph), demo_graph, home)
    folder = home.output / "helios_runs" / inputs["run_name"]
    chunks = sorted(path.name for path in (folder / "chunks").iterdir())
    demo_graph["fast"] = {
        "class_type": "HeliosFastVAE",
        "inputs": {"vae": ["demo", 2], "dtype": "fp32", "channels_last": True, "compile": False},
    }
    inputs["vae"] = ["fast", 0]
    other = frames_of(comfyui.run_graph(demo_graph), demo_graph, home)
    assert sorted(path.name for path in (folder / "chunks").iterdir()) == chunks
    assert len(list((folder / "segments").iterdir())) == 4
    assert np.abs(other.numpy().astype(int) - plain.numpy()).mean() < 2


# Decoding beside the sampling


def test_without_a_gpu_overlap_changes_nothing_and_says_why(comfyui, home, demo_graph, caplog):
    _, inputs = the_node(demo_graph, "HeliosLongVideo")
    plain = frames_of(comfyui.run_graph(demo_graph), demo_graph, home)
    inputs.update(overlap_vae=True, run_name=f"{inputs['run_name']} again")
    with caplog.at_level(logging.WARNING):
        again = frames_of(comfyui.run_graph(demo_graph), demo_graph, home)
    assert torch.equal(again, plain)
    assert "overlap_vae has no effect: it needs a CUDA device, and the model is on cpu" in caplog.text


class FakeSide:
    """A stream where there is none."""

    def __init__(self, device):
        pass

    def around(self, decode):
        return decode


def test_an_overlapped_run_gives_the_same_frames_and_loads_nothing_meanwhile(comfyui, home, demo_graph, monkeypatch):
    import comfy.model_management

    overlap = module_of("host.overlap")
    _, inputs = the_node(demo_graph, "HeliosLongVideo")
    plain = frames_of(comfyui.run_graph(demo_graph), demo_graph, home)
    inputs.update(overlap_vae=True, run_name=f"{inputs['run_name']} again")
    loads, threads, chunks = [], [], home.output / "helios_runs" / inputs["run_name"] / "chunks"
    load, decode = comfy.model_management.load_models_gpu, overlap.decode_loaded

    def counted_load(models, *rest, **options):
        loads.append(len(list(chunks.glob("*.safetensors"))))
        return load(models, *rest, **options)

    def counted_decode(*arguments):
        threads.append(threading.current_thread().name)
        return decode(*arguments)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", counted_load)
    monkeypatch.setattr(overlap, "decode_loaded", counted_decode)
    monkeypatch.setattr(overlap, "SideStream", FakeSide)
    monkeypatch.setattr(overlap, "why_not", lambda *arguments: "")
    again = frames_of(comfyui.run_graph(demo_graph), demo_graph, home)
    assert torch.equal(again, plain)
    assert len(threads) == 2
    assert all(name.startswith("helios-encode") for name in threads)
    assert set(loads) == {0}  # all of them before the first chunk was on disk


@contextmanager
def partly_loaded(patcher):
    cpu = torch.device("cpu")
    patcher.detach()
    patcher.load(cpu, lowvram_model_memory=1)
    try:
        yield
    finally:
        patcher.detach()


class OnCuda:
    """A model that says it is on a GPU; all else is asked of the one it stands for."""

    def __init__(self, patcher):
        self.patcher, self.load_device = patcher, torch.device("cuda")

    def __getattr__(self, name):
        return getattr(self.patcher, name)


def test_it_overlaps_only_where_all_weights_are_loaded_and_there_is_room_for_both(
    comfyui, demo_vae, models, monkeypatch
):
    import comfy.model_management

    overlap = module_of("host.overlap")
    model = module_of("demo").HeliosDemoModels.execute().args[0]
    asked = []

    def load(patchers, memory_required=0):
        asked.append((len(patchers), memory_required))

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 2**30)
    assert "do not fit on the device together" in overlap.why_not(OnCuda(model), demo_vae, 2**20)  # nothing is loaded
    for patcher in (model, demo_vae.patcher):
        patcher.load(torch.device("cpu"), full_load=True)
    assert overlap.why_not(OnCuda(model), demo_vae, 2**20) == ""
    assert "need 2.0 GiB, 1.0 are free" in overlap.why_not(OnCuda(model), demo_vae, 2**31)
    assert asked[-1] == (2, 2**31)
    with partly_loaded(model):
        assert "do not fit on the device together" in overlap.why_not(OnCuda(model), demo_vae, 2**20)
    model.load(torch.device("cpu"), full_load=True)
    with partly_loaded(demo_vae.patcher):
        assert "do not fit on the device together" in overlap.why_not(OnCuda(model), demo_vae, 2**20)
    assert "on cpu" in overlap.why_not(model, demo_vae, 2**20)


def test_too_little_memory_beside_the_sampling_says_what_to_do(demo_vae, monkeypatch):
    overlap = module_of("host.overlap")
    model = module_of("demo").HeliosDemoModels.execute().args[0]

    def full(samples):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(demo_vae.first_stage_model, "decode", full)
    with pytest.raises(RuntimeError, match="Turn overlap_vae off and queue again"):
        overlap.decode_loaded(model.model, demo_vae, torch.zeros(1, 16, 9, 8, 8))
