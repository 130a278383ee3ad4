"""The benchmark of what runs beside the model, at a small size."""

import torch

from benchmarks import ceiling
from benchmarks.free_models import FreeTransformer, moving_picture
from helios_core.media.reader import read_video


def test_a_script_makes_a_whole_video_of_the_moving_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "WIDTH", 128)
    monkeypatch.setattr(ceiling, "HEIGHT", 64)
    ceiling.in_a_script(tmp_path, num_chunks=2)("film")
    frames = read_video(tmp_path / "film.mp4").frames
    assert frames.shape == (66, 64, 128, 3)
    shown = torch.cat(2 * [moving_picture(128, 64)])
    assert (frames / 255 - shown).abs().mean() < 0.03
    assert len(list((tmp_path / "film" / "chunks").glob("*.safetensors"))) == 2


def test_the_free_transformer_gives_a_velocity_of_the_samples_shape():
    model, x = FreeTransformer(), torch.randn(2, 16, 9, 4, 6)
    prompt, memory = model.encode_prompt(torch.zeros(2, 3, 64)), model.encode_memory(None)
    assert torch.equal(model(x, torch.ones(2), prompt, memory), torch.zeros_like(x))
