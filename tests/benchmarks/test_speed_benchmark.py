"""The speed benchmark on a model so small that only its bookkeeping counts."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import all as everything
from benchmarks import budget_diffusers, budgets, growth, page, profiling, speed
from benchmarks.cases import TINY_CASE
from benchmarks.contestants import OURS, THEIRS, Parts

CPU = torch.device("cpu")
STAGES = {"DiT, stage 1 of 3", "DiT, stage 2 of 3", "DiT, stage 3 of 3"}


@pytest.fixture(scope="module")
def parts():
    return Parts(TINY_CASE, CPU, torch.float32)


@pytest.fixture(scope="module")
def result(parts):
    return speed.measure(TINY_CASE, parts, num_pairs=2, num_films=1)


def test_both_make_the_same_chunk(result):
    assert result.difference < 1e-4
    assert min(result.peak.values()) > 0
    assert min(result.ratios) > 0


def test_text_every_stage_vae_and_video_encoder_are_timed_on_both_sides(result):
    assert set(result.parts[OURS]) == set(result.parts[THEIRS]) == {*STAGES, "text", "VAE decode", "encode"}
    assert all(seconds > 0 for split in result.parts.values() for seconds in split.values())


@pytest.mark.parametrize("variant", ["mid", "base"])
def test_guided_films_of_both_sides_are_made_from_two_prompts(parts, variant, tmp_path):
    steps = (2,) if variant == "base" else (2, 2, 2)
    # At 64x64 the lowest stage is one token a frame, which diffusers' CFG-Zero* cannot view.
    case = replace(TINY_CASE, variant=variant, steps=steps, width=128, height=128)
    for name, contestant in speed.CONTESTANTS.items():
        with speed.watched(case, parts) as watch:
            contestant.film(case, parts, tmp_path / f"{name}.mp4")
        assert [part for part, *_ in watch.marks].count("text") == 2
        assert (tmp_path / f"{name}.mp4").stat().st_size > 0


def test_the_tables_replace_what_stood_between_the_marks(result, tmp_path):
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- speed cpu -->\nold\n<!-- end of speed cpu -->\nafter\n")
    page.write_section(file, "speed cpu", "\n".join(speed.lines_of([result])))
    text = file.read_text()
    assert text.startswith("before\n<!-- speed cpu -->\n|")
    assert text.endswith("<!-- end of speed cpu -->\nafter\n")
    assert "in 2 pairs" in text
    assert "old" not in text
    with pytest.raises(ValueError, match="speed cuda"):
        page.write_section(file, "speed cuda", "")


def test_an_unknown_case_is_refused_with_the_names_of_all():
    with pytest.raises(ValueError, match="one block of the 14B model"):
        speed.chosen_cases(CPU, "13B", quick=False)


def test_the_profile_shares_all_time_among_kinds_in_every_part(parts, result):
    kinds = profiling.kinds_of_parts(TINY_CASE, parts)
    assert {*STAGES, "VAE decode"} <= set(kinds)
    assert all(kinds[stage]["matmul"] > 0 and kinds[stage]["attention"] > 0 for stage in STAGES)
    assert kinds["VAE decode"]["convolution"] > 0
    lines = profiling.kinds_table(kinds)
    assert len(lines) == 2 + len(kinds)


def test_a_stage_whose_operations_took_a_second_runs_at_its_count():
    rates = profiling.stage_rates(TINY_CASE, dict.fromkeys(STAGES, 1.0))
    costs = profiling.stage_costs(TINY_CASE.config, TINY_CASE.width, TINY_CASE.height, 3)
    assert list(rates.values()) == [cost.flops for cost in costs]


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matmul"),
        ("aten::_scaled_mm", "matmul"),
        ("aten::_scaled_dot_product_flash_attention", "attention"),
        ("aten::cudnn_convolution", "convolution"),
        ("aten::copy_", "copies"),
        ("aten::native_layer_norm", "norm and elementwise"),
        ("triton_poi_fused_add_mul_3", "norm and elementwise"),
    ],
)
def test_operations_are_counted_with_their_kind(operation, kind):
    assert profiling.kind_of(operation) == kind


def test_on_a_gpu_the_kernels_that_an_operation_started_are_counted_but_not_its_region():
    gemm, region = SimpleNamespace(name="gemm_80", duration=7.0), SimpleNamespace(name="aten::mm", duration=9.0)
    event = SimpleNamespace(name="aten::mm", kernels=[gemm, region])
    assert list(profiling.own_work(event, torch.device("cuda"))) == [("matmul", 7.0)]


def samples(last_tensors):
    flat = [growth.Sample(resident=100, tensors=50, seconds=1.0)] * (growth.MINUTE - growth.WINDOW)
    return [*flat, *[growth.Sample(resident=101, tensors=last_tensors, seconds=1.05)] * growth.WINDOW]


def test_growth_is_reported_and_refused_beyond_its_bound():
    assert growth.growth(samples(50)) == pytest.approx({"resident": 0.01, "tensors": 0.0, "seconds": 0.05})
    assert growth.too_much(samples(50)) == []
    (fault,) = growth.too_much(samples(52))
    assert "tensors has grown by 4.0%" in fault


def test_the_growth_chart_shows_both_sides(tmp_path):
    growth.plot({"ours": samples(50), "diffusers": samples(90)}, tmp_path / "growth.png")
    assert growth.Image.open(tmp_path / "growth.png").size == (700, 3 * 340)


def test_a_budget_that_does_not_suffice_is_a_row_of_its_own():
    rows = [
        budgets.Row(6, "diffusers, model offload", error="out of memory: CUDA out of memory. Tried to allocate 2 GiB"),
        budgets.Row(6, "ComfyUI-Helios, bf16 weights", [33.0, 11.0, 66.0], peak=2**30),
        budgets.Row(6, "ComfyUI-Helios, fp8 weights", error="benchmarks.comfyui ended with code 1:\nno such folder"),
    ]
    header, _, *lines = budgets.rows_table(rows)
    assert header.startswith("| memory |")
    assert lines[0] == "| 6 GB | diffusers, model offload | out of memory |  |  |"
    assert lines[1] == "| 6 GB | ComfyUI-Helios, bf16 weights | 33 (11 to 66) | 1 | 1024 MiB |"
    assert "failed: benchmarks.comfyui ended with code 1: no such folder" in lines[2]


@pytest.mark.parametrize("offload", ["none", "group", "group, tiled VAE"])
def test_diffusers_runs_offloaded(offload):
    (seconds,) = budget_diffusers.measure(TINY_CASE, CPU, offload, num_runs=1)
    assert seconds > 0


SETUP = everything.Setup(device="cpu", comfyui=None, python="python", scratch=None, quick=True, write=False)


def test_a_part_that_fails_or_cannot_run_stops_no_other(capfd):
    parts = [
        everything.Part("broken", "json.tool", quick=("no_such_file",), takes_device=False),
        everything.Part("absent", "benchmarks.absent"),
        everything.Part("hosted", "benchmarks.comfyui", needs_comfyui=True),
        everything.Part("sound", "calendar", quick=("2026", "3"), takes_device=False),
    ]
    broken, absent, hosted, sound = everything.run_all(parts, SETUP)
    assert broken.startswith("broken: ended with code")
    assert absent == "absent: not run: there is no benchmarks.absent"
    assert hosted == "hosted: not run: it needs --comfyui"
    assert sound.startswith("sound: done in")
    assert "March 2026" in capfd.readouterr().out


def test_one_command_measures_everything_that_is_here(capfd):
    assert everything.main(["--quick", "--only", "speed"]) == 0
    told = capfd.readouterr().out
    assert "ComfyUI-Helios against diffusers" in told
    assert "of a large matrix product" in told
    assert "speed: done in" in told


def test_every_part_gets_the_device_and_the_place_it_writes_to():
    setup = replace(SETUP, device="cuda", quick=False, write=True, comfyui=page.PAGE.parent, scratch=page.PAGE.parent)
    commands = {part.name: setup.command(part)[3:] for part in everything.PARTS}
    assert commands["speed"] == ["--profile", "--device", "cuda", "--write"]
    assert commands["growth"] == ["--write"]
    assert commands["options"] == ["--device", "cuda"]
    assert "--scratch" in commands["budgets"]
    assert "--models" in commands["comfyui"]
    for section in ("speed cpu", "speed cuda", "speed cuda compiled", "budgets cuda", "comfyui cuda", "growth"):
        page.marks(page.PAGE, section)
    page.marks(page.PAGE, "options cuda")
