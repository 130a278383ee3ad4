"""Which variant weights are taken for, and what is told when they are sampled otherwise than trained."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from helios_core.demo import DEMO_SETTINGS
from helios_core.sampling.settings import VARIANTS, ScheduleConfig, model_title, variant_of
from helios_core.sampling.variant import choose_variant, sampling_advice


@pytest.mark.parametrize(
    ("path", "variant"),
    [
        ("helios_distilled_bf16.safetensors", "distilled"),
        ("Helios-Mid/transformer", "mid"),
        ("HeliosBase.gguf", "base"),
        ("Helios-Base/transformer/diffusion_pytorch_model.safetensors", "base"),
        ("Helios-Base/my_distilled_finetune.safetensors", "distilled"),
    ],
)
def test_the_name_nearest_to_the_file_decides(path, variant, caplog):
    assert choose_variant(Path(path), None) == VARIANTS[variant]
    assert not caplog.text


@pytest.mark.parametrize("path", ["database/midnight.safetensors", "mid_or_base.safetensors", "video.safetensors"])
def test_a_name_that_does_not_say_is_distilled_with_a_warning(path, caplog):
    assert choose_variant(Path(path), None) == VARIANTS["distilled"]
    assert "nothing says" in caplog.text


def test_the_files_own_schedule_is_used_when_it_is_of_the_chosen_variant():
    own = replace(VARIANTS["mid"], schedule=ScheduleConfig(gamma=0.25))
    assert choose_variant(Path("x"), own) == choose_variant(Path("x"), own, "mid") == own
    assert choose_variant(Path("x"), own, "base") == VARIANTS["base"]


@pytest.mark.parametrize("told", VARIANTS)
@pytest.mark.parametrize("chosen", VARIANTS)
def test_the_choice_counts_and_warns_where_the_files_say_otherwise(told, chosen, caplog):
    with caplog.at_level(logging.WARNING):
        settings = choose_variant(Path("x.safetensors"), VARIANTS[told], chosen)
    assert variant_of(settings) == chosen
    assert bool(caplog.text) == (told != chosen)
    if told != chosen:
        assert f"taken for Helios {chosen.capitalize()}" in caplog.text
        assert f"it is {told.capitalize()}" in caplog.text


def test_an_unknown_variant_is_refused_with_those_that_are_allowed():
    with pytest.raises(ValueError, match="'turbo'; allowed: 'base', 'mid', 'distilled'"):
        choose_variant(Path("x"), None, "turbo")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_published_variant_is_called_by_its_name(name):
    assert model_title(VARIANTS[name]) == f"Helios {name.capitalize()}"


def test_the_demo_is_not_called_by_the_name_of_a_published_variant():
    assert model_title(DEMO_SETTINGS) == "Helios"
    (sentence,) = sampling_advice(DEMO_SETTINGS, replace(DEMO_SETTINGS, steps=(40, 40)))
    assert "Mid" not in sentence


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_as_trained_is_not_commented_on(name):
    assert sampling_advice(VARIANTS[name], VARIANTS[name]) == []


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("distilled", {"guidance_scale": 5.0}, "Use 1"),
        ("mid", {"guidance_scale": 1.0}, "about 5"),
        ("distilled", {"steps": (20, 20, 20)}, "[20, 20, 20] are 60 in all; Helios Distilled is made for [2, 2, 2]"),
        ("base", {"steps": (4,)}, "Fewer leave noise"),
    ],
)
def test_settings_far_from_the_variants_are_reported_in_a_sentence(name, change, told):
    (sentence,) = sampling_advice(VARIANTS[name], replace(VARIANTS[name], **change))
    assert told in sentence


def test_a_few_steps_more_or_less_are_not_commented_on():
    assert sampling_advice(VARIANTS["distilled"], replace(VARIANTS["distilled"], steps=(3, 3, 3))) == []
    assert sampling_advice(VARIANTS["base"], replace(VARIANTS["base"], steps=(30,))) == []
