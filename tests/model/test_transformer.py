"""The transformer against diffusers' HeliosTransformer3DModel with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import HeliosTransformer3DModel
from diffusers.models.transformers.transformer_helios import HeliosRotaryPosEmbed

from helios_core.memory.config import MemoryConfig
from helios_core.memory.memory import HeliosMemory
from helios_core.model.config import TransformerConfig
from helios_core.model.rope import join, rotary_table
from helios_core.model.transformer import HeliosTransformer
from tests import reference
from tests.stand_in_device import DEVICE, StandInDevice, to_stand_in

THREE_HEADS = {"num_attention_heads": 3, "attention_head_dim": 24, "rope_dim": (12, 6, 6), "num_layers": 3}
ONE_HEAD = {"num_attention_heads": 1, "attention_head_dim": 16, "rope_dim": (4, 6, 6), "text_dim": 32}


def ours(oracle: HeliosTransformer3DModel, dtype: torch.dtype = torch.float32) -> HeliosTransformer:
    """Our transformer with the oracle's config and weights."""
    model = HeliosTransformer(TransformerConfig.from_diffusers(oracle.config), dtype=dtype)
    model.load_state_dict(oracle.state_dict())
    return model.eval()


def inputs(oracle, batch_size: int, noisy_size, history_size, dtype=torch.float32, seed: int = 5) -> dict:
    """Random arguments of diffusers' forward; `history_size` None leaves the memory away."""
    source = reference.generator(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=source).to(dtype)

    arguments = {
        "hidden_states": randn(batch_size, 16, 9, *noisy_size),
        "timestep": torch.tensor([743.25, 311.5][:batch_size], dtype=torch.float64),
        "encoder_hidden_states": randn(batch_size, 11, oracle.config.text_dim),
    }
    if history_size is None:
        return arguments
    indices = torch.arange(29)[None]
    anchor, long, mid, last, noisy = indices.split([1, 16, 2, 1, 9], dim=1)
    frames, prefix = randn(batch_size, 16, 19, *history_size), randn(batch_size, 16, 1, *history_size)
    return {
        **arguments,
        "indices_hidden_states": noisy,
        "indices_latents_history_short": torch.cat((anchor, last), dim=1),
        "indices_latents_history_mid": mid,
        "indices_latents_history_long": long,
        "latents_history_short": torch.cat((prefix, frames[:, :, 18:]), dim=2),
        "latents_history_mid": frames[:, :, 16:18],
        "latents_history_long": frames[:, :, :16],
    }


def memory_of(arguments: dict) -> HeliosMemory:
    """The memory that holds the same history as diffusers' arguments."""
    short = arguments["latents_history_short"]
    past = (arguments["latents_history_long"], arguments["latents_history_mid"], short[:, :, 1:])
    return HeliosMemory(
        frames=torch.cat(past, dim=2).float(), anchor=short[:, :, :1].float(), chunk_index=1, config=MemoryConfig()
    )


@torch.no_grad()
def run_ours(model: HeliosTransformer, arguments: dict, **options) -> torch.Tensor:
    memory = None
    if "latents_history_long" in arguments:
        memory = model.encode_memory(memory_of(arguments).window())
    prompt = model.encode_prompt(arguments["encoder_hidden_states"])
    return model(arguments["hidden_states"], arguments["timestep"], prompt, memory, **options)


@torch.no_grad()
def run_oracle(oracle: HeliosTransformer3DModel, arguments: dict) -> torch.Tensor:
    return oracle(**arguments, return_dict=False)[0]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in units of the expected output's standard deviation."""
    return ((actual.float() - expected.float()).abs().max() / expected.float().std()).item()


# Token grids are half the latent sizes: 3x5 and 5x7 are no multiples of the mid (2) or long (4) memory's pooling.
@pytest.mark.parametrize(
    ("shape", "batch_size", "noisy_size", "history_size"),
    [
        pytest.param({}, 1, (8, 8), (8, 8), id="even grid"),
        pytest.param({}, 2, (6, 10), (6, 10), id="odd grid, batch of two"),
        pytest.param({}, 1, (4, 6), (10, 14), id="grid smaller than the memory's"),
        pytest.param({}, 2, (2, 2), (8, 8), id="one token a frame, batch of two"),
        pytest.param(THREE_HEADS, 1, (6, 6), (6, 6), id="three heads, three layers"),
        pytest.param(ONE_HEAD, 2, (6, 4), (6, 4), id="one head, wide text"),
        pytest.param({}, 1, (6, 8), None, id="without memory"),
        pytest.param({}, 2, (6, 8), None, id="without memory, batch of two"),
        pytest.param({"is_amplify_history": True}, 1, (6, 6), (6, 6), id="history keys amplified per head"),
        pytest.param(
            {"is_amplify_history": True, "history_scale_mode": "scalar"}, 1, (6, 6), (6, 6), id="amplified as one"
        ),
        pytest.param({"is_amplify_history": True}, 1, (6, 6), None, id="amplified, nothing to amplify"),
    ],
)
def test_the_velocity_is_the_references(shape, batch_size, noisy_size, history_size):
    oracle = reference.transformer(**shape)
    arguments = inputs(oracle, batch_size, noisy_size, history_size)
    expected = run_oracle(oracle, arguments)
    assert expected.std() > 0.3  # a near-zero output would agree with anything
    assert relative_error(run_ours(ours(oracle), arguments), expected) < 1e-5


@pytest.mark.parametrize("history_size", [(6, 10), None], ids=["with memory", "without memory"])
def test_in_bfloat16_we_are_no_further_from_float32_than_the_reference(history_size):
    exact = reference.transformer()
    oracle = reference.in_bfloat16(exact)
    arguments = inputs(exact, 2, (6, 10), history_size, dtype=torch.bfloat16)
    in_float32 = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in arguments.items()}
    truth = run_oracle(exact, in_float32)
    expected = run_oracle(oracle, arguments)
    actual = run_ours(ours(oracle, torch.bfloat16), arguments)

    def distance(a, b):
        return (a.float() - b.float()).square().mean().sqrt() / truth.std()

    assert actual.dtype == torch.bfloat16
    assert distance(actual, truth) < 1.2 * distance(expected, truth)
    assert distance(actual, expected) < 0.01
    assert relative_error(actual, expected) < 0.1


def test_the_float32_islands_are_the_references():
    oracle = reference.in_bfloat16(reference.transformer(is_amplify_history=True))
    model = HeliosTransformer(TransformerConfig.from_diffusers(oracle.config), dtype=torch.bfloat16)
    assert {name: value.dtype for name, value in model.state_dict().items()} == {
        name: value.dtype for name, value in oracle.state_dict().items()
    }


@pytest.mark.parametrize("options", [{}, {"is_amplify_history": True}], ids=["published", "amplified history"])
def test_the_14b_model_has_the_references_names_and_shapes(options):
    with torch.device("meta"):
        expected = HeliosTransformer3DModel(**options).state_dict()
    actual = HeliosTransformer(TransformerConfig(**options), device="meta").state_dict()
    assert {name: value.shape for name, value in actual.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert len(actual) == (1141 if options else 1101)


def diffusers_table(rope, frame_indices: torch.Tensor, height: int, width: int, pool: int) -> torch.Tensor:
    """(N, 2 * head_dim): cosines then sines, every pair's angle twice."""
    table = rope(frame_indices[None], height, width, torch.device("cpu"))
    if pool > 1:
        pad = [value for size in reversed(table.shape[2:]) for value in (0, -size % pool)]
        table = F.avg_pool3d(F.pad(table, pad, mode="replicate"), pool)
    return table.flatten(2).transpose(1, 2)[0]


@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize("grid", [(3, 5), (12, 20)], ids=["odd grid", "192x320"])
def test_rotary_tables_are_the_references(pool, grid):
    rope_dim, frame_indices = (44, 42, 42), torch.arange(3, 20)
    rope = HeliosRotaryPosEmbed(rope_dim, 10000.0)
    expected_cos, expected_sin = diffusers_table(rope, frame_indices, *grid, pool).chunk(2, dim=-1)
    cos, sin = rotary_table(frame_indices, *grid, rope_dim, 10000.0, pool=pool)
    torch.testing.assert_close(cos, expected_cos[:, ::2], rtol=0, atol=1e-6)
    torch.testing.assert_close(sin, expected_sin[:, 1::2], rtol=0, atol=1e-6)


def test_a_device_without_3d_pooling_gets_the_same_rotary_table():
    with StandInDevice():
        there = rotary_table(to_stand_in(torch.arange(5)), 6, 6, (4, 4, 4), 10000.0, pool=4)
        here = rotary_table(torch.arange(5), 6, 6, (4, 4, 4), 10000.0, pool=4)
        assert there.cos.device == DEVICE
        assert torch.equal(there.cos.cpu(), here.cos)
        assert torch.equal(there.sin.cpu(), here.sin)


def test_pooled_rotations_shrink_and_joined_tables_keep_order():
    short = rotary_table(torch.arange(2), 4, 4, (4, 4, 4), 10000.0)
    long = rotary_table(torch.arange(4), 4, 4, (4, 4, 4), 10000.0, pool=4)
    lengths = torch.hypot(*long)
    assert (torch.hypot(*short) - 1).abs().max() < 1e-6
    assert lengths.max() <= 1
    assert lengths.min() < 0.9
    assert torch.equal(join(long, short).cos, torch.cat((long.cos, short.cos)))


def test_an_attention_handed_in_is_used_everywhere():
    model = ours(reference.transformer())
    arguments = inputs(reference.transformer(), 1, (4, 4), (8, 8))
    calls = []

    def attention(query, key, value):
        calls.append((tuple(query.shape), tuple(key.shape)))
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        return weights @ value

    actual = run_ours(model, arguments, attention=attention)
    num_noisy, num_history = 9 * 2 * 2, 2 * 4 * 4 + 1 * 2 * 2 + 4 * 1 * 1
    to_all = ((1, 2, num_noisy + num_history, 12), (1, 2, num_noisy + num_history, 12))
    to_text = ((1, 2, num_noisy, 12), (1, 2, 11, 12))
    from_noisy = ((1, 2, num_noisy, 12), (1, 2, num_noisy + num_history, 12))
    assert calls == [to_all, to_text, from_noisy, to_text]  # the last block's history rows lead nowhere
    assert relative_error(actual, run_ours(model, arguments)) < 1e-5


def test_prompt_and_memory_are_encoded_once_and_serve_many_steps_and_stages():
    oracle = reference.transformer()
    model = ours(oracle)
    stage_0, stage_1 = inputs(oracle, 1, (4, 4), (8, 8)), inputs(oracle, 1, (8, 8), (8, 8), seed=6)
    shared = {name: value for name, value in stage_0.items() if name not in ("hidden_states", "timestep")}
    stage_1 = {**stage_1, **shared}
    with torch.no_grad():
        prompt = model.encode_prompt(stage_0["encoder_hidden_states"])
        memory = model.encode_memory(memory_of(stage_0).window())
        for arguments in (stage_0, stage_1, stage_0):
            actual = model(arguments["hidden_states"], arguments["timestep"], prompt, memory)
            assert relative_error(actual, run_oracle(oracle, arguments)) < 1e-5


def test_prompt_embeddings_of_another_text_encoder_are_refused():
    model = ours(reference.transformer())
    with pytest.raises(ValueError, match=r"\(1, 7, 20\).*16"):
        model.encode_prompt(torch.zeros(1, 7, 20))
