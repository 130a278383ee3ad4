"""The pack in ComfyUI's own loader."""


def test_the_pack_loads_with_no_warning(comfyui):
    assert comfyui.load_warnings == []


def test_every_node_of_the_pack_is_in_the_menu_under_helios(comfyui):
    nodes = {name: info for name, info in comfyui.object_info().items() if name.startswith("Helios")}
    assert {"HeliosLoader", "HeliosContext", "HeliosChunkSampler", "HeliosVideoCombine"} <= set(nodes)
    assert {info["category"].split("/")[0] for info in nodes.values()} == {"Helios"}


def test_every_input_and_output_of_the_pack_has_a_tooltip(comfyui):
    for name, info in comfyui.object_info().items():
        if not name.startswith("Helios"):
            continue
        assert info["description"], name
        for section in ("required", "optional"):
            for input_name, spec in info["input"].get(section, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{input_name}"
