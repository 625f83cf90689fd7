"""Products by oneDNN are torch's own within fp32 rounding, and are taken nowhere that they do not belong."""

import pytest
import torch
import torch.nn.functional as F

from slt_lib.base import products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
SHAPES = [((32, 64), 256, 512), ((1000,), 256, 999), ((2, 3, 70), 129, 257), ((5,), 64, 1)]


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(products, "SMALL", 0)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found, exact):
    assert found.dtype == torch.float32
    assert (found.double() - exact).abs().max() <= 1e-5 * exact.abs().max()  # a sum of 200 terms may be 200 x 2^-24 off


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_map_and_its_gradients_are_those_of_float64(rows, inputs, outputs, biased):
    values = [drawn(*rows, inputs), drawn(outputs, inputs, seed=1), *([drawn(outputs, seed=2)] if biased else [])]
    upstream = drawn(*rows, outputs, seed=3)
    single = [value.clone().requires_grad_() for value in values]
    double = [value.double().requires_grad_() for value in values]
    found, exact = products.linear(*single), F.linear(*double)
    close(found.detach(), exact.detach())
    found.backward(upstream)
    exact.backward(upstream.double())
    for ours, theirs in zip(single, double, strict=True):
        close(ours.grad, theirs.grad)


VIEWS = {
    "whole": drawn(200, 300),
    "transposed": drawn(300, 200).t(),
    "expanded": drawn(200, 1).expand(200, 300),
    "every other": drawn(200, 600)[:, ::2],
    "cut out": drawn(201, 307)[1:, 7:],
}


@pytest.mark.parametrize("a", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("b", VIEWS.values(), ids=VIEWS)
def test_a_product_of_views_is_that_of_float64(a, b):
    close(products.product(a, b), a.double() @ b.double().t())


def test_the_same_numbers_give_the_same_bytes_with_and_without_gradients():
    x, weight = drawn(512, 256), drawn(300, 256, seed=1)
    with torch.no_grad():
        bare = products.linear(x, weight)
    assert torch.equal(bare, products.linear(x.clone(), weight.clone().requires_grad_()).detach())
    assert torch.equal(bare, products.product(x, weight))


def test_only_what_it_is_for_goes_to_onednn(monkeypatch):
    asked = []
    monkeypatch.setattr(products, "_onednn", lambda x, weight, bias=None: asked.append(1) or F.linear(x, weight, bias))
    x, weight = drawn(64, 32), drawn(16, 32, seed=1)
    products.product(x, weight)
    products.linear(x, weight)
    products.linear(x, weight.clone().requires_grad_())
    assert len(asked) == 3
    products.linear(x.double(), weight.double())
    products.linear(x.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight).dtype == torch.bfloat16
    torch.func.vmap(products.linear)(x.expand(3, 64, 32), weight.expand(3, 16, 32))
    monkeypatch.setattr(products, "SMALL", 64 * 32 * 16 + 1)
    products.linear(x, weight)
    monkeypatch.setattr(products, "ONEDNN", False)
    monkeypatch.setattr(products, "SMALL", 0)
    products.linear(x, weight)
    assert len(asked) == 3


# bf16 without kernels for it ------------------------------------------------------------


def within_a_rounding(found, expected):
    """Equal up to one unit in the last place of bf16, of the largest entry where terms cancel."""
    assert found.dtype == expected.dtype
    assert (found.float() - expected.float()).abs().max() <= 2**-7 * expected.float().abs().max()


@pytest.mark.parametrize("biased", [True, False])
def test_rounded_products_are_those_of_bf16(biased, monkeypatch):
    values = [drawn(4, 50, 64), drawn(48, 64, seed=1), *([drawn(48, seed=2)] if biased else [])]
    upstream = drawn(4, 50, 48, seed=3).bfloat16()
    found = []
    for native in (True, False):
        monkeypatch.setattr(products, "ONEDNN", native)
        own = [value.clone().requires_grad_() for value in values]
        with torch.autocast("cpu", torch.bfloat16):
            result = products.linear(*own)
            result.backward(upstream)
        pair = [value.clone().requires_grad_() for value in (drawn(3, 8, 16), drawn(3, 16, 9, seed=4))]
        with torch.autocast("cpu", torch.bfloat16):
            batched = products.matmul(*pair)
            batched.float().sum().backward()
        plain = products.product(values[0][0].bfloat16(), values[1].bfloat16())
        found.append([result.detach(), batched.detach(), plain, *(value.grad for value in (*own, *pair))])
    for native, rounded in zip(*found, strict=True):
        within_a_rounding(rounded, native)


def test_rounded_products_under_vmap(monkeypatch):
    monkeypatch.setattr(products, "ONEDNN", False)
    x, weight = drawn(3, 64, 32), drawn(3, 16, 32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        together = torch.func.vmap(products.linear)(x, weight)
        alone = [products.linear(*pair) for pair in zip(x, weight, strict=True)]
    within_a_rounding(together, torch.stack(alone))


def test_fp32_is_not_rounded(monkeypatch):
    monkeypatch.setattr(products, "ONEDNN", False)
    x, weight = drawn(64, 32), drawn(16, 32, seed=1)
    assert torch.equal(products.linear(x, weight), F.linear(x, weight))
    assert torch.equal(products.matmul(x, weight.t()), x @ weight.t())
