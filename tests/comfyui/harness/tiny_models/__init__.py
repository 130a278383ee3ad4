"""A custom node pack for tests only: ComfyUI's own Wan VAE and UMT5 classes, built small.

ComfyUI builds the text encoder from one fixed JSON file (24 layers, 5.6 billion parameters), and up to 0.3.x the
VAE with one fixed width, so no small file can be loaded by the native loaders. Here only the sizes are changed: the
classes, the loaders, the tokenizer and the state dict names stay ComfyUI's. It lives in the tests' temporary
custom_nodes folder and nowhere else.
"""

import comfy.ldm.wan.vae
import comfy.text_encoders.wan

UMT5_SIZES = {"d_ff": 64, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 384}
VAE_SIZES = {"dim": 4, "num_res_blocks": 1}
DEMO_VAE_DIM = 8  # the pack's own, which is small enough as it is

NativeUMT5 = comfy.text_encoders.wan.UMT5XXlModel
NativeWanVAE = comfy.ldm.wan.vae.WanVAE


class TinyUMT5(NativeUMT5):
    def __init__(self, *args, model_options=None, **kwargs):
        # "<name>_model_config" is ComfyUI's own way to override the JSON file.
        options = {**(model_options or {}), "umt5xxl_model_config": UMT5_SIZES}
        super().__init__(*args, model_options=options, **kwargs)


class TinyWanVAE(NativeWanVAE):
    def __init__(self, **kwargs):
        sizes = {} if kwargs.get("dim") == DEMO_VAE_DIM else VAE_SIZES
        super().__init__(**{**kwargs, **sizes})


comfy.text_encoders.wan.UMT5XXlModel = TinyUMT5
comfy.ldm.wan.vae.WanVAE = TinyWanVAE

NODE_CLASS_MAPPINGS = {}
