"""One bar by work done, words with the time left for the frontend, and pictures of all nine frames."""

import re

import numpy as np
import pytest
import torch
from harness.latents_graph import SAMPLER, latents_graph


@pytest.fixture
def preview_class(comfyui):
    import sys

    (module,) = [m for name, m in sys.modules.items() if name.endswith("ComfyUI-Helios.nodes.host.progress")]
    return module.Preview


@pytest.fixture
def previewer():
    import comfy.latent_formats
    import latent_preview

    wan = comfy.latent_formats.Wan21()
    return latent_preview.Latent2RGBPreviewer(wan.latent_rgb_factors, wan.latent_rgb_factors_bias)


class Step:
    num_stages, num_steps = 3, 2

    def __init__(self, stage: int, step: int, denoised: torch.Tensor) -> None:
        self.stage, self.step, self.denoised = stage, step, denoised


def test_a_preview_shows_every_latent_frame_as_comfyui_would_show_it_alone(preview_class, previewer):
    latents = torch.randn(1, 16, 9, 4, 6)
    picture = np.asarray(preview_class(previewer).draw(Step(0, 0, latents)))
    assert picture.shape == (12, 18, 3)
    for frame in range(9):
        alone = np.asarray(previewer.decode_latent_to_preview(latents[:, :, frame : frame + 1]))
        row, column = divmod(frame, 3)
        tile = picture[4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
        assert np.abs(tile.astype(int) - alone).max() <= 1, frame


def test_finished_chunks_stand_above_the_one_in_the_making_the_last_three_of_them(preview_class, previewer):
    preview = preview_class(previewer)
    chunks = [torch.randn(1, 16, 9, 8, 8) for _ in range(5)]
    for chunk in chunks:
        preview.draw(Step(2, 1, chunk))
    picture = np.asarray(preview.draw(Step(2, 0, chunks[0])))
    assert picture.shape == (4 * 8, 3 * 8, 3)
    for column, chunk in enumerate(chunks[2:]):
        middle = np.asarray(previewer.decode_latent_to_preview(chunk[:, :, 4:5]))
        assert np.abs(picture[:8, 8 * column : 8 * column + 8].astype(int) - middle).max() <= 1
    coarse = preview.draw(Step(0, 0, torch.randn(1, 16, 9, 2, 2)))
    assert coarse.size == (6, 8)


def test_without_a_preview_method_no_picture_is_made(comfyui, models):
    run = comfyui.run_graph(latents_graph(comfyui.object_info()))
    assert run.progress[-1] == {"value": 1000, "max": 1000}
    assert "preview" not in [name for name, _ in run.events]


def test_the_bar_moves_by_work_done_and_not_by_steps(server):
    graph = latents_graph(server.object_info(), width=256, height=256, steps="3,1,1")
    graph[SAMPLER]["inputs"]["amplify_first_chunk"] = False
    run = server.run_graph(graph)
    values = [data["value"] for data in run.named("progress") if data["node"] == SAMPLER]
    steps = np.diff([0, *values])
    assert len(steps) == 5
    assert values[-1] == 1000
    assert max(steps[:3]) - min(steps[:3]) <= 1  # equal steps are equal on the bar, rounded
    assert steps[4] > 2 * steps[0]


WORDS = re.compile(r"chunk (\d) of 2, stage (\d) of 3, step (\d) of \d(; about .+ left)?$")


def test_comfyuis_frontend_is_given_chunk_stage_step_and_the_time_left(server):
    graph = latents_graph(server.object_info(), chunks=2, steps="1,2,1")
    graph[SAMPLER]["inputs"].update(amplify_first_chunk=False, seed=5)
    run = server.run_graph(graph, features={"supports_preview_metadata": True})
    told = [data for data in run.named("progress_text") if data["node"] == SAMPLER]
    matches = [WORDS.match(data["text"]) for data in told]
    places = [tuple(int(number) for number in match.groups()[:3]) for match in matches]
    assert places == [(c, s, t) for c in (1, 2) for s, n in ((1, 1), (2, 2), (3, 1)) for t in range(1, n + 1)]
    assert matches[0][4] is None
    assert all(match[4] for match in matches[1:])


def test_settings_far_from_the_variants_are_reported_on_the_node(server):
    graph = latents_graph(server.object_info(), chunks=1, steps="20,1,1")
    run = server.run_graph(graph, features={"supports_preview_metadata": True})
    told = [data for data in run.named("progress_text") if data["node"] == SAMPLER]
    assert told
    for data in told:
        words, advice = data["text"].split("\n")
        assert words.startswith("chunk 1 of 1, stage ")
        assert "Helios Distilled is made for [2, 2, 2]" in advice


def test_a_plain_websocket_client_gets_only_the_events_that_comfyuis_own_samplers_send(server):
    graph = latents_graph(server.object_info(), chunks=1)
    graph[SAMPLER]["inputs"]["seed"] = 6
    run = server.run_graph(graph)
    standard = {"status", "execution_start", "execution_cached", "executing", "progress", "progress_state", "preview"}
    standard |= {"executed", "execution_success", "feature_flags"}
    assert {name for _, name, _ in run.events} <= standard
    assert len(run.named("preview")) == 6
