"""The Helios transformer: one forward from noisy latents, prompt and memory to a velocity.

Tokens stand in the order [long | mid | short | noisy]. The three memories are the past at three compressions
(multi-term memory patchification, paper section 3); only the noisy tokens leave the network.

Work is done at the level where it changes: `encode_prompt` once per prompt, `encode_memory` once per chunk,
`forward` once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from ..memory.memory import MemoryWindow
from ..transfer import to_device
from .attention import AttentionFunction, GuidanceAttention, SelfAttention, mix
from .config import TransformerConfig
from .modulation import ConditionEmbedder, Work, add_gated, add_to_noisy, decide_work, modulated_norm, norm_with_rows
from .patchify import pad_to_multiple, to_tokens, unpatchify
from .rope import Rotary, join, rotary_table, rows_of

# Key and value, each (B, N, heads, head_dim).
KeyValue = tuple[torch.Tensor, torch.Tensor]
# each_block(blocks, device) -> the blocks one after the other, each asked for when the one before has run.
EachBlock = Callable[[Sequence[nn.Module], torch.device], Iterable[nn.Module]]


@dataclass(frozen=True)
class PromptContext:
    """A prompt as the blocks use it: text tokens (B, L, D), and each block's keys and values once it made them."""

    tokens: torch.Tensor
    key_values: dict[int, KeyValue] = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryTokens:
    """A chunk's memory as the blocks use it: tokens (B, N, D), their rotary table, and the noisy frames' indices.

    `positions` is all that these tables depend on, as plain numbers: memories at the same positions differ in their
    tokens alone.
    `rotary_tables` keeps, for each token grid met (one for a pyramid stage), the table of memory and noisy tokens.
    `history`, unless None, keeps for each prompt (by its id) and block key and value of the history rows as the first
    forward made them; later forwards take them from there and compute the noisy rows alone. That is an approximation:
    the history rows see the noisy ones, which change from step to step.
    """

    tokens: torch.Tensor
    rotary: Rotary
    noisy_frame_indices: torch.Tensor
    positions: tuple
    rotary_tables: dict[tuple[int, int], Rotary] = field(default_factory=dict)
    history: dict[int, list[list[KeyValue]]] | None = None


class FeedForward(nn.Module):
    """Linear -> tanh-GELU -> Linear, in two steps, `widen` and `narrow`, so that what the first one took can be let go
    before the second. The odd nesting gives the published weights' names."""

    def __init__(self, config: TransformerConfig, operations, dtype, device) -> None:
        super().__init__()
        up = nn.Module()
        up.proj = operations.Linear(config.inner_dim, config.ffn_dim, dtype=dtype, device=device)
        down = operations.Linear(config.ffn_dim, config.inner_dim, dtype=dtype, device=device)
        self.net = nn.ModuleList([up, nn.Identity(), down])

    def widen(self, x: torch.Tensor, work: Work = Work.PLAIN) -> torch.Tensor:
        """x (B, N, D) -> hidden (B, N, ffn_dim)."""
        gelu = torch.ops.aten.gelu_ if work is Work.IN_PLACE else F.gelu
        return gelu(self.net[0].proj(x), approximate="tanh")

    def narrow(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (B, N, ffn_dim) -> (B, N, D)."""
        return self.net[2](hidden)


class HeliosBlock(nn.Module):
    """Self-attention over all tokens, guidance attention of the noisy ones, feed-forward over all."""

    def __init__(self, config: TransformerConfig, operations, dtype, device) -> None:
        super().__init__()
        dim = config.inner_dim
        self.eps = config.eps
        self.attn1 = SelfAttention(config, operations, dtype, device)
        self.attn2 = GuidanceAttention(config, operations, dtype, device)
        self.norm2 = operations.LayerNorm(dim, eps=config.eps, dtype=torch.float32, device=device)
        self.ffn = FeedForward(config, operations, dtype, device)
        self.scale_shift_table = nn.Parameter(torch.empty(1, 6, dim, dtype=torch.float32, device=device))
        nn.init.normal_(self.scale_shift_table, std=dim**-0.5)

    def forward(
        self,
        x: torch.Tensor,
        text_key_value: KeyValue,
        modulation: torch.Tensor,
        rotary: Rotary,
        num_history: int,
        attention: AttentionFunction,
        *,
        is_last: bool = False,
        history: list[KeyValue] | None = None,
        work: Work = Work.PLAIN,
    ) -> torch.Tensor:
        """x (B, N, D) -> (B, N, D); `modulation` is (1 + B, 6, D) with row 0 for the history.

        The last block gives the noisy rows only: nothing looks at the history's after it. An empty list `history`
        is given key and value of the history rows; a filled one takes the place of such rows, which x then lacks.
        With `work` IN_PLACE x is overwritten.
        """
        if torch.compiler.is_compiling():  # this block alone is compiled
            work = Work.PLAIN
        table = self.scale_shift_table.to(x.device, torch.float32) + modulation.float()
        shift_msa, scale_msa, gate_msa, shift_ffn, scale_ffn, gate_ffn = table.unbind(1)

        first_query = num_history if is_last else 0
        normed = modulated_norm(x, shift_msa, scale_msa, num_history, self.eps, work)
        query, key, value = self.attn1.query_key_value(normed, rotary, num_history, first_query=first_query, work=work)
        del normed
        if history:
            key, value = (torch.cat(pair, dim=1) for pair in zip(history[0], (key, value), strict=True))
        elif history is not None:
            history.append((key[:, :num_history].clone(), value[:, :num_history].clone()))
        mixed = mix(query, key, value, attention)
        del query, key, value
        x, num_history = x[:, first_query:], num_history - first_query
        x = add_gated(x, self.attn1.project(mixed), gate_msa, num_history, work)
        del mixed

        normed = self.norm2(x[:, num_history:].float()).to(x.dtype)
        x = add_to_noisy(x, self.attn2(normed, text_key_value, attention, work), num_history, work)

        normed = modulated_norm(x, shift_ffn, scale_ffn, num_history, self.eps, work)
        hidden = self.ffn.widen(normed, work)
        del normed
        return add_gated(x, self.ffn.narrow(hidden), gate_ffn, num_history, work)


class OutputNorm(nn.Module):
    """Modulated norm of the noisy rows before the output projection."""

    def __init__(self, config: TransformerConfig, device) -> None:
        super().__init__()
        dim = config.inner_dim
        self.eps = config.eps
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, dim, dtype=torch.float32, device=device))
        nn.init.normal_(self.scale_shift_table, std=dim**-0.5)

    def forward(self, noisy: torch.Tensor, time_embedding: torch.Tensor, work: Work = Work.PLAIN) -> torch.Tensor:
        """noisy (B, N, D), time_embedding (B, D) -> (B, N, D)."""
        table = self.scale_shift_table.to(noisy.device, torch.float32) + time_embedding.float()[:, None]
        shift, scale = table.unbind(1)
        return norm_with_rows(noisy, shift, scale, self.eps, work)


class HeliosTransformer(nn.Module):
    """The network. Parameter names are those of the published diffusers checkpoint.

    `operations` is a namespace with `Linear`, `Conv3d`, `LayerNorm` and `RMSNorm` (torch.nn, or comfy.ops inside
    ComfyUI). `dtype` is the dtype of tokens and weights; the time embedder, every scale_shift_table, norm2 and
    history_key_scale stay float32.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        operations=nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        self.config = config
        self.dtype = dtype
        dim = config.inner_dim

        def patch(factor: int):
            kernel = tuple(factor * size for size in config.patch_size)
            return operations.Conv3d(
                config.in_channels, dim, kernel_size=kernel, stride=kernel, dtype=dtype, device=device
            )

        self.patch_embedding = patch(1)
        self.patch_short = patch(1)
        self.patch_mid = patch(2)
        self.patch_long = patch(4)
        self.condition_embedder = ConditionEmbedder(config, operations, dtype, device)
        self.blocks = nn.ModuleList(HeliosBlock(config, operations, dtype, device) for _ in range(config.num_layers))
        self.norm_out = OutputNorm(config, device)
        patch_volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.proj_out = operations.Linear(dim, config.out_channels * patch_volume, dtype=dtype, device=device)

    def compile_blocks(self, **options) -> None:
        """Compile the blocks, in place, with torch.compile's `options`. All share one piece of code, compiled for each
        shape met: a few for the stages of a pyramid. Names and values of the weights stay as they are."""
        for block in self.blocks:
            block.compile(**{"dynamic": False, **options})

    def encode_prompt(self, prompt_embeds: torch.Tensor) -> PromptContext:
        """Once per prompt: text encoder rows (B, L, text_dim) -> context for `forward`."""
        if prompt_embeds.ndim != 3 or prompt_embeds.shape[-1] != self.config.text_dim:
            raise ValueError(
                f"prompt embeddings have shape {tuple(prompt_embeds.shape)}; this model takes "
                f"(batch, tokens, {self.config.text_dim}). Was the prompt encoded by another text encoder?"
            )
        return PromptContext(self.condition_embedder.text_embedder(prompt_embeds.to(self.dtype)))

    def encode_memory(self, window: MemoryWindow) -> MemoryTokens:
        """Once per chunk: patchify the three memories; the further back, the larger the patch (1, 2, 4 times)."""
        indices = window.frame_indices
        height, width = (
            size // patch for size, patch in zip(window.short.shape[-2:], self.config.patch_size[1:], strict=True)
        )
        tokens, tables = [], []
        for latents, frame_indices, embed, pool in (
            (window.long, indices.long, self.patch_long, 4),
            (window.mid, indices.mid, self.patch_mid, 2),
            (window.short, indices.short, self.patch_short, 1),
        ):
            kernel = tuple(pool * size for size in self.config.patch_size)
            padded = pad_to_multiple(latents.to(self.dtype), kernel) if pool > 1 else latents.to(self.dtype)
            tokens.append(to_tokens(embed(padded)))
            tables.append(self._rotary(to_device(frame_indices, latents.device), height, width, pool))
        rotary = join(join(tables[0], tables[1]), tables[2])
        positions = (height, width, *(tuple(frames.tolist()) for frames in indices))
        noisy = to_device(indices.noisy, latents.device)
        return MemoryTokens(torch.cat(tokens, dim=1), rotary, noisy, positions)

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt: PromptContext,
        memory: MemoryTokens | None = None,
        *,
        attention: AttentionFunction = F.scaled_dot_product_attention,
        each_block: EachBlock | None = None,
        allow_in_place: bool = True,
    ) -> torch.Tensor:
        """Velocity at noise level `timestep`.

        `latents` (B, C, T, h, w) in model space, of the current pyramid stage; `timestep` (B,) on the scale
        0..1000. Without `memory` the latents are seen alone, as frames 0..T-1. Returns (B, C, T, h, w).

        A host may hand in `each_block`, to bring a block's weights while the one before computes, and forbid to write
        over tensors of the forward (`allow_in_place`); none of the arguments is written over in any case.
        """
        work = decide_work(self, allow_in_place)
        x = self.patch_embedding(latents.to(self.dtype))
        grid = x.shape[2:]
        x = to_tokens(x)
        rotary, key_values = self._made_once(grid, prompt, memory, x.device, work)
        num_history = 0
        history = self._shared_history(prompt, memory)
        if history[0]:
            rotary = rows_of(rotary, memory.tokens.shape[1])
        elif memory is not None:
            num_history = memory.tokens.shape[1]
            x = torch.cat((memory.tokens, x), dim=1)

        time_embedding, modulation = self.condition_embedder.embed_timestep(timestep)
        blocks = self.blocks if each_block is None else each_block(self.blocks, x.device)
        for index, (block, key_value) in enumerate(zip(blocks, key_values, strict=True)):
            x = block(
                x,
                key_value,
                modulation,
                rotary,
                num_history,
                attention,
                is_last=index == len(self.blocks) - 1,
                history=history[index],
                work=work,
            )

        x = self.proj_out(self.norm_out(x, time_embedding, work))
        return unpatchify(x, grid, self.config.patch_size)

    @torch.compiler.disable  # A compiled forward would be compiled again for each thing that is not there yet.
    def _made_once(
        self, grid: torch.Size, prompt: PromptContext, memory: MemoryTokens | None, device: torch.device, work: Work
    ):
        """The rotary table of all tokens, and each block's keys and values of the prompt."""
        for index, block in enumerate(self.blocks):
            if index not in prompt.key_values:
                prompt.key_values[index] = block.attn2.key_value(prompt.tokens, work)
        return self._rotary_for(grid, memory, device), [prompt.key_values[index] for index in range(len(self.blocks))]

    def _shared_history(self, prompt: PromptContext, memory: MemoryTokens | None) -> list[list[KeyValue] | None]:
        """For each block what forwards share of the history rows; empty lists before the first."""
        if memory is None or memory.history is None:
            return [None] * len(self.blocks)
        return memory.history.setdefault(id(prompt), [[] for _ in self.blocks])

    def _rotary(self, frame_indices: torch.Tensor, height: int, width: int, pool: int = 1) -> Rotary:
        return rotary_table(frame_indices, height, width, self.config.rope_dim, self.config.rope_theta, pool=pool)

    def _rotary_for(self, grid: torch.Size, memory: MemoryTokens | None, device: torch.device) -> Rotary:
        """Table of all tokens; made once for a chunk's stage."""
        num_frames, height, width = grid
        if memory is None:
            return self._rotary(torch.arange(num_frames, device=device), height, width)
        if (height, width) not in memory.rotary_tables:
            noisy = self._rotary(memory.noisy_frame_indices, height, width)
            memory.rotary_tables[height, width] = join(memory.rotary, noisy)
        return memory.rotary_tables[height, width]
