"""What a forward writes over: nothing that a caller, a hook or a layer put in another's place may still hold."""

import pytest
import torch

from helios_core.memory.config import MemoryConfig
from helios_core.memory.memory import HeliosMemory
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer, MemoryTokens, PromptContext

CONFIG = TransformerConfig(
    num_attention_heads=2, attention_head_dim=24, rope_dim=(12, 6, 6), num_layers=2, ffn_dim=64, text_dim=32,
    is_amplify_history=True,
)  # fmt: skip


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def model(request) -> HeliosTransformer:
    torch.manual_seed(3)
    model = HeliosTransformer(CONFIG, dtype=request.param).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return model


@torch.no_grad()
def inputs(model: HeliosTransformer, with_memory: bool) -> tuple:
    source = torch.Generator().manual_seed(4)

    def randn(*shape):
        return torch.randn(shape, generator=source)

    memory = None
    if with_memory:
        past = HeliosMemory(randn(1, 16, 19, 8, 8), anchor=randn(1, 16, 1, 8, 8), chunk_index=1, config=MemoryConfig())
        memory = model.encode_memory(past.window())
    prompt = model.encode_prompt(randn(1, 7, CONFIG.text_dim))
    return randn(1, 16, 9, 8, 8).to(model.dtype), torch.tensor([700.0]), prompt, memory


class Holder:
    """Keeps every tensor that a layer is given or gives, and a copy of it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.held: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        for name, layer in model.named_modules():
            layer.register_forward_hook(
                lambda layer, given, gave, name=name: self.keep(name, (*given, gave)) if name else None
            )

    def keep(self, name: str, values) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                self.held.append((name, value, value.clone()))
            elif isinstance(value, tuple):
                self.keep(name, value)

    def overwritten(self) -> list[str]:
        return [name for name, value, copy in self.held if not torch.equal(value, copy)]


def tensors_of(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PromptContext):
        return [value.tokens, *(tensor for pair in value.key_values.values() for tensor in pair)]
    if isinstance(value, MemoryTokens):
        return [value.tokens, *value.rotary, *(tensor for table in value.rotary_tables.values() for tensor in table)]
    return []


@pytest.mark.parametrize("with_memory", [True, False], ids=["memory", "no memory"])
@torch.no_grad()
def test_what_hooks_hold_stays_and_the_bits_are_those_without_hooks(model, with_memory):
    arguments = inputs(model, with_memory)
    expected = model(*arguments)
    holder = Holder(model)
    assert torch.equal(model(*arguments), expected)
    assert len(holder.held) > 50
    assert holder.overwritten() == []


@pytest.mark.parametrize("with_memory", [True, False], ids=["memory", "no memory"])
@torch.no_grad()
def test_no_argument_of_a_forward_is_written_over(model, with_memory):
    arguments = inputs(model, with_memory)
    model(*arguments)  # which makes the tables and the prompt's keys
    held = [(tensor, tensor.clone()) for value in arguments for tensor in tensors_of(value)]
    model(*arguments)
    assert all(torch.equal(tensor, copy) for tensor, copy in held)


@torch.no_grad()
def test_a_layer_whose_forward_was_replaced_may_keep_what_it_gives(model):
    """ComfyUI's bypassed LoRAs put a function in the place of a layer's forward."""
    arguments = inputs(model, with_memory=True)
    expected = model(*arguments)
    held = []
    for block in model.blocks:
        for layer in (block.attn1.to_q, block.attn1.to_k, block.ffn.net[0].proj):

            def replacement(x, forward=layer.forward):
                out = forward(x)
                held.append((out, out.clone()))
                return out

            layer.forward = replacement
    assert torch.equal(model(*arguments), expected)
    assert len(held) == 6
    assert all(torch.equal(out, copy) for out, copy in held)


@torch.no_grad()
def test_a_host_that_forbids_it_gets_the_same_bits(model):
    arguments = inputs(model, with_memory=True)
    assert torch.equal(model(*arguments, allow_in_place=False), model(*arguments))


@torch.no_grad()
def test_a_host_is_asked_for_each_block_when_the_one_before_has_run(model):
    arguments = inputs(model, with_memory=True)
    expected, order = model(*arguments), []

    def each_block(blocks, device):
        for index, block in enumerate(blocks):
            order.append(f"bring {index}")
            yield block
        order.append("end")

    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: order.append(f"ran {index}"))
    assert torch.equal(model(*arguments, each_block=each_block), expected)
    assert order == ["bring 0", "ran 0", "bring 1", "ran 1", "end"]
