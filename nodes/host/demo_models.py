"""The embedded demo as ComfyUI's MODEL, CLIP and VAE."""

from contextlib import contextmanager
from types import SimpleNamespace

import comfy.ldm.wan.vae
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important

from ...helios_core.checkpoint.checkpoint import open_checkpoint
from ...helios_core.demo import DEMO_CONFIG, DEMO_SETTINGS
from ...helios_core.demo.model import NUM_WORDS, TRANSFORMER_FILE, VAE_FILE
from ...helios_core.demo.words import split_words, word_vector
from ...helios_core.vae.wan_vae import Decoding
from .fast_vae import chosen_dtype, fast_vae
from .loading import make_patcher, reloadable
from .patcher import HeliosPatcher


class DemoTokenizer:
    """A prompt as [(word, weight), ...] under one key, as ComfyUI's text encoders take it; "(word:1.2)" weighs."""

    def __init__(self, embedding_directory=None, tokenizer_data=None) -> None:
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options) -> dict:
        pairs: list[tuple] = [
            (word, weight)
            for part, weight in token_weights(escape_important(text), 1.0)
            for word in split_words(unescape_important(part))
        ][:NUM_WORDS]
        if return_word_ids:
            pairs = [(word, weight, number) for number, (word, weight) in enumerate(pairs, start=1)]
        return {"helios_demo": [pairs]}

    def untokenize(self, pairs: list) -> list:
        return [(pair, pair[0]) for pair in pairs]

    def state_dict(self) -> dict:
        return {}


class DemoTextEncoder(torch.nn.Module):
    """The demo's hashed words behind the interface of ComfyUI's text encoders. It has no weights."""

    disable_offload = True  # so that dynamic VRAM makes no place for them

    def __init__(self, dtype=None, device=None, model_options=None) -> None:
        super().__init__()
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: dict) -> None:
        pass  # it has no layers to choose from

    def reset_clip_options(self) -> None:
        pass

    def encode_token_weights(self, tokens: dict) -> tuple[torch.Tensor, None]:
        rows = torch.zeros(1, NUM_WORDS, DEMO_CONFIG.text_dim)
        for index, (word, weight, *_) in enumerate(tokens["helios_demo"][0]):
            rows[0, index] = weight * word_vector(word, DEMO_CONFIG.text_dim)
        return rows, None

    def load_sd(self, state_dict: dict) -> tuple[list, list]:
        return [], list(state_dict)


def load_transformer(*, disable_dynamic: bool = False) -> HeliosPatcher:
    """The demo's transformer as a MODEL."""
    checkpoint = open_checkpoint(TRANSFORMER_FILE)
    patcher = make_patcher(checkpoint, DEMO_SETTINGS, "Helios demo", "default", disable_dynamic=disable_dynamic)
    return reloadable(patcher, load_transformer)


def load_text_encoder() -> comfy.sd.CLIP:
    """The demo's text encoder as ComfyUI's own."""
    clip = comfy.sd.CLIP(SimpleNamespace(params={}, clip=DemoTextEncoder, tokenizer=DemoTokenizer))
    reloadable(clip.patcher, _patcher_of_text_encoder)
    return clip


def load_fast_vae() -> comfy.sd.VAE:
    """The demo's VAE, run by the pack's own class: on a CPU several times as fast, with the command line's frames."""
    vae = load_vae()
    return fast_vae(vae, Decoding(chosen_dtype(vae)), piece=None)


def load_vae() -> comfy.sd.VAE:
    """The demo's VAE as ComfyUI's own Wan VAE."""
    weights = comfy.utils.load_torch_file(str(VAE_FILE), safe_load=True)
    width = weights["decoder.head.0.gamma"].shape[0]
    try:
        vae = comfy.sd.VAE(sd=weights)
    except RuntimeError:
        # Up to 0.3 ComfyUI builds the published width only, whatever the weights, and does not load others into it.
        with _as_wide_as(width):
            vae = comfy.sd.VAE(sd=weights)
    reloadable(vae.patcher, _patcher_of_vae, str(VAE_FILE))
    return vae


# What ComfyUI's nodes for several devices call for a copy with weights of its own.


def _patcher_of_text_encoder(*, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_text_encoder().patcher


def _patcher_of_vae(path: str, *, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_vae().patcher


@contextmanager
def _as_wide_as(width: int):
    """Have ComfyUI build its Wan VAE that wide."""
    published = comfy.ldm.wan.vae.WanVAE

    def of_that_width(**config):
        return published(**{**config, "dim": width})

    comfy.ldm.wan.vae.WanVAE = of_that_width
    try:
        yield
    finally:
        comfy.ldm.wan.vae.WanVAE = published
