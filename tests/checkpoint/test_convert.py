"""`python -m helios_core convert`: any layout becomes one file, with the same numbers and little memory."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import HeliosTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helios_core.checkpoint.checkpoint import open_checkpoint
from helios_core.checkpoint.loading import load_transformer
from helios_core.checkpoint.writing import convert_checkpoint
from helios_core.cli import main
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer
from helios_core.sampling.settings import VARIANTS
from tests.comfyui_layout import comfyui_name

PACK = Path(__file__).resolve().parents[2]
TINY = TransformerConfig(
    num_attention_heads=2, attention_head_dim=12, rope_dim=(4, 4, 4), text_dim=16, freq_dim=8, ffn_dim=48, num_layers=2
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8_e4m3fn": torch.float8_e4m3fn}


@pytest.fixture
def release(tmp_path):
    """A published model folder of the distilled variant, in shards."""
    folder = tmp_path / "release"
    torch.manual_seed(0)
    HeliosTransformer3DModel(**dataclasses.asdict(TINY)).save_pretrained(folder / "transformer", max_shard_size="100KB")
    scheduler = {"_class_name": "HeliosDMDScheduler", "use_dynamic_shifting": True, "time_shift_type": "linear"}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def numbers(path):
    """Name -> float32 values, read by the library."""
    return {name: tensor.float() for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_release_folder_becomes_one_file_with_its_numbers_config_and_variant(release, tmp_path, dtype):
    target = tmp_path / "one.safetensors"
    assert main(["convert", str(release), str(target), "--dtype", dtype]) == 0
    source = {}
    for shard in (release / "transformer").glob("*.safetensors"):
        source |= load_file(shard)
    stored = load_file(target)
    assert stored.keys() == source.keys()
    islands = {
        n for n, p in HeliosTransformer(TINY, dtype=torch.bfloat16).named_parameters() if p.dtype == torch.float32
    }
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float32} >= islands
    assert stored["blocks.0.attn1.to_q.weight"].dtype == DTYPES[dtype]
    for name, tensor in stored.items():
        assert torch.equal(tensor.float(), source[name].to(tensor.dtype).float()), name

    converted = open_checkpoint(target)
    assert (converted.config, converted.settings) == (TINY, VARIANTS["distilled"])
    load_transformer(converted, dtype=torch.float32)


def test_the_file_is_aligned_and_read_by_the_library_as_its_own(release, tmp_path):
    target = tmp_path / "one.safetensors"
    convert_checkpoint(open_checkpoint(release), target, "fp8_e4m3fn")
    again = tmp_path / "again.safetensors"
    with safe_open(target, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(target), again, metadata=metadata)
    header_length = int.from_bytes(target.read_bytes()[:8], "little")
    assert header_length % 8 == 0
    # Tensors in the library's own order: the same bytes after the header.
    own = again.read_bytes()
    assert target.read_bytes()[8 + header_length :] == own[8 + int.from_bytes(own[:8], "little") :]


def test_scaled_fp8_in_the_comfyui_layout_becomes_the_numbers_it_stands_for(tmp_path):
    weights = dict(HeliosTransformer(TINY).state_dict())
    values = (weights["blocks.0.attn1.to_q.weight"] * 100).to(torch.float8_e4m3fn)
    stored = {f"model.diffusion_model.{comfyui_name(name)}": tensor for name, tensor in weights.items()}
    stored["model.diffusion_model.blocks.0.attn1.to_q.weight"] = values
    stored["model.diffusion_model.blocks.0.attn1.to_q.scale_weight"] = torch.tensor(0.01)
    save_file(stored, tmp_path / "scaled.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(TINY)))
    target = tmp_path / "plain" / "out.safetensors"
    target.parent.mkdir()
    convert_checkpoint(open_checkpoint(tmp_path / "scaled.safetensors"), target, "fp32", "mid")
    got = numbers(target)
    assert torch.equal(got["blocks.0.attn1.to_q.weight"], values.float() * torch.tensor(0.01))
    assert torch.equal(got["blocks.1.ffn.net.2.weight"], weights["blocks.1.ffn.net.2.weight"])
    assert open_checkpoint(target).settings == VARIANTS["mid"]


def test_converting_a_converted_file_changes_nothing(release, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    convert_checkpoint(open_checkpoint(release), first, "bf16")
    convert_checkpoint(open_checkpoint(first), second, "bf16")
    assert first.read_bytes() == second.read_bytes()


def test_a_source_that_does_not_say_its_variant_is_reported(release, tmp_path, caplog):
    (release / "scheduler" / "scheduler_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert main(["convert", str(release), str(tmp_path / "one.safetensors")]) == 0
    assert "--variant" in caplog.text
    assert open_checkpoint(tmp_path / "one.safetensors").settings is None


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("release", "one.bin", "must end with .safetensors"),
        ("release/scheduler", "one.safetensors", "no safetensors file"),
        ("nowhere", "one.safetensors", "does not exist"),
        ("release", "no/such/folder/one.safetensors", "no/such/folder"),
    ],
)
def test_wrong_paths_are_one_line_and_leave_nothing(release, tmp_path, caplog, source, target, told):
    assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 2
    assert told in caplog.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["release"]


def test_a_file_is_not_converted_onto_itself(tmp_path, release):
    file = tmp_path / "one.safetensors"
    convert_checkpoint(open_checkpoint(release), file, "fp32")
    before = file.read_bytes()
    with pytest.raises(ValueError, match="choose another name"):
        convert_checkpoint(open_checkpoint(file), file, "bf16")
    assert file.read_bytes() == before


def test_a_source_that_breaks_midway_leaves_the_old_target_and_nothing_else(release, tmp_path):
    checkpoint = open_checkpoint(release)
    target = tmp_path / "one.safetensors"
    target.write_bytes(b"old")
    last = max((release / "transformer").glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off"):
        convert_checkpoint(checkpoint, target, "bf16")
    assert {entry.name for entry in tmp_path.iterdir()} == {"release", "one.safetensors"}
    assert target.read_bytes() == b"old"


def test_too_little_room_on_the_disk_is_reported_before_anything_is_written(release, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="Make room"):
        convert_checkpoint(open_checkpoint(release), tmp_path / "one.safetensors", "bf16")
    assert [entry.name for entry in tmp_path.iterdir()] == ["release"]


@pytest.mark.skipif(sys.platform != "linux", reason="measures the peak memory as Linux counts it")
def test_half_a_gigabyte_is_converted_in_the_memory_of_a_few_tensors(tmp_path):
    """Peak of the process, and of one that converts a tiny checkpoint: the difference is what the weights take."""
    config = TransformerConfig(num_attention_heads=8, text_dim=512, ffn_dim=4096, num_layers=16)
    model = HeliosTransformer(config, dtype=torch.bfloat16, device="meta")
    plan = {name: (p.dtype, tuple(p.shape)) for name, p in model.named_parameters()}
    save_file(
        {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in plan.items()}, tmp_path / "big.safetensors"
    )
    (tmp_path / "tiny").mkdir()
    save_file(dict(HeliosTransformer(TINY).state_dict()), tmp_path / "tiny" / "tiny.safetensors")
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(dataclasses.asdict(TINY)))
    size = (tmp_path / "big.safetensors").stat().st_size
    largest = max(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in plan.values())
    assert size > 450e6

    peaks = [
        _peak_of_convert(tmp_path / name, tmp_path / f"out{n}.safetensors")
        for n, name in enumerate(("tiny", "big.safetensors"))
    ]
    assert peaks[1] - peaks[0] < 8 * largest, (
        f"{(peaks[1] - peaks[0]) / 2**20:.0f} MiB for tensors of up to {largest / 2**20:.0f} MiB"
    )


def _peak_of_convert(source: Path, target: Path) -> int:
    """Peak resident bytes of a process that converts."""
    script = "import sys; from helios_core.cli import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    command = [sys.executable, "-c", script, "convert", str(source), str(target), "--dtype", "fp8_e4m3fn"]
    # The C library gives every large block back when it is freed; without this it may keep blocks of up to 32 MB.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACK, env=environment)
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", run.stdout)[1])
