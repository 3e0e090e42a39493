"""RMSNorm against its formula."""

import torch

from dsv3.ops.norm import rms_norm


def test_values_and_gradients() -> None:
    x = torch.randn(3, 4, 10, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(10, dtype=torch.float64, requires_grad=True)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), expected)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-6), (x, weight))


def test_epsilon_is_inside_the_root() -> None:
    x, weight = torch.full((1, 4), 1e-3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), x / (2e-6) ** 0.5)
    zero = torch.zeros(1, 4, requires_grad=True)
    rms_norm(zero, torch.ones(4), 1e-6).sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_bf16_has_fp32_statistics() -> None:
    """Everything in FP32, rounded once at the end: bit-equal to the widened computation."""
    x, weight = (3 * torch.randn(5, 64)).bfloat16(), torch.randn(64).bfloat16()
    x, weight = x.requires_grad_(), weight.requires_grad_()
    wide = x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    out, expected = rms_norm(x, weight, 1e-6), rms_norm(*wide, 1e-6)
    assert torch.equal(out, expected.bfloat16())
    grad = torch.randn(5, 64).bfloat16()
    mine = torch.autograd.grad(out, (x, weight), grad)
    reference = torch.autograd.grad(expected, wide, grad.float())
    for gradient, wanted in zip(mine, reference, strict=True):
        assert gradient.dtype == torch.bfloat16
        # Sums in another order: at most the last bit of BF16 differs.
        torch.testing.assert_close(gradient.float(), wanted, rtol=2**-8, atol=1e-6)
