"""Names in LoRA files: full key lists of every naming, on the shapes of the published 14B model."""

import pytest
import torch

from helios_core.checkpoint.lora_names import LoraKey, LoraReport, read_key, read_layer, seems_for, spellings, survey
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer

WAN = {
    **{f"attn1.to_{name}": f"self_attn.{name}" for name in "qkv"},
    "attn1.to_out.0": "self_attn.o",
    **{f"attn2.to_{name}": f"cross_attn.{name}" for name in "qkv"},
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
DRAFT = {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
PEFT = (".lora_A.weight", ".lora_B.weight")
PEFT_DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
KOHYA = (".alpha", ".lora_down.weight", ".lora_up.weight")
PEFT_DORA = (*PEFT, ".lora_magnitude_vector")
DORA = (*KOHYA, ".dora_scale")
LOHA = (".alpha", ".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
LOKR = (".alpha", ".lokr_w1", ".lokr_w2_a", ".lokr_w2_b")


def dotted(prefix: str, table: dict[str, str], block: str = "blocks.{}."):
    return lambda number, inner: prefix + block.format(number) + table.get(inner, inner)


def underscored(prefix: str, table: dict[str, str]):
    return lambda number, inner: prefix + f"blocks_{number}_" + table.get(inner, inner).replace(".", "_")


# What writes such files -> how it names a layer, and the tensors of one.
NAMINGS = {
    "diffusers": (dotted("transformer.", {}), PEFT),
    "bare": (dotted("", {}), PEFT),
    "peft": (dotted("base_model.model.", {}), PEFT),
    "peft, DoRA": (dotted("base_model.model.", {}), PEFT_DORA),
    "compiled": (dotted("transformer._orig_mod.", {}), PEFT),
    "compiled after peft": (dotted("_orig_mod.base_model.model.", {}), PEFT),
    "compiled blocks": (dotted("transformer.", {}, "blocks.{}._orig_mod."), PEFT),
    "whole checkpoint": (dotted("model.diffusion_model.", {}), PEFT),
    "Wan": (dotted("diffusion_model.", WAN), PEFT),
    "Wan, lightx2v": (dotted("diffusion_model.", WAN), (*KOHYA[1:], ".diff_b")),
    "DiffSynth": (dotted("", WAN), PEFT_DEFAULT),
    "DiffSynth, whole pipeline": (dotted("pipe.dit.", WAN), PEFT_DEFAULT),
    "kohya on our names": (underscored("lora_unet_", {}), KOHYA),
    "musubi": (underscored("lora_unet_", WAN), KOHYA),
    "musubi, DoRA": (underscored("lora_unet_", WAN), DORA),
    "Wan-Fun": (underscored("lora_unet__", WAN), KOHYA),
    "LyCORIS LoHa": (underscored("lycoris_", {}), LOHA),
    "LyCORIS LoKr": (underscored("lycoris_", WAN), LOKR),
    "OneTrainer": (underscored("lora_transformer_", {}), KOHYA),
    "ComfyUI draft": (dotted("diffusion_model.", DRAFT), PEFT),
}


@pytest.fixture(scope="module")
def published():
    """Name -> shape of every parameter of the 14B model."""
    model = HeliosTransformer(TransformerConfig(), dtype=torch.bfloat16, device="meta")
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def layers(published):
    return {name.removesuffix(".weight") for name in published if name.endswith(".weight")}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_key_of_a_full_lora_leads_to_its_layer_of_the_14b_model(published, layers, naming):
    name_of, tensors = NAMINGS[naming]
    expected = {
        name_of(number, inner) + tensor: f"blocks.{number}.{inner}"
        for number in range(40)
        for inner in WAN
        for tensor in tensors
    }
    assert {key: read_key(key).layer for key in expected} == expected
    assert all(len(published[f"{layer}.weight"]) == 2 for layer in expected.values())
    report = survey(expected, layers)
    assert report.left_out == {}
    assert report.applied == 400 * (2 if ".diff_b" in tensors else 1)


def test_the_spellings_a_host_is_given_are_read_back_to_the_same_layers(layers):
    listed = list(spellings(40))
    assert len({spelling for spelling, _, _ in listed}) == len(listed)
    for spelling, layer, absent in listed:
        found, what = read_layer(spelling)
        assert what == absent
        if absent is None:
            assert found == layer
            assert layer in layers
    assert {layer for _, layer, absent in listed if absent is None} == layers


def test_a_full_lora_of_any_naming_is_among_the_spellings():
    listed = {spelling for spelling, _, _ in spellings(40)}
    for name_of, _ in NAMINGS.values():
        if name_of(0, "").startswith("_orig_mod.base_model"):
            continue  # read in files, but no program is known to write it
        assert {name_of(number, inner) for number in range(40) for inner in WAN} <= listed


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("diffusion_model.blocks.3.self_attn.norm_q.diff", LoraKey("blocks.3.attn1.norm_q", "diff")),
        ("diffusion_model.blocks.3.norm3.diff_b", LoraKey("blocks.3.norm2", "diff_b")),
        ("diffusion_model.head.head.diff", LoraKey("proj_out", "diff")),
        ("diffusion_model.time_projection.1.lora_down.weight", LoraKey("condition_embedder.time_proj", "lora_down")),
        ("lora_unet_text_embedding_0.alpha", LoraKey("condition_embedder.text_embedder.linear_1", "alpha")),
        ("patch_embedding.lora_A.weight", LoraKey("patch_embedding", "lora_down")),
        (
            "diffusion_model.blocks.7.cross_attn.k_img.lora_B.weight",
            LoraKey("blocks.7.cross_attn.k_img", "lora_up", "image conditioning"),
        ),
        ("img_emb.proj.1.lora_A.weight", LoraKey("img_emb.proj.1", "lora_down", "image conditioning")),
        (
            "transformer.blocks.0.attn2.add_k_proj.alpha",
            LoraKey("blocks.0.attn2.add_k_proj", "alpha", "image conditioning"),
        ),
        ("vace_blocks.0.self_attn.q.lora_A.weight", LoraKey("vace_blocks.0.self_attn.q", "lora_down", "control")),
        ("transformer.double_blocks.0.img_attn.qkv.lora_A.weight", None),
        ("blocks.0.attn1.to_q.weight", None),
        ("", None),
    ],
)  # fmt: skip
def test_keys_of_other_parts_and_kinds(key, expected):
    assert read_key(key) == expected


def test_a_lora_for_image_to_video_is_counted_by_what_its_weights_are_for(layers):
    name_of, tensors = NAMINGS["Wan"]
    keys = [name_of(number, inner) + tensor for number in range(40) for inner in WAN for tensor in tensors]
    keys += [
        f"diffusion_model.blocks.{number}.cross_attn.{name}.lora_{side}.weight"
        for number in range(40)
        for name in ("k_img", "v_img")
        for side in "AB"
    ]
    report = survey(keys, layers)
    assert report.sentence() == "400 of 480 applied; 80 are for image conditioning, which Helios has not"


def test_the_sentence_when_all_fits():
    assert LoraReport(480, {}).sentence() == "480 of 480 weights applied"


def test_a_lora_with_more_blocks_says_so(layers):
    keys = [f"blocks.{number}.attn1.to_q.lora_A.weight" for number in range(48)]
    assert survey(keys, layers).left_out == {"more blocks": 8}


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", "Flux or Hunyuan Video"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("lora_unet_down_blocks_0_attentions_0.alpha", "Stable Diffusion 1.5, 2 or XL"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "a text encoder"),
        ("transformer_blocks.0.img_mlp.net.0.proj.lora_A.weight", "Qwen-Image"),
        ("something.else", None),
    ],
)
def test_a_lora_for_another_model_is_known_by_its_names(key, model):
    assert seems_for([key]) == model
