"""The names that ComfyUI's draft of Helios gives to the published tensors, to write files in its layout."""

import re

NAMES = (
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^(blocks\.\d+\.)ffn\.net\.0\.proj\.", r"\1ffn.0."),
    (r"^(blocks\.\d+\.)ffn\.net\.2\.", r"\1ffn.2."),
)


def comfyui_name(name: str) -> str:
    """The name in ComfyUI's layout for a published name."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name
