"""Sizes, sharpness and grain of single frames."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from helios_core.finish.pictures import FITS, add_grain, place, resize, sharpen

SIDES = st.integers(2, 60)
PILLOW = {"crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": Image.Image.resize}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(40, 30), (30, 60), (96, 64), (200, 50)])
def test_sizes_are_met_as_by_pillows_own_functions(fit, size):
    torch.manual_seed(0)
    frame = (torch.rand(64, 96, 3) * 255).round() / 255
    expected = PILLOW[fit](Image.fromarray((frame * 255).byte().numpy()), size, Image.Resampling.LANCZOS)
    made = resize(frame, place((96, 64), size, fit))
    assert made.shape == (size[1], size[0], 3)
    # Pillow rounds the box of fit and works on bytes; ours on floats.
    difference = (made * 255 - torch.from_numpy(np.array(expected)).float()).abs()
    assert difference.mean() < 1


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(FITS))
def test_a_flat_picture_stays_flat_inside_its_bars(width, height, new_width, new_height, fit):
    placement = place((width, height), (new_width, new_height), fit)
    made = resize(torch.full((height, width, 3), 0.25), placement)
    inside = made[placement.corner[1] :, placement.corner[0] :][: placement.inner[1], : placement.inner[0]]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.25))
    assert made.sum() == pytest.approx(float(inside.sum()), rel=1e-5)
    assert min(placement.inner) >= 1


def test_the_same_size_changes_no_value():
    frame = torch.rand(6, 8, 3)
    for fit in FITS:
        placement = place((8, 6), (8, 6), fit)
        assert resize(frame, placement) is frame
        assert placement.words == ""


@pytest.mark.parametrize(
    ("size", "fit", "words"),
    [
        ((100, 100), "crop", "50.0% of the picture is cut off, left and right"),
        ((200, 50), "crop", "50.0% of the picture is cut off, above and below"),
        ((100, 100), "pad", "black bars are added: 0 pixels in width, 50 in height"),
        ((100, 50), "crop", ""),
        ((100, 100), "stretch", ""),
    ],
)
def test_what_is_lost_or_added_is_said(size, fit, words):
    assert place((200, 100), size, fit).words == words


def test_sharpening_adds_what_a_gaussian_blur_takes_away():
    torch.manual_seed(0)
    frame = torch.rand(20, 24, 3) * 0.2 + 0.4
    blurred = gaussian_filter(frame.numpy(), sigma=(1, 1, 0), mode="nearest", radius=(3, 3, 0))
    expected = (frame + 0.5 * (frame - torch.from_numpy(blurred))).clamp(0, 1)
    torch.testing.assert_close(sharpen(frame, 0.5), expected, atol=1e-5, rtol=0)
    assert sharpen(frame, 0.0) is frame


def test_grain_depends_on_seed_and_frame_alone_and_spares_black_and_white():
    grey = torch.full((64, 64, 3), 0.5)
    made = add_grain(grey, 0.02, seed=1, number=7)
    assert torch.equal(made, add_grain(grey, 0.02, seed=1, number=7))
    assert not torch.equal(made, add_grain(grey, 0.02, seed=1, number=8))
    assert not torch.equal(made, add_grain(grey, 0.02, seed=2, number=7))
    assert float(made.std()) == pytest.approx(0.02, rel=0.1)
    for end in (0.0, 1.0):
        assert torch.equal(add_grain(torch.full((8, 8, 3), end), 0.1, 0, 0), torch.full((8, 8, 3), end))
    assert add_grain(grey, 0.0, 1, 7) is grey
