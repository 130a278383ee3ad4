"""LoRAs that a schedule names: as strong as the loader's, following the blend, and gone after the run."""

import pytest
import torch
from harness.inprocess import GraphRejected
from safetensors.torch import save_file

LORA = "over_time.safetensors"
TEXT = "0s: a red circle moving right on a black background\n{options}: a red circle moving right on a black background"

pytestmark = pytest.mark.usefixtures("memory_manager")


@pytest.fixture(scope="module")
def lora(home):
    """In Wan's names, for the demo."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in ("blocks.0.self_attn.q", "blocks.2.cross_attn.k", "blocks.4.self_attn.o"):
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(4, 128, generator=generator) * 0.3
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = torch.randn(128, 4, generator=generator) * 0.3
    save_file(tensors, home.models / "loras" / LORA)
    return LORA


def graph(text: str, *, chunks: int, loader: float | None = None) -> dict:
    model = ["demo", 0] if loader is None else ["lora", 0]
    loaded = {"model": ["demo", 0], "lora_name": LORA, "strength_model": loader or 0.0}
    return {
        "demo": {"class_type": "HeliosDemoModels", "inputs": {}},
        **({} if loader is None else {"lora": {"class_type": "LoraLoaderModelOnly", "inputs": loaded}}),
        "schedule": {
            "class_type": "HeliosPromptSchedule",
            "inputs": {"clip": ["demo", 1], "text": text, "frame_rate": 24.0, "blend": 3, "shape": "linear",
                       "file": ""},
        },
        "context": {
            "class_type": "HeliosContext",
            "inputs": {"width": 64, "height": 64, "resize": "crop", "noise_seed": 0, "add_noise": True,
                       "reanchor": False},
        },
        "sampler": {
            "class_type": "HeliosChunkSampler",
            "inputs": {"model": model, "positive": ["schedule", 0], "memory": ["context", 0], "seed": 5,
                       "chunks": chunks, "steps": "1,1", "guidance_scale": 1.0, "amplify_first_chunk": False,
                       "noise": "seeded"},
        },
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "over_time"}},
    }  # fmt: skip


def latents_of(comfyui, *arguments, **options) -> torch.Tensor:
    run = comfyui.run_graph(graph(*arguments, **options))
    assert run.success, run.error
    return run.output("sampler")["samples"]


def test_a_lora_of_the_schedule_acts_as_the_loaders_does_from_its_segment_on(comfyui, lora):
    plain = latents_of(comfyui, "0s: a red circle", chunks=1)
    loaded = latents_of(comfyui, "0s: a red circle", chunks=1, loader=0.7)
    scheduled = latents_of(comfyui, f"0s lora {LORA} 0.7: a red circle", chunks=1)
    assert (loaded - plain).abs().max() > 0.05
    # bf16 and fp16 round the two at different places.
    assert (scheduled - loaded).abs().mean() < 0.1 * (loaded - plain).abs().mean()
    later = latents_of(comfyui, f"0s: a red circle\nchunk 1 step lora {LORA} 0.7: a red circle", chunks=2)
    assert torch.equal(later[:1], plain)
    assert torch.equal(latents_of(comfyui, "0s: a red circle", chunks=1), plain), "it is gone after the run"


def test_schedule_add_takes_a_lora_too(comfyui, lora):
    chained = graph(f"0s lora {LORA} 0.7: a red circle", chunks=1)
    chained["prompt"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": "a red circle"}}
    chained["add"] = {
        "class_type": "HeliosScheduleAdd",
        "inputs": {"conditioning": ["prompt", 0], "start": 0, "blend": 3, "shape": "linear", "segment_seed": -1,
                   "guidance_scale": 0.0, "lora": LORA, "lora_strength": 0.7},
    }  # fmt: skip
    expected = comfyui.run_graph(chained).output("sampler")["samples"]
    chained["sampler"]["inputs"]["positive"] = ["add", 0]
    run = comfyui.run_graph(chained)
    assert run.success, run.error
    assert torch.equal(run.output("sampler")["samples"], expected)


def test_a_lora_that_is_missing_or_does_not_fit_is_reported_before_sampling(comfyui, lora, home):
    with pytest.raises(GraphRejected) as rejected:
        comfyui.run_graph(graph("0s lora no_such.safetensors: a", chunks=1))
    assert "there is no LoRA 'no_such.safetensors' in models/loras" in str(rejected.value.node_errors)
    name = "diffusion_model.blocks.0.self_attn.q"
    wide = {f"{name}.lora_A.weight": torch.zeros(4, 5120), f"{name}.lora_B.weight": torch.zeros(5120, 4)}
    save_file(wide, home.models / "loras" / "wide.safetensors")
    run = comfyui.run_graph(graph("0s lora wide.safetensors: a", chunks=1))
    assert "does not fit: for blocks.0.attn1.to_q it has 5120 outputs" in run.error
    assert not run.progress
