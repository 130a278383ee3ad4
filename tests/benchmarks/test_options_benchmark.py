"""The benchmark of the options on a model so small that only its bookkeeping counts."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import options
from helios_core.demo import DemoModel
from helios_core.options.fp8 import Fp8Linear
from helios_core.sampling.settings import VARIANTS
from tests import parity, reference

MODEL = parity.our_model(parity.weights(torch.float32))
ROWS = torch.randn(2, 1, 7, 16, generator=reference.generator(1)).unbind()
SETTINGS = replace(VARIANTS["distilled"], steps=(1, 1, 2), amplify_first_chunk=False)


@pytest.fixture(scope="module")
def rows():
    codec = DemoModel().load_codec()
    subject = options.Subject("tiny", lambda: deepcopy(MODEL), codec, *ROWS, SETTINGS, 64, 64)
    header, _, *lines = options.table([subject], options.Job(range(2), 1))
    names = [cell.strip() for cell in header.split("|")[1:-1]]
    return [dict(zip(names, (cell.strip() for cell in line.split("|")[1:-1]), strict=True)) for line in lines]


def test_there_is_a_row_for_the_exact_run_and_for_each_option(rows):
    assert [row["option"] for row in rows] == ["exact", *(option.name for option in options.OPTIONS)]
    assert all(float(row["forwards per chunk"]) == 4 for row in rows)
    assert all(float(row["s per chunk"]) > 0 for row in rows)


def test_what_cannot_act_on_so_few_steps_has_no_error_and_the_rest_has_one(rows):
    inexact = {row["option"] for row in rows[1:] if row["frames"] != "inf dB"}
    assert inexact == {option.name for option in options.OPTIONS if "step_cache" not in option.name}
    coarse = [float(row["error, chunk 1"].rstrip("%")) for row in rows if "fp8" in row["option"]]
    assert all(0.1 < error < 100 for error in coarse)


def test_only_the_linear_layers_of_the_blocks_are_replaced_and_keep_their_biases():
    model = options.with_linears(deepcopy(MODEL), options.scale_one_linear)
    assert not any(isinstance(layer, nn.Linear) for layer in model.blocks.modules())
    assert isinstance(model.proj_out, nn.Linear)
    replaced = {name: layer for name, layer in model.named_modules() if isinstance(layer, Fp8Linear)}
    assert len(replaced) == 10 * len(MODEL.blocks)
    for name, layer in replaced.items():
        assert torch.equal(layer.bias, MODEL.get_submodule(name).bias)
        assert torch.equal(layer.weight.float(), MODEL.get_submodule(name).weight.to(torch.float8_e4m3fn).float())
