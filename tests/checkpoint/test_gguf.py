"""GGUF files give the numbers that the `gguf` library reads from them."""

import builtins
import dataclasses
import json

import gguf
import numpy as np
import pytest
import torch

from helios_core.checkpoint.checkpoint import CheckpointError, open_checkpoint
from helios_core.checkpoint.loading import load_transformer
from helios_core.checkpoint.quantised import BLOCK_FORMATS, QuantisedWeight, dequantise_blocks
from helios_core.checkpoint.writing import convert_checkpoint
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer
from helios_core.sampling.settings import VARIANTS
from tests.comfyui.harness.gguf_weights import FORMATS, quantise, write_gguf
from tests.comfyui_layout import comfyui_name

# Rows of 256, the block length of the K formats, but for one Linear.
CONFIG = TransformerConfig(num_attention_heads=2, text_dim=16, freq_dim=8, ffn_dim=64, num_layers=1)


def random_weights():
    torch.manual_seed(0)
    return {name: 0.1 * torch.randn_like(value) for name, value in HeliosTransformer(CONFIG).state_dict().items()}


def error_of(path):
    with pytest.raises(CheckpointError) as caught:
        load_transformer(open_checkpoint(path), dtype=torch.float32)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("block_format", FORMATS)
def test_blocks_are_what_the_library_says(block_format):
    kind = gguf.GGMLQuantizationType[block_format]
    num_bytes, num_values, factors, _ = BLOCK_FORMATS[block_format]
    assert (num_values, num_bytes) == gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(1).integers(0, 256, (5, 3 * num_bytes), dtype=np.uint8)
    for start in factors:  # random bytes are sometimes no finite number
        halves = np.random.default_rng(start).standard_normal((15, 1)).astype(np.float16)
        data.reshape(-1, num_bytes)[:, start : start + 2] = halves.view(np.uint8)
    expected = torch.from_numpy(gguf.quants.dequantize(data, kind))
    assert torch.equal(dequantise_blocks(torch.from_numpy(data), block_format), expected)


@pytest.mark.parametrize("block_format", FORMATS)
@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_a_file_gives_the_numbers_it_stands_for(tmp_path, block_format, layout):
    name_in_file = comfyui_name if layout == "comfyui" else str
    weights = {name_in_file(name): value for name, value in random_weights().items()}
    numbers = write_gguf(tmp_path / "helios.gguf", weights, block_format)
    checkpoint = open_checkpoint(tmp_path / "helios.gguf")
    assert (checkpoint.config, checkpoint.layout, checkpoint.is_quantised) == (CONFIG, layout, True)
    state = load_transformer(checkpoint, dtype=torch.float32).state_dict()
    for name, value in state.items():
        assert torch.equal(value, numbers[name_in_file(name)]), name


def test_q8_0_is_close_to_what_was_quantised(tmp_path):
    weights = random_weights()
    write_gguf(tmp_path / "helios.gguf", weights, "Q8_0")
    state = load_transformer(open_checkpoint(tmp_path / "helios.gguf"), dtype=torch.float32).state_dict()
    weight = weights["blocks.0.attn1.to_q.weight"]
    step = weight.abs().amax() / 127
    assert (state["blocks.0.attn1.to_q.weight"] - weight).abs().max() < 0.51 * step


def test_a_host_is_given_the_blocks_as_they_are_and_its_layer_gets_the_bias(tmp_path):
    weights = random_weights()
    numbers = write_gguf(tmp_path / "helios.gguf", weights, "Q5_K")
    kept = {}

    class Layer(torch.nn.Module):
        def __init__(self, weight: QuantisedWeight):
            super().__init__()
            self.stored = weight

    def keep(linear, weight):
        kept[len(kept)] = (linear.in_features, linear.out_features)
        return Layer(weight)

    model = load_transformer(open_checkpoint(tmp_path / "helios.gguf"), dtype=torch.float32, keep_quantised=keep)
    layer = model.blocks[0].attn1.to_out[0]
    assert torch.equal(layer.stored.dequantised(), numbers["blocks.0.attn1.to_out.0.weight"])
    assert torch.equal(layer.bias, weights["blocks.0.attn1.to_out.0.bias"])
    assert len(kept) == 9  # all but the Linear whose rows are too short for blocks


def test_config_and_variant_are_read_from_the_metadata(tmp_path):
    config = dataclasses.replace(CONFIG, eps=1e-5)
    metadata = {"helios_config": json.dumps(dataclasses.asdict(config)), "helios_variant": "base"}
    write_gguf(tmp_path / "helios.gguf", random_weights(), "Q4_K", **metadata)
    checkpoint = open_checkpoint(tmp_path / "helios.gguf")
    assert (checkpoint.config, checkpoint.settings) == (config, VARIANTS["base"])


def test_a_gguf_file_is_converted_to_safetensors(tmp_path):
    numbers = write_gguf(tmp_path / "helios.gguf", random_weights(), "Q6_K")
    convert_checkpoint(open_checkpoint(tmp_path / "helios.gguf"), tmp_path / "out.safetensors", "fp32", "mid")
    state = load_transformer(open_checkpoint(tmp_path / "out.safetensors"), dtype=torch.float32).state_dict()
    assert all(torch.equal(state[name], numbers[name]) for name in state)


def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch):
    write_gguf(tmp_path / "helios.gguf", random_weights(), "Q8_0")
    real_import = builtins.__import__

    def no_gguf(name, *arguments, **options):
        if name == "gguf":
            raise ImportError("No module named 'gguf'")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_gguf)
    with pytest.raises(ImportError, match=r"helios\.gguf needs the Python package 'gguf'.*pip install gguf"):
        open_checkpoint(tmp_path / "helios.gguf")


@pytest.mark.parametrize("kept", [0, 3, 100, 5000, -1])
def test_a_cut_file_is_named_in_the_error(tmp_path, kept):
    file = tmp_path / "helios.gguf"
    write_gguf(file, random_weights(), "Q8_0")
    file.write_bytes(file.read_bytes()[:kept])
    assert "again" in error_of(file)


def test_a_file_that_was_cut_after_it_was_opened_is_an_error_when_loaded(tmp_path):
    file = tmp_path / "helios.gguf"
    write_gguf(file, random_weights(), "Q8_0")
    checkpoint = open_checkpoint(file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cut off"):
        load_transformer(checkpoint, dtype=torch.float32)


def test_blocks_whose_factor_is_not_finite_are_refused(tmp_path):
    file = tmp_path / "helios.gguf"
    weights = random_weights()
    write_gguf(file, weights, "Q4_K")
    blocks = quantise(weights["blocks.0.attn1.to_q.weight"].numpy(), gguf.GGMLQuantizationType.Q4_K).tobytes()
    content = file.read_bytes()
    assert content.count(blocks[:64]) > 0
    file.write_bytes(content.replace(blocks[:4], b"\x00\x7e" + blocks[2:4], 1))  # the fp16 number NaN
    assert "NaN" in error_of(file)


def test_a_block_format_that_is_not_supported_is_named_with_those_that_are(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "helios.gguf", "helios")
    kind = gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("proj_out.weight", gguf.quants.quantize(np.zeros((2, 32), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = error_of(tmp_path / "helios.gguf")
    assert "quantised as Q4_0; supported: Q8_0, Q6_K, Q5_K, Q4_K" in message
