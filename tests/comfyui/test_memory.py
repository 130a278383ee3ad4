"""ComfyUI decides where the weights are; the pack keeps nothing beside them and says beforehand what it needs."""

import gc

import numpy as np
import pytest
import torch
from harness.latents_graph import LOADER, SAMPLER, latents_graph
from harness.probe import change_model

pytestmark = pytest.mark.usefixtures("memory_manager")


@pytest.fixture
def graph(comfyui, models):
    return latents_graph(comfyui.object_info())


def live_objects(*class_names: str) -> list:
    gc.collect()
    return [item for item in gc.get_objects() if type(item).__name__ in class_names]


def live_bytes() -> int:
    """Bytes of all tensors' storages, each counted once."""
    gc.collect()
    # Not its subclasses: what a compiler keeps has no storage.
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8], ids="{:.0%} loaded".format)
@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8_e4m3fn"])
def test_any_part_of_the_weights_loaded_gives_the_same_bits_as_all(comfyui, graph, monkeypatch, share, weight_dtype):
    from comfy import model_management

    graph[LOADER]["inputs"]["weight_dtype"] = weight_dtype
    whole = comfyui.run_graph(graph).output(SAMPLER)["samples"]
    load_models_gpu, counts = model_management.load_models_gpu, []

    def load_a_part(models, **options):
        load_models_gpu(models, **options)
        for patcher in models:
            if type(patcher.model).__name__ == "HeliosModel":
                patcher.detach()
                patcher.load(torch.device("cpu"), lowvram_model_memory=1 + int(share * patcher.model_size()))
                streamed = [m for m in patcher.model.modules() if hasattr(m, "prev_comfy_cast_weights")]
                counts.append(len(streamed))

    monkeypatch.setattr(model_management, "load_models_gpu", load_a_part)
    part = comfyui.run_graph(graph)
    assert part.success, part.error
    assert counts[-1] > 0, "no layer was left out"
    assert np.array_equal(part.output(SAMPLER)["samples"], whole)


def test_after_a_run_no_tokens_keys_or_tables_of_it_are_left(comfyui, graph):
    result = comfyui.run_graph(graph)
    assert result.success, result.error
    assert live_objects("PromptContext", "MemoryTokens", "Rotary", "SolverState", "UnfinishedRun") == []


def test_after_a_failed_run_no_tokens_keys_or_tables_of_it_are_left(comfyui, graph):
    def put(model):
        def override(attention, query, *args, **kwargs):
            return attention(query, *args, **kwargs) * float("nan")

        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model

    change_model(graph, put)
    assert "NaN" in comfyui.run_graph(graph).error
    assert live_objects("PromptContext", "MemoryTokens", "Rotary", "SolverState") == []


def test_the_weights_are_in_host_ram_once(comfyui, graph, models):
    import nodes

    loader = nodes.NODE_CLASS_MAPPINGS["HeliosLoader"]
    before = live_bytes()
    (model,) = loader.execute(**graph[LOADER]["inputs"]).result
    weights = model.model_size()
    assert live_bytes() - before <= 1.02 * weights
    change_model(graph, lambda _: model)
    result = comfyui.run_graph(graph)
    assert result.success, result.error
    del result
    from comfy import model_management

    model_management.unload_all_models()
    assert live_bytes() - before <= 1.05 * weights


def test_comfyui_is_asked_for_the_room_that_the_log_reports(comfyui, graph, monkeypatch, caplog):
    from comfy import model_management

    load_models_gpu, asked = model_management.load_models_gpu, []

    def watch(models, memory_required=0, **options):
        if type(models[0].model).__name__ == "HeliosModel":
            asked.append(memory_required)
        load_models_gpu(models, memory_required=memory_required, **options)

    monkeypatch.setattr(model_management, "load_models_gpu", watch)
    caplog.set_level("INFO")
    comfyui.run_graph(graph)
    (told,) = [record.getMessage() for record in caplog.records if "host RAM" in record.getMessage()]
    assert "Helios Distilled at 64x64, 1 chunks" in told
    for part in ("weights", "activations", "VAE decoding", "host RAM", "disk"):
        assert part in told
    assert f"activations {asked[0] / 2**30:.2f} GiB" in told
