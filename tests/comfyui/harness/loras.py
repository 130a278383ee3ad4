"""LoRAs in every naming and of every kind, and the weights that they stand for.

Names and formulas are spelled out here, and not taken from `helios_core.checkpoint.lora_names` or from ComfyUI, so that
the tests check both.
"""

from collections.abc import Callable, Mapping

import torch

Tensors = dict[str, torch.Tensor]

RANK, ALPHA = 4, 2.0

WAN = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
DRAFT = {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}


def _spelled(table: Mapping[str, str]) -> Callable[[str], str]:
    def name(layer: str) -> str:
        blocks, number, inner = layer.split(".", 2)
        return f"{blocks}.{number}.{table.get(inner, inner)}"

    return name


_same, _wan, _draft = _spelled({}), _spelled(WAN), _spelled(DRAFT)

# Naming -> how it spells one of our layers.
NAMINGS: dict[str, Callable[[str], str]] = {
    "bare": _same,
    "transformer": lambda layer: f"transformer.{layer}",
    "peft": lambda layer: f"base_model.model.{layer}",
    "diffusion_model": lambda layer: f"diffusion_model.{layer}",
    "model_diffusion_model": lambda layer: f"model.diffusion_model.{layer}",
    "compiled": lambda layer: f"_orig_mod.{layer}",
    "compiled_transformer": lambda layer: f"transformer._orig_mod.{layer}",
    "compiled_blocks": lambda layer: "transformer.blocks.{}._orig_mod.{}".format(*layer.split(".", 2)[1:]),
    "kohya": lambda layer: "lora_unet_" + layer.replace(".", "_"),
    "lycoris": lambda layer: "lycoris_" + layer.replace(".", "_"),
    "onetrainer": lambda layer: "lora_transformer_" + layer.replace(".", "_"),
    "wan": lambda layer: f"diffusion_model.{_wan(layer)}",
    "wan_bare": _wan,
    "diffsynth": lambda layer: f"pipe.dit.{_wan(layer)}",
    "musubi": lambda layer: "lora_unet_" + _wan(layer).replace(".", "_"),
    "wan_fun": lambda layer: "lora_unet__" + _wan(layer).replace(".", "_"),
    "draft": lambda layer: f"diffusion_model.{_draft(layer)}",
}


class Kind:
    """A kind of LoRA: its tensors for a layer, and the weight and bias that they make of the layer's own."""

    def __init__(self, make: Callable[[torch.Tensor, torch.Generator], Tensors], merge: Callable) -> None:
        self.make, self.merge = make, merge


def _random(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * 0.3


def _factors(weight: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return _random(RANK, weight.shape[1], generator=generator), _random(weight.shape[0], RANK, generator=generator)


def _pair(down_name: str, up_name: str, alpha: float | None = None, dtype: torch.dtype = torch.float32) -> Kind:
    def make(weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        down, up = _factors(weight, generator)
        tensors = {down_name: down.to(dtype), up_name: up.to(dtype)}
        return tensors if alpha is None else tensors | {"alpha": torch.tensor(alpha)}

    def merge(weight: torch.Tensor, bias: torch.Tensor, tensors: Tensors, strength: float):
        scale = 1.0 if alpha is None else alpha / RANK
        return weight + strength * scale * (tensors[up_name].float() @ tensors[down_name].float()), bias

    return Kind(make, merge)


def _make_dora(weight: torch.Tensor, generator: torch.Generator) -> Tensors:
    down, up = _factors(weight, generator)
    magnitude = weight.norm(dim=0, keepdim=True) * (1 + _random(1, weight.shape[1], generator=generator))
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA), "dora_scale": magnitude}


def _merge_dora(weight, bias, tensors, strength):
    """DoRA's paper: the magnitude times the direction of the changed weight, here for each input."""
    changed = weight + ALPHA / RANK * (tensors["lora_up.weight"] @ tensors["lora_down.weight"])
    changed = tensors["dora_scale"] * changed / changed.norm(dim=0, keepdim=True)
    return weight + strength * (changed - weight), bias


def _make_loha(weight: torch.Tensor, generator: torch.Generator) -> Tensors:
    (down1, up1), (down2, up2) = _factors(weight, generator), _factors(weight, generator)
    return {
        "hada_w1_a": up1,
        "hada_w1_b": down1,
        "hada_w2_a": up2,
        "hada_w2_b": down2,
        "alpha": torch.tensor(ALPHA),
    }


def _merge_loha(weight, bias, tensors, strength):
    first = tensors["hada_w1_a"] @ tensors["hada_w1_b"]
    second = tensors["hada_w2_a"] @ tensors["hada_w2_b"]
    return weight + strength * ALPHA / RANK * first * second, bias


def _make_lokr(weight: torch.Tensor, generator: torch.Generator) -> Tensors:
    rows, columns = weight.shape[0] // 4, weight.shape[1] // 4
    return {
        "lokr_w1": _random(4, 4, generator=generator),
        "lokr_w2_a": _random(rows, RANK, generator=generator),
        "lokr_w2_b": _random(RANK, columns, generator=generator),
        "alpha": torch.tensor(ALPHA),
    }


def _merge_lokr(weight, bias, tensors, strength):
    second = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    return weight + strength * ALPHA / RANK * torch.kron(tensors["lokr_w1"], second), bias


def _make_diff(weight: torch.Tensor, generator: torch.Generator) -> Tensors:
    rows, columns = weight.shape
    return {
        "diff": _random(rows, columns, generator=generator),
        "diff_b": _random(rows, generator=generator),
    }


def _merge_diff(weight, bias, tensors, strength):
    return weight + strength * tensors["diff"], bias + strength * tensors["diff_b"]


KINDS = {
    "lora_A": _pair("lora_A.weight", "lora_B.weight"),
    "lora_A_default": _pair("lora_A.default.weight", "lora_B.default.weight"),
    "lora_down": _pair("lora_down.weight", "lora_up.weight", ALPHA),
    "fp8": _pair("lora_down.weight", "lora_up.weight", ALPHA, torch.float8_e4m3fn),
    "dora": Kind(_make_dora, _merge_dora),
    "loha": Kind(_make_loha, _merge_loha),
    "lokr": Kind(_make_lokr, _merge_lokr),
    "diff": Kind(_make_diff, _merge_diff),
}


def make_lora(
    weights: Mapping[str, torch.Tensor], layers: list[str], naming: str, kinds: str | list[str], seed: int = 0
) -> Tensors:
    """A LoRA on some of our layers, as a file of that naming holds it; of one kind, or of several in turns."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{NAMINGS[naming](layer)}.{name}": tensor
        for layer, kind in in_turns(layers, kinds)
        for name, tensor in KINDS[kind].make(weights[f"{layer}.weight"], generator).items()
    }


def merged(
    weights: Mapping[str, torch.Tensor], layers: list[str], kinds: str | list[str], strength: float, seed: int = 0
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> weight and bias with that LoRA in them."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for layer, kind in in_turns(layers, kinds):
        weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        result[layer] = KINDS[kind].merge(weight, bias, KINDS[kind].make(weight, generator), strength)
    return result


def in_turns(layers: list[str], kinds: str | list[str]) -> list[tuple[str, str]]:
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return [(layer, kinds[number % len(kinds)]) for number, layer in enumerate(layers)]
