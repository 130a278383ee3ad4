"""LoRAs over time: what they add equals merged weights, follows the blend, is known by the keys, and leaves nothing."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from helios_core.checkpoint.lora_file import read_lora
from helios_core.checkpoint.safetensors_file import CheckpointError
from helios_core.cli import main
from helios_core.demo import DemoModel
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.loop import make_chunks
from helios_core.sampling.loras import LorasOverTime
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.plan import ChunkPlan, Past
from helios_core.script.blending import EncodedSchedule
from helios_core.script.plans import ScriptedPlans
from helios_core.script.schedule import PromptSchedule, Segment
from helios_core.script.schedule_text import parse_schedule

LAYERS = {
    "blocks.0.self_attn.q": (128, 128),
    "blocks.1.cross_attn.k": (128, 128),
    "blocks.2.ffn.0": (512, 128),
    "blocks.3.ffn.2": (128, 512),
}
OURS = dict(
    zip(
        LAYERS,
        ("blocks.0.attn1.to_q", "blocks.1.attn2.to_k", "blocks.2.ffn.net.0.proj", "blocks.3.ffn.net.2"),
        strict=True,
    )
)


@pytest.fixture(scope="module")
def demo():
    source = DemoModel()
    settings = replace(source.settings, steps=(1, 1), guidance_scale=1.0)
    return source, source.load_transformer(), settings


def write_lora(path, seed=0, scale=0.1, layers=LAYERS, alpha=2.0):
    """A LoRA of rank 4 in Wan's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, (outputs, inputs) in layers.items():
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(4, inputs, generator=generator) * scale
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator) * scale
        tensors[f"diffusion_model.{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def merged(source, lora, strength):
    """A model of its own with the LoRA in its weights."""
    model = source.load_transformer()
    for layer, pair in lora.pairs.items():
        model.get_submodule(layer).weight.data += strength * pair.up.float() @ pair.down.float()
    return model


def make(model, plans, hooks=None):
    return [
        chunk.latents
        for chunk in make_chunks(lambda: model, Past(text_memory(width=64, height=64)), plans, hooks=hooks)
    ]


def directed(demo, text, loras, num_chunks):
    source, model, settings = demo
    script = EncodedSchedule.encode(parse_schedule(text), source.encode_prompts, loras=loras)
    plans = ScriptedPlans(script, settings, SeededNoise(1))
    over_time = LorasOverTime(loras.values())
    with over_time.beside(model):
        return make(model, map(plans, range(num_chunks)), Hooks(set_loras=over_time.set_strengths))


def test_a_lora_beside_the_layers_equals_merged_weights(demo, tmp_path):
    source, _, settings = demo
    lora = read_lora(write_lora(tmp_path / "snow.safetensors"))
    assert set(lora.pairs) == set(OURS.values())
    (made,) = directed(demo, "0s lora snow.safetensors 0.7: a red circle", {"snow.safetensors": lora}, 1)
    (rows,) = source.encode_prompts(["a red circle"])
    plan = ChunkPlan(rows, settings, SeededNoise(1))
    (expected,) = make(merged(source, lora, 0.7), [plan])
    (plain,) = make(demo[1], [plan])
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=2e-5)


def test_strengths_follow_the_blend_and_each_chunk_has_its_own(demo, tmp_path):
    source, _, settings = demo
    lora = read_lora(write_lora(tmp_path / "snow.safetensors"))
    text = "0s: a red circle\nchunk 1 blend 3 lora snow.safetensors 0.8: a red circle\nchunk 4 step: a red circle"
    schedule = parse_schedule(text)
    assert [schedule.loras_at(chunk) for chunk in range(5)] == [
        {}, {}, {"snow.safetensors": 0.4}, {"snow.safetensors": 0.8}, {}
    ]  # fmt: skip
    made = directed(demo, text, {"snow.safetensors": lora}, 5)
    (rows,) = source.encode_prompts(["a red circle"])
    past, plan = Past(text_memory(width=64, height=64)), ChunkPlan(rows, settings, SeededNoise(1))
    for strength, latents in zip((0, 0, 0.4, 0.8, 0), made, strict=True):
        (chunk,) = make_chunks(lambda strength=strength: merged(source, lora, strength), past, [plan])
        torch.testing.assert_close(latents, chunk.latents, rtol=1e-3, atol=1e-4)
        past = replace(chunk.past, memory=replace(chunk.past.memory, frames=chunk.past.memory.frames))


def test_twenty_changes_leave_nothing_behind(demo, tmp_path):
    _, model, _ = demo
    loras = {name: read_lora(write_lora(tmp_path / name, seed), name) for seed, name in enumerate(("a.st", "b.st"))}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    over_time = LorasOverTime(loras.values())
    script = EncodedSchedule(
        PromptSchedule((Segment(0, "", loras={"a.st": 1.0, "b.st": 0.5}),)), (torch.zeros(1),), loras=loras
    )
    planned = script.loras_for(0)
    x = torch.randn(1, 3, 128)
    layer = model.blocks[0].attn1.to_q
    plain = layer(x)
    with over_time.beside(model):
        for change in range(20):
            over_time.set_strengths([planned[change % 2]])
            assert not torch.equal(layer(x), plain)
            held = {name for name, _ in over_time._on_device}
            assert held == {planned[change % 2].name}
        over_time.set_strengths([])
        assert torch.equal(layer(x), plain)
        assert not over_time._on_device
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_keys_know_the_loras(demo, tmp_path):
    source, _, settings = demo
    first, second = (read_lora(write_lora(tmp_path / f"{seed}.st", seed), "snow") for seed in (0, 1))

    def identities(strength, lora):
        text = f"0s: a\nchunk 1 step lora snow {strength}: a"
        script = EncodedSchedule.encode(parse_schedule(text), source.encode_prompts, loras={"snow": lora})
        plans, over_time = ScriptedPlans(script, settings, SeededNoise(1)), LorasOverTime([lora])
        past = Past(text_memory(width=64, height=64))
        with over_time.beside(demo[1]):
            hooks = Hooks(set_loras=over_time.set_strengths)
            made = list(make_chunks(lambda: demo[1], past, map(plans, range(2)), hooks=hooks))
        return [chunk.past.memory.identity for chunk in made]

    known = [identities(0.5, first), identities(0.5, first), identities(0.6, first), identities(0.5, second)]
    assert known[0] == known[1]
    assert len({one for one, _ in known}) == 1
    assert len({other for _, other in known}) == 3


QUERY = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"single_blocks.0.linear1.lora_A.weight": torch.zeros(4, 4)}, "seems to be for Flux", id="Flux"),
        pytest.param({f"{QUERY}.lora_B.weight": torch.full((128, 4), torch.nan)}, "NaN", id="NaN"),
        pytest.param({f"{QUERY}.dora_scale": torch.ones(128)}, "magnitude.*over time", id="DoRA"),
        pytest.param({f"{QUERY}.lora_A.weight": torch.zeros(3, 128)}, "not whole", id="not whole"),
    ],
)
def test_files_that_cannot_serve_are_refused_in_words(change, message, tmp_path):
    from safetensors.torch import load_file

    others = {} if message.startswith("seems") else load_file(write_lora(tmp_path / "lora.safetensors"))
    save_file(others | change, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_lora(tmp_path / "bad.safetensors")


def test_a_lora_of_another_width_is_refused_before_anything_is_made(demo, tmp_path):
    lora = read_lora(write_lora(tmp_path / "wide.st", layers={"blocks.0.self_attn.q": (64, 64)}))
    with (
        pytest.raises(ValueError, match=r"does not fit.*64 outputs and 64 inputs, and the layer has 128 and 128"),
        LorasOverTime([lora]).beside(demo[1]),
    ):
        pass
    with pytest.raises(ValueError, match=r"names the LoRA 'no.st', which is not given"):
        EncodedSchedule(PromptSchedule((Segment(0, "a", loras={"no.st": 1}),)), (torch.zeros(1),))


def test_the_command_line_takes_loras_from_the_schedules_folder(tmp_path, caplog):
    write_lora(tmp_path / "snow.safetensors", scale=0.3)
    arguments = [
        "generate",
        "--width",
        "64",
        "--height",
        "64",
        "--seed",
        "1",
        "--steps",
        "1,1",
        "--guidance-scale",
        "1",
    ]

    def run(name, text):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        return main([*arguments, "--schedule", str(tmp_path / f"{name}.txt"), "--out", str(tmp_path / f"{name}.mp4")])

    assert run("with", "0s lora snow.safetensors: a red circle\nend chunk 1") == 0
    assert run("without", "0s: a red circle\nend chunk 1") == 0
    assert (tmp_path / "with.mp4").read_bytes() != (tmp_path / "without.mp4").read_bytes()
    assert run("missing", "0s lora no.safetensors: a red circle\nend chunk 1") == 2
    assert "no.safetensors cannot be read" in caplog.text
