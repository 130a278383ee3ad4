"""A MODEL under ComfyUI's dynamic VRAM: weights stay in their file and are brought, cast and patched when used."""

import sys

import numpy as np
import pytest
import torch
from harness import helios_weights
from harness.checkout import find_checkout
from harness.gguf_weights import write_gguf
from harness.latents_graph import LOADER, SAMPLER, latents_graph
from safetensors.torch import save_file

CHECKOUT, _ = find_checkout()
pytestmark = pytest.mark.skipif(
    CHECKOUT is None or not (CHECKOUT / "comfy" / "model_prefetch.py").is_file(),
    reason="this ComfyUI has no dynamic VRAM",
)

QUERY = "blocks.0.attn1.to_q"
LORA = "dynamic.safetensors"


@pytest.fixture(scope="module")
def folder(models):
    """Weights of one Helios as they are kept."""
    folder, weights = models / "diffusion_models", helios_weights.random_weights()
    save_file(weights, folder / "dynamic_fp32_distilled.safetensors")
    save_file(
        {name: value.bfloat16() for name, value in weights.items()}, folder / "dynamic_bf16_distilled.safetensors"
    )
    write_gguf(folder / "dynamic_distilled.gguf", weights, "Q8_0")
    helios_weights.write_fp8_layouts(folder, weights)
    generator, lora = torch.Generator().manual_seed(5), {}
    for layer in (QUERY, "blocks.1.ffn.net.0.proj"):
        num_out, num_in = weights[f"{layer}.weight"].shape
        lora[f"transformer.{layer}.lora_A.weight"] = torch.randn(4, num_in, generator=generator) * num_in**-0.5
        lora[f"transformer.{layer}.lora_B.weight"] = torch.randn(num_out, 4, generator=generator)
    save_file(lora, models / "loras" / LORA)
    return folder


@pytest.fixture
def dynamic_vram(comfyui):
    from harness.dynamic_vram import dynamic_vram

    return dynamic_vram


@pytest.fixture
def sample(comfyui, folder):
    """sample(model name, weight dtype, with_lora) -> latents and MODEL."""

    def run(name, weight_dtype="default", with_lora=False):
        graph = latents_graph(comfyui.object_info(), chunks=1)
        graph[LOADER]["inputs"].update(model_name=name, weight_dtype=weight_dtype)
        source = LOADER
        if with_lora:
            inputs = {"model": [LOADER, 0], "lora_name": LORA, "strength_model": 0.7}
            graph["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
            graph[SAMPLER]["inputs"]["model"] = ["lora", 0]
            source = "lora"
        result = comfyui.run_graph(graph)
        assert result.success, result.error
        return result.output(SAMPLER)["samples"], result.output(source)

    return run


KINDS = [
    ("dynamic_fp32_distilled.safetensors", "fp32"),
    ("dynamic_fp32_distilled.safetensors", "bf16"),
    ("dynamic_fp32_distilled.safetensors", "fp16"),
    ("dynamic_bf16_distilled.safetensors", "bf16"),
    ("dynamic_bf16_distilled.safetensors", "fp32"),
    ("dynamic_bf16_distilled.safetensors", "fp8_e4m3fn"),
    ("fp8_plain_distilled.safetensors", "fp8_e4m3fn"),
    ("fp8_plain_distilled.safetensors", "bf16"),
    ("fp8_old_distilled.safetensors", "default"),
    ("fp8_new_distilled.safetensors", "default"),
    ("dynamic_distilled.gguf", "default"),
    ("dynamic_distilled.gguf", "bf16"),
]


@pytest.mark.parametrize(("name", "weight_dtype"), KINDS)
@pytest.mark.parametrize("capacity", [2**40, 300_000], ids=["room for all", "room for a part"])
def test_latents_are_the_static_patchers(dynamic_vram, sample, name, weight_dtype, capacity):
    expected, static = sample(name, weight_dtype)
    with dynamic_vram(capacity) as memory:
        latents, model = sample(name, weight_dtype)
        assert type(model).__name__ == "HeliosDynamicPatcher"
        assert len(memory.faults) > 50, "hardly any weight was brought when it was used"
    assert type(static).__name__ == "HeliosPatcher"
    assert np.array_equal(latents, expected)


@pytest.mark.parametrize("capacity", [2**40, 300_000], ids=["room for all", "room for a part"])
@pytest.mark.parametrize(
    "kind", [("dynamic_fp32_distilled.safetensors", "fp32"), ("dynamic_distilled.gguf", "default")]
)
def test_a_lora_is_applied_when_the_weight_is_used(dynamic_vram, sample, kind, capacity):
    plain, _ = sample(*kind)
    expected, _ = sample(*kind, with_lora=True)
    with dynamic_vram(capacity):
        patched, _ = sample(*kind, with_lora=True)
        without, _ = sample(*kind)
    assert (expected - plain).norm() > 0.1 * plain.norm()
    torch.testing.assert_close(patched, expected, rtol=0, atol=1e-4)
    assert np.array_equal(without, plain)


def _truncated(file, weights):
    save_file(weights, file)
    file.write_bytes(file.read_bytes()[:-1000])


def _with_nan(file, weights):
    value = weights[f"{QUERY}.weight"].clone()
    value[3, 4] = float("nan")
    save_file(weights | {f"{QUERY}.weight": value}, file)


def _without_a_tensor(file, weights):
    save_file({name: value for name, value in weights.items() if name != f"{QUERY}.bias"}, file)


def _of_mixed_dtypes(file, weights):
    save_file(weights | {f"{QUERY}.weight": weights[f"{QUERY}.weight"].to(torch.int8)}, file)


@pytest.mark.parametrize(
    ("write", "told"),
    [(_truncated, "cut off"), (_with_nan, "NaN"), (_without_a_tensor, "1 missing"), (_of_mixed_dtypes, "int8")],
)
def test_bad_files_are_reported_in_the_same_words(dynamic_vram, folder, write, told):
    load_model = _module("host.loading").load_model
    file = folder / f"bad_dynamic{write.__name__}_distilled.safetensors"
    write(file, helios_weights.random_weights())

    def words() -> str:
        with pytest.raises(ValueError, match=told) as fault:
            load_model(file, "auto", "default")
        return str(fault.value)

    expected = words()
    with dynamic_vram():
        assert words() == expected


def test_a_file_that_is_replaced_between_header_and_weights_is_reported(dynamic_vram, folder):
    mapped = _module("host.mapped").MappedWeights()
    file = folder / "replaced_distilled.safetensors"
    save_file({"x": torch.zeros(4)}, file)
    header = _module("host.mapped").TensorEntry(file, "x", (8,), torch.float32)
    with dynamic_vram(), pytest.raises(ValueError, match="was replaced while it was read"):
        mapped.read(header)


def test_saving_weights_in_gguf_blocks_is_refused_in_words(dynamic_vram, folder):
    load_model = _module("host.loading").load_model
    file = folder / "dynamic_distilled.gguf"
    models = [load_model(file, "auto", "default")]
    with dynamic_vram():
        models.append(load_model(file, "auto", "default"))
        for model in models:
            with pytest.raises(ValueError, match="choose another weight_dtype"):
                model.state_dict_for_saving()


def _module(name):
    (module,) = [found for path, found in sys.modules.items() if path.endswith(f"ComfyUI-Helios.nodes.{name}")]
    return module
