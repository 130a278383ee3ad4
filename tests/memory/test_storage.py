"""Memory files: bit-exact, refused in words when they are not what is needed, and written whole or not at all."""

import json
import logging
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_core.files import StorageError, remove_unfinished, written_atomically
from helios_core.fingerprint import content_fingerprint, file_fingerprint, fingerprint, model_fingerprint
from helios_core.memory.config import MemoryConfig
from helios_core.memory.memory import HeliosMemory, Provenance
from helios_core.memory.storage import ModelIdentity, check_memory, load_memory, save_memory
from tests import runs


def a_memory(anchor=True, **values):
    source = torch.Generator().manual_seed(3)
    frames = torch.randn(1, 16, 19, 4, 6, generator=source)
    provenance = Provenance(task="v2v", model="helios.safetensors", seed=2**63, model_fingerprint="abc")
    values = {"chunk_index": 7, "provenance": provenance, **values}
    return HeliosMemory(frames, anchor=torch.randn(1, 16, 1, 4, 6, generator=source) if anchor else None, **values)


def assert_same(first, second):
    assert torch.equal(first.frames, second.frames)
    assert (first.anchor is None) == (second.anchor is None)
    assert first.anchor is None or torch.equal(first.anchor, second.anchor)
    assert replace(first, frames=second.frames, anchor=second.anchor) == second


@pytest.mark.parametrize(
    "memory",
    [
        a_memory(),
        a_memory(anchor=False),
        a_memory(anchor=False, config=MemoryConfig(history_sizes=(15, 2, 1), keep_first_frame=False)),
        a_memory(config=MemoryConfig(reanchor_on_second_chunk=True), provenance=Provenance()),
    ],
)
def test_a_memory_comes_back_bit_for_bit(tmp_path, memory):
    save_memory(memory, tmp_path / "m.safetensors")
    assert_same(load_memory(tmp_path / "m.safetensors"), memory)


def test_the_file_is_plain_safetensors_that_says_where_it_is_from(tmp_path):
    save_memory(a_memory(), tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "frames": (1, 16, 19, 4, 6),
        "anchor": (1, 16, 1, 4, 6),
    }
    content = (tmp_path / "m.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["helios"])
    assert (facts["width"], facts["height"], facts["chunk_index"], facts["version"]) == (48, 32, 7, 1)
    assert facts["provenance"]["seed"] == 2**63


def test_continuing_from_a_saved_memory_is_exact(tmp_path):
    whole = runs.make(runs.video(3), tmp_path / "whole", tmp_path / "whole.mp4")
    save_memory(whole[1].memory(), tmp_path / "m.safetensors")
    extension = runs.video(1, memory=load_memory(tmp_path / "m.safetensors"))
    extended = runs.make(extension, tmp_path / "extended", tmp_path / "extended.mp4")
    assert torch.equal(extended[0].latents(), whole[2].latents())
    assert extended[0].chunk == 2


@pytest.mark.parametrize("size", [0, 4, 100, 2000, -1])
def test_a_truncated_file_is_named_in_the_error(tmp_path, size):
    path = tmp_path / "m.safetensors"
    save_memory(a_memory(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StorageError, match=r"m\.safetensors is cut off, damaged"):
        load_memory(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    save_memory(a_memory(), path)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    with pytest.raises(StorageError, match="does not match its checksum"):
        load_memory(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no memory file .*m\.safetensors"):
        load_memory(tmp_path / "m.safetensors")


def test_other_files_are_refused_and_pickles_never_run(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"frames": torch.zeros(1)}, path)
    with pytest.raises(StorageError, match="not written by Helios"):
        load_memory(path)
    path.write_bytes(pickle.dumps(a_memory()))
    with pytest.raises(StorageError, match="not a safetensors file"):
        load_memory(path)


def rewrite_facts(path, change):
    """Change what the header tells, leaving the tensors as they are."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    facts = json.loads(header["__metadata__"]["helios"])
    change(facts)
    header["__metadata__"]["helios"] = json.dumps(facts)
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[end:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.update(version=99), "has version 99 of the file format; this program reads 1"),
        (lambda facts: facts.update(kind="chunk"), "is a Helios chunk file; a memory file is needed"),
        (lambda facts: facts.update(latent_format="ltx"), "of the format 'ltx'; Helios takes 'wan2.1'"),
        (lambda facts: facts.pop("chunk_index"), "not a whole memory file"),
        (lambda facts: facts.update(chunk_index=-1), "not a whole memory file"),
        (lambda facts: facts.update(chunk_index="1"), "not a whole memory file"),
        (lambda facts: facts["memory_config"].update(history_sizes=[1, 2]), "not a whole memory file"),
        (lambda facts: facts["memory_config"].update(history_sizes=[17, 2, 1]), "not a whole memory file"),
        (lambda facts: facts["provenance"].update(more=1), "not a whole memory file"),
    ],
)
def test_a_file_with_other_facts_is_refused_in_words(tmp_path, change, message):
    path = tmp_path / "m.safetensors"
    save_memory(a_memory(), path)
    rewrite_facts(path, change)
    with pytest.raises(StorageError, match=message):
        load_memory(path)


def test_a_memory_of_another_size_or_format_cannot_be_gone_on_from():
    memory = a_memory()
    check_memory(memory, width=48, height=32, channels=16)
    with pytest.raises(ValueError, match="of a 48x32 video and cannot continue at 64x32"):
        check_memory(memory, width=64)
    with pytest.raises(ValueError, match="16 latent channels and 48 are needed"):
        check_memory(memory, channels=48)


def test_a_memory_from_another_model_is_used_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        check_memory(a_memory(), model=ModelIdentity("the same, renamed", "abc"))
        check_memory(a_memory(provenance=Provenance()), model=ModelIdentity("any", "def"))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_memory(a_memory(), model=ModelIdentity("other.safetensors", "def"))
    assert "'helios.safetensors' and continues with 'other.safetensors'" in caplog.text


# Whole or not at all


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="midway"), written_atomically(path) as unfinished:  # noqa: PT012
        unfinished.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise RuntimeError("midway")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(tmp_path):
    for name in (".a[1].0011aabb.tmp.mp4", ".a[1].0011aabb.tmp.partial.mp4", ".b.0011aabb.tmp.mp4", "a[1].mp4", ".c"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, "a[1]")
    assert {path.name for path in tmp_path.iterdir()} == {".b.0011aabb.tmp.mp4", "a[1].mp4", ".c"}
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].mp4", ".c"}


# Fingerprints


def test_values_that_differ_in_value_type_or_place_have_other_fingerprints():
    values = [
        (), (None,), (0,), (0.0,), (-0.0,), (False,), ("0",), (b"0",), ("a", "bc"), ("ab", "c"), (["a", "bc"],),
        ({"a": 1},), ({"a": 2},), ({"b": 1},), (MemoryConfig(),), (MemoryConfig(reanchor_on_second_chunk=True),),
        (torch.zeros(2, 3),), (torch.zeros(3, 2),), (torch.zeros(6),), (torch.zeros(6, dtype=torch.bfloat16),),
        (torch.tensor(1.0),), (torch.tensor(1),), (torch.tensor(1.0000001),), (float("nan"),),
    ]  # fmt: skip
    assert len({fingerprint(*value) for value in values}) == len(values)


def test_equal_values_have_equal_fingerprints_whatever_their_layout():
    square = torch.arange(6.0).reshape(2, 3)
    assert fingerprint(square.T) == fingerprint(square.T.contiguous())
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint((1, 2)) == fingerprint([1, 2])


def test_what_cannot_be_seen_has_no_fingerprint():
    with pytest.raises(TypeError, match="cannot take a fingerprint of a function"):
        fingerprint(lambda: 1)


def test_any_trained_weight_changes_the_fingerprint_of_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(3, 3))
    before = model_fingerprint(model)
    assert before == model_fingerprint(model)
    with torch.no_grad():
        model[1].bias += 1e-6
    assert model_fingerprint(model) != before
    assert model_fingerprint(model.half()) != before


def test_the_fingerprint_of_a_file_sees_its_size_its_header_and_its_end(tmp_path):
    content = bytearray(300_000)
    seen = set()
    for change in (None, 0, 150_000, 299_999):
        if change is not None:
            content[change] ^= 1
        (tmp_path / "f").write_bytes(content)
        seen.add(file_fingerprint(tmp_path / "f"))
    (tmp_path / "f").write_bytes(content + b"\0")
    seen.add(file_fingerprint(tmp_path / "f"))
    assert len(seen) == 5
    (tmp_path / "f").write_bytes(b"")
    file_fingerprint(tmp_path / "f")


def test_the_content_of_a_large_safetensors_file_changes_with_any_of_its_tensors(tmp_path):
    path = tmp_path / "f.safetensors"
    weights = {f"layer{number}": torch.zeros(number % 2 * 600_000 + 2) for number in range(20)}
    save_file(weights, path)
    plain, before = file_fingerprint(path), content_fingerprint(path)
    seen = {before}
    for number in range(0, 20, 2):  # small ones between large ones
        save_file(weights | {f"layer{number}": torch.ones(2)}, path)
        seen.add(content_fingerprint(path))
    assert len(seen) == 11
    save_file(weights, path)
    assert (file_fingerprint(path), content_fingerprint(path)) == (plain, before)


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"data_offsets": [-90000, "x"]}}', b'{"a": {"data_offsets": [9]}}'],
)
def test_the_content_of_a_damaged_safetensors_file_can_be_identified_too(tmp_path, header):
    path = tmp_path / "f.safetensors"
    for length in (len(header), 2**60):
        path.write_bytes(length.to_bytes(8, "little") + header)
        assert len(content_fingerprint(path)) == 32
    path.write_bytes(b"abc")
    assert len(content_fingerprint(path)) == 32
