"""Which of ComfyUI's attentions Helios calls: the user's, another pack's, and on a CPU where nobody chose torch's."""

import sys

import pytest
import torch


@pytest.fixture
def host(comfyui):
    """ComfyUI's attentions."""
    from comfy.ldm.modules import attention

    return attention


@pytest.fixture
def ours(comfyui):
    (module,) = [found for path, found in sys.modules.items() if path.endswith("ComfyUI-Helios.nodes.host.attention")]
    return module


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_on_a_cpu_torchs_attention_takes_the_place_of_comfyuis_fallback_and_nowhere_else(host, ours, monkeypatch):
    monkeypatch.setattr(host, "optimized_attention", host.attention_sub_quad)
    assert ours.chosen_attention(CPU) is host.attention_pytorch
    assert ours.chosen_attention(GPU) is host.attention_sub_quad


def test_the_fallback_is_called_when_the_user_asked_for_it(host, ours, monkeypatch):
    monkeypatch.setattr(host, "optimized_attention", host.attention_sub_quad)
    monkeypatch.setattr(ours.args, "use_quad_cross_attention", True)
    assert ours.chosen_attention(CPU) is host.attention_sub_quad


def test_what_the_user_or_another_pack_chose_is_called_on_every_device(host, ours, monkeypatch):
    def of_another_pack(*arguments, **options):
        raise NotImplementedError

    for choice in (host.attention_split, of_another_pack):
        monkeypatch.setattr(host, "optimized_attention", choice)
        assert ours.chosen_attention(CPU) is ours.chosen_attention(GPU) is choice


def test_an_override_on_the_model_acts_on_what_is_called(comfyui, host, monkeypatch):
    """As `optimized_attention_override` does for ComfyUI's own models."""
    (module,) = [found for path, found in sys.modules.items() if path.endswith("ComfyUI-Helios.nodes.host.model")]
    monkeypatch.setattr(host, "optimized_attention", host.attention_sub_quad)
    called = []

    def override(attention, *arguments, **options):
        called.append(attention.__name__)
        return attention(*arguments, **options)

    query, key, value = torch.randn(3, 1, 2, 5, 8).unbind()
    out = module.comfy_attention({"optimized_attention_override": override})(query, key, value)
    assert called == ["attention_pytorch"]
    expected = torch.softmax(query @ key.mT / 8**0.5, dim=-1) @ value
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
