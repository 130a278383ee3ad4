"""Helios beside ComfyUI's own nodes: compiling, attention, model patches, saving, batches of chunks, videos."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.latents_graph import LOADER, SAMPLER, TEXT, latents_graph
from harness.probe import change_model
from harness.samples import read_clip
from harness.weights import VAE

pytestmark = pytest.mark.usefixtures("memory_manager")


@pytest.fixture
def graph(comfyui, models):
    """One chunk of 64 x 64, a step in each stage."""
    return latents_graph(comfyui.object_info())


@pytest.fixture
def run(comfyui):
    """run(graph): what a successful run left."""

    def run_graph(graph):
        result = comfyui.run_graph(graph)
        assert result.success, result.error
        return result

    return run_graph


@pytest.fixture
def latents_of(run):
    """latents_of(graph): what its sampler gives."""
    return lambda graph: run(graph).output(SAMPLER)["samples"]


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(["diffusion_model"], id="the whole transformer"),
        pytest.param([f"diffusion_model.blocks.{index}" for index in range(2)], id="each block"),
    ],
)
def test_a_compiled_model_is_compiled_in_its_first_chunk_only_and_stays_the_same(comfyui, models, latents_of, keys):
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy.patcher_extension import WrappersMP
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.utils import counters

    # The lowest stage of 128 x 128 has several tokens each way; chunk 0 like all others.
    graph = latents_graph(comfyui.object_info(), width=128, height=128, chunks=2, steps="2,2,2")
    graph[SAMPLER]["inputs"]["amplify_first_chunk"] = False
    compiled = []

    def compile_it(model):
        model = model.clone()
        # The attention of a GPU. That of a CPU asks the system for free memory, which cannot be compiled.
        options = model.model_options["transformer_options"]
        options["optimized_attention_override"] = lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)
        # What the node TorchCompileModel does, with a backend that needs no C++ compiler.
        set_torch_compile_wrapper(model, backend="eager", keys=keys)

        def count(executor, *args, **kwargs):
            velocity = executor(*args, **kwargs)
            compiled.append(counters["stats"]["unique_graphs"])
            return velocity

        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
        return model

    plain = latents_of(graph)
    change_model(graph, compile_it)
    torch._dynamo.reset()
    counters.clear()
    assert np.allclose(latents_of(graph), plain, rtol=0, atol=0.1)  # bf16
    first, later = compiled[:6], compiled[6:]
    assert len(later) == 6
    assert first[0] > 0, "nothing was compiled"
    assert set(later) == {first[-1]}
    assert first[-1] <= 4, "one static and one dynamic graph before the blocks, and of the blocks"
    latents_of(graph)
    assert compiled[-1] == first[-1], "a second run compiled again"


def test_torch_compile_model_is_taken_from_the_native_node(comfyui, graph, models):
    graph["compile"] = {"class_type": "TorchCompileModel", "inputs": {"model": [LOADER, 0], "backend": "inductor"}}
    graph[SAMPLER]["inputs"]["model"] = ["compile", 0]
    entered = []

    def watch(model):
        def note_class(executor, *args, **kwargs):
            entered.append(type(executor.class_obj.diffusion_model).__name__)
            return executor(*args, **kwargs)

        # Inside the node's own wrapper, where the transformer is the compiled one; it is not called there.
        model.wrappers["apply_model"]["watch"] = [note_class]
        model.wrappers["diffusion_model"] = {"watch": [lambda executor, x, *_, **__: torch.zeros_like(x)]}
        return model

    change_model(graph, watch)
    result = comfyui.run_graph(graph)
    assert result.success, result.error
    assert set(entered) == {"OptimizedModule"}


def test_an_attention_override_is_called_in_every_attention_and_its_result_is_used(graph, latents_of):
    calls = []

    def override(attention, query, key, value, heads, **kwargs):
        calls.append((tuple(query.shape), heads, kwargs["skip_reshape"], kwargs["skip_output_reshape"]))
        return attention(query, key, value, heads=heads, **kwargs) * 0.5

    def put(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model

    plain = latents_of(graph)
    change_model(graph, put)
    changed = latents_of(graph)
    assert len(calls) == 6 * 2 * 2  # steps (chunk 0 is amplified), blocks, attentions
    assert all(shape[:2] == (1, 2) and heads == 2 for shape, heads, *_ in calls)
    assert not np.allclose(plain, changed)


def test_wrappers_of_both_kinds_see_comfyuis_arguments_and_change_the_velocity(graph, latents_of):
    seen = []

    def put(model):
        from comfy.patcher_extension import WrappersMP

        def outer(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
            seen.append(("apply_model", x.ndim, "wrappers" in transformer_options))
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        def inner(executor, *args, **kwargs):
            seen.append(("diffusion_model", args[0].ndim, "wrappers" in kwargs["transformer_options"]))
            return executor(*args, **kwargs) * 0

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "outer", outer)
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "inner", inner)
        return model

    change_model(graph, put)
    still = latents_of(graph)
    assert seen == [("apply_model", 5, True), ("diffusion_model", 5, True)] * 6
    change_model(graph, lambda model: model)
    assert np.array_equal(latents_of(graph), still)


def test_a_part_of_comfyuis_sampler_on_the_model_is_refused_by_its_name(comfyui, graph):
    from comfy.patcher_extension import WrappersMP

    def put(model):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "EasyCache", lambda executor, *args: executor(*args))
        return model

    change_model(graph, put)
    error = comfyui.run_graph(graph).error
    assert "EasyCache" in error
    assert "Take that node out" in error


def test_a_sampling_shift_and_cfg_patches_change_nothing_and_are_reported(graph, latents_of, caplog):
    plain = latents_of(graph)
    graph["shift"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": [LOADER, 0], "shift": 8.0}}
    graph["rescale"] = {"class_type": "RescaleCFG", "inputs": {"model": ["shift", 0], "multiplier": 0.7}}
    graph[SAMPLER]["inputs"]["model"] = ["rescale", 0]
    assert np.array_equal(latents_of(graph), plain)
    (told,) = [record.getMessage() for record in caplog.records if "does not use it" in record.getMessage()]
    assert "sampler_cfg_function" in told
    assert "model_sampling" in told


def test_model_save_writes_a_file_that_the_loader_reads_to_the_same_bits(graph, latents_of, run, home):
    plain = latents_of(graph)
    graph["keep"] = {"class_type": "ModelSave", "inputs": {"model": [LOADER, 0], "filename_prefix": "kept_distilled"}}
    run(graph)
    (saved,) = home.output.glob("kept_distilled*.safetensors")
    del graph["keep"]
    shutil.move(saved, home.models / "diffusion_models" / saved.name)
    graph[LOADER]["inputs"]["model_name"] = saved.name
    assert np.array_equal(latents_of(graph), plain)


def test_model_save_of_a_model_with_a_lora_holds_the_merged_weights(graph, latents_of, run, home):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    name = "diffusion_model.blocks.0.attn1.to_q"
    lora = {
        f"{name}.lora_A.weight": torch.randn(4, 256, generator=generator),
        f"{name}.lora_B.weight": torch.randn(256, 4, generator=generator) * 0.1,
    }
    save_file(lora, home.models / "loras" / "merged.safetensors")
    plain = latents_of(graph)
    inputs = {"model": [LOADER, 0], "lora_name": "merged.safetensors", "strength_model": 1.0}
    graph["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    graph[SAMPLER]["inputs"]["model"] = ["lora", 0]
    with_lora = latents_of(graph)
    graph["keep"] = {"class_type": "ModelSave", "inputs": {"model": ["lora", 0], "filename_prefix": "lora_distilled"}}
    run(graph)
    (saved,) = home.output.glob("lora_distilled*.safetensors")
    shutil.move(saved, home.models / "diffusion_models" / saved.name)
    del graph["keep"], graph["lora"]
    graph[SAMPLER]["inputs"]["model"] = [LOADER, 0]
    graph[LOADER]["inputs"]["model_name"] = saved.name
    assert not np.array_equal(plain, with_lora)
    assert np.array_equal(latents_of(graph), with_lora)


@pytest.fixture
def three_chunks(comfyui, models):
    graph = latents_graph(comfyui.object_info(), chunks=3)
    graph["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": VAE}}
    return graph


def decode(graph, source: str) -> str:
    graph["frames"] = {"class_type": "VAEDecode", "inputs": {"samples": [source, 0], "vae": ["vae", 0]}}
    graph["show"] = {"class_type": "PreviewImage", "inputs": {"images": ["frames", 0]}}
    return "frames"


def test_save_latent_and_load_latent_give_the_chunks_back_to_be_decoded(three_chunks, run, home):
    before = run(three_chunks).output(SAMPLER)["samples"]
    newest = max(home.output.glob("latents*.latent"), key=lambda path: path.stat().st_mtime)
    shutil.copy(newest, home.input / "chunks.latent")
    graph = {
        "vae": three_chunks["vae"],
        "load": {"class_type": "LoadLatent", "inputs": {"latent": "chunks.latent"}},
    }
    frames = decode(graph, "load")
    result = run(graph)
    assert np.array_equal(result.output("load")["samples"], before)
    assert result.output(frames).shape == (99, 64, 64, 3)


def test_latent_from_batch_takes_chunks_and_latent_batch_joins_them_again(three_chunks, run):
    for name, first, length in (("a", 0, 1), ("b", 1, 2)):
        inputs = {"samples": [SAMPLER, 0], "batch_index": first, "length": length}
        three_chunks[name] = {"class_type": "LatentFromBatch", "inputs": inputs}
    three_chunks["both"] = {"class_type": "LatentBatch", "inputs": {"samples1": ["a", 0], "samples2": ["b", 0]}}
    frames = decode(three_chunks, "both")
    result = run(three_chunks)
    before = result.output(SAMPLER)["samples"]
    assert result.output("b")["samples"].shape == (2, 16, 9, 8, 8)
    assert np.array_equal(result.output("both")["samples"], before)
    assert result.output(frames).shape == (99, 64, 64, 3)


def test_create_video_and_save_video_write_the_frames_with_the_workflow_in_the_file(three_chunks, run, home):
    frames = decode(three_chunks, SAMPLER)
    three_chunks["video"] = {"class_type": "CreateVideo", "inputs": {"images": [frames, 0], "fps": 24.0}}
    inputs = {"video": ["video", 0], "filename_prefix": "native_save_video", "format": "mp4", "codec": "h264"}
    three_chunks["write"] = {"class_type": "SaveVideo", "inputs": inputs}
    run(three_chunks)
    file = max(Path(home.output).glob("native_save_video*.mp4"))  # the counter rises
    clip = read_clip(file)
    assert clip.frames.shape == (99, 64, 64, 3)
    assert json.loads(clip.metadata["prompt"]) == three_chunks


def test_the_prompt_may_come_through_native_conditioning_nodes(graph, latents_of):
    graph["other"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "waves roll in"}}
    inputs = {"conditioning_to": [TEXT, 0], "conditioning_from": ["other", 0], "conditioning_to_strength": 0.5}
    graph["mix"] = {"class_type": "ConditioningAverage", "inputs": inputs}
    plain = latents_of(graph)
    graph[SAMPLER]["inputs"]["positive"] = ["mix", 0]
    assert not np.array_equal(latents_of(graph), plain)
