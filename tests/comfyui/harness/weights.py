"""Tiny random weights for ComfyUI's own text encoder and VAE, in files that its own loaders read."""

import io
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"

SENTENCES = [
    "a lantern sways over a quiet harbour at dusk",
    "the camera follows a red fox through fresh snow",
    "an astronaut smiles, then looks up at the stars",
    "waves roll in; the light turns gold and then blue",
]


def train_tokenizer() -> bytes:
    """A serialised sentencepiece model with UMT5's special tokens: pad 0, end 1, unknown 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def write_text_encoder(path: Path) -> None:
    """Write what CLIPLoader (type "wan") reads. Needs the sizes of `tiny_models` in force."""
    from comfy.text_encoders.wan import UMT5XXlModel

    torch.manual_seed(1)
    model = UMT5XXlModel(dtype=torch.float32, model_options={"model_name": "umt5xxl"}).transformer
    _fill_with_noise(model)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    state["spiece_model"] = torch.frombuffer(bytearray(train_tokenizer()), dtype=torch.uint8)
    # ComfyUI recognises a UMT5-XXL by the shape of this one tensor of its last layer, and ignores it here.
    marker = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
    state[marker] = torch.zeros(10240, 4096, dtype=torch.uint8)
    save_file(state, path)


def write_vae(path: Path) -> None:
    """Write what VAELoader reads as a Wan 2.1 VAE."""
    from comfy.ldm.wan.vae import WanVAE

    torch.manual_seed(2)
    vae = WanVAE(z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True])
    _fill_with_noise(vae)
    save_file({name: value.contiguous() for name, value in vae.state_dict().items()}, path)


@torch.no_grad()
def _fill_with_noise(module: torch.nn.Module) -> None:
    """Weights that neither die nor explode: unit-gain noise in matrices, ones in norms, small biases."""
    for name, value in module.named_parameters():
        if name.endswith("gamma") or "norm" in name:
            value.fill_(1.0)
        elif value.dim() < 2:
            value.normal_(std=0.1)
        elif "embedding" in name or "shared" in name:
            value.normal_()
        else:
            value.normal_(std=value[0].numel() ** -0.5)
