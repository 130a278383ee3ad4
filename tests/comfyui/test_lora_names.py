"""LoRAs of every naming and kind through ComfyUI's own loading functions, which its loader nodes call."""

import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from harness import helios_weights
from harness.loras import KINDS, NAMINGS, in_turns, make_lora, merged
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("memory_manager")

INNER = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]
INNER += ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2"]
LAYERS = [f"blocks.{number}.{inner}" for number in (0, 1) for inner in INNER]
STRENGTH = 0.8


@pytest.fixture(scope="module")
def weights(models):
    values = helios_weights.random_weights()
    save_file(values, models / "diffusion_models" / "lora_names_distilled.safetensors")
    return values


@pytest.fixture(scope="module")
def model(comfyui, memory_manager, home, weights):
    (loading,) = [module for name, module in sys.modules.items() if name.endswith("Helios.nodes.host.loading")]
    return loading.load_model(home.models / "diffusion_models" / "lora_names_distilled.safetensors", "auto", "fp32")


@pytest.fixture
def apply(model):
    """apply(tensors, strength) -> a MODEL with that LoRA on it, as LoraLoaderModelOnly makes it."""
    import comfy.sd

    return lambda tensors, strength=STRENGTH: comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)[0]


@pytest.fixture
def outputs(model):
    """outputs(patched MODEL, layers) -> (layer -> what it makes of the input), once ComfyUI has loaded the MODEL."""
    import comfy.model_management

    def run(patched, layers=LAYERS) -> dict[str, torch.Tensor]:
        comfy.model_management.load_models_gpu([patched], force_full_load=True)
        try:
            transformer = patched.model.diffusion_model
            with torch.no_grad():
                return {layer: transformer.get_submodule(layer)(layer_input(transformer, layer)) for layer in layers}
        finally:
            comfy.model_management.unload_all_models()

    return run


def layer_input(transformer, layer: str) -> torch.Tensor:
    width = transformer.get_submodule(layer).in_features
    return torch.randn(3, width, generator=torch.Generator().manual_seed(width))


def assert_merged(got: dict[str, torch.Tensor], model, weights, kinds) -> None:
    kind_of = dict(in_turns(LAYERS, kinds))
    for layer, (weight, bias) in merged(weights, LAYERS, kinds, STRENGTH).items():
        x = layer_input(model.model.diffusion_model, layer)
        plain = F.linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        expected = F.linear(x, weight, bias)
        assert (expected - plain).norm() > 0.01 * plain.norm(), (layer, kind_of[layer])
        assert (got[layer] - expected).norm() <= 1e-6 * expected.norm(), (layer, kind_of[layer])


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_of_every_naming_and_kind_equals_the_merged_weights(model, weights, apply, outputs, naming, caplog):
    kinds = list(KINDS)
    tensors = make_lora(weights, LAYERS, naming, kinds)
    with caplog.at_level(logging.INFO):
        patched = apply(tensors)
    assert "not loaded" not in caplog.text.lower()
    num_weights = sum(2 if kind == "diff" else 1 for _, kind in in_turns(LAYERS, kinds))  # diff_b is one more
    assert f"LoRA: {num_weights} of {num_weights} weights applied" in caplog.text
    assert_merged(outputs(patched), model, weights, kinds)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_of_one_kind_throughout_equals_the_merged_weights(model, weights, apply, outputs, kind):
    assert_merged(outputs(apply(make_lora(weights, LAYERS, "wan", kind))), model, weights, kind)


def test_a_lora_that_was_taken_off_leaves_the_weights_bits(model, weights, apply, outputs):
    outputs(apply(make_lora(weights, LAYERS, "wan", "lora_down")))
    for name, value in model.model.diffusion_model.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("naming", ["transformer", "peft", "wan", "musubi", "wan_fun", "compiled_blocks"])
def test_the_bypass_loader_computes_the_same(model, weights, outputs, naming):
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass loader")
    tensors = make_lora(weights, LAYERS, naming, "lora_down")
    patched, _ = comfy.sd.load_bypass_lora_for_models(model, None, tensors, STRENGTH, 0.0)
    assert_merged(outputs(patched), model, weights, "lora_down")


def test_the_bypass_loader_refuses_another_width_when_the_model_is_loaded(model, weights):
    import comfy.model_management
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass loader")
    wrong = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 1536)}
    wrong["diffusion_model.blocks.0.self_attn.q.lora_B.weight"] = torch.ones(1536, 4)
    patched, _ = comfy.sd.load_bypass_lora_for_models(model, None, wrong, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"1536.*Wan 1\.3B"):
        comfy.model_management.load_models_gpu([patched], force_full_load=True)
    comfy.model_management.unload_all_models()
    layer = model.model.diffusion_model.blocks[0].attn1.to_q
    assert layer.forward.__self__ is layer


@pytest.mark.parametrize("naming", ["transformer", "wan", "musubi"])
def test_a_lora_put_on_by_a_hook_has_its_patches_at_our_weights(model, weights, naming):
    import comfy.hooks

    tensors = make_lora(weights, LAYERS, naming, "lora_A")
    patched, _, hooks = comfy.hooks.load_hook_lora_for_models(model, None, tensors, STRENGTH, 0.0)
    patches = patched.get_combined_hook_patches(hooks)
    assert set(patches) == {f"diffusion_model.{layer}.weight" for layer in LAYERS}


def test_two_loras_stacked_in_different_namings_add(model, weights, apply, outputs):
    import comfy.sd

    first = apply(make_lora(weights, LAYERS, "wan", "lora_down"))
    second = make_lora(weights, LAYERS, "transformer", "lora_A", seed=1)
    both, _ = comfy.sd.load_lora_for_models(first, None, second, -0.5, 0.0)
    got = outputs(both)
    one, two = merged(weights, LAYERS, "lora_down", STRENGTH), merged(weights, LAYERS, "lora_A", -0.5, seed=1)
    for layer in LAYERS:
        x = layer_input(model.model.diffusion_model, layer)
        weight = one[layer][0] + two[layer][0] - weights[f"{layer}.weight"]
        expected = F.linear(x, weight, weights[f"{layer}.bias"])
        assert (got[layer] - expected).norm() <= 1e-6 * expected.norm(), layer


def test_one_file_with_two_spellings_of_one_layer_adds_both(model, weights, apply):
    layer = LAYERS[0]
    tensors = make_lora(weights, [layer], "wan", "lora_A") | make_lora(
        weights, [layer], "transformer", "lora_A", seed=1
    )
    assert len(apply(tensors).patches[f"diffusion_model.{layer}.weight"]) == 2


# What Helios has no place for


def test_image_conditioning_of_a_lora_is_left_out_and_counted(weights, apply, caplog):
    tensors = make_lora(weights, LAYERS, "wan", "lora_A")
    for number in (0, 1):
        for name in ("k_img", "v_img"):
            layer = f"diffusion_model.blocks.{number}.cross_attn.{name}"
            tensors |= {f"{layer}.lora_A.weight": torch.ones(4, 256), f"{layer}.lora_B.weight": torch.ones(256, 4)}
    with caplog.at_level(logging.INFO):
        apply(tensors)
    assert "LoRA: 20 of 24 applied; 4 are for image conditioning, which Helios has not" in caplog.text
    assert "not loaded" not in caplog.text.lower()


def test_changes_of_norms_are_applied_where_helios_has_them(model, weights, apply):
    change = torch.full((256,), 0.25)
    patched = apply({"diffusion_model.blocks.0.self_attn.norm_q.diff": change, "blocks.1.norm3.diff": change}, 1.0)
    assert set(patched.patches) == {
        "diffusion_model.blocks.0.attn1.norm_q.weight",
        "diffusion_model.blocks.1.norm2.weight",
    }


# Bad input


@pytest.mark.parametrize(
    ("layer", "model_name"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_q", "Flux"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "Flux or Hunyuan Video"),
        ("transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "Stable Diffusion 1.5, 2 or XL"),
        ("diffusion_model.transformer_blocks.0.attn1.to_q", "LTX Video"),
    ],
)
def test_a_lora_for_another_model_is_refused_by_that_models_name(apply, layer, model_name):
    tensors = {f"{layer}.lora_down.weight": torch.ones(4, 8), f"{layer}.lora_up.weight": torch.ones(8, 4)}
    with pytest.raises(ValueError, match=f"nothing in this LoRA fits Helios: it seems to be for {model_name}"):
        apply(tensors)


def test_a_lora_that_nothing_is_known_of_is_refused_with_the_namings_that_are(apply):
    with pytest.raises(ValueError, match=r"nothing in this LoRA fits Helios.*kohya"):
        apply({"some.layer.lora_A.weight": torch.ones(4, 8), "some.layer.lora_B.weight": torch.ones(8, 4)})


@pytest.mark.parametrize("kind", ["lora_A", "loha", "lokr", "diff"])
def test_a_lora_of_another_width_is_refused_with_both_widths(apply, kind):
    narrow = {"blocks.0.attn1.to_q.weight": torch.ones(1536, 1536), "blocks.0.attn1.to_q.bias": torch.ones(1536)}
    with pytest.raises(ValueError, match=r"1536 outputs.*256 and 256\. It seems to be for Wan 1\.3B"):
        apply(make_lora(narrow, ["blocks.0.attn1.to_q"], "wan", kind))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_lora_with_nan_is_refused_by_layer(weights, apply, value):
    tensors = make_lora(weights, LAYERS, "wan", "lora_A")
    tensors["diffusion_model.blocks.1.ffn.2.lora_B.weight"][3, 1] = value
    with pytest.raises(ValueError, match=r"NaN or infinity, for diffusion_model\.blocks\.1\.ffn\.net\.2"):
        apply(tensors)


def test_alpha_zero_is_refused_in_words(weights, apply):
    tensors = make_lora(weights, LAYERS, "wan", "lora_down")
    tensors |= {key: torch.tensor(0.0) for key in tensors if key.endswith(".alpha")}
    with pytest.raises(ValueError, match="alpha is 0"):
        apply(tensors)


@pytest.mark.parametrize("strength", [1e9, float("nan"), float("inf")])
def test_a_strength_beyond_reason_is_refused_in_words(weights, apply, strength):
    with pytest.raises(ValueError, match=r"strength is .*sensible are"):
        apply(make_lora(weights, LAYERS, "wan", "lora_A"), strength)


# The names are for LoRAs only


def test_helios_claims_to_be_no_other_model(model):
    import comfy.model_base

    known = [value for value in vars(comfy.model_base).values() if isinstance(value, type)]
    assert [c for c in known if isinstance(model.model, c) and issubclass(c, comfy.model_base.BaseModel)] == [
        comfy.model_base.BaseModel
    ]


def test_values_and_their_names_are_the_weights_alone(model, weights):
    import comfy.model_patcher

    own = {f"diffusion_model.{name}" for name in weights}
    state = model.model.state_dict()
    assert {key for key in state if key.startswith("diffusion_model.")} == own
    assert len(state) == len(dict(state)) == len(list(state.items())) == len(state.copy())
    assert {key for key in model.model_state_dict() if key.startswith("diffusion_model.")} == own
    assert set(model.model_state_dict(filter_prefix="diffusion_model.")) == own
    assert {key for key in model.get_key_patches() if key.startswith("diffusion_model.")} == own
    can_save = hasattr(comfy.model_patcher.ModelPatcher, "state_dict_for_saving")  # newer than 0.10
    saved = model.state_dict_for_saving() if can_save else model.model.state_dict_for_saving(model.model_state_dict())
    assert not [key for key in saved if "self_attn" in key or "_orig_mod" in key]


def test_a_model_takes_its_own_state_back(model):
    model.model.load_state_dict(dict(model.model.state_dict()), strict=True)


def test_merging_models_works_on_the_weights_alone(model):
    patched = model.clone()
    for key, patch in model.get_key_patches("diffusion_model.").items():
        patched.add_patches({key: patch}, 0.5, 0.5)
    assert set(patched.patches) == set(model.get_key_patches("diffusion_model."))
