"""Helios Loader: how weights are kept, which variant they are, and what is told about files that cannot be used."""

import json
import logging
import pickle

import pytest
import torch
from harness import helios_weights
from harness.gguf_weights import FORMATS, write_gguf
from harness.inprocess import GraphRejected
from harness.samples import small_graph, the_node
from safetensors.torch import save_file

from helios_core.sampling.settings import variant_of

pytestmark = pytest.mark.usefixtures("memory_manager")

FP8 = torch.float8_e4m3fn
QUERY = "blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def folder(models):
    return models / "diffusion_models"


@pytest.fixture(scope="module")
def weights(folder):
    values = helios_weights.random_weights()
    save_file(values, folder / "full_distilled.safetensors")
    return values


@pytest.fixture(scope="module")
def run(comfyui, models):
    """run(model name, lora=None, **loader settings) -> (latents of one chunk, MODEL)."""
    plain = small_graph("t2v", comfyui.object_info(), width=64, height=64)
    sampler, inputs = the_node(plain, "HeliosChunkSampler")
    inputs.update(chunks=1, steps="1,1,1")
    loader, _ = the_node(plain, "HeliosLoader")
    video, _ = the_node(plain, "HeliosVideoCombine")
    del plain[video]
    plain["save"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "latents"}}

    def run(name: str, lora: str | None = None, **settings):
        graph = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in plain.items()}
        graph[loader]["inputs"].update(model_name=name, **settings)
        if lora is not None:
            patch = {"model": [loader, 0], "lora_name": lora, "strength_model": 0.7}
            graph["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": patch}
            graph[sampler]["inputs"]["model"] = ["lora", 0]
        result = comfyui.run_graph(graph)
        assert result.success, result.error
        return result.output(sampler)["samples"], result.output(loader)

    return run


@pytest.fixture(scope="module")
def error_of(comfyui, models):
    """error_of(model name, **loader settings): what ComfyUI tells the user, from validation or from the run."""

    def told(name: str, **settings) -> str:
        graph = small_graph("t2v", comfyui.object_info(), width=64, height=64)
        the_node(graph, "HeliosLoader")[1].update(model_name=name, **settings)
        try:
            result = comfyui.run_graph(graph)
        except GraphRejected as rejected:
            return str(rejected)
        assert not result.success
        return result.error

    return told


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def block_bytes(model) -> int:
    """Memory that the transformer's blocks take: nearly all of the published model's, little of this one's."""
    state = model.model.diffusion_model.state_dict()
    return sum(value.nbytes for name, value in state.items() if name.startswith("blocks."))


# Dtypes


@pytest.mark.parametrize(
    ("choice", "dtype", "at_most"),
    [
        ("default", None, 0.01),
        ("fp32", torch.float32, 0.0),
        ("bf16", torch.bfloat16, 0.01),
        ("fp16", torch.float16, 0.001),
        ("fp8_e4m3fn", FP8, 0.05),
        ("fp8_e4m3fn_fast", FP8, 0.05),
    ],
)
def test_weights_are_kept_in_the_dtype_that_was_chosen(weights, run, choice, dtype, at_most):
    exact, _ = run("full_distilled.safetensors", weight_dtype="fp32")
    latents, model = run("full_distilled.safetensors", weight_dtype=choice)
    linear = model.model.diffusion_model.get_submodule(QUERY)
    assert dtype in (None, linear.weight.dtype)
    assert model.model.diffusion_model.blocks[0].norm2.weight.dtype == torch.float32
    assert difference(latents, exact) <= at_most


def test_without_a_card_that_can_fp8_fast_is_the_same_as_fp8_storage(weights, run):
    stored, _ = run("full_distilled.safetensors", weight_dtype="fp8_e4m3fn")
    fast, _ = run("full_distilled.safetensors", weight_dtype="fp8_e4m3fn_fast")
    assert torch.equal(stored, fast)


def test_where_the_card_can_fp8_fast_takes_comfyuis_fp8_layers(weights, comfyui, home, monkeypatch):
    """The choice of layers only; this machine need not have such a card to multiply on."""
    import comfy.model_management
    import comfy.ops

    loading = _loader_module(comfyui)
    monkeypatch.setattr(comfy.model_management, "supports_fp8_compute", lambda device=None: True)
    path = home.models / "diffusion_models" / "full_distilled.safetensors"
    layers = {
        choice: type(loading.load_model(path, "auto", choice).model.diffusion_model.get_submodule(QUERY))
        for choice in ("fp8_e4m3fn", "fp8_e4m3fn_fast")
    }
    assert issubclass(layers["fp8_e4m3fn_fast"], comfy.ops.fp8_ops.Linear)
    assert not issubclass(layers["fp8_e4m3fn"], comfy.ops.fp8_ops.Linear)


def test_an_unknown_dtype_or_variant_is_refused_with_those_that_are_allowed(weights, error_of):
    assert "fp8_e4m3fn_fast" in error_of("full_distilled.safetensors", weight_dtype="int4")
    assert "distilled" in error_of("full_distilled.safetensors", variant="turbo")


# Scaled fp8


@pytest.fixture(scope="module")
def scaled(folder, weights):
    """Names of the scaled fp8 files of both ComfyUI generations, and of the fp32 file of what they stand for."""
    twins = helios_weights.write_fp8_layouts(folder, weights)
    return {name: twin for name, twin in twins.items() if "plain" not in name}


@pytest.mark.parametrize("choice", ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast"])
def test_scaled_fp8_files_stay_scaled_and_give_the_numbers_they_stand_for(scaled, run, choice):
    for name, twin in scaled.items():
        expected, full = run(twin, weight_dtype="fp32")
        latents, model = run(name, weight_dtype=choice)
        assert block_bytes(model) < 0.3 * block_bytes(full), name
        assert _stored_dtype(model.model.diffusion_model.get_submodule(QUERY)) == FP8
        assert difference(latents, expected) < 1e-5, name


def test_scaled_fp8_files_are_dequantised_for_another_dtype(scaled, run):
    for name, twin in scaled.items():
        expected, _ = run(twin, weight_dtype="fp32")
        latents, model = run(name, weight_dtype="fp32")
        assert model.model.diffusion_model.get_submodule(QUERY).weight.dtype == torch.float32
        assert torch.equal(latents, expected)


def test_a_lora_on_scaled_fp8_is_near_the_one_on_full_weights_and_comes_off_again(scaled, run, lora):
    for name, twin in scaled.items():
        plain, _ = run(name)
        expected, _ = run(twin, lora, weight_dtype="fp32")
        patched, _ = run(name, lora)
        assert difference(patched, expected) < 0.5 * difference(plain, expected), name
        assert torch.equal(run(name)[0], plain)


# GGUF


@pytest.fixture(scope="module")
def lora(home, weights) -> str:
    """A LoRA on one layer in each kind of place."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in (QUERY, "blocks.1.ffn.net.0.proj"):
        num_out, num_in = weights[f"{layer}.weight"].shape
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(4, num_in, generator=generator) * num_in**-0.5
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(num_out, 4, generator=generator)
    save_file(tensors, home.models / "loras" / "weights.safetensors")
    return "weights.safetensors"


@pytest.fixture(scope="module")
def gguf_files(folder, weights):
    """Format -> the name of a GGUF file, and of the fp32 file of what it stands for."""
    names = {}
    for block_format in FORMATS:
        name = f"helios_distilled_{block_format}"
        save_file(write_gguf(folder / f"{name}.gguf", weights, block_format), folder / f"{name}_numbers.safetensors")
        names[block_format] = f"{name}.gguf", f"{name}_numbers.safetensors"
    return names


@pytest.mark.parametrize("block_format", FORMATS)
def test_gguf_weights_stay_in_blocks_and_give_the_numbers_they_stand_for(gguf_files, run, block_format):
    name, twin = gguf_files[block_format]
    expected, full = run(twin, weight_dtype="fp32")
    latents, model = run(name)
    assert model.model.diffusion_model.get_submodule(QUERY).weight.dtype == torch.uint8
    assert block_bytes(model) < 0.35 * block_bytes(full)
    assert difference(latents, expected) < 1e-5


@pytest.mark.parametrize("block_format", FORMATS)
def test_a_lora_on_gguf_equals_the_lora_on_its_numbers_and_comes_off_again(gguf_files, run, lora, block_format):
    name, twin = gguf_files[block_format]
    plain, _ = run(name)
    expected, _ = run(twin, lora, weight_dtype="fp32")
    patched, _ = run(name, lora)
    assert difference(plain, expected) > 0.1
    assert difference(patched, expected) < 1e-5
    assert torch.equal(run(name)[0], plain)


def test_gguf_with_a_lora_gives_the_same_bits_however_little_of_it_is_loaded(gguf_files, comfyui, home, lora):
    import comfy.sd
    import comfy.utils

    loading = _loader_module(comfyui)
    name, _ = gguf_files["Q6_K"]
    model = loading.load_model(home.models / "diffusion_models" / name, "auto", "default")
    tensors = comfy.utils.load_torch_file(str(home.models / "loras" / lora))
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 0.7, 0.0)
    layer = model.model.diffusion_model.get_submodule(QUERY)
    x = torch.randn(1, 3, layer.in_features)

    cpu = torch.device("cpu")
    plain = layer(x)
    patched.load(cpu, full_load=True)
    full = layer(x)
    assert not torch.equal(full, plain)
    patched.partially_unload(cpu, 10**9)
    assert torch.equal(layer(x), full)
    patched.unpatch_model(cpu)
    assert torch.equal(layer(x), plain)
    patched.load(cpu, lowvram_model_memory=1)
    assert torch.equal(layer(x), full)
    patched.load(cpu, full_load=True)
    assert torch.equal(layer(x), full)
    patched.unpatch_model(cpu)
    assert torch.equal(layer(x), plain)


def test_gguf_in_a_chosen_dtype_is_dequantised(gguf_files, run):
    name, twin = gguf_files["Q4_K"]
    latents, model = run(name, weight_dtype="fp32")
    assert model.model.diffusion_model.get_submodule(QUERY).weight.dtype == torch.float32
    assert torch.equal(latents, run(twin, weight_dtype="fp32")[0])


# Variants


@pytest.fixture(scope="module")
def release(folder, weights):
    """A release folder of the distilled variant."""
    helios_weights.write_release_folder(folder / "told", weights)
    return "told/transformer"


@pytest.mark.parametrize(
    ("name", "variant", "taken_for", "warning"),
    [
        ("told/transformer", "auto", "distilled", None),
        ("told/transformer", "distilled", "distilled", None),
        ("told/transformer", "base", "base", "the files beside it or in it say it is Distilled"),
        ("full_distilled.safetensors", "auto", "distilled", None),
        ("full_distilled.safetensors", "mid", "mid", "its name says it is Distilled"),
        ("Helios-Base/weights.safetensors", "auto", "base", None),
        ("nameless.safetensors", "base", "base", None),
        ("nameless.safetensors", "auto", "distilled", "nothing says which Helios variant"),
    ],
)
def test_the_variant_is_read_and_a_mismatch_warns_in_words(
    comfyui, home, weights, release, caplog, name, variant, taken_for, warning
):
    path = home.models / "diffusion_models" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        save_file(weights, path)
    with caplog.at_level(logging.WARNING):
        model = _loader_module(comfyui).load_model(path, variant, "default")
    assert variant_of(model.model.settings) == taken_for
    assert warning in caplog.text if warning else not caplog.text


# Files that cannot be used


def _truncated(file, weights):
    save_file(weights, file)
    file.write_bytes(file.read_bytes()[:-100])


def _wan_model(file, weights):
    save_file({"blocks.0.self_attn.q.weight": torch.zeros(4, 4), "head.head.weight": torch.zeros(4, 4)}, file)


def _pickle(file, weights):
    file.write_bytes(pickle.dumps({"weight": [1.0]}))


def _torch_pickle(file, weights):
    torch.save({"weight": torch.zeros(3)}, file)


def _with_nan(file, weights):
    value = weights[f"{QUERY}.weight"].clone()
    value[3, 4] = float("nan")
    save_file(weights | {f"{QUERY}.weight": value}, file)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (_truncated, "cut off"),
        (_wan_model, "It looks like a Wan model"),
        (_pickle, "never loaded"),
        (_torch_pickle, "never loaded"),
        (_with_nan, "NaN"),
    ],
)
def test_a_file_that_cannot_be_used_is_reported_with_its_name_and_why(folder, weights, error_of, write, told):
    name = f"bad{write.__name__}_distilled.safetensors"
    write(folder / name, weights)
    error = error_of(name)
    assert name in error
    assert told in error


@pytest.mark.parametrize("name", ["../../x", "../loras/x.safetensors", "/etc/passwd", "empty", "told/scheduler"])
def test_what_is_not_listed_is_not_opened(folder, weights, release, error_of, name):
    (folder / "empty").mkdir(exist_ok=True)
    save_file(weights, folder.parent / "loras" / "x.safetensors")
    assert "is not in models/diffusion_models" in error_of(name)


def test_links_to_files_and_folders_elsewhere_are_listed_and_followed(comfyui, folder, weights, release, run, tmp_path):
    helios_weights.write_release_folder(tmp_path / "Helios-Distilled", weights)
    save_file(weights, tmp_path / "elsewhere.safetensors")
    links = folder / "linked_folder", folder / "linked_distilled.safetensors"
    for link, target in zip(links, ("Helios-Distilled", "elsewhere.safetensors"), strict=True):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / target)
    expected, _ = run("full_distilled.safetensors", weight_dtype="fp32")
    for name in ("linked_folder/transformer", "linked_distilled.safetensors"):
        assert torch.equal(run(name, weight_dtype="fp32")[0], expected)


def test_an_index_that_names_a_file_outside_its_folder_is_refused(folder, weights, error_of):
    helios_weights.write_release_folder(folder / "evil", weights)
    index = folder / "evil" / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["proj_out.bias"] = "../../full_distilled.safetensors"
    index.write_text(json.dumps(content))
    assert "same folder" in error_of("evil/transformer")


def _loader_module(comfyui):
    """The pack's nodes/loading.py, as ComfyUI has imported it."""
    import sys

    (module,) = [m for name, m in sys.modules.items() if name.endswith("ComfyUI-Helios.nodes.host.loading")]
    return module


def _stored_dtype(layer) -> torch.dtype:
    """Of ComfyUI's quantised tensors the dtype of what is in memory."""
    weight = layer.state_dict()["weight"]
    return getattr(weight, "_qdata", weight).dtype
