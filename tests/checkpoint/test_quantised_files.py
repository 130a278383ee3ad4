"""Quantised files as `convert` writes them, and what `info FILE` says about files."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helios_core.checkpoint.checkpoint import open_checkpoint
from helios_core.checkpoint.describing import describe_file
from helios_core.checkpoint.loading import load_transformer
from helios_core.checkpoint.writing import QUANTISED_DTYPES, convert_checkpoint, save_transformer
from helios_core.cli import main
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer

NARROW = TransformerConfig(
    num_attention_heads=2, attention_head_dim=12, rope_dim=(4, 4, 4), text_dim=16, freq_dim=8, ffn_dim=48, num_layers=8
)


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    model = HeliosTransformer(NARROW, dtype=torch.bfloat16)
    save_transformer(model, tmp_path / "source.safetensors", variant="distilled")
    return tmp_path / "source.safetensors"


def is_quantised_name(name: str, kept: int) -> bool:
    parts = name.split(".")
    in_middle = parts[0] == "blocks" and kept <= int(parts[1]) < 8 - kept
    return in_middle and name.endswith(".weight") and ("to_" in name or "ffn" in name)


@pytest.mark.parametrize("dtype", QUANTISED_DTYPES)
@pytest.mark.parametrize("kept", [3, 0])
def test_the_middle_blocks_are_quantised_and_all_else_is_bf16(source, tmp_path, dtype, kept):
    target = tmp_path / "quantised.safetensors"
    assert main(["convert", str(source), str(target), "--dtype", dtype, "--keep-blocks", str(kept)]) == 0
    before, after = load_file(source), load_file(target)
    for name, weight in before.items():
        if not is_quantised_name(name, kept):
            assert torch.equal(after.pop(name), weight), name
            continue
        layer = name.removesuffix(".weight")
        scale, data = after.pop(f"{layer}.weight_scale"), after.pop(name)
        format_name = json.loads(bytes(after.pop(f"{layer}.comfy_quant").tolist()))["format"]
        assert format_name == ("float8_e4m3fn" if dtype == "fp8_scaled" else "int8_tensorwise")
        assert scale.shape == ((len(weight), 1) if dtype == "int8_rows" else ())
        # Rounding to the nearest: half a step of int8, 1/16 of the number or half the smallest step of fp8.
        error = (data.float() * scale - weight.float()).abs()
        most = scale / 2 if dtype != "fp8_scaled" else torch.maximum(weight.float().abs() / 16, scale * 2.0**-10)
        assert bool((error <= most * 1.001).all()), name
    assert not after


@pytest.mark.parametrize("dtype", QUANTISED_DTYPES)
def test_a_quantised_file_is_read_with_its_variant_and_its_numbers(source, tmp_path, dtype):
    target = tmp_path / "quantised.safetensors"
    convert_checkpoint(open_checkpoint(source), target, dtype, kept_blocks=1)
    checkpoint = open_checkpoint(target)
    assert checkpoint.config == NARROW
    assert checkpoint.settings == open_checkpoint(source).settings
    stored = load_file(target)
    name = "blocks.3.ffn.net.2.weight"
    expected = stored[name].float() * stored[name.replace("weight", "weight_scale")]
    model = load_transformer(checkpoint, dtype=torch.float32)
    assert torch.equal(model.blocks[3].ffn.net[2].weight, expected)


def test_rows_of_zeros_stay_zeros(tmp_path, source):
    weights = load_file(source)
    weights["blocks.4.attn1.to_q.weight"][2] = 0
    with safe_open(source, framework="pt") as opened:
        save_file(weights, tmp_path / "zeros.safetensors", metadata=opened.metadata())
    target = tmp_path / "quantised.safetensors"
    convert_checkpoint(open_checkpoint(tmp_path / "zeros.safetensors"), target, "int8_rows")
    assert not open_checkpoint(target).read("blocks.4.attn1.to_q.weight")[2].any()


def test_a_model_of_which_every_block_would_be_kept_is_refused(source, tmp_path, caplog):
    target = tmp_path / "quantised.safetensors"
    assert main(["convert", str(source), str(target), "--dtype", "int8", "--keep-blocks", "4"]) == 2
    assert "leaves none to quantise; keep 0 to 3" in caplog.text
    assert not target.exists()


def test_a_quantised_file_is_aligned(source, tmp_path):
    target = tmp_path / "quantised.safetensors"
    convert_checkpoint(open_checkpoint(source), target, "int8_rows")
    data = target.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    sizes = {"F32": 4, "BF16": 2, "I8": 1, "U8": 1}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0, name


# info FILE


def told(path, capsys) -> str:
    assert main(["info", str(path)]) == 0
    return capsys.readouterr().out


def test_info_says_how_each_kind_of_layer_is_stored(source, tmp_path, capsys):
    target = tmp_path / "quantised.safetensors"
    convert_checkpoint(open_checkpoint(source), target, "int8_rows")
    words = told(target, capsys)
    assert "a Helios transformer, complete, in diffusers names" in words
    assert "variant: distilled" in words
    assert "8 blocks of width 24" in words
    assert (
        "self-attention: 56 in bfloat16, 8 in int8_tensorwise with a scale for each row, as ComfyUI marks it" in words
    )
    assert "output: 2 in bfloat16, 1 in float32" in words


def test_info_says_what_is_missing(source, tmp_path, caplog):
    weights = load_file(source)
    del weights["blocks.4.attn1.to_q.weight"]
    with safe_open(source, framework="pt") as opened:
        save_file(weights, tmp_path / "part.safetensors", metadata=opened.metadata())
    assert main(["info", str(tmp_path / "part.safetensors")]) == 2
    assert "1 missing (blocks.4.attn1.to_q.weight)" in caplog.text


def test_info_says_how_much_of_a_lora_fits(tmp_path, capsys):
    names = [f"diffusion_model.blocks.{number}.cross_attn.{name}" for number in (0, 1) for name in ("k", "k_img")]
    tensors = {f"{name}.lora_{side}.weight": torch.zeros(4, 4) for name in names for side in "AB"}
    save_file(tensors, tmp_path / "lora.safetensors")
    words = told(tmp_path / "lora.safetensors", capsys)
    assert "a LoRA for Helios or Wan" in words
    assert "2 of 4 applied; 2 are for image conditioning, which Helios has not" in words
    assert "4 lora_down, 4 lora_up" in words


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "a LoRA for Flux"),
        ("blocks.0.self_attn.q.weight", "a Wan model"),
    ],
)
def test_info_names_what_is_not_for_helios(tmp_path, key, what):
    save_file({key: torch.zeros(4, 4)}, tmp_path / "other.safetensors")
    assert what in describe_file(tmp_path / "other.safetensors")[0]
