"""Every published layout gives the model the same weights, and everything else gives an error that says why."""

import dataclasses
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from diffusers import HeliosTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from helios_core.checkpoint.checkpoint import CheckpointError, open_checkpoint
from helios_core.checkpoint.layouts import canonical_name, find_prefix
from helios_core.checkpoint.loading import load_transformer
from helios_core.checkpoint.writing import save_transformer
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer
from helios_core.sampling.settings import VARIANTS
from tests.comfyui_layout import comfyui_name

PACK = Path(__file__).resolve().parents[2]

TINY = TransformerConfig(
    num_attention_heads=2, attention_head_dim=12, rope_dim=(4, 4, 4), text_dim=16, freq_dim=8, ffn_dim=48, num_layers=2
)
# The width is a multiple of 128, so that the config can be inferred from shapes.
WIDE = TransformerConfig(num_attention_heads=1, text_dim=16, freq_dim=8, ffn_dim=32, num_layers=1)


def random_weights(config=TINY, dtype=torch.float32):
    """A state dict under the canonical names."""
    source = torch.Generator().manual_seed(0)
    names = HeliosTransformer(config, dtype=dtype, device="meta").named_parameters()
    return {name: torch.randn(meta.shape, generator=source).to(meta.dtype) for name, meta in names}


def write(file, weights, config=TINY, **metadata):
    """A safetensors file with config.json beside it, unless `config` is None."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file, metadata=metadata or None)
    if config is not None:
        file.with_name("config.json").write_text(json.dumps(dataclasses.asdict(config)))
    return file


def diffusers_model(**shape):
    """A tiny diffusers model, the oracle for the published layout."""
    torch.manual_seed(0)
    values = dataclasses.asdict(TINY) | shape
    return HeliosTransformer3DModel(**values)


def assert_same_weights(model, weights):
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.data, weights[name].to(parameter.dtype), rtol=0, atol=0, msg=name)


def error_of(path):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.")

# Names


@pytest.fixture(scope="module")
def published_names():
    return set(dict(HeliosTransformer(TransformerConfig(), device="meta").named_parameters()))


def test_the_published_14b_model_has_the_names_of_diffusers(published_names):
    with torch.device("meta"):
        assert published_names == set(HeliosTransformer3DModel().state_dict())
    assert len(published_names) == 1101


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_name_of_the_14b_model_survives_each_layout_and_prefix(published_names, prefix):
    in_comfyui = {prefix + comfyui_name(name) for name in published_names}
    assert len(in_comfyui) == len(published_names)
    assert find_prefix(in_comfyui) == find_prefix({prefix + name for name in published_names}) == prefix
    assert {canonical_name(key.removeprefix(prefix)) for key in in_comfyui} == published_names
    assert {canonical_name(name) for name in published_names} == published_names


def test_comfyui_names_are_the_drafts():
    named_by_hand = {
        "condition_embedder.text_embedder.linear_1.weight": "text_embedding.0.weight",
        "condition_embedder.text_embedder.linear_2.bias": "text_embedding.2.bias",
        "condition_embedder.time_embedder.linear_1.bias": "time_embedding.0.bias",
        "condition_embedder.time_embedder.linear_2.weight": "time_embedding.2.weight",
        "condition_embedder.time_proj.weight": "time_projection.1.weight",
        "blocks.3.ffn.net.0.proj.weight": "blocks.3.ffn.0.weight",
        "blocks.39.ffn.net.2.bias": "blocks.39.ffn.2.bias",
        "blocks.3.attn1.to_out.0.weight": "blocks.3.attn1.to_out.0.weight",
    }
    assert {name: comfyui_name(name) for name in named_by_hand} == named_by_hand


@given(
    num_layers=st.integers(1, 12),
    amplified=st.booleans(),
    prefix=st.sampled_from(PREFIXES),
    suffix=st.sampled_from(["", ".scale_weight", ".weight_scale", ".comfy_quant"]),
)
@settings(max_examples=20, deadline=None)
def test_renaming_there_and_back_is_the_identity(num_layers, amplified, prefix, suffix):
    config = dataclasses.replace(TINY, num_layers=num_layers, is_amplify_history=amplified)
    names = {
        name.removesuffix(".weight") + suffix if suffix else name
        for name in dict(HeliosTransformer(config, device="meta").named_parameters())
    }
    keys = {prefix + comfyui_name(name) for name in names}
    assert find_prefix(keys) == prefix
    assert {canonical_name(key.removeprefix(prefix)) for key in keys} == names


@given(st.text(alphabet="abc.0129_", max_size=30))
def test_names_of_neither_layout_are_left_alone(name):
    assert canonical_name(name) == comfyui_name(name) == name


# Layouts


def test_the_published_shard_folder_gives_the_weights_of_diffusers(tmp_path):
    original = diffusers_model()
    original.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2

    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == TINY
    assert checkpoint.layout == "diffusers"
    assert checkpoint.settings is None
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in original.state_dict().values())
    assert_same_weights(load_transformer(checkpoint, dtype=torch.float32), original.state_dict())


def test_an_unsharded_folder_and_its_file_and_the_model_folder_are_the_same_checkpoint(tmp_path):
    diffusers_model().save_pretrained(tmp_path / "transformer")
    scheduler = {"_class_name": "HeliosDMDScheduler", "use_dynamic_shifting": True, "time_shift_type": "linear"}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (tmp_path / "model_index.json").write_text(json.dumps({"is_distilled": True}))

    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    opened = [open_checkpoint(path) for path in (tmp_path, tmp_path / "transformer", file)]
    assert opened[0].tensors == opened[1].tensors == opened[2].tensors
    assert [checkpoint.settings for checkpoint in opened] == [VARIANTS["distilled"]] * 3


def test_a_shard_or_the_index_stands_for_the_whole_folder(tmp_path):
    diffusers_model().save_pretrained(tmp_path, max_shard_size="100KB")
    whole = open_checkpoint(tmp_path)
    shard = min(tmp_path.glob("*.safetensors"))
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    assert open_checkpoint(shard).tensors == whole.tensors == open_checkpoint(index).tensors


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_comfyui_layout_gives_the_same_weights(tmp_path, prefix, dtype):
    weights = random_weights(dtype=dtype)
    file = write(tmp_path / "helios.safetensors", {prefix + comfyui_name(k): v for k, v in weights.items()})
    checkpoint = open_checkpoint(file)
    assert checkpoint.layout == "comfyui"
    assert checkpoint.stored_dtype == dtype
    assert_same_weights(load_transformer(checkpoint, dtype=dtype), weights)


def test_other_models_in_an_all_in_one_file_are_passed_over(tmp_path):
    weights = random_weights()
    keys = {"model.diffusion_model." + name: tensor for name, tensor in weights.items()}
    keys["vae.decoder.conv1.weight"] = torch.zeros(3)
    keys["text_encoders.umt5xxl.transformer.shared.weight"] = torch.zeros(3)
    file = write(tmp_path / "all_in_one.safetensors", keys)
    assert_same_weights(load_transformer(open_checkpoint(file), dtype=torch.float32), weights)


@pytest.mark.parametrize("amplified", [False, True])
def test_a_file_with_nothing_beside_it_shows_its_config_by_shapes(tmp_path, amplified):
    config = dataclasses.replace(WIDE, is_amplify_history=amplified, history_scale_mode="per_head")
    file = write(tmp_path / "helios.safetensors", random_weights(config), config=None)
    assert open_checkpoint(file).config == config


def test_a_config_of_another_model_beside_a_lone_file_is_not_used(tmp_path):
    file = write(tmp_path / "helios.safetensors", random_weights(WIDE), config=None)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", "num_layers": 3}))
    assert open_checkpoint(file).config == WIDE
    assert "WanTransformer3DModel" in error_of(tmp_path)


# Loading


def test_parameters_keep_the_dtypes_of_the_model_and_need_no_gradient(tmp_path):
    file = write(tmp_path / "helios.safetensors", random_weights())
    model = load_transformer(open_checkpoint(file), dtype=torch.bfloat16)
    built = dict(HeliosTransformer(TINY, dtype=torch.bfloat16, device="meta").named_parameters())
    assert {name: p.dtype for name, p in model.named_parameters()} == {name: p.dtype for name, p in built.items()}
    assert model.blocks[0].scale_shift_table.dtype == torch.float32
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert not model.training


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_storage_is_for_the_linear_weights_of_the_blocks_only(tmp_path, fp8):
    weights = random_weights()
    weights["blocks.0.attn1.to_q.weight"][0, 0] = 1e6
    file = write(tmp_path / "helios.safetensors", weights)
    model = load_transformer(open_checkpoint(file), dtype=torch.bfloat16, weight_dtype=fp8)
    in_fp8 = {name for name, parameter in model.named_parameters() if parameter.dtype == fp8}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert in_fp8 == {name for name in linear if name.startswith("blocks.")}
    # The format's largest value, neither infinite nor NaN.
    assert model.blocks[0].attn1.to_q.weight[0, 0].float() == torch.finfo(fp8).max
    stored = model.blocks[1].ffn.net[2].weight.float()
    half_a_step = torch.finfo(fp8).eps / 2
    torch.testing.assert_close(stored, weights["blocks.1.ffn.net.2.weight"], rtol=half_a_step, atol=2**-10)


@pytest.mark.parametrize(
    "arguments", [{"dtype": torch.float8_e4m3fn}, {"dtype": torch.float16, "weight_dtype": torch.int8}]
)
def test_dtypes_that_cannot_be_computed_in_are_refused(tmp_path, arguments):
    checkpoint = open_checkpoint(write(tmp_path / "helios.safetensors", random_weights()))
    with pytest.raises(ValueError, match=r"allowed: .*float"):
        load_transformer(checkpoint, **arguments)


def test_the_loaded_model_does_not_depend_on_the_file_any_more(tmp_path):
    weights = random_weights()
    file = write(tmp_path / "helios.safetensors", weights)
    model = load_transformer(open_checkpoint(file), dtype=torch.float32)
    file.write_bytes(b"")
    assert_same_weights(model, weights)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux' /proc")
def test_loading_takes_little_more_memory_than_the_model(tmp_path):
    """A file of zeros with holes: some 400 MB in float32, to be loaded in bfloat16."""
    config = TransformerConfig(num_attention_heads=8, text_dim=512, ffn_dim=4096, num_layers=6)
    file = tmp_path / "helios.safetensors"
    header, offset, largest = {}, 0, 0
    for name, parameter in HeliosTransformer(config, device="meta").named_parameters():
        end = offset + 4 * parameter.numel()
        header[name] = {"dtype": "F32", "shape": list(parameter.shape), "data_offsets": [offset, end]}
        offset, largest = end, max(largest, end - offset)
    encoded = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        stream.truncate(8 + len(encoded) + offset)

    script = """
        import json, re, sys, torch
        from pathlib import Path
        from helios_core.checkpoint.checkpoint import open_checkpoint
        from helios_core.checkpoint.loading import load_transformer

        def memory(what):
            return 1024 * int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

        checkpoint = open_checkpoint(Path(sys.argv[1]))
        before = memory("VmRSS")
        model = load_transformer(checkpoint, dtype=torch.bfloat16)
        size = sum(parameter.nbytes for parameter in model.parameters())
        print(json.dumps([size, memory("VmHWM") - before]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(file)]
    # The C library gives every large block back to the system when it is freed; what is large to it may grow to
    # 32 MB, which is small for the published model but not for this one.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACK, env=environment)
    size, peak = json.loads(run.stdout)
    assert size > 180e6
    # Of the tensor that is read: the mapped file, its copy, and the copy in the model's dtype.
    assert 0.9 * size < peak < size + 3 * largest


# fp8 files


def scaled(weight, row_wise=False):
    """fp8 values and scale as ComfyUI's quantisers make them: the largest value becomes the largest of e4m3."""
    amax = weight.abs().amax(dim=1, keepdim=True) if row_wise else weight.abs().amax()
    scale = amax / torch.finfo(torch.float8_e4m3fn).max
    return (weight / scale).to(torch.float8_e4m3fn), scale


def fp8_file(file, scheme, name_in_file):
    """Block weights in fp8 with the extra keys of `scheme`; returns the file and the values that they mean."""
    weights = {name: 0.02 * tensor for name, tensor in random_weights(dtype=torch.bfloat16).items()}
    keys, meant = {}, {}
    for name, weight in weights.items():
        layer, _, kind = name_in_file(name).rpartition(".")
        if not (name.startswith("blocks.") and kind == "weight" and weight.ndim == 2):
            keys[name_in_file(name)] = meant[name] = weight
            continue
        if scheme == "plain":
            keys[name_in_file(name)] = weight.to(torch.float8_e4m3fn)
            meant[name] = keys[name_in_file(name)].float()
            continue
        values, scale = scaled(weight.float(), row_wise=scheme == "row-wise")
        keys[name_in_file(name)] = values
        meant[name] = values.float() * scale
        if scheme == "scale_weight":
            keys[f"{layer}.scale_weight"] = scale.reshape(1)
            keys[f"{layer}.scale_input"] = torch.ones(1)
        else:
            keys[f"{layer}.weight_scale"] = scale
            keys[f"{layer}.input_scale"] = torch.tensor(0.5)
            keys[f"{layer}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    if scheme == "scale_weight":
        keys[name_in_file("scaled_fp8")] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return write(file, keys), weights, meant


@pytest.mark.parametrize("scheme", ["plain", "scale_weight", "weight_scale", "row-wise"])
@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_fp8_files_of_every_scheme_give_the_values_that_they_mean(tmp_path, scheme, layout):
    def name_in_file(name):
        return "model.diffusion_model." + comfyui_name(name) if layout == "comfyui" else name

    file, weights, meant = fp8_file(tmp_path / "fp8.safetensors", scheme, name_in_file)
    checkpoint = open_checkpoint(file)
    assert checkpoint.layout == layout
    model = load_transformer(checkpoint, dtype=torch.bfloat16)
    assert_same_weights(model, meant)
    if scheme != "plain":
        # Half a step of e4m3 is 1/16; what is far below the largest weight is coarser.
        got, original = model.blocks[0].attn1.to_q.weight.float(), weights["blocks.0.attn1.to_q.weight"].float()
        torch.testing.assert_close(got, original, rtol=1 / 15, atol=float(original.abs().max()) / 448 / 256)


def test_plain_fp8_values_stay_as_they_are_in_fp8_storage(tmp_path):
    file, _, _ = fp8_file(tmp_path / "fp8.safetensors", "plain", lambda name: name)
    model = load_transformer(open_checkpoint(file), dtype=torch.bfloat16, weight_dtype=torch.float8_e4m3fn)
    stored = load_file(file)["blocks.0.attn1.to_q.weight"]
    assert torch.equal(model.blocks[0].attn1.to_q.weight.view(torch.uint8), stored.view(torch.uint8))


def test_a_scale_that_fits_no_rows_is_refused(tmp_path):
    weights = random_weights()
    weights |= {QUERY: weights[QUERY].to(torch.float8_e4m3fn), "blocks.0.attn1.to_q.weight_scale": torch.ones(5, 7)}
    message = error_of(write(tmp_path / "fp8.safetensors", weights))
    assert "blocks.0.attn1.to_q.weight_scale is torch.float32 (5, 7)" in message


def test_a_scale_without_its_weight_is_unexpected(tmp_path):
    weights = random_weights() | {"blocks.0.attn1.to_qkv.scale_weight": torch.ones(1)}
    message = error_of(write(tmp_path / "fp8.safetensors", weights))
    assert "1 unexpected (blocks.0.attn1.to_qkv.scale_weight)" in message


def test_a_packed_four_bit_weight_is_refused_by_its_format(tmp_path):
    weights = random_weights() | {"blocks.0.attn1.to_q.weight": torch.zeros(24, 12, dtype=torch.uint8)}
    message = error_of(write(tmp_path / "nvfp4.safetensors", weights))
    assert "1 in a quantised format that is not supported (blocks.0.attn1.to_q.weight is torch.uint8)" in message


QUERY = "blocks.0.attn1.to_q.weight"


def marker(**settings) -> torch.Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("marked", [False, True])
def test_int8_weights_give_the_numbers_that_they_mean_with_and_without_comfyuis_marker(tmp_path, row_wise, marked):
    weights = {name: 0.02 * tensor for name, tensor in random_weights().items()}
    keys, meant = dict(weights), dict(weights)
    for name in [name for name, value in weights.items() if name.startswith("blocks.") and value.ndim == 2]:
        layer = name.removesuffix(".weight")
        amax = weights[name].abs().amax(dim=1, keepdim=True) if row_wise else weights[name].abs().amax()
        keys[name] = (weights[name] / (amax / 127)).round().to(torch.int8)
        keys[f"{layer}.weight_scale"] = amax / 127
        meant[name] = keys[name].float() * (amax / 127)
        if marked:
            keys[f"{layer}.comfy_quant"] = marker(format="int8_tensorwise")
    checkpoint = open_checkpoint(write(tmp_path / "int8.safetensors", keys))
    assert checkpoint.is_quantised
    model = load_transformer(checkpoint, dtype=torch.float32)
    for name, value in model.state_dict().items():
        assert torch.equal(value, meant[name]), name


def test_a_scale_left_beside_a_weight_in_full_changes_nothing(tmp_path):
    """As ModelOpt and others leave it: some blocks fp8 with scales, others bf16, with or without a scale."""
    file, _, meant = fp8_file(tmp_path / "fp8.safetensors", "weight_scale", lambda name: name)
    keys = load_file(file)
    full = random_weights(dtype=torch.bfloat16)
    for name in [name for name in keys if name.startswith("blocks.1.") and name in meant]:
        keys[name] = meant[name] = 0.02 * full[name]
    for name in [
        name for name in keys if name.startswith("blocks.1.ffn.") and name.endswith((".weight_scale", "quant"))
    ]:
        del keys[name]
    model = load_transformer(open_checkpoint(write(file, keys)), dtype=torch.float32)
    for name, value in model.state_dict().items():
        assert torch.equal(value, meant[name].float()), name


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_file_whose_scales_were_lost_is_refused_by_layer(tmp_path, dtype):
    file, _, _ = fp8_file(tmp_path / "fp8.safetensors", "weight_scale", lambda name: name)
    keys = {name: value for name, value in load_file(file).items() if not name.endswith(("_scale", "comfy_quant"))}
    if dtype == torch.int8:
        keys[QUERY] = torch.ones(keys[QUERY].shape, dtype=torch.int8)
    file = write(tmp_path / "lost.safetensors", keys)
    with pytest.raises(CheckpointError, match=r"without the scale that .* divided by") as caught:
        load_transformer(open_checkpoint(file), dtype=torch.float32)
    assert "blocks.0.attn1.to_q" in str(caught.value) or dtype != torch.int8


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"format": "nvfp4"}, r"quantised as 'nvfp4'; it is read inside ComfyUI 0\.10 or newer only"),
        ({"format": "mxfp8"}, r"quantised as 'mxfp8'; it is read inside ComfyUI 0\.33 or newer only"),
        ({"format": "int8_tensorwise", "convrot": True}, r"it is read inside ComfyUI 0\.33 or newer only"),
        ({"format": "int3_magic"}, r"quantised as 'int3_magic'; it is not known; readable here are .*int8_tensorwise"),
        ({"kind": "fp8"}, "it must name a format"),
    ],
)
def test_a_format_that_nobody_here_reads_is_refused_with_what_does(tmp_path, settings, told):
    keys = random_weights()
    keys |= {QUERY: torch.zeros(24, 12, dtype=torch.uint8), QUERY.replace("weight", "comfy_quant"): marker(**settings)}
    keys[QUERY.replace("weight", "weight_scale")] = torch.ones(24, 2)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(write(tmp_path / "packed.safetensors", keys))


def test_a_format_that_the_host_reads_is_opened_for_it(tmp_path):
    keys = random_weights()
    keys |= {
        QUERY: torch.zeros(24, 12, dtype=torch.uint8),
        QUERY.replace("weight", "comfy_quant"): marker(format="nvfp4"),
    }
    keys |= {QUERY.replace("weight", name): torch.ones(24, 2) for name in ("weight_scale", "weight_scale_2")}
    checkpoint = open_checkpoint(write(tmp_path / "nvfp4.safetensors", keys), ["nvfp4"])
    weight = checkpoint.read_stored(QUERY)
    assert weight.quant.name == "nvfp4"
    assert set(weight.parts) == {"weight_scale", "weight_scale_2"}
    with pytest.raises(ValueError, match="cannot be turned into numbers here"):
        weight.dequantised()


# Saving


@pytest.mark.parametrize("variant", [None, *VARIANTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_comes_back_whole_from_its_one_file(tmp_path, variant, dtype):
    config = dataclasses.replace(TINY, eps=1e-5, is_amplify_history=True, history_scale_mode="scalar")
    model = HeliosTransformer(config, dtype=dtype)
    save_transformer(model, tmp_path / "demo.safetensors", variant=variant)
    assert [file.name for file in tmp_path.iterdir()] == ["demo.safetensors"]

    checkpoint = open_checkpoint(tmp_path / "demo.safetensors")
    assert checkpoint.config == config
    assert checkpoint.settings == (VARIANTS[variant] if variant else None)
    loaded = load_transformer(checkpoint, dtype=dtype)
    for (name, before), (same_name, after) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == same_name
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


def test_parameters_that_are_not_contiguous_are_saved_as_well(tmp_path):
    model = HeliosTransformer(TINY)
    model.proj_out.weight = torch.nn.Parameter(torch.randn(24, 64).t())
    save_transformer(model, tmp_path / "demo.safetensors")
    loaded = load_transformer(open_checkpoint(tmp_path / "demo.safetensors"), dtype=torch.float32)
    assert torch.equal(loaded.proj_out.weight, model.proj_out.weight)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "demo.safetensors"
    file.write_bytes(b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_transformer(HeliosTransformer(TINY), file)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("demo.safetensors", b"old")]


def test_saving_an_unknown_variant_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'turbo'; allowed: 'base', 'mid', 'distilled'"):
        save_transformer(HeliosTransformer(TINY), tmp_path / "demo.safetensors", variant="turbo")


# Errors: tensors


def test_one_error_names_file_counts_and_the_first_missing_unexpected_and_misshapen(tmp_path):
    weights = random_weights()
    for name in ("patch_long.weight", "patch_long.bias", "proj_out.bias"):
        del weights[name]
    weights["blocks.0.extra.weight"] = torch.zeros(1)
    weights["proj_out.weight"] = torch.zeros(60, 24)
    message = error_of(write(tmp_path / "broken.safetensors", weights))
    num_tensors = len(random_weights())
    for part in (
        str(tmp_path / "broken.safetensors"),
        f"Expected are {num_tensors} tensors for 2 blocks of width 24 (diffusers names)",
        "3 missing (patch_long.weight, patch_long.bias, proj_out.bias)",
        "1 unexpected (blocks.0.extra.weight)",
        "1 of wrong shape (proj_out.weight is (60, 24), expected (64, 24))",
    ):
        assert part in message


def test_long_lists_of_tensors_are_cut(tmp_path):
    message = error_of(write(tmp_path / "broken.safetensors", {"proj_out.bias": torch.zeros(64)}))
    assert "..." in message
    assert len(message) < 700


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["blocks.0.self_attn.q.weight", "patch_embedding.weight", "head.head.weight"], "a Wan model"),
        (["condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight"], "a Wan model in diffusers layout"),
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "a Stable Diffusion model"),
        (["double_blocks.0.img_attn.qkv.weight"], "a Flux or Hunyuan Video model"),
        (["diffusion_model.blocks.0.attn1.to_q.lora_A.weight"], "a LoRA"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "a T5 text encoder"),
        (["decoder.middle.0.residual.0.gamma"], "a VAE"),
    ],
)
def test_a_file_of_another_kind_is_known_by_its_keys(tmp_path, keys, what):
    file = write(tmp_path / "model.safetensors", {key: torch.zeros(4, 4) for key in keys}, config=None)
    message = error_of(file)
    assert f"It looks like {what}" in message
    assert str(file) in message


def test_an_incomplete_helios_is_not_taken_for_another_model(tmp_path):
    weights = random_weights()
    del weights["proj_out.bias"]
    assert "looks like" not in error_of(write(tmp_path / "broken.safetensors", weights))


def test_two_keys_for_one_tensor_are_refused(tmp_path):
    weights = random_weights()
    weights["text_embedding.0.bias"] = torch.zeros(24)
    message = error_of(write(tmp_path / "twice.safetensors", weights))
    assert "text_embedding.0.bias" in message
    assert "condition_embedder.text_embedder.linear_1.bias" in message


@pytest.mark.parametrize("block", ["x", "99999999999"])
def test_absurd_block_numbers_are_an_error_and_not_a_huge_model(tmp_path, block):
    weights = random_weights(WIDE) | {f"blocks.{block}.norm2.bias": torch.zeros(128)}
    assert str(tmp_path) in error_of(write(tmp_path / "absurd.safetensors", weights, config=None))


# Errors: files


def cut(file, num_bytes):
    file.write_bytes(file.read_bytes()[:num_bytes])


@pytest.mark.parametrize("kept", [4, 100, -1, -5000])
def test_a_truncated_file_is_named_in_the_error(tmp_path, kept):
    file = write(tmp_path / "helios.safetensors", random_weights())
    cut(file, kept)
    message = error_of(file)
    assert str(file) in message
    assert "again" in message
    if kept != 4:
        assert "is cut off" in message


def test_a_file_that_was_cut_after_it_was_opened_is_an_error_when_loaded(tmp_path):
    file = write(tmp_path / "helios.safetensors", random_weights())
    checkpoint = open_checkpoint(file)
    cut(file, -100)
    with pytest.raises(CheckpointError, match="is cut off"):
        load_transformer(checkpoint, dtype=torch.float32)


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_pickle_named_safetensors_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "was_run"
    raw, zipped = tmp_path / "raw.safetensors", tmp_path / "zipped.safetensors"
    raw.write_bytes(pickle.dumps(Trap(trace)))
    torch.save({"weight": Trap(trace)}, zipped)
    for file in (raw, zipped):
        message = error_of(file)
        assert "ickle" in message
        assert "never loaded" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9999\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "web page"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF"),
        (struct.pack("<Q", 16) + b"not json at all!", "not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
        (struct.pack("<Q", 2**60) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 60_000) + b"[" * 60_000, "not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_distinguished(tmp_path, content, what):
    file = tmp_path / "helios.safetensors"
    file.write_bytes(content)
    message = error_of(file)
    assert what in message
    assert str(file) in message


@pytest.mark.parametrize(
    "header",
    [
        {"proj_out.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"proj_out.bias": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}},
        {"proj_out.bias": {"dtype": "F32", "shape": [1]}},
        {"proj_out.bias": None},
        {"__metadata__": {"helios_config": 5}},
    ],
)
def test_a_damaged_header_is_an_error_that_names_the_file(tmp_path, header):
    encoded = json.dumps(header).encode()
    file = tmp_path / "helios.safetensors"
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(4))
    message = error_of(file)
    assert "damaged" in message
    assert str(file) in message


def test_a_dtype_that_torch_has_not_is_named_with_its_tensor(tmp_path):
    header = json.dumps({"proj_out.bias": {"dtype": "U16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    file = tmp_path / "helios.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "'proj_out.bias' is stored as U16" in error_of(file)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_no_bytes_whatever_give_another_error(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("bytes") / "helios.safetensors"
    file.write_bytes(content)
    assert str(file) in error_of(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_a_number_that_is_not_finite_is_reported_with_its_tensor_when_loaded(tmp_path, value, dtype):
    weights = random_weights()
    weights["blocks.1.attn2.to_k.weight"] = weights["blocks.1.attn2.to_k.weight"].index_fill(1, torch.tensor(7), value)
    weights["blocks.1.attn2.to_k.weight"] = weights["blocks.1.attn2.to_k.weight"].to(dtype)
    file = write(tmp_path / "helios.safetensors", weights)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn2\.to_k\.weight.*NaN or infinity") as caught:
        load_transformer(open_checkpoint(file), dtype=torch.float32)
    assert str(file) in str(caught.value)


def test_large_numbers_whose_sum_overflows_are_no_error(tmp_path):
    weights = random_weights()
    weights["proj_out.weight"] = torch.full((64, 24), 60000.0, dtype=torch.float16)
    file = write(tmp_path / "helios.safetensors", weights)
    assert load_transformer(open_checkpoint(file), dtype=torch.float32).proj_out.weight[0, 0] == 60000


def test_a_scale_that_is_not_finite_is_reported(tmp_path):
    weights = random_weights() | {"proj_out.scale_weight": torch.tensor(float("nan"))}
    weights["proj_out.weight"] = weights["proj_out.weight"].to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="NaN"):
        load_transformer(open_checkpoint(write(tmp_path / "fp8.safetensors", weights)), dtype=torch.float32)


# Errors: folders


def test_folders_without_clear_weights_are_refused(tmp_path):
    assert "does not exist" in error_of(tmp_path / "nowhere")
    assert "has no safetensors file" in error_of(tmp_path)
    for name in ("one", "two"):
        write(tmp_path / f"{name}.safetensors", random_weights())
    message = error_of(tmp_path)
    assert "2 safetensors files (one.safetensors, two.safetensors)" in message
    assert "choose one" in message


@pytest.fixture
def shards(tmp_path):
    """A folder of shards with an index."""
    folder = tmp_path / "shards"
    diffusers_model().save_pretrained(folder, max_shard_size="100KB")
    return folder


def edit_index(folder, edit):
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    edit(content["weight_map"])
    index.write_text(json.dumps(content))


def test_missing_shards_are_counted_and_named(shards):
    files = sorted(shards.glob("*.safetensors"))
    files[1].unlink()
    message = error_of(shards)
    assert f"{len(files)} shards, 1 of them missing: {files[1].name}" in message


@pytest.mark.parametrize(
    "name",
    ["../evil.safetensors", "sub/evil.safetensors", "..\\evil.safetensors", "evil.bin", "evil\0.safetensors", ""],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(shards, name):
    write(shards.parent / "evil.safetensors", random_weights(), config=None)
    edit_index(shards, lambda weight_map: weight_map.update({"proj_out.bias": name}))
    message = error_of(shards)
    assert repr(name) in message
    assert "same folder" in message


def test_an_index_with_an_absolute_path_is_refused(shards):
    evil = write(shards.parent / "evil.safetensors", random_weights(), config=None)
    edit_index(shards, lambda weight_map: weight_map.update({"proj_out.bias": str(evil)}))
    assert "same folder" in error_of(shards)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(shards):
    shard = min(shards.glob("*.safetensors"))
    outside = shard.rename(shards.parent / "outside.safetensors")
    shard.symlink_to(outside)
    message = error_of(shards)
    assert "outside the folder" in message
    assert str(outside) in message


def test_the_links_of_a_hugging_face_cache_are_followed(tmp_path, shards):
    expected = open_checkpoint(shards)
    blobs = tmp_path / "models--BestWishYsh--Helios-Base" / "blobs"
    snapshot = blobs.parent / "snapshots" / "abc123" / "transformer"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(shards.iterdir())):
        (snapshot / file.name).symlink_to(file.rename(blobs / f"blob{number}"))
    assert open_checkpoint(snapshot.parent).tensors.keys() == expected.tensors.keys()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "\x00"])
def test_a_malformed_index_is_named(shards, content):
    index = shards / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(content)
    assert str(index) in error_of(shards)


def test_an_index_and_shards_of_different_downloads_are_refused(shards):
    edit_index(shards, lambda weight_map: weight_map.update({"blocks.7.norm2.bias": weight_map["proj_out.bias"]}))
    message = error_of(shards)
    assert "blocks.7.norm2.bias" in message
    assert "different downloads" in message


def test_a_tensor_in_two_shards_is_refused(shards):
    first, second, *_ = sorted(shards.glob("*.safetensors"))
    save_file(load_file(first) | load_file(second), second)
    assert "is both in" in error_of(shards)


# Errors: config and metadata


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"num_layers": "two"}, "num_layers is 'two'"),
        ({"num_layers": True}, "num_layers is True"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_layers": 500_000}, "500000 blocks"),
        ({"num_layers": 3}, "27 missing (blocks.2."),
        ({"num_attention_heads": 3}, "of wrong shape"),
        ({"rope_dim": [4, 4, 6]}, "rope_dim (4, 4, 6)"),
        ({"rope_dim": 12}, "rope_dim is 12"),
        ({"patch_size": [1, 2]}, "patch_size is [1, 2]"),
        ({"eps": "small"}, "eps is 'small'"),
        ({"history_scale_mode": "both"}, "history_scale_mode is 'both'"),
        ({"zero_history_timestep": False}, "zero_history_timestep=False"),
        ({"_class_name": "WanTransformer3DModel"}, "WanTransformer3DModel"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_its_value(shards, edit, told):
    file = shards / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    message = error_of(shards)
    assert told in message
    assert str(shards) in message


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_malformed_config_is_named(shards, content):
    (shards / "config.json").write_text(content)
    assert str(shards / "config.json") in error_of(shards)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"helios_config": "{"}, "metadata helios_config is not JSON"),
        ({"helios_config": '{"num_layers": -1}'}, "num_layers is -1"),
        ({"helios_config": '{"depth": 2}'}, "depth"),
        ({"helios_variant": "turbo"}, "variant is 'turbo'; allowed: 'base', 'mid', 'distilled'"),
    ],
)
def test_wrong_metadata_is_refused_with_its_value(tmp_path, metadata, told):
    file = write(tmp_path / "demo.safetensors", random_weights(), **metadata)
    message = error_of(file)
    assert told in message
    assert str(file) in message


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": "three"}', '{"scheduler_type": "heun"}'])
def test_a_malformed_scheduler_config_is_refused(tmp_path, content):
    diffusers_model().save_pretrained(tmp_path / "transformer")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(content)
    message = error_of(tmp_path)
    assert "scheduler config" in message
    assert str(tmp_path) in message
