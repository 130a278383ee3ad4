"""GGUF files as quantisers make them, written and read back by the `gguf` library alone."""

from pathlib import Path

import gguf
import numpy as np
import torch

FORMATS = ("Q8_0", "Q6_K", "Q5_K", "Q4_K")


def write_gguf(path: Path, weights: dict[str, torch.Tensor], block_format: str, **metadata: str) -> dict:
    """Write `weights`, the Linear weights of the blocks in `block_format` where their rows are long enough.

    Returns the fp32 numbers that the file stands for, as the library's own `dequantize` gives them.
    """
    kind = gguf.GGMLQuantizationType[block_format]
    block_size, _ = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, "helios")
    for name, text in metadata.items():
        writer.add_string(name, text)
    numbers = {}
    for name, weight in weights.items():
        is_quantised = name.startswith("blocks.") and weight.ndim == 2 and weight.shape[1] % block_size == 0
        if is_quantised:
            data = quantise(weight.numpy(), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            numbers[name] = torch.from_numpy(gguf.quants.dequantize(data, kind).copy())
            continue
        # Matrices in fp16, the rest in fp32, as usual. Five dimensions do not fit: they go into the metadata.
        data = weight.half().numpy() if weight.ndim == 2 else weight.float().numpy()
        numbers[name] = torch.from_numpy(data).float()
        if data.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(data.shape))
            data = data.reshape(data.shape[0], -1)
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


def quantise(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Bytes (rows, bytes per row). The library can make Q8_0 only; of the K formats these are random blocks, with
    factors that give numbers about as large as a Linear's weights."""
    if kind == gguf.GGMLQuantizationType.Q8_0:
        return gguf.quants.quantize(values, kind)
    block_size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    factors = {
        gguf.GGMLQuantizationType.Q6_K: {208: 3e-5},
        gguf.GGMLQuantizationType.Q5_K: {0: 5e-5, 2: 7e-4},
        gguf.GGMLQuantizationType.Q4_K: {0: 1e-4, 2: 7e-4},
    }[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (values.size // block_size, num_bytes), dtype=np.uint8)
    for start, factor in factors.items():
        blocks[:, start : start + 2] = np.float16([factor]).view(np.uint8)
    return blocks.reshape(values.shape[0], -1)
