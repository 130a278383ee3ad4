"""What a weight file is, in words: layout, variant, how each kind of layer is stored, what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..model.config import TransformerConfig
from ..model.transformer import HeliosTransformer
from ..sampling.settings import variant_of
from .checkpoint import Checkpoint, open_checkpoint
from .files import find_weight_files, first_few
from .layouts import what_it_looks_like
from .lora_names import read_key, seems_for, survey
from .quant_formats import STORED_DTYPES, format_of
from .safetensors_file import CheckpointError, TensorEntry

# Kind of layer -> how its parameters' names start, in a block ("blocks.N.") or outside. The first that fits is taken.
_KINDS_IN_BLOCK = (
    ("self-attention", "attn1.to_"),
    ("cross-attention", "attn2.to_"),
    ("feed-forward", "ffn."),
    ("norms and modulation", ""),
)
_KINDS_OUTSIDE = (
    ("embeddings", ("patch_", "condition_embedder.")),
    ("output", ("proj_out.", "norm_out.")),
)


def describe_file(path: Path) -> list[str]:
    """Lines about the weights at `path`: a Helios transformer, a LoRA, or what else it seems to be.

    Raises CheckpointError for a file that cannot be read, or one that is a Helios transformer in part: then it says
    what is missing.
    """
    weights = find_weight_files(Path(path))
    stored, _ = weights.read_headers()
    if any(read_key(key) for key in stored):
        return _describe_lora(path, stored)
    try:
        # Formats that only some ComfyUI reads are described as well.
        return _describe_checkpoint(open_checkpoint(path, frozenset(STORED_DTYPES)))
    except CheckpointError:
        model = seems_for(stored) if any("lora" in key for key in stored) else None
        what = f"a LoRA for {model}" if model else what_it_looks_like(stored)
        if what is None:
            raise
        return [f"{path}: not a Helios transformer; it looks like {what}", _size(stored)]


def _describe_checkpoint(checkpoint: Checkpoint) -> list[str]:
    config = checkpoint.config
    variant = "not said in the file or beside it"
    if checkpoint.settings is not None:
        variant = variant_of(checkpoint.settings)
    lines = [
        f"{checkpoint.path}: a Helios transformer, complete, in {checkpoint.layout} names",
        f"  variant: {variant}",
        f"  {config.num_layers} blocks of width {config.inner_dim}, {len(checkpoint.tensors)} tensors, "
        f"{checkpoint.nbytes / 2**30:.2f} GiB of weights",
    ]
    kinds: dict[str, Counter[str]] = {}
    for name, entry in checkpoint.tensors.items():
        kinds.setdefault(_kind(name), Counter())[_stored_as(entry)] += 1
    for kind, counts in kinds.items():
        how = ", ".join(f"{count} in {stored}" for stored, count in counts.most_common())
        lines.append(f"  {kind}: {how}")
    return lines


def _kind(name: str) -> str:
    if name.startswith("blocks."):
        inner = name.split(".", 2)[2]
        return next(kind for kind, start in _KINDS_IN_BLOCK if inner.startswith(start))
    return next((kind for kind, starts in _KINDS_OUTSIDE if name.startswith(starts)), "others")


def _stored_as(entry: TensorEntry) -> str:
    if entry.block_format is not None:
        return f"GGUF {entry.block_format}"
    if entry.quant is not None and not entry.quant.has_numbers_here:
        return f"{entry.quant.name}, as ComfyUI marks it"
    dtype = str(entry.dtype).removeprefix("torch.")
    if entry.scale is None:
        return dtype
    scales = "a scale for each row" if max(entry.scale.shape, default=1) > 1 else "one scale"
    marked = ", as ComfyUI marks it" if entry.quant is not None else ""
    return f"{format_of(entry.dtype)} with {scales}{marked}"


def _describe_lora(path: Path, stored: Mapping[str, TensorEntry]) -> list[str]:
    """Of the published 14B model; a LoRA for a model of another width has its own tensors' sizes."""
    model = HeliosTransformer(TransformerConfig(), device="meta")
    layers = {name.removesuffix(".weight") for name, _ in model.named_parameters() if name.endswith(".weight")}
    found = [key for key in map(read_key, stored) if key is not None]
    kinds = Counter(key.kind for key in found)
    not_read = [key for key in stored if read_key(key) is None]
    lines = [
        f"{path}: a LoRA for Helios or Wan",
        f"  {survey(stored, layers).sentence()}",
        f"  tensors: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}",
        f"  dtypes: {', '.join(sorted({str(entry.dtype).removeprefix('torch.') for entry in stored.values()}))}",
        _size(stored),
    ]
    if not_read:
        lines.append(f"  not understood: {len(not_read)} ({first_few(not_read)})")
    return lines


def _size(stored: Mapping[str, TensorEntry]) -> str:
    return f"  {len(stored)} tensors, {sum(entry.nbytes for entry in stored.values()) / 2**20:.1f} MiB"
