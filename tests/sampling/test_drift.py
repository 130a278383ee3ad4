"""The drift watch against its closed form, and what it does to a video."""

import json
import math

import pytest
import torch

from helios_core.sampling.drift import AntiDrift
from tests import runs

ALWAYS = AntiDrift(mean_threshold=0, variance_threshold=0, strength=0.1)


def chunk_of(mean, deviation):
    """Latents (1, 16, 9, 4, 4) with exactly this mean and (unbiased) standard deviation in every channel."""
    noise = torch.randn(1, 16, 9, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = noise - noise.mean((2, 3, 4), keepdim=True)
    noise = noise / noise.var((2, 3, 4), keepdim=True).sqrt()
    return mean + deviation * noise


def test_averages_follow_the_exponential_moving_average():
    watch, state = AntiDrift(), None
    levels = [(0.0, 1.0), (0.5, 1.2), (-0.3, 0.7), (0.1, 1.0)]
    mean, variance = levels[0][0], levels[0][1] ** 2
    for number, (level, deviation) in enumerate(levels):
        report, state = watch.watch(chunk_of(level, deviation), state)
        if number:
            mean, variance = 0.9 * mean + 0.1 * level, 0.9 * variance + 0.1 * deviation**2
        torch.testing.assert_close(state.mean, torch.full((1, 16), mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(state.variance, torch.full((1, 16), variance), atol=1e-5, rtol=0)
        # 16 channels that are all d away are sqrt(16) d away together.
        assert report.mean_distance == pytest.approx(4 * abs(level - mean), abs=1e-5)
        assert report.variance_distance == pytest.approx(4 * abs(deviation**2 - variance), abs=1e-5)


@pytest.mark.parametrize(
    ("mean", "deviation", "has_drifted"),
    [
        (0.0, 1.0, False),
        (1.0, 1.0, False),  # brighter, but no livelier
        (0.0, 1.2, False),
        # Both must pass 0.15: after the update 0.9 of a jump is left, over 16 channels times 4.
        (0.043, math.sqrt(1.043), True),
        (0.041, math.sqrt(1.043), False),
        (0.043, math.sqrt(1.041), False),
    ],
)
def test_drift_is_both_distances_beyond_their_thresholds(mean, deviation, has_drifted):
    _, state = AntiDrift().watch(chunk_of(0.0, 1.0), None)
    report, _ = AntiDrift().watch(chunk_of(mean, deviation), state)
    assert report.has_drifted == has_drifted


def test_the_first_chunk_never_drifts():
    report, _ = AntiDrift(mean_threshold=0, variance_threshold=0).watch(chunk_of(3.0, 5.0), None)
    assert not report.has_drifted


@pytest.mark.parametrize("values", [{"momentum": 1.0}, {"momentum": -0.1}, {"strength": -1}, {"mean_threshold": -1}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} is"):
        AntiDrift(**values)


# In a video


def test_only_what_is_remembered_of_a_chunk_is_corrupted_and_the_journal_says_so(tmp_path):
    plain = runs.make(runs.video(3), tmp_path / "plain", tmp_path / "plain.mp4")
    done = runs.make(runs.video(3, anti_drift=ALWAYS), tmp_path / "run", tmp_path / "out.mp4")
    assert [event.drift.has_drifted for event in done] == [False, True, True]
    # Chunk 1 has drifted, is shown as it is, and is remembered with noise of the strength that was asked for.
    assert torch.equal(done[1].latents(), plain[1].latents())
    added = done[1].memory().frames[:, :, -9:] - done[1].latents()
    assert added.std() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(done[2].latents(), plain[2].latents())
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert [r["drift"]["has_drifted"] for r in records if r["record"] == "chunk"] == [False, True, True]


def test_without_drift_the_watch_changes_nothing(tmp_path):
    never = AntiDrift(mean_threshold=1e9)
    plain = runs.make(runs.video(2), tmp_path / "plain", tmp_path / "plain.mp4")
    watched = runs.make(runs.video(2, anti_drift=never), tmp_path / "run", tmp_path / "out.mp4")
    assert torch.equal(plain[1].latents(), watched[1].latents())


def test_a_watched_run_resumes_to_the_same_bits(tmp_path):
    runs.make(runs.video(4, anti_drift=ALWAYS), tmp_path / "whole", tmp_path / "whole.mp4")
    for num_chunks in (2, 3, 4):
        runs.make(runs.video(num_chunks, anti_drift=ALWAYS), tmp_path / "run", tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
