"""Helios Demo Models in real graphs: ComfyUI's own nodes work on them, and the demo workflows show what they say."""

import sys

import numpy as np
import pytest
import torch
from harness.samples import VIDEO_NODES, nodes_of, read_clip, small_graph

from helios_core.demo import DemoModel
from helios_core.demo.judge import look
from helios_core.demo.model import VAE_FILE, encode_prompt
from helios_core.vae.codec import WanCodec

pytestmark = pytest.mark.usefixtures("memory_manager")

PROMPT = "a red circle moving right on a black background"
# What the last video of each workflow shows at its end, as (colour, shape, background).
SHOWN = {
    "demo_t2v": ("red", "circle", "black"),
    "demo_i2v": ("blue", "square", "grey"),
    "demo_v2v": ("purple", "triangle", "white"),
    "demo_prompts": ("yellow", "triangle", "grey"),
}


def graph(chunks=1, prompt=PROMPT):
    return {
        "demo": {"class_type": "HeliosDemoModels", "inputs": {}},
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": prompt}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": ""}},
        "context": {
            "class_type": "HeliosContext",
            "inputs": {"width": 64, "height": 64, "resize": "crop", "noise_seed": 0, "add_noise": True,
                       "reanchor": False, "video_frame_rate": 24.0},
        },
        "sampler": {
            "class_type": "HeliosChunkSampler",
            "inputs": {"model": ["demo", 0], "positive": ["prompt", 0], "memory": ["context", 0], "seed": 5,
                       "chunks": chunks, "steps": "", "guidance_scale": 0.0, "amplify_first_chunk": False,
                       "noise": "seeded", "negative": ["negative", 0]},
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["demo", 2]}},
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def info(comfyui):
    return comfyui.object_info()


@pytest.fixture(scope="module")
def run(comfyui, home):
    result = comfyui.run_graph(graph())
    assert result.success, result.error
    return result


def test_the_vae_codes_as_the_command_line_does_and_as_comfyuis_own_does(comfyui):
    (demo,) = [found for path, found in sys.modules.items() if path.endswith("ComfyUI-Helios.nodes.host.demo_models")]
    vae, own, codec = demo.load_fast_vae(), demo.load_vae(), WanCodec.from_file(VAE_FILE)
    pictures = torch.rand(9, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    latents = vae.encode(pictures)
    pixels = pictures.movedim(-1, 0)[None] * 2 - 1
    assert torch.equal(latents, codec.vae.encode(pixels))
    torch.testing.assert_close(latents, own.encode(pictures), atol=1e-4, rtol=1e-4)
    two = torch.cat((latents, latents + 0.1))
    frames = vae.decode(two)
    expected = [(codec.vae.decode(one) / 2 + 0.5).clamp(0, 1).movedim(1, -1) for one in two.split(1)]
    torch.testing.assert_close(frames, torch.cat(expected), atol=1e-6, rtol=0)  # ComfyUI adds before it divides
    torch.testing.assert_close(frames, own.decode(two), atol=1e-4, rtol=1e-4)


def test_the_native_text_encoder_node_gives_the_rows_the_core_gives(run):
    ((rows, _),) = run.output("prompt")
    assert torch.equal(torch.as_tensor(np.asarray(rows)), encode_prompt(PROMPT))


def test_native_vae_decode_gives_the_frames_the_core_gives(run):
    latents = torch.as_tensor(np.asarray(run.output("sampler")["samples"])).float()
    pixels = WanCodec.from_file(VAE_FILE).vae.decode(latents)[0].movedim(0, -1)
    frames = torch.as_tensor(np.asarray(run.output("decode")))
    torch.testing.assert_close(frames, (pixels / 2 + 0.5).clamp(0, 1), atol=2e-2, rtol=0)


def test_the_graph_shows_its_prompt(run):
    scene = look(torch.as_tensor(np.asarray(run.output("decode")))).scene
    assert (scene.colour, scene.background) == ("red", "black")


def test_the_same_graph_without_comfyui_gives_the_same_latents(run):
    from helios_core.sampling.conditioning import text_memory
    from helios_core.sampling.loop import make_chunks
    from helios_core.sampling.noise import SeededNoise
    from helios_core.sampling.plan import ChunkPlan, Past

    source = DemoModel()
    model = source.load_transformer()
    plan = ChunkPlan(encode_prompt(PROMPT), source.settings, SeededNoise(5), negative_rows=encode_prompt(""))
    (chunk,) = make_chunks(lambda: model, Past(text_memory(width=64, height=64)), [plan])
    latents = chunk.latents
    from helios_core.vae.wan_vae import LATENTS_MEAN, LATENTS_STD

    made = torch.as_tensor(np.asarray(run.output("sampler")["samples"])).float()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (LATENTS_MEAN, LATENTS_STD))
    # ComfyUI may compute in another dtype than the core's fp32.
    assert ((made - mean) / std - latents).abs().mean() < 0.05


def test_a_weight_in_the_prompt_weighs_its_word(comfyui, run):
    weighted = comfyui.run_graph(graph(prompt="a (red:1.5) circle"))
    assert weighted.success, weighted.error
    ((rows, _),) = weighted.output("prompt")
    plain = encode_prompt("a red circle")
    assert torch.allclose(torch.as_tensor(np.asarray(rows))[0, 1], 1.5 * plain[0, 1])


def test_a_lora_loader_works_on_it(comfyui, home, run):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    name = "diffusion_model.blocks.0.attn1.to_q"
    folder = home.models / "loras"
    save_file(
        {f"{name}.lora_A.weight": torch.randn(4, 128, generator=generator),
         f"{name}.lora_B.weight": torch.randn(128, 4, generator=generator)},
        folder / "demo_lora.safetensors",
    )  # fmt: skip
    with_lora = graph()
    with_lora["lora"] = {
        "class_type": "LoraLoader",
        "inputs": {"model": ["demo", 0], "clip": ["demo", 1], "lora_name": "demo_lora.safetensors",
                   "strength_model": 1.0, "strength_clip": 1.0},
    }  # fmt: skip
    with_lora["sampler"]["inputs"]["model"] = ["lora", 0]
    with_lora["prompt"]["inputs"]["clip"] = ["lora", 1]
    changed = comfyui.run_graph(with_lora)
    assert changed.success, changed.error
    before, after = (np.asarray(result.output("sampler")["samples"]) for result in (run, changed))
    assert np.abs(after - before).max() > 0.01


@pytest.mark.parametrize("name", SHOWN)
def test_a_demo_workflow_runs_as_it_is_and_shows_its_prompt(name, comfyui, home, info):
    workflow = small_graph(name, info, width=64, height=64)
    result = comfyui.run_graph(workflow)
    assert result.success, result.error
    last, _ = [item for kind in VIDEO_NODES for item in nodes_of(workflow, kind)][-1]
    (file,) = home.saved_files({"outputs": {last: result.history["outputs"][last]}})
    frames = torch.from_numpy(read_clip(file).frames).float() / 255
    scene = look(frames[-33:]).scene
    assert (scene.colour, scene.shape, scene.background) == SHOWN[name]
