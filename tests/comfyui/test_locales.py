"""Every node, input and output has its name and its words of help in every language, and ComfyUI serves them."""

import importlib.util
import json

import pytest
from harness.checkout import PACK

LANGUAGES = ("en", "zh")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_locales", PACK / "tools" / "make_locales.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pack_nodes(comfyui):
    """The ids of the pack's nodes, as its entry point names them, whatever they begin with."""
    from nodes import NODE_CLASS_MAPPINGS

    return {
        name
        for name, node in NODE_CLASS_MAPPINGS.items()
        if "ComfyUI-Helios" in getattr(node, "RELATIVE_PYTHON_MODULE", "")
    }


@pytest.fixture(scope="module")
def info(comfyui):
    return comfyui.object_info()


def read_texts(language: str) -> dict:
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_the_english_file_says_what_the_nodes_say(tool, info):
    assert read_texts("en") == tool.english(info), "run tools/make_locales.py"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_texts_are_of_exactly_the_nodes_inputs_and_outputs_that_there_are(language, info, pack_nodes):
    texts = read_texts(language)
    assert set(texts) == pack_nodes
    for node, words in texts.items():
        sections = info[node]["input"]
        inputs = [*sections.get("required", {}), *sections.get("optional", {})]
        assert set(words["inputs"]) == set(inputs), node
        assert list(words.get("outputs", {})) == [str(index) for index in range(len(info[node]["output"]))], node
        slots = [*words["inputs"].values(), *words.get("outputs", {}).values()]
        assert all(set(slot) == {"name", "tooltip"} for slot in slots), node


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_missing_or_empty(language, tool, info):
    assert tool.differences(tool.english(info), read_texts(language)) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_has_a_sign_that_the_frontend_would_read_as_a_placeholder(language, tool):
    assert [path for path, text in tool.leaves(read_texts(language)) if set(text) & set("{}@|")] == []


def test_chinese_explains_in_chinese(tool):
    explained = [(path, text) for path, text in tool.leaves(read_texts("zh")) if not path.endswith(".name")]
    assert [path for path, text in explained if not any("\u4e00" <= sign <= "\u9fff" for sign in text)] == []


def test_what_a_translation_lacks_or_has_too_much_is_named(tool):
    source = {"Node": {"display_name": "Node", "inputs": {"a": {"name": "a", "tooltip": "about a"}}}}
    translation = {"Node": {"display_name": " ", "inputs": {"b": {"name": "b"}}}}
    assert tool.differences(source, translation) == [
        "Node.display_name is empty",
        "Node.inputs.a.name is missing",
        "Node.inputs.a.tooltip is missing",
        "Node.inputs.b.name is not in the nodes",
    ]


def test_every_node_has_a_help_page_in_both_languages(pack_nodes):
    folder = PACK / "web" / "docs"
    pages = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    chinese = {path.parent.name: path.read_text(encoding="utf-8") for path in folder.glob("*/zh.md")}
    assert set(pages) == set(chinese) == pack_nodes
    assert [name for name, page in pages.items() if not page.startswith("# ") or len(page) < 200] == []
    titles = {node: f"# {words['display_name']}" for node, words in read_texts("zh").items()}
    assert {name: page.splitlines()[0] for name, page in chinese.items()} == titles


def test_the_server_hands_the_texts_to_the_frontend(server):
    served = server.get("/api/i18n")
    for language in LANGUAGES:
        texts = read_texts(language)
        assert {node: served[language]["nodeDefs"].get(node) for node in texts} == texts
