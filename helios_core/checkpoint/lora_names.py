"""Under which names the weights of a LoRA are stored, and which layer of Helios each of them is for.

A key of a LoRA file is `<layer, spelled somehow><kind>`. Layers are spelled after diffusers (the names of our own
model), after Wan, from which Helios is fine-tuned, or as ComfyUI's draft of Helios mixes the two; written with dots
behind the prefix of whatever program wrote them, or with underscores behind kohya's `lora_unet_`.

`read_key` goes from a key to the layer; `spellings` goes the other way, for hosts that ask for every name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

# Kinds

_KINDS = (
    ("lora_down", r"\.lora_(?:A|down)(?:\.default)?(?:\.weight)?|[._]lora(?:_linear_layer)?\.down\.weight"),
    ("lora_up", r"\.lora_(?:B|up)(?:\.default)?(?:\.weight)?|[._]lora(?:_linear_layer)?\.up\.weight"),
    ("lora_mid", r"\.lora_mid\.weight"),
    ("alpha", r"\.alpha"),
    ("magnitude", r"\.dora_scale|\.lora_magnitude_vector(?:\.default)?(?:\.weight)?"),
    ("diff", r"\.diff|\.set_weight|\.w_norm"),
    ("diff_b", r"\.diff_b|\.b_norm|\.lora_B\.bias"),
    ("diff_m", r"\.diff_m"),
    ("hada", r"\.hada_(?:w[12]_[ab]|t[12])"),
    ("lokr", r"\.lokr_(?:w[12](?:_[ab])?|t2)"),
    ("oft", r"\.oft_blocks|\.rescale"),
    ("glora", r"\.[ab][12]\.weight"),
)  # fmt: skip
_KIND_PATTERNS = tuple((kind, re.compile(f"(.+?)(?:{pattern})")) for kind, pattern in _KINDS)

# Layers

# What is written before a layer's name, in any order and number; `_orig_mod` (torch.compile) may stand anywhere.
_WRAPPERS = re.compile(
    r"(?:base_model\.model\.|base_model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|pipe\.dit\.|dit\.|"
    r"model\.|unet\.|module\.)*"
)
_ORIG_MOD = re.compile(r"(?:^|(?<=\.))_orig_mod\.")
_UNDERSCORED = re.compile(r"(?:lora_unet__?|lora_transformer_|lycoris_)")

# Diffusers' name in a block -> the other spellings.
_IN_BLOCK = {
    "attn1.to_q": ("self_attn.q",),
    "attn1.to_k": ("self_attn.k",),
    "attn1.to_v": ("self_attn.v",),
    "attn1.to_out.0": ("self_attn.o", "attn1.to_out"),
    "attn2.to_q": ("cross_attn.q",),
    "attn2.to_k": ("cross_attn.k",),
    "attn2.to_v": ("cross_attn.v",),
    "attn2.to_out.0": ("cross_attn.o", "attn2.to_out"),
    "ffn.net.0.proj": ("ffn.0",),
    "ffn.net.2": ("ffn.2",),
    "attn1.norm_q": ("self_attn.norm_q",),
    "attn1.norm_k": ("self_attn.norm_k",),
    "attn2.norm_q": ("cross_attn.norm_q",),
    "attn2.norm_k": ("cross_attn.norm_k",),
    "norm2": ("norm3",),
}
_OUTSIDE = {
    "patch_embedding": (),
    "patch_short": (),
    "patch_mid": (),
    "patch_long": (),
    "condition_embedder.text_embedder.linear_1": ("text_embedding.0",),
    "condition_embedder.text_embedder.linear_2": ("text_embedding.2",),
    "condition_embedder.time_embedder.linear_1": ("time_embedding.0",),
    "condition_embedder.time_embedder.linear_2": ("time_embedding.2",),
    "condition_embedder.time_proj": ("time_projection.1",),
    "proj_out": ("head.head",),
}
# What Wan has and Helios has not, in a block and outside: spelling -> what it is for.
_ABSENT_IN_BLOCK = {
    **dict.fromkeys(
        (
            *("cross_attn.k_img", "cross_attn.v_img", "cross_attn.norm_k_img"),
            *("attn2.add_k_proj", "attn2.add_v_proj", "attn2.norm_added_k", "attn2.to_k_img", "attn2.to_v_img"),
        ),
        "image conditioning",
    ),
    **dict.fromkeys(("attn2.norm_added_q", "norm1"), "norms"),
}
_ABSENT_OUTSIDE = {
    **dict.fromkeys((f"img_emb.proj.{number}" for number in (0, 1, 3, 4)), "image conditioning"),
    "condition_embedder.image_embedder.ff.net.0.proj": "image conditioning",
    "condition_embedder.image_embedder.ff.net.2": "image conditioning",
    "condition_embedder.image_embedder.norm1": "image conditioning",
    "condition_embedder.image_embedder.norm2": "image conditioning",
}
# By the start of a name, for what has too many names to list.
_ABSENT_STARTS = (
    (("vace_", "control_adapter", "ref_conv"), "control"),
    (("img_emb", "condition_embedder.image_embedder"), "image conditioning"),
    (("casual_audio_encoder", "audio_", "cond_encoder"), "audio"),
    (("face_", "pose_", "motion_encoder"), "faces and poses"),
)

_BLOCK = re.compile(r"blocks[._](\d+)[._](.+)")

# Dotted prefixes that files have; `_orig_mod` stands behind them, or behind the block's number.
PREFIXES = (
    *("", "transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model.", "model.", "pipe.dit."),
    *("base_model.model.transformer.", "base_model.model.diffusion_model.", "transformer.base_model.model."),
)
_UNDERSCORED_PREFIXES = ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_")


@dataclass(frozen=True)
class LoraKey:
    """What a key of a LoRA file is: `kind`, and the `layer` of Helios by its diffusers name.

    Where Helios has no such layer, `layer` is the name as written and `absent` says what the layer is for in the model
    that has it.
    """

    layer: str
    kind: str
    absent: str | None = None


def read_key(key: str) -> LoraKey | None:
    """The layer and kind that a key of a LoRA file is for. None for a name of another model, or no LoRA's at all."""
    for kind, pattern in _KIND_PATTERNS:
        if match := pattern.fullmatch(key):
            found = read_layer(match[1])
            return None if found is None else LoraKey(found[0], kind, found[1])
    return None


def read_layer(name: str) -> tuple[str, str | None] | None:
    """Diffusers' name of a layer, spelled in any way, and None; or its name and what it is for where Helios lacks it.

    None for a name that no Wan-like model has. Whether there are as many blocks is not looked at.
    """
    if match := _UNDERSCORED.match(name):
        return _look_up(name[match.end() :], "_")
    name = _ORIG_MOD.sub("", name)
    return _look_up(name[_WRAPPERS.match(name).end() :], ".")


def _look_up(name: str, separator: str) -> tuple[str, str | None] | None:
    outside, in_block, absent_outside, absent_in_block = _tables(separator)
    if name in outside:
        return outside[name], None
    if name in absent_outside:
        return name, absent_outside[name]
    if match := _BLOCK.fullmatch(name):
        number, inner = match.groups()
        if inner in in_block:
            return f"blocks.{int(number)}.{in_block[inner]}", None
        if inner in absent_in_block:
            return name, absent_in_block[inner]
    return next(((name, what) for starts, what in _ABSENT_STARTS if name.startswith(starts)), None)


@cache
def _tables(separator: str) -> tuple[dict[str, str], dict[str, str], dict[str, str], dict[str, str]]:
    """Spelling -> diffusers' name, outside and in a block; spelling -> what Helios lacks, outside and in a block."""

    def all_spellings(table: Mapping[str, Iterable[str]]) -> dict[str, str]:
        return {
            spelling.replace(".", separator): name for name, others in table.items() for spelling in (name, *others)
        }

    def written(table: Mapping[str, str]) -> dict[str, str]:
        return {name.replace(".", separator): what for name, what in table.items()}

    return all_spellings(_OUTSIDE), all_spellings(_IN_BLOCK), written(_ABSENT_OUTSIDE), written(_ABSENT_IN_BLOCK)


# Every spelling, for hosts that ask for names


def spellings(num_layers: int) -> Iterator[tuple[str, str, str | None]]:
    """(spelling, diffusers' name, None) of every layer with a weight, in every naming; the layers that Helios lacks
    are (spelling, name, what they are for). `read_layer` understands more: these are the namings that files have."""
    plain = [(name, None, (name, *others)) for name, others in _OUTSIDE.items()]
    plain += [(name, what, (name,)) for name, what in _ABSENT_OUTSIDE.items()]
    for name, absent, written in plain:
        yield from _with_prefixes(name, absent, "", written)
    for number in range(num_layers):
        block = f"blocks.{number}."
        for name, others in _IN_BLOCK.items():
            yield from _with_prefixes(block + name, None, block, (name, *others))
        for name, absent in _ABSENT_IN_BLOCK.items():
            yield from _with_prefixes(block + name, absent, block, (name,))


def _with_prefixes(
    name: str, absent: str | None, block: str, written: Iterable[str]
) -> Iterator[tuple[str, str, str | None]]:
    for inner in written:
        for prefix, between in product(PREFIXES, ("", "_orig_mod.")):
            yield f"{prefix}{between}{block}{inner}", name, absent
        if block:
            for prefix in PREFIXES[:4]:
                yield f"{prefix}{block}_orig_mod.{inner}", name, absent
        for prefix in _UNDERSCORED_PREFIXES:
            yield prefix + f"{block}{inner}".replace(".", "_"), name, absent


# Models that a LoRA may be for instead: (part of a key, the model). The first that fits is taken.
_STRANGERS = (
    ("lora_te", "a text encoder"),
    ("text_encoder", "a text encoder"),
    ("double_blocks", "Flux or Hunyuan Video"),
    ("single_blocks", "Flux or Hunyuan Video"),
    ("single_transformer_blocks", "Flux"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("down_blocks", "Stable Diffusion 1.5, 2 or XL"),
    ("input_blocks", "Stable Diffusion 1.5, 2 or XL"),
    ("img_mlp", "Qwen-Image"),
    ("txt_mlp", "Qwen-Image"),
    ("transformer_blocks", "LTX Video, Qwen-Image, Flux or another model with 'transformer_blocks'"),
    ("feed_forward", "Z-Image or Lumina"),
    ("layers", "Z-Image, Lumina or a language model"),
)


def seems_for(keys: Iterable[str]) -> str | None:
    """The model that a LoRA with these keys seems to be for; None if the names say nothing."""
    keys = list(keys)
    return next((model for part, model in _STRANGERS if any(part in key for key in keys)), None)


def stranger_spellings() -> Iterator[tuple[str, str]]:
    """(spelling, model): one layer or more that LoRAs for other models have, for hosts that ask for names."""
    dotted = {
        "double_blocks.0.img_attn.qkv": "Flux or Hunyuan Video",
        "double_blocks.0.img_attn.proj": "Flux or Hunyuan Video",
        "single_blocks.0.linear1": "Flux or Hunyuan Video",
        "single_transformer_blocks.0.attn.to_q": "Flux",
        "single_transformer_blocks.0.proj_out": "Flux",
        "joint_blocks.0.x_block.attn.qkv": "Stable Diffusion 3",
        "transformer_blocks.0.img_mlp.net.2": "Qwen-Image",
        "transformer_blocks.0.attn.to_q": "Flux, Qwen-Image or Stable Diffusion 3",
        "transformer_blocks.0.attn1.to_q": "LTX Video",
        "layers.0.attention.to_q": "Z-Image",
        "layers.0.attention.qkv": "Lumina or Z-Image",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "Stable Diffusion 1.5 or 2",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "Stable Diffusion 1.5, 2 or XL",
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q": "Stable Diffusion XL",
    }
    for name, model in dotted.items():
        for prefix in ("", "transformer.", "diffusion_model.", "base_model.model.", "unet."):
            yield prefix + name, model
        for prefix in ("lora_unet_", "lora_transformer_", "lycoris_"):
            yield prefix + name.replace(".", "_"), model


# What became of a LoRA


@dataclass(frozen=True)
class LoraReport:
    """How many of a LoRA's weights have a place in Helios: `applied`, and those left out by what they are for."""

    applied: int
    left_out: Mapping[str, int]

    @property
    def total(self) -> int:
        return self.applied + sum(self.left_out.values())

    def sentence(self) -> str:
        """'480 of 480 weights applied', or what the others are for."""
        if not self.left_out:
            return f"{self.applied} of {self.total} weights applied"
        parts = [f"{count} are for {what}" for what, count in sorted(self.left_out.items(), key=lambda item: -item[1])]
        return f"{self.applied} of {self.total} applied; {', '.join(parts)}, which Helios has not"


def survey(keys: Iterable[str], layers: Collection[str]) -> LoraReport:
    """What would become of a LoRA with these keys on a model with these `layers` (diffusers' names). A weight counts
    once, however many tensors it is made of; a bias counts by itself."""
    weights: dict[tuple[str, bool], str | None] = {}
    for key in keys:
        found = read_key(key)
        if found is None:
            weights.setdefault((_without_kind(key), False), "another model or not understood")
            continue
        absent = found.absent
        if absent is None and found.kind == "diff_m":
            absent = "modulation"
        elif absent is None and found.layer not in layers:
            absent = "more blocks"
        weights.setdefault((found.layer, found.kind == "diff_b"), absent)
    counts = Counter(weights.values())
    applied = counts.pop(None, 0)
    return LoraReport(applied, dict(counts))


def _without_kind(key: str) -> str:
    return next((match[1] for _, pattern in _KIND_PATTERNS if (match := pattern.fullmatch(key))), key)
