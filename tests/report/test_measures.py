"""The drift report: measures, their trend over a video, and its picture."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from helios_core.report.drawings import plot_drift
from helios_core.report.measures import ENDS, MEASURES, DriftMeter, to_lab


def clip(num_frames: int, seed: int = 0, height: int = 24, width: int = 32) -> torch.Tensor:
    """A blurred picture that moves, (T, H, W, 3) in [0, 1]."""
    noise = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear")[0].permute(1, 2, 0)
    return torch.stack([picture.roll(frame, dims=1) for frame in range(num_frames)])


def measure(*chunks: torch.Tensor):
    meter = DriftMeter()
    for chunk in chunks:
        meter.add(chunk)
    return meter.result()


def test_colours_are_those_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    rgb = torch.rand(40, 50, 3, generator=torch.Generator().manual_seed(0))
    rgb[0, :4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0.02, 0.02, 0.02]])
    np.testing.assert_allclose(to_lab(rgb).numpy(), color.rgb2lab(rgb.numpy()), atol=0.02)


def test_measures_are_what_numpy_finds():
    color = pytest.importorskip("skimage.color")
    frames = clip(3)
    found = measure(frames).chunks[0]
    lab = np.stack([color.rgb2lab(frame.numpy()) for frame in frames]).astype(np.float64)
    lightness = lab[..., 0]
    padded = np.pad(lightness, ((0, 0), (1, 1), (1, 1)), mode="edge")
    laplacian = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:] - 4 * lightness
    expected = {
        "lightness": lightness.mean(),
        "contrast": np.mean([frame.std() for frame in lightness]),
        "green_red": lab[..., 1].mean(),
        "blue_yellow": lab[..., 2].mean(),
        "saturation": np.hypot(lab[..., 1], lab[..., 2]).mean(),
        "sharpness": np.mean([frame.var() for frame in laplacian]),
        "motion": np.mean([np.abs(b - a).mean() for a, b in pairwise(lightness)]),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-3, abs=2e-3), name


def test_a_video_that_does_not_change_does_not_drift():
    still = clip(1).expand(10, -1, -1, -1)
    measured = measure(still, still, still)
    assert {name: round(value, 9) for name, value in measured.drift().items()} == dict.fromkeys(MEASURES, 0)
    assert measured.chunks[1]["motion"] == 0


@pytest.mark.parametrize(
    ("name", "sign", "change"),
    [
        ("lightness", -1, lambda frames, k: frames * (1 - 0.1 * k)),
        ("contrast", -1, lambda frames, k: 0.5 + (frames - 0.5) * (1 - 0.1 * k)),
        ("green_red", 1, lambda frames, k: frames * torch.tensor([1.0, 1 - 0.1 * k, 1 - 0.05 * k])),
        ("blue_yellow", 1, lambda frames, k: frames * torch.tensor([1.0, 1.0, 1 - 0.1 * k])),
        ("saturation", -1, lambda frames, k: frames.lerp(frames.mean(-1, keepdim=True).expand_as(frames), 0.15 * k)),
        ("sharpness", -1, lambda frames, k: (frames + k * frames.roll(1, 1) + k * frames.roll(1, 2)) / (1 + 2 * k)),
        ("motion", -1, lambda frames, k: frames[[0, *([frame // (k + 1) for frame in range(1, len(frames))])]]),
    ],
)
def test_a_drift_that_is_put_in_shows_in_its_measure(name, sign, change):
    measured = measure(*[change(clip(12), k) for k in range(6)])
    assert sign * measured.drift()[name] > 0
    values = [sign * chunk[name] for chunk in measured.chunks]
    assert values[-1] > values[0]


def test_the_ends_are_the_first_and_last_15_percent_of_the_frames_whatever_the_chunks():
    frames = torch.linspace(0.1, 0.9, 40)[:, None, None, None].expand(-1, 8, 8, 3)
    whole, parts = measure(frames), measure(*frames.split(7))
    assert whole.first == pytest.approx(parts.first)
    assert whole.last == pytest.approx(parts.last)
    assert ENDS == 0.15
    light = to_lab(frames)[:, 0, 0, 0]
    assert whole.first["lightness"] == pytest.approx(light[:6].mean().item())
    assert whole.last["lightness"] == pytest.approx(light[-6:].mean().item())


def test_motion_counts_over_the_border_of_two_chunks():
    dark, bright = torch.zeros(1, 8, 8, 3), torch.ones(1, 8, 8, 3)
    measured = measure(dark, bright)
    assert math.isnan(measured.chunks[0]["motion"])
    assert measured.chunks[1]["motion"] == pytest.approx(100, abs=1e-3)


def test_the_json_is_valid_and_says_what_was_measured():
    values = json.loads(measure(clip(1)).to_json())
    assert values["first"]["motion"] is None
    assert values["num_frames"] == 1
    assert set(values["measures"]) == set(values["chunks"][0]) == set(MEASURES)


def test_frames_of_another_size_or_shape_and_no_frames_are_refused():
    meter = DriftMeter()
    with pytest.raises(ValueError, match="no frames were given"):
        meter.result()
    with pytest.raises(ValueError, match="expected \\(frames, height, width, 3\\)"):
        meter.add(torch.zeros(8, 8, 3))
    meter.add(torch.zeros(1, 8, 8, 3))
    with pytest.raises(ValueError, match="a frame of 16x8 follows one of 8x8"):
        meter.add(torch.zeros(1, 8, 16, 3))


@pytest.mark.parametrize("num_chunks", [1, 2, 500])
def test_a_plot_is_drawn_for_a_video_of_any_length(num_chunks):
    chunk = clip(2, height=8, width=8)
    picture = plot_drift(measure(*[chunk] * num_chunks))
    assert picture.size == (1288, 4 * 210 + 72)
    assert len(picture.getcolors(100_000)) > 10
