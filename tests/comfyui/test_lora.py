"""LoRA on Helios through ComfyUI's own LoraLoaderModelOnly."""

import functools
import gc
import logging
import os

import pytest
import torch
from harness import helios_weights
from harness.samples import small_graph, the_node
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("memory_manager")

RANK, ALPHA = 4, 2.0
LAYERS = ["blocks.0.attn1.to_q", "blocks.0.attn1.to_out.0", "blocks.1.attn2.to_v", "blocks.1.ffn.net.0.proj"]


def random_lora(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer name -> (down (rank, in), up (out, rank)), large enough to show in the latents."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name.removesuffix(".weight"): value.shape for name, value in helios_weights.random_weights().items()}
    return {
        layer: (
            torch.randn(RANK, shapes[layer][1], generator=generator) * shapes[layer][1] ** -0.5,
            torch.randn(shapes[layer][0], RANK, generator=generator),
        )
        for layer in LAYERS
    }


def peft(prefix: str):
    """diffusers' and PEFT's names, which have no alpha: it is multiplied into one of the factors."""
    return lambda layer, down, up: {
        f"{prefix}{layer}.lora_A.weight": down,
        f"{prefix}{layer}.lora_B.weight": up * (ALPHA / RANK),
    }


def kohya(prefix: str, separator: str = "."):
    def names(layer, down, up):
        name = prefix + layer.replace(".", separator)
        return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}

    return names


NAMINGS = {
    "transformer": peft("transformer."),
    "bare": peft(""),
    "diffusion_model_peft": peft("diffusion_model."),
    "diffusion_model_kohya": kohya("diffusion_model."),
    "lora_unet": kohya("lora_unet_", "_"),
}


def write_lora(home, name: str, lora, naming: str = "transformer") -> str:
    tensors = {}
    for layer, (down, up) in lora.items():
        tensors |= NAMINGS[naming](layer, down, up)
    save_file(tensors, home.models / "loras" / name)
    return name


def merged(weights, *loras: tuple[dict, float]):
    """The weights with each LoRA added at its strength, as LoRA's paper defines it: W + strength alpha / rank B A."""
    weights = dict(weights)
    for lora, strength in loras:
        for layer, (down, up) in lora.items():
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + strength * (ALPHA / RANK) * (up @ down)
    return weights


@pytest.fixture(scope="module")
def weights(models):
    values = helios_weights.random_weights()
    save_file(values, models / "diffusion_models" / "for_loras_distilled.safetensors")
    return values


@pytest.fixture(scope="module")
def graph_with(comfyui, models, weights):
    """graph_with((lora file, strength), ...) -> graph of one small chunk, and its sampler's id."""
    plain = small_graph("t2v", comfyui.object_info(), width=64, height=64)
    sampler, inputs = the_node(plain, "HeliosChunkSampler")
    inputs.update(chunks=1, steps="1,1,1")
    loader_id, loader = the_node(plain, "HeliosLoader")
    loader.update(model_name="for_loras_distilled.safetensors", weight_dtype="fp32")
    video, _ = the_node(plain, "HeliosVideoCombine")
    del plain[video]
    plain["save"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "latents"}}

    def make(*loras: tuple[str, float], model_name: str = "for_loras_distilled.safetensors"):
        graph = {name: {**node, "inputs": dict(node["inputs"])} for name, node in plain.items()}
        graph[loader_id]["inputs"]["model_name"] = model_name
        source = [loader_id, 0]
        for number, (name, strength) in enumerate(loras):
            graph[f"lora{number}"] = {
                "class_type": "LoraLoaderModelOnly",
                "inputs": {"model": source, "lora_name": name, "strength_model": strength},
            }
            source = [f"lora{number}", 0]
        graph[sampler]["inputs"]["model"] = source
        return graph, sampler

    return make


@pytest.fixture(scope="module")
def sample(comfyui, graph_with):
    """sample((lora file, strength), ..., model_name=) -> latents of one chunk."""

    def run(*loras, **options) -> torch.Tensor:
        graph, sampler = graph_with(*loras, **options)
        result = comfyui.run_graph(graph)
        assert result.success, result.error
        return result.output(sampler)["samples"]

    return run


@pytest.fixture
def one_executor(comfyui, monkeypatch):
    """Every graph runs in one executor, whose cache lives on from prompt to prompt as in the server."""
    import execution

    executor_class = execution.PromptExecutor
    executors = []

    @functools.wraps(executor_class)
    def the_executor(*arguments, **options):
        if not executors:
            executors.append(executor_class(*arguments, **options))
        return executors[0]

    monkeypatch.setattr(execution, "PromptExecutor", the_executor)


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_in_every_naming_equals_the_merged_weights(home, sample, weights, naming, caplog):
    lora = random_lora(1)
    name = write_lora(home, f"{naming}.safetensors", lora, naming)
    merged_file = f"merged_{naming}_distilled.safetensors"
    save_file(merged(weights, (lora, 0.8)), home.models / "diffusion_models" / merged_file)
    with caplog.at_level(logging.WARNING):
        patched = sample((name, 0.8))
    assert "lora key not loaded" not in caplog.text
    expected = sample(model_name=merged_file)
    assert (sample() - expected).abs().max() > 0.1
    torch.testing.assert_close(patched, expected, rtol=0, atol=1e-5)


def test_two_loras_add(home, sample, weights):
    first, second = random_lora(1), random_lora(2)
    loras = (write_lora(home, "first.safetensors", first), 0.8), (write_lora(home, "second.safetensors", second), -0.5)
    name = "merged_both_distilled.safetensors"
    save_file(merged(weights, (first, 0.8), (second, -0.5)), home.models / "diffusion_models" / name)
    torch.testing.assert_close(sample(*loras), sample(model_name=name), rtol=0, atol=1e-5)


def test_twenty_prompts_with_changing_loras_read_the_model_once_and_leave_its_bits_and_no_memory(
    comfyui, home, graph_with, one_executor, caplog
):
    name = write_lora(home, "changing.safetensors", random_lora(3))
    strengths = [None, 0.5, 1.0, None, -0.7]
    outputs, live, resident = {}, [], []
    caplog.set_level(logging.INFO)
    for number in range(20):
        strength = strengths[number % len(strengths)]
        graph, sampler = graph_with(*([(name, strength)] if strength is not None else []))
        the_node(graph, "HeliosChunkSampler")[1]["seed"] = number // len(strengths) % 2  # else it is cached
        run = comfyui.run_graph(graph)
        assert run.success, run.error
        bits = run.output(sampler)["samples"].numpy().tobytes()
        key = strength, number // len(strengths) % 2
        assert bits == outputs.setdefault(key, bits), key
        gc.collect()
        live.append(sum(isinstance(item, torch.Tensor) for item in gc.get_objects()))
        resident.append(_resident_bytes())
    assert len([record for record in caplog.records if "Helios Distilled from" in record.getMessage()]) == 1
    assert len(set(outputs.values())) == len(outputs)
    # Compared at the same place of the cycle of ten: as many tensors, and no growth beyond the allocator's noise.
    assert live[19] == live[9]
    assert resident[19] - resident[9] < 2**22, f"{(resident[19] - resident[9]) / 2**20:.1f} MiB more"


def test_taking_a_lora_off_restores_the_weights_bit_for_bit(comfyui, home, graph_with, weights, one_executor):
    name = write_lora(home, "off.safetensors", random_lora(4))
    comfyui.run_graph(graph_with((name, 1.0))[0])
    graph, _ = graph_with()
    run = comfyui.run_graph(graph)
    model = run.output(the_node(graph, "HeliosLoader")[0]).model.diffusion_model
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_a_lora_for_another_model_is_an_error_that_says_so(comfyui, home, graph_with):
    stranger = {"lora_unet_double_blocks_0_img_attn_qkv": (torch.zeros(RANK, 8), torch.zeros(8, RANK))}
    name = write_lora(home, "flux.safetensors", stranger, "bare")
    run = comfyui.run_graph(graph_with((name, 1.0))[0])
    assert not run.success
    assert "nothing in this LoRA fits Helios" in run.error


def test_a_lora_of_another_size_is_an_error_that_names_layer_and_sizes(comfyui, home, graph_with):
    small = {"blocks.0.attn1.to_q": (torch.zeros(RANK, 48), torch.zeros(48, RANK))}
    name = write_lora(home, "small.safetensors", small)
    run = comfyui.run_graph(graph_with((name, 1.0))[0])
    assert not run.success
    assert "blocks.0.attn1.to_q" in run.error
    assert "48 outputs and 48 inputs" in run.error
    assert "256 and 256" in run.error


def _resident_bytes() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
