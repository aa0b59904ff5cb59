from __future__ import annotations

import numpy as np
import pytest
import torch

from opadapt.errors import DataError
from opadapt.train.preprocess import AugmentConfig, Draw, Preprocess, PreprocessConfig, augment, resolve

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_scale_mean_std_and_layout_match_the_formula():
    raw = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    step = resolve(
        PreprocessConfig(scale=1 / 255, mean=MEAN, std=STD), "x", raw.shape[1:], (3, 8, 6), "float32"
    )
    made = Preprocess({"x": step}).numpy({"x": raw})["x"]
    expected = ((raw / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2)
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    np.testing.assert_allclose(made, expected, atol=2e-6)


def test_raw_samples_are_not_changed():
    raw = torch.ones(2, 1, 4, 4)
    step = resolve(PreprocessConfig(scale=3.0), "x", (1, 4, 4), (1, 4, 4), "float32")
    assert (step(raw) == 3).all()
    assert (raw == 1).all()


@pytest.mark.parametrize(
    ("raw", "model", "layout"),
    [
        ((28, 28), (1, 28, 28), "NHW"),
        ((32, 32, 3), (3, 32, 32), "NHWC"),
        ((3, 32, 32), (3, 32, 32), "as_is"),
        ((32, 32, 3), (32, 32, 3), "as_is"),
        ((32, 32, 3), (3, None, None), "NHWC"),
        ((7,), (7,), "as_is"),
    ],
)
def test_layout_is_found_by_shape(raw, model, layout):
    assert resolve(PreprocessConfig(), "x", raw, model, "float32").layout == layout


def test_channels_last_models_get_their_means_on_the_last_axis():
    step = resolve(PreprocessConfig(mean=(1.0, 2.0, 3.0)), "x", (4, 4, 3), (4, 4, 3), "float32")
    made = step(torch.zeros(1, 4, 4, 3))
    np.testing.assert_array_equal(made[0, 0, 0].numpy(), [-1, -2, -3])


def test_whole_number_inputs_keep_their_type():
    step = resolve(PreprocessConfig(), "x", (7,), (7,), "int64")
    assert step(torch.ones(2, 7, dtype=torch.uint8)).dtype == torch.int64


def test_shapes_that_do_not_fit_say_what_is_expected():
    with pytest.raises(DataError) as caught:
        resolve(PreprocessConfig(), "picture", (28, 28), (3, 32, 32), "float32")
    assert "picture" in str(caught.value)
    assert "3x32x32" in str(caught.value)
    assert "28x28" in str(caught.value)


def draws(count: int = 64, seed: int = 0) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda high: torch.randint(0, high, (count, 1), generator=generator)


def numbered(count: int = 64, size: int = 6) -> torch.Tensor:
    """Images N,H,W,2 whose pixels all differ and are not 0."""
    values = torch.arange(1, size * size * 2 + 1, dtype=torch.uint8).reshape(size, size, 2)
    return values.expand(count, size, size, 2).clone()


def test_crops_are_windows_of_the_padded_image():
    images = numbered()
    made = augment(images, "NHWC", AugmentConfig(crop_padding_pixels=2), draws())
    padded = torch.nn.functional.pad(images[0], (0, 0, 2, 2, 2, 2))
    windows = [padded[r : r + 6, c : c + 6] for r in range(5) for c in range(5)]
    seen = set()
    for image in made:
        matching = [i for i, window in enumerate(windows) if torch.equal(window, image)]
        assert len(matching) == 1
        seen.update(matching)
    assert len(seen) > 12  # of 25


def test_flips_mirror_about_half_of_the_images():
    images = numbered(400)
    made = augment(images, "NHWC", AugmentConfig(flip_horizontal=True), draws(400))
    flipped = [torch.equal(m, images[0].flip(1)) for m in made]
    kept = [torch.equal(m, images[0]) for m in made]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 150 < sum(flipped) < 250


def test_cutout_zeroes_one_square():
    made = augment(numbered(size=10), "NHWC", AugmentConfig(cutout_pixels=3), draws())
    holes = (made == 0).all(dim=3)
    assert holes.any(dim=2).any(dim=1).all()
    assert holes.sum(dim=(1, 2)).max() == 9
    rows, columns = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    torch.testing.assert_close(holes.sum(dim=(1, 2)), rows * columns)


@pytest.mark.parametrize("layout", ["as_is", "NHWC", "NHW"])
def test_layouts_are_augmented_alike(layout):
    images = numbered()
    config = AugmentConfig(crop_padding_pixels=1, flip_horizontal=True, cutout_pixels=2)
    expected = augment(images, "NHWC", config, draws())
    raw = {"as_is": images.permute(0, 3, 1, 2), "NHWC": images, "NHW": images[..., 0]}[layout]
    made = augment(raw, layout, config, draws())
    back = {"as_is": expected.permute(0, 3, 1, 2), "NHWC": expected, "NHW": expected[..., 0]}[layout]
    assert torch.equal(made, back)
    assert not torch.equal(made, augment(raw, layout, config, draws(seed=1)))


def test_no_augmentation_changes_nothing():
    images = numbered()
    assert torch.equal(augment(images, "NHWC", AugmentConfig(), draws()), images)
