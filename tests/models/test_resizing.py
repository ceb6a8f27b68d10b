"""Resizing by matrix products, as on GPUs, where the backward pass of `interpolate` adds in an order that changes."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipeline.attack.precision import compute_in
from pipeline.models import classifier
from pipeline.models.classifier import resample_by_products, resize


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("before", "after"), [((224, 224), (299, 299)), ((299, 331), (224, 192)), ((32, 40), (224, 40))]
)
def test_products_resize_as_interpolate_does_forward_and_backward(
    interpolation: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *before, generator=generator)
    weights = torch.randn(2, 3, *after, generator=generator)

    def value_and_gradient(resampled: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = images.clone().requires_grad_()
        output = resampled(inputs)
        (gradient,) = torch.autograd.grad((output * weights).sum(), inputs)
        return output.detach(), gradient

    expected = value_and_gradient(
        lambda x: F.interpolate(x, after, mode=interpolation, align_corners=False, antialias=True)
    )
    found = value_and_gradient(lambda x: resample_by_products(x, *after, interpolation))
    for plain, product in zip(expected, found, strict=True):
        torch.testing.assert_close(product, plain, rtol=1e-5, atol=1e-6)


def test_products_are_in_full_precision_inside_of_another() -> None:
    images = torch.rand(1, 3, 40, 40)
    expected = resample_by_products(images, 56, 56, "bicubic")
    with compute_in("bfloat16", images.device):
        found = resample_by_products(images, 56, 56, "bicubic")
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_matrix_first_used_in_inference_mode_can_be_differentiated() -> None:
    images = torch.rand(1, 3, 17, 19)
    with torch.inference_mode():
        resample_by_products(images, 23, 29, "bilinear")
    inputs = images.requires_grad_()
    torch.autograd.grad(resample_by_products(inputs, 23, 29, "bilinear").sum(), inputs)


@pytest.mark.parametrize("policy", ["direct", "crop"])
def test_other_devices_than_cpus_resize_by_products(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def resample(images: torch.Tensor, height: int, width: int, _: str) -> torch.Tensor:
        sizes.append((height, width))
        return images.new_empty(*images.shape[:2], height, width)

    monkeypatch.setattr(classifier, "resample_by_products", resample)
    images = torch.empty(2, 3, 224, 320, device="meta")
    assert resize(images, policy=policy, input_size=299, interpolation="bicubic").shape == (2, 3, 299, 299)
    assert sizes == ([(299, 299)] if policy == "direct" else [(256, 366), (299, 299)])
