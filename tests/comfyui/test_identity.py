"""Chunks are found by what they were made from: what changes the picture changes their keys, what does not leaves
them."""

import functools
import importlib
import sys
from copy import deepcopy
from shutil import copy
from types import SimpleNamespace

import pytest
import torch
from harness.weights import TEXT_ENCODER, VAE

under_each_memory_manager = pytest.mark.usefixtures("memory_manager")


def pack_module(name: str):
    """A module of the pack as ComfyUI has loaded it."""
    (pack,) = [key for key in sys.modules if key.endswith("ComfyUI-Helios")]
    return importlib.import_module(f"{pack}.{name}")


@pytest.fixture
def identity(comfyui):
    return pack_module("nodes.host.identity")


@pytest.fixture
def loading(comfyui):
    return pack_module("nodes.host.loading")


@pytest.fixture
def model_file(models):
    return models / "diffusion_models" / "helios_distilled_bf16.safetensors"


@pytest.fixture
def load(loading, model_file):
    return lambda weight_dtype="default": loading.load_model(model_file, "auto", weight_dtype)


def parts_that_differ(first, second) -> set[str]:
    assert first.parts.keys() == second.parts.keys()
    differ = {name for name in first.parts if first.parts[name] != second.parts[name]}
    assert (first.fingerprint != second.fingerprint) == bool(differ)
    return differ


# Models


@under_each_memory_manager
def test_a_model_that_is_loaded_twice_is_one_model(identity, load):
    assert identity.model_identity(load()) == identity.model_identity(load())


def test_other_weights_are_another_model(identity, load, loading, model_file, tmp_path):
    content = bytearray(model_file.read_bytes())
    content[-1] ^= 1  # the last weight's sign or exponent
    (tmp_path / model_file.name).write_bytes(content)
    other = loading.load_model(tmp_path / model_file.name, "auto", "default")
    assert parts_that_differ(identity.model_identity(load()), identity.model_identity(other)) == {"weights"}


def test_a_renamed_file_is_the_same_model(identity, load, loading, model_file, tmp_path):
    (tmp_path / "mine distilled.safetensors").write_bytes(model_file.read_bytes())
    other = loading.load_model(tmp_path / "mine distilled.safetensors", "auto", "default")
    assert parts_that_differ(identity.model_identity(load()), identity.model_identity(other)) == set()


def test_every_weight_dtype_is_another_model_and_fast_fp8_is_not_fp8(identity, load):
    choices = ("bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e4m3fn_fast")
    assert len({identity.model_identity(load(choice)).fingerprint for choice in choices}) == len(choices)


def override(attention, *args, factor, **kwargs):
    return attention(*args, **kwargs) * factor


def put_override(factor):
    def change(model):
        options = model.model_options["transformer_options"]
        options["optimized_attention_override"] = functools.partial(override, factor=factor)

    return change


def put_closure(factor):
    def change(model):
        def scaled(executor, *args, **kwargs):
            return executor(*args, **kwargs) * factor

        model.add_wrapper_with_key("diffusion_model", "scaled", scaled)

    return change


def put_patch(strength):
    def change(model):
        key = "diffusion_model.blocks.0.attn1.to_q.weight"
        shape = model.model.state_dict()[key].shape
        model.add_patches({key: (torch.ones(shape),)}, strength)

    return change


def put_wrapped_weight(scale):
    def change(model):
        model.add_weight_wrapper("diffusion_model.blocks.0.attn1.to_q.weight", lambda weight: weight * scale)

    return change


def put_callback(scale):
    def change(model):
        model.add_callback("on_load_after", lambda *_: scale)

    return change


def put_object(dtype):
    return lambda model: model.add_object_patch("manual_cast_dtype", dtype)


def put_block_patch(value):
    return lambda model: model.set_model_attn1_patch(lambda *_: value)


CHANGES = {
    "attention": [put_override(0.5), put_override(0.25)],
    "LoRAs": [put_patch(0.5), put_patch(1.0), put_wrapped_weight(0.5), put_wrapped_weight(0.25)],
    "patches of other nodes": [
        put_closure(0.5),
        put_closure(0.25),
        put_callback(1),
        put_callback(2),
        put_object(torch.float32),
        put_object(torch.float16),
        put_block_patch(1),
        put_block_patch(2),
    ],
}


@pytest.mark.parametrize("part", CHANGES)
def test_what_other_nodes_put_on_a_model_changes_it_and_made_alike_it_is_the_same(identity, load, part):
    model, seen = load(), []
    for change in CHANGES[part]:
        own = []
        for _ in range(2):
            changed = model.clone()
            change(changed)
            own.append(identity.model_identity(changed))
        assert own[0] == own[1]
        assert parts_that_differ(identity.model_identity(model), own[0]) == {part}
        seen.append(own[0].fingerprint)
    assert len(set(seen)) == len(CHANGES[part])


def test_an_object_that_cannot_be_described_is_never_the_same_and_a_warning_says_so(identity, load, caplog):
    seen = []
    for _ in range(2):
        model = load()
        rest = iter([0.5, 0.25])  # how far it is cannot be seen
        model.add_wrapper_with_key(
            "diffusion_model", "opaque", lambda executor, *args, rest=rest: executor(*args) * next(rest)
        )
        seen.append((model, identity.model_identity(model)))
    assert seen[0][1].fingerprint != seen[1][1].fingerprint
    assert "in this session only: it carries builtins.list_iterator" in caplog.text


@under_each_memory_manager
def test_compiling_loading_and_unloading_leave_the_model_as_it_is(identity, load):
    import comfy.model_management
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = load()
    put_patch(0.5)(model)
    before = identity.model_identity(model)
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model.blocks.0"])
    assert identity.model_identity(compiled) == before
    comfy.model_management.load_models_gpu([model])
    assert identity.model_identity(model) == before
    comfy.model_management.unload_all_models()
    assert identity.model_identity(model) == before


def test_sage_attention_is_another_model_and_another_exact_attention_is_not(identity, load, monkeypatch):
    from comfy.ldm.modules import attention

    model = load()
    before = identity.model_identity(model)
    for name, differ in (("split", set()), ("pytorch", set()), ("sage", {"attention"})):
        stand_in = lambda *_: None  # noqa: E731
        stand_in.__name__ = f"attention_{name}"
        monkeypatch.setattr(attention, "optimized_attention", stand_in)
        assert parts_that_differ(before, identity.model_identity(model)) == differ


# VAEs


@pytest.fixture
def load_vae(models):
    import nodes

    return lambda: nodes.VAELoader().load_vae(VAE)[0]


@under_each_memory_manager
def test_a_vae_is_the_same_before_and_after_its_first_load_and_in_the_next_session(identity, load_vae):
    vae = load_vae()
    before = identity.vae_identity(vae)
    vae.encode(torch.zeros(1, 64, 64, 3))
    assert identity.vae_identity(vae) == before
    assert identity.vae_identity(load_vae()) == before


@under_each_memory_manager
def test_the_demos_vae_of_which_the_file_is_not_known_is_the_same_before_and_after_its_first_load(identity, comfyui):
    demo = pack_module("nodes.host.demo_models")
    vae = demo.load_vae()
    before = identity.vae_identity(vae)
    vae.encode(torch.zeros(1, 64, 64, 3))
    assert identity.vae_identity(vae) == before
    assert identity.vae_identity(demo.load_vae()) == before


# Wires


@pytest.fixture
def wires(comfyui):
    return pack_module("nodes.host.wire_identity")


def a_graph() -> dict[str, dict]:
    """A picture and a prompt on the wires of "asks"."""
    graph = {
        "clip": ("CLIPLoader", {"clip_name": TEXT_ENCODER, "type": "wan", "device": "default"}),
        "text": ("CLIPTextEncode", {"clip": ["clip", 0], "text": "a lantern"}),
        "load": ("LoadImage", {"image": "example.png"}),
        "scale": ("ImageScaleBy", {"image": ["load", 0], "upscale_method": "area", "scale_by": 0.5}),
        "asks": ("HeliosContext", {"positive": ["text", 0], "image": ["scale", 0]}),
    }
    return {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in graph.items()}


@pytest.fixture
def of(wires, models):
    """of(graph, input name): the identity of what comes into "asks"."""

    def ask(graph, name):
        return wires.wire_identity(SimpleNamespace(unique_id="asks", prompt=graph, dynprompt=None), name)

    return ask


def test_a_wire_is_the_same_whatever_its_nodes_are_called_and_in_whatever_order_they_stand(of):
    graph = a_graph()
    renamed = {
        f"{node_id}!": {
            "class_type": node["class_type"],
            "inputs": {
                name: [f"{value[0]}!", value[1]] if isinstance(value, list) else value
                for name, value in reversed(node["inputs"].items())
            },
        }
        for node_id, node in reversed(graph.items())
    }
    renamed["asks"] = renamed["asks!"]
    for name in ("positive", "image"):
        assert of(graph, name) == of(renamed, name) != ""


@pytest.mark.parametrize(
    ("node", "inputs", "changes"),
    [
        ("text", {"text": "a lamp"}, {"positive"}),
        ("text", {"text": "a lantern, embedding:mine"}, {"positive"}),
        ("clip", {"device": "cpu"}, set()),
        ("clip", {"type": "sd3"}, {"positive"}),
        ("scale", {"scale_by": 0.25}, {"image"}),
        ("scale", {"image": ["load", 1]}, {"image"}),
    ],
)
def test_a_wire_changes_with_the_settings_above_it_except_where_they_choose_a_device(of, node, inputs, changes):
    graph, changed = a_graph(), a_graph()
    changed[node]["inputs"].update(inputs)
    assert {name for name in ("positive", "image") if of(graph, name) != of(changed, name)} == changes


def test_a_wire_changes_with_the_content_of_files_and_not_with_their_names(of, home, models):
    copy(home.input / "example.png", home.input / "same.png")
    copy(models / "text_encoders" / TEXT_ENCODER, models / "text_encoders" / "same.safetensors")
    graph, same = a_graph(), a_graph()
    same["load"]["inputs"]["image"] = "same.png"
    same["clip"]["inputs"]["clip_name"] = "same.safetensors"
    assert (of(same, "image"), of(same, "positive")) == (of(graph, "image"), of(graph, "positive"))
    for file in (home.input / "same.png", models / "text_encoders" / "same.safetensors"):
        content = bytearray(file.read_bytes())
        content[-10] ^= 1
        file.write_bytes(content)
    assert of(same, "image") != of(graph, "image")
    assert of(same, "positive") != of(graph, "positive")


def test_an_embedding_that_a_prompt_names_counts_by_its_content(of, models):
    folder = models / "embeddings"
    folder.mkdir(exist_ok=True)
    (folder / "count_me.safetensors").unlink(missing_ok=True)
    graph, seen = a_graph(), set()
    graph["text"]["inputs"]["text"] = "a lantern, embedding:count_me"
    for content in (None, b"one", b"other"):
        if content is not None:
            (folder / "count_me.safetensors").write_bytes(content)
        seen.add(of(graph, "positive"))
    assert len(seen) == 3


def test_nodes_that_choose_a_device_leave_the_wire_as_it_is(of, comfyui):
    import nodes

    if "SelectCLIPDevice" not in nodes.NODE_CLASS_MAPPINGS:
        pytest.skip("this ComfyUI has no Select CLIP Device")
    graph = a_graph()
    placed = deepcopy(graph)
    placed["place"] = {"class_type": "SelectCLIPDevice", "inputs": {"clip": ["clip", 0], "device": "cpu"}}
    placed["text"]["inputs"]["clip"] = ["place", 0]
    assert of(placed, "positive") == of(graph, "positive")


class Stranger:
    """A node of another pack."""

    RELATIVE_PYTHON_MODULE = "custom_nodes.another"


class AlwaysChanges:
    """A node of ComfyUI that says so."""

    RELATIVE_PYTHON_MODULE = "comfy_extras.nodes_test"

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")


class GivesAList:
    """A node of ComfyUI after which others are run once for each picture."""

    RELATIVE_PYTHON_MODULE = "comfy_extras.nodes_test"
    OUTPUT_IS_LIST = (True,)


@pytest.mark.parametrize("kind", [Stranger, AlwaysChanges, GivesAList])
def test_above_a_wire_a_node_that_may_give_another_thing_each_time_makes_it_unknown(of, monkeypatch, kind):
    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, kind.__name__, kind)
    graph = a_graph()
    graph["other"] = {"class_type": kind.__name__, "inputs": {"image": ["load", 0]}}
    graph["scale"]["inputs"]["image"] = ["other", 0]
    assert of(graph, "image") == ""
    assert of(graph, "positive") != ""


def test_what_is_not_linked_and_what_is_asked_for_without_a_graph_is_unknown(of, wires):
    graph = a_graph()
    assert of(graph, "video") == ""
    graph["scale"]["inputs"]["image"] = ["scale", 0]  # leads into itself
    assert of(graph, "image") == ""
    assert wires.wire_identity(SimpleNamespace(unique_id=None, prompt=None, dynprompt=None), "image") == ""


def test_a_constant_reads_no_file_outside_comfyuis_folders(of, home):
    secret = home.root / "secret.txt"
    graph, seen = a_graph(), set()
    graph["text"]["inputs"]["text"] = "../secret.txt"
    for content in ("one", "other"):
        secret.write_text(content)
        seen.add(of(graph, "positive"))
    assert len(seen) == 1
