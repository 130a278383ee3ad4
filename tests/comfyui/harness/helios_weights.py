"""A tiny random Helios transformer, written in every layout that Helios weights are found in.

The names are spelled out here and not taken from `helios_core.checkpoint.layouts`, so that
the tests check that module too.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer

# Two heads of 128, the published head size: files without a config are read by it. Text rows as UMT5-XXL gives them.
CONFIG = TransformerConfig(num_attention_heads=2, num_layers=2, ffn_dim=64, text_dim=4096)
FP8 = torch.float8_e4m3fn

DRAFT_NAMES = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}

Weights = dict[str, torch.Tensor]


@torch.no_grad()
def random_weights(seed: int = 0) -> Weights:
    """fp32 weights by their diffusers names: large enough that prompt, memory and step all show in the output."""
    model = HeliosTransformer(CONFIG, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        fan_in = value[0].numel() if value.ndim > 1 else 1
        if "norm" in name and name.endswith("weight"):
            weights[name] = 1 + 0.1 * noise
        else:
            weights[name] = noise * (fan_in**-0.5 if value.ndim > 1 else 0.1)
    return weights


def write_workflow_model(models: Path) -> None:
    """The file that the sample workflows name: one bf16 file with diffusers' names and nothing that tells more."""
    weights = {name: value.bfloat16() for name, value in random_weights().items()}
    save_file(weights, models / "helios_distilled_bf16.safetensors")


def write_layouts(models: Path, weights: Weights) -> list[str]:
    """Write the same weights in each lossless layout; return the names that Helios Loader lists them under."""
    draft = {_draft_name(name): value for name, value in weights.items()}
    files = {
        "diffusers_distilled.safetensors": weights,
        "draft_distilled.safetensors": draft,
        "draft_full_prefix_distilled.safetensors": {f"model.diffusion_model.{k}": v for k, v in draft.items()},
        "draft_short_prefix_distilled.safetensors": {f"diffusion_model.{k}": v for k, v in draft.items()},
    }
    for name, tensors in files.items():
        save_file(tensors, models / name)
    write_release_folder(models / "Helios-Distilled", weights)
    return ["Helios-Distilled/transformer", *files]


def write_release_folder(folder: Path, weights: Weights) -> None:
    """The published folder: transformer/ in two shards with their index, the scheduler and the model index."""
    transformer, scheduler = folder / "transformer", folder / "scheduler"
    transformer.mkdir(parents=True, exist_ok=True)
    scheduler.mkdir(exist_ok=True)
    names = sorted(weights)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: weights[name] for name in shard}, transformer / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    _write_json(transformer / "diffusion_pytorch_model.safetensors.index.json", index)
    _write_json(
        transformer / "config.json",
        {
            "_class_name": "HeliosTransformer3DModel",
            "patch_size": [1, 2, 2],
            "num_attention_heads": CONFIG.num_attention_heads,
            "attention_head_dim": CONFIG.attention_head_dim,
            "in_channels": 16,
            "out_channels": 16,
            "text_dim": CONFIG.text_dim,
            "freq_dim": CONFIG.freq_dim,
            "ffn_dim": CONFIG.ffn_dim,
            "num_layers": CONFIG.num_layers,
            "rope_dim": [44, 42, 42],
        },
    )
    _write_json(
        scheduler / "scheduler_config.json",
        {
            "_class_name": "HeliosDMDScheduler",
            "stages": 3,
            "stage_range": [0, 1 / 3, 2 / 3, 1],
            "gamma": 1 / 3,
            "use_dynamic_shifting": True,
            "time_shift_type": "linear",
        },
    )
    _write_json(folder / "model_index.json", {"_class_name": "HeliosPyramidPipeline", "is_distilled": True})


def write_fp8_layouts(models: Path, weights: Weights) -> dict[str, str]:
    """fp8 files as they are shared, each beside an fp32 file of the values it stands for: fp8 name -> fp32 name."""
    plain, plain_values = {}, {}
    old, new, scaled_values = {"scaled_fp8": torch.zeros(0, dtype=FP8)}, {}, {}
    for name, value in weights.items():
        if not (name.startswith("blocks.") and name.endswith(".weight") and value.ndim == 2):
            for tensors in (plain, plain_values, old, new, scaled_values):
                tensors[name] = value
            continue
        layer = name.removesuffix(".weight")
        plain[name] = value.to(FP8)
        plain_values[name] = plain[name].float()
        scale = value.abs().max() / torch.finfo(FP8).max
        old[name] = new[name] = (value / scale).to(FP8)
        old[f"{layer}.scale_weight"] = new[f"{layer}.weight_scale"] = scale
        marker = json.dumps({"format": "float8_e4m3fn"}).encode()
        new[f"{layer}.comfy_quant"] = torch.frombuffer(bytearray(marker), dtype=torch.uint8)
        scaled_values[name] = old[name].float() * scale
    files = {"plain": plain, "plain_values": plain_values, "old": old, "new": new, "scaled_values": scaled_values}
    for name, tensors in files.items():
        save_file(tensors, models / f"fp8_{name}_distilled.safetensors")
    twins = {"plain": "plain_values", "old": "scaled_values", "new": "scaled_values"}
    return {f"fp8_{name}_distilled.safetensors": f"fp8_{twin}_distilled.safetensors" for name, twin in twins.items()}


def _draft_name(name: str) -> str:
    for old, new in DRAFT_NAMES.items():
        name = name.replace(old, new)
    return name


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value))
