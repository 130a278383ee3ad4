"""ComfyUI's nodes that move a model to another device, or split it over several, take what this pack makes."""

import sys
import threading

import pytest
import torch
from harness.checkout import find_checkout
from harness.latents_graph import LOADER, SAMPLER, latents_graph
from harness.probe import change_model

CHECKOUT, _ = find_checkout()
pytestmark = pytest.mark.skipif(
    CHECKOUT is None or not (CHECKOUT / "comfy_extras" / "nodes_multigpu.py").is_file(),
    reason="this ComfyUI has no nodes for several devices",
)

CPU, SECOND = torch.device("cpu"), torch.device("cuda", 1)


def module_of(name):
    (module,) = [found for path, found in sys.modules.items() if path.endswith(f"ComfyUI-Helios.nodes.{name}")]
    return module


@pytest.fixture
def second_device(comfyui, monkeypatch):
    """A GPU that ComfyUI lists. Nothing can be computed there: tests take what was made for it back to the CPU."""
    import comfy.model_management

    def resolve(option):
        return {"cpu": CPU, "gpu:1": SECOND}.get(option)

    monkeypatch.setattr(comfy.model_management, "resolve_gpu_device_option", resolve)
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: [CPU, SECOND])


@pytest.fixture
def graph(comfyui, models):
    return latents_graph(comfyui.object_info(), chunks=1)


def load(graph):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS["HeliosLoader"].execute(**graph[LOADER]["inputs"]).result[0]


@pytest.mark.parametrize("device", ["default", "cpu", "gpu:1", "gpu:7"])
def test_select_model_device_gives_a_helios_that_samples_the_same(comfyui, graph, second_device, device):
    expected = comfyui.run_graph(graph).output(SAMPLER)["samples"]
    graph["device"] = {"class_type": "SelectModelDevice", "inputs": {"model": [LOADER, 0], "device": device}}
    graph[SAMPLER]["inputs"]["model"] = ["device", 0]
    moved = []

    def take_back(model):
        moved.append((type(model).__name__, model.load_device))
        model.load_device = CPU
        return model

    change_model(graph, take_back)
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    assert moved == [("HeliosPatcher", SECOND if device == "gpu:1" else CPU)]
    same_weights = run.output("device").model is run.output(LOADER).model
    assert same_weights == (device != "gpu:1"), "another device needs weights of its own"
    assert torch.equal(run.output(SAMPLER)["samples"], expected)


def test_the_demos_parts_and_a_fast_vae_can_be_had_on_another_device(comfyui, second_device):
    from comfy_extras import nodes_multigpu as nodes

    model, clip, vae = module_of("demo").HeliosDemoModels.execute().args
    (fast,) = module_of("fast_vae").HeliosFastVAE.execute(vae, "auto", False, False).args
    (moved,) = nodes.SelectModelDeviceNode.execute(model, "gpu:1").args
    (moved_clip,) = nodes.SelectCLIPDeviceNode.execute(clip, "gpu:1").args
    (moved_vae,) = nodes.SelectVAEDeviceNode.execute(vae, "gpu:1").args
    (moved_fast,) = nodes.SelectVAEDeviceNode.execute(fast, "gpu:1").args
    assert [part.load_device for part in (moved, moved_clip.patcher, moved_vae.patcher, moved_fast.patcher)] == [
        SECOND
    ] * 4
    for part in (moved_clip.patcher, moved_vae.patcher, moved_fast.patcher):
        part.load_device = CPU
    moved_vae.device = moved_fast.device = CPU
    tokens = clip.tokenize("a red circle moving right on a black background")
    assert torch.equal(moved_clip.encode_from_tokens(tokens), clip.encode_from_tokens(tokens))
    latents = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(moved_vae.decode(latents), vae.decode(latents))
    assert moved_fast.first_stage_model is not fast.first_stage_model
    assert torch.equal(moved_fast.decode(latents), fast.decode(latents))


@pytest.fixture
def guided(comfyui, graph):
    """A chunk of Base: two forwards in each step."""
    graph[LOADER]["inputs"]["variant"] = "base"
    graph["negative"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "blurred"}}
    graph[SAMPLER]["inputs"].update(negative=["negative", 0], guidance_scale=4.0, steps="5")
    return graph


def split_over_two(model, monkeypatch, around_forward):
    """What MultiGPU CFG Split makes of the model, the second device being the CPU by another name."""
    import comfy.model_management
    import comfy.multigpu
    from comfy.patcher_extension import WrappersMP

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", around_forward)
    monkeypatch.setattr(
        comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: [CPU, torch.device("cpu", 1)]
    )
    return comfy.multigpu.create_multigpu_deepclones(model, 2)


@pytest.mark.parametrize("history_reuse", ["off", "stage"])
def test_with_multigpu_cfg_split_the_two_forwards_of_a_step_run_on_two_devices_to_the_same_bits(
    comfyui, guided, monkeypatch, history_reuse
):
    inputs = {"model": [LOADER, 0], "history_reuse": history_reuse, "compile": False, "step_cache": 0.0}
    guided["speed"] = {"class_type": "HeliosSpeed", "inputs": inputs}
    guided[SAMPLER]["inputs"]["model"] = ["speed", 0]
    expected = comfyui.run_graph(guided).output(SAMPLER)["samples"]
    ran = []

    def watch(executor, *args, **options):
        ran.append((id(executor.class_obj), threading.current_thread() is threading.main_thread()))
        return executor(*args, **options)

    change_model(guided, lambda model: split_over_two(model, monkeypatch, watch))
    run = comfyui.run_graph(guided)
    assert run.success, run.error
    assert torch.equal(run.output(SAMPLER)["samples"], expected)
    assert len(set(ran)) == 2, "one Helios in this thread, the other in one of the pool's"
    assert [main for _, main in ran].count(True) == [main for _, main in ran].count(False) > 3


def test_a_fault_on_the_second_device_ends_the_run_with_its_words(comfyui, guided, monkeypatch):
    def fail_there(executor, *args, **options):
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the second device fell off the bus")
        return executor(*args, **options)

    change_model(guided, lambda model: split_over_two(model, monkeypatch, fail_there))
    before = threading.active_count()
    run = comfyui.run_graph(guided)
    assert not run.success
    assert "fell off the bus" in run.error
    assert threading.active_count() == before


def test_multigpu_cfg_split_makes_a_second_helios_with_the_same_loras(comfyui, graph, second_device):
    import comfy.multigpu

    model = load(graph).clone()
    key = "diffusion_model.blocks.0.attn1.to_q.weight"
    model.add_patches({key: ("diff", (torch.ones(256, 256),))}, 0.5)
    split = comfy.multigpu.create_multigpu_deepclones(model, 2)
    (second,) = split.get_additional_models_with_key("multigpu")
    assert second.load_device == SECOND
    assert type(second) is type(model)
    assert second.model is not model.model
    assert second.patches.keys() == model.patches.keys()


@pytest.mark.parametrize("name", ["dynamic clone", "cpu"])
def test_without_dynamic_vram_a_dynamic_helios_gives_a_static_one_that_patches_and_checks_as_ours(comfyui, graph, name):
    from comfy_extras import nodes_multigpu as nodes
    from harness.dynamic_vram import dynamic_vram

    with dynamic_vram():
        model = load(graph)
        assert model.is_dynamic()
        if name == "cpu":
            (static,) = nodes.SelectModelDeviceNode.execute(model, "cpu").args
        else:
            static = model.clone(disable_dynamic=True)
        again = static.clone(force_deepcopy=True)
        for patcher in (static, again):
            assert type(patcher).__name__ == "HeliosPatcher"
            assert not patcher.is_dynamic()
            assert patcher.model is not model.model
            with pytest.raises(ValueError, match="nothing in this LoRA fits Helios"):
                patcher.add_patches({})
    stored, mapped = (
        patcher.model.diffusion_model.blocks[0].attn1.to_q.weight.untyped_storage() for patcher in (static, model)
    )
    assert hasattr(mapped, "_comfy_tensor_file_slice")
    assert not hasattr(stored, "_comfy_tensor_file_slice")


def test_a_dynamic_helios_keeps_no_copy_of_its_weights_in_ram(comfyui, graph):
    from harness.dynamic_vram import dynamic_vram

    sizes = module_of("host.patcher").weight_sizes
    static = load(graph)
    assert sizes(static) == (static.model_size(), static.model_size())
    with dynamic_vram():
        on_device, in_ram = sizes(load(graph))
    assert on_device == pytest.approx(static.model_size(), rel=0.02)
    assert in_ram < 0.2 * on_device  # the time embedder's, which are kept in more bits than the file's


def test_a_forward_asks_for_each_block_before_it_runs(comfyui, graph, monkeypatch):
    import comfy.model_prefetch
    from harness.dynamic_vram import dynamic_vram

    asked, queues, pop = [], [], comfy.model_prefetch.prefetch_queue_pop

    def watch(queue, device, module, *rest, **options):
        asked.append(module)
        queues.append([entry is not None for entry in queue])
        return pop(queue, device, module, *rest, **options)

    monkeypatch.setattr(comfy.model_prefetch, "prefetch_queue_pop", watch)
    with dynamic_vram():
        run = comfyui.run_graph(graph)
        assert run.success, run.error
        blocks = list(run.output(LOADER).model.diffusion_model.blocks)
    assert [module is block for module, block in zip(asked, [*blocks, None] * 6, strict=True)] == [True] * 18
    assert queues[:3] == [[False, True, True, False], [True, True, False], [True, False]]
    assert comfy.model_prefetch.PREFETCH_QUEUES == []


def test_decoding_beside_the_sampling_is_refused_with_the_reason(comfyui, graph):
    from harness.dynamic_vram import dynamic_vram

    with dynamic_vram():
        model = load(graph)
        vae = module_of("host.demo_models").load_vae()
        assert "dynamic VRAM" in module_of("host.overlap").why_not(model, vae, 0)
