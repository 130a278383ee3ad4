"""Products in fp8 against their emulation in float32, and which layers of a model make them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helios_core import demo
from helios_core.checkpoint.checkpoint import open_checkpoint
from helios_core.checkpoint.loading import is_block_linear, load_transformer
from helios_core.cli import main
from helios_core.demo import DEMO_CONFIG, DemoModel
from helios_core.model.config import TransformerConfig
from helios_core.options.fp8 import FP8, Fp8Linear, check_fp8_products, fp8_linear
from helios_core.sampling.conditioning import text_memory
from tests import reference
from tests.checkpoint.test_checkpoint import fp8_file


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=reference.generator(seed))


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """What is left of the rows (R, K): each is stretched until its largest number is 448, and rounded to e4m3."""
    result = []
    for row in rows.float():
        scale = row.abs().max() / 448
        result.append((row / scale).to(FP8).float() * scale)
    return torch.stack(result)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_rounded_factors(dtype):
    weight, bias, x = randn(48, 96), randn(48, seed=1), randn(2, 5, 96, seed=2).to(dtype)
    layer = Fp8Linear(weight)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    expected = F.linear(rounded(x.flatten(0, 1)), rounded(weight), bias.to(dtype).float()).view(2, 5, 48)
    actual = layer(x)
    assert actual.dtype == dtype
    assert relative_error(actual.float(), expected) < (1e-6 if dtype == torch.float32 else 3e-3)
    assert 0.001 < relative_error(actual.float(), F.linear(x.float(), weight, bias)) < 0.05


def test_a_token_or_an_output_with_large_values_costs_the_others_nothing():
    weight, x = randn(48, 96), randn(1, 5, 96, seed=2)
    plain = Fp8Linear(weight)(x)
    large_weight, large_x = weight.clone(), x.clone()
    large_weight[7] *= 1e4
    large_x[0, 3] *= 1e4
    actual = Fp8Linear(large_weight)(large_x)
    others = [index for index in range(48) if index != 7], [0, 1, 2, 4]
    assert torch.equal(actual[:, others[1]][..., others[0]], plain[:, others[1]][..., others[0]])
    assert torch.allclose(actual[0, 3, 7], plain[0, 3, 7] * 1e8, rtol=1e-5)


def test_tokens_of_zeros_give_the_bias_and_ones_that_are_not_finite_are_seen():
    layer = Fp8Linear(torch.cat((randn(47, 96), torch.zeros(1, 96))))
    layer.bias = nn.Parameter(randn(48, seed=1), requires_grad=False)
    x = randn(1, 3, 96, seed=2)
    x[0, 0] = 0
    x[0, 1, 5] = float("nan")
    actual = layer(x)
    assert torch.equal(actual[0, 0], layer.bias)
    assert not actual[0, 1, :47].isfinite().any()
    assert actual[0, 2].isfinite().all()


def test_rows_are_rounded_the_same_however_many_there_are(monkeypatch):
    x = randn(11, 32)
    whole = Fp8Linear.quantise(x)
    monkeypatch.setattr("helios_core.options.fp8._ROWS", 4)
    parts = Fp8Linear.quantise(x)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(whole, parts, strict=True))
    assert torch.equal(whole[0].float() * whole[1], rounded(x))


@pytest.fixture(scope="module")
def models():
    """The demo's transformer with products in float32 and in fp8."""
    return [DemoModel(fp8_matmul=on).load_transformer() for on in (False, True)]


def test_the_linear_layers_of_the_blocks_multiply_in_fp8_and_nothing_else_changes(models):
    plain, fast = models
    replaced = {name for name, layer in fast.named_modules() if isinstance(layer, Fp8Linear)}
    weights = dict(plain.named_parameters())
    big = {name for name, weight in weights.items() if is_block_linear(name, weight.shape)}
    assert replaced == {name.removesuffix(".weight") for name in big}
    assert len(replaced) == DEMO_CONFIG.num_layers * (8 + 2)
    for name, weight in fast.named_parameters():
        if name in big:
            assert weight.dtype == FP8
            scale = fast.get_submodule(name.removesuffix(".weight")).scale
            assert torch.equal(weight.float() * scale, rounded(weights[name]))
        else:
            assert torch.equal(weight, weights[name])


@torch.no_grad()
@pytest.mark.parametrize("timestep", [999.0, 300.0])
def test_in_a_velocity_every_product_is_that_of_its_factors_rounded(models, timestep):
    """Layer by layer, as a last bit that another processor adds differently may round an input to the next fp8 number,
    and the layers after it carry that on."""
    plain, fast = models
    weights, errors = dict(plain.named_parameters()), []

    def compare(name, layer, x, product):
        expected = F.linear(rounded(x.flatten(0, 1)), rounded(weights[f"{name}.weight"]), layer.bias)
        errors.append(relative_error(product, expected.view_as(product)))

    hooks = [
        layer.register_forward_hook(lambda layer, given, made, name=name: compare(name, layer, given[0], made))
        for name, layer in fast.named_modules()
        if isinstance(layer, Fp8Linear)
    ]
    rows = DemoModel().encode_prompts(["a red circle moves right"])[0]
    window = text_memory(width=64, height=64).window()

    def velocity(model):
        latents = randn(1, 16, 9, 8, 8)
        return model(latents, torch.tensor([timestep]), model.encode_prompt(rows), model.encode_memory(window))

    exact, actual = velocity(plain), velocity(fast)
    for hook in hooks:
        hook.remove()
    assert len(errors) == len(hooks)
    assert max(errors) < 1e-6
    assert 0.001 < relative_error(actual, exact) < 0.2


@pytest.mark.parametrize(("scheme", "tolerance"), [("row-wise", 1e-6), ("weight_scale", 0.04), ("plain", 0.04)])
def test_weights_that_are_stored_in_fp8_keep_their_values_as_far_as_their_scales_are_those_of_rows(
    tmp_path, scheme, tolerance
):
    file, _, meant = fp8_file(tmp_path / "fp8.safetensors", scheme, lambda name: name)
    model = load_transformer(open_checkpoint(file), dtype=torch.bfloat16, make_linear=fp8_linear)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Fp8Linear)}
    assert len(layers) == 10 * model.config.num_layers
    for name, layer in layers.items():
        assert relative_error(layer.weight.float() * layer.scale, meant[f"{name}.weight"]) < tolerance
        assert torch.equal(layer.bias, meant[f"{name}.bias"])
        assert layer.bias.dtype == torch.bfloat16


def test_a_run_with_fp8_products_is_another_run():
    assert DemoModel(fp8_matmul=True).fingerprint != DemoModel().fingerprint


@pytest.fixture
def no_products(monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("_scaled_mm is only supported on newer devices")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)


def test_a_device_without_fp8_products_is_refused_before_anything_is_loaded(
    no_products, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(demo.model, "load_transformer", lambda *a, **b: pytest.fail("the model was loaded"))
    arguments = ["generate", "--prompt", "a red ball", "--fp8-matmul", "--out", str(tmp_path / "video.mp4")]
    assert main(arguments) == 2
    assert "device 'cpu'" in caplog.text
    assert "leave out --fp8-matmul" in caplog.text
    assert "only supported on newer devices" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_the_check_refuses_exactly_where_a_layer_of_a_published_size_cannot_multiply(monkeypatch):
    """Asked of a CPU that can, and of devices that have no product of one size."""
    scaled_mm, config = torch._scaled_mm, TransformerConfig()

    def layer_multiplies(size: int) -> bool:
        try:
            Fp8Linear(torch.ones(16, size))(torch.ones(1, size))
        except RuntimeError:
            return False
        return True

    for missing in (None, config.inner_dim, config.ffn_dim):

        def product(a, b, missing=missing, **options):
            if a.shape[1] == missing:
                raise RuntimeError(f"no product of {missing} columns")
            return scaled_mm(a, b, **options)

        monkeypatch.setattr(torch, "_scaled_mm", product)
        assert [layer_multiplies(size) for size in (config.inner_dim, config.ffn_dim)] == [
            size != missing for size in (config.inner_dim, config.ffn_dim)
        ]
        if missing is None:
            check_fp8_products("cpu", config)
        else:
            with pytest.raises(ValueError, match=f"cannot multiply fp8 matrices of {missing} columns"):
                check_fp8_products("cpu", config)
