"""Files with `comfy_quant` entries: every format that the running ComfyUI knows, in its own layers."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from harness import helios_weights
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("memory_manager")

QUERY = "blocks.0.attn1.to_q"
# Format -> how far a layer's output may be from that of the numbers that its weight means: bf16's own error; where
# ComfyUI's layer also rounds its input, to 8 or 4 bits, that.
FORMATS = {
    "float8_e4m3fn": 0.005,
    "float8_e5m2": 0.005,
    "nvfp4": 0.005,
    "mxfp8": 0.005,
    "int8_tensorwise": 0.015,
    "asym_w4a8_int8": 0.015,
    "convrot_w4a4": 0.2,
}


def known_formats() -> dict:
    try:
        from comfy.quant_ops import QUANT_ALGOS
    except ImportError:
        return {}
    return QUANT_ALGOS


def marker(**settings) -> torch.Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def quantised(weight: torch.Tensor, name: str):
    """What ComfyUI's own quantiser makes of a weight: tensors beside the layer's name, and the numbers they mean."""
    from comfy.quant_ops import QuantizedTensor

    options = {"scale": "recalculate"} if "fp8" in name or "float8" in name or name == "nvfp4" else {}
    value = QuantizedTensor.from_float(weight, known_formats()[name]["comfy_tensor_layout"], **options)
    return value.state_dict("weight"), value.dequantize().float()


@pytest.fixture(scope="module")
def weights(models):
    return helios_weights.random_weights()


@pytest.fixture(scope="module")
def load(comfyui, memory_manager, home):
    (loading,) = [module for name, module in sys.modules.items() if name.endswith("Helios.nodes.host.loading")]

    def load(tensors, choice="default"):
        path = home.models / "diffusion_models" / "quantised_distilled.safetensors"
        path.unlink(missing_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return loading.load_model(path, "auto", choice)

    return load


def run_layer(model, layer: str, x: torch.Tensor) -> torch.Tensor:
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    try:
        with torch.no_grad():
            return model.model.diffusion_model.get_submodule(layer)(x)
    finally:
        comfy.model_management.unload_all_models()


def the_input(weights, dtype) -> torch.Tensor:
    width = weights[f"{QUERY}.weight"].shape[1]
    return torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_in_every_format_comfyui_knows_gives_the_numbers_that_comfyui_means(weights, load, name):
    if name not in known_formats():
        pytest.skip(f"this ComfyUI has no {name}")
    tensors = {key: value.bfloat16() for key, value in weights.items()}
    stored, meant = quantised(tensors[f"{QUERY}.weight"], name)
    tensors = {key: value for key, value in tensors.items() if key != f"{QUERY}.weight"}
    tensors |= {f"{QUERY}.{key}": value for key, value in stored.items()}
    tensors[f"{QUERY}.comfy_quant"] = marker(format=name)
    model = load(tensors)
    layer = model.model.diffusion_model.get_submodule(QUERY)
    assert type(layer.weight).__name__ == "QuantizedTensor" or hasattr(layer.weight, "_qdata")
    dtype = model.model.diffusion_model.dtype
    x = the_input(weights, dtype)
    expected = F.linear(x.float(), meant, tensors[f"{QUERY}.bias"].float())
    got = run_layer(model, QUERY, x).float()
    assert (got - expected).norm() <= FORMATS[name] * expected.norm()


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("marked", [False, True])
def test_int8_of_any_comfyui_gives_its_numbers(weights, load, row_wise, marked):
    weight = weights[f"{QUERY}.weight"]
    scale = (weight.abs().amax(dim=1, keepdim=True) if row_wise else weight.abs().amax()) / 127
    data = (weight / scale).round().to(torch.int8)
    tensors = weights | {f"{QUERY}.weight": data, f"{QUERY}.weight_scale": scale}
    if marked:
        tensors[f"{QUERY}.comfy_quant"] = marker(format="int8_tensorwise")
    model = load(tensors)
    dtype = model.model.diffusion_model.dtype
    x = the_input(weights, dtype)
    expected = F.linear(x.float(), data.float() * scale, weights[f"{QUERY}.bias"])
    assert (run_layer(model, QUERY, x).float() - expected).norm() <= 0.015 * expected.norm()


def test_fp8_with_a_scale_for_each_row_gives_its_numbers(weights, load):
    weight = weights[f"{QUERY}.weight"]
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    data = (weight / scale).to(torch.float8_e4m3fn)
    tensors = weights | {f"{QUERY}.weight": data, f"{QUERY}.weight_scale": scale}
    tensors[f"{QUERY}.comfy_quant"] = marker(format="float8_e4m3fn")
    model = load(tensors)
    x = the_input(weights, model.model.diffusion_model.dtype)
    expected = F.linear(x.float(), data.float() * scale, weights[f"{QUERY}.bias"])
    assert (run_layer(model, QUERY, x).float() - expected).norm() <= 0.015 * expected.norm()


def test_a_scale_left_beside_a_bf16_layer_is_no_error(weights, load):
    tensors = {key: value.bfloat16() for key, value in weights.items()}
    tensors[f"{QUERY}.weight_scale"] = torch.tensor(0.5)
    layer = load(tensors, "fp32").model.diffusion_model.get_submodule(QUERY)
    assert torch.equal(layer.weight.float(), tensors[f"{QUERY}.weight"].float())


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8", "int3_magic"])
def test_a_format_that_this_comfyui_has_not_is_refused_with_the_version_needed(weights, load, name):
    if name in known_formats():
        pytest.skip(f"this ComfyUI has {name}")
    tensors = weights | {f"{QUERY}.weight": torch.zeros(256, 128, dtype=torch.uint8)}
    tensors |= {f"{QUERY}.weight_scale": torch.ones(256, 16), f"{QUERY}.comfy_quant": marker(format=name)}
    with pytest.raises(ValueError, match=r"ComfyUI 0\.|is not known"):
        load(tensors)


def test_a_lora_on_an_int8_layer_is_near_the_one_on_its_numbers(weights, load):
    import comfy.sd

    weight = weights[f"{QUERY}.weight"]
    scale = weight.abs().amax() / 127
    data = (weight / scale).round().to(torch.int8)
    tensors = weights | {f"{QUERY}.weight": data, f"{QUERY}.weight_scale": scale}
    tensors[f"{QUERY}.comfy_quant"] = marker(format="int8_tensorwise")
    model = load(tensors)
    down, up = torch.randn(4, 256) / 16, torch.randn(256, 4)
    lora = {f"transformer.{QUERY}.lora_A.weight": down, f"transformer.{QUERY}.lora_B.weight": up}
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    x = the_input(weights, model.model.diffusion_model.dtype)
    bias = weights[f"{QUERY}.bias"]
    plain = F.linear(x.float(), data.float() * scale, bias)
    expected = F.linear(x.float(), data.float() * scale + up @ down, bias)
    got = run_layer(patched, QUERY, x).float()
    assert (got - expected).norm() < 0.05 * (expected - plain).norm()
