"""Common corruptions against their formulas, slow twins, and the libraries that the published images were made with."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.data import load
from stalwart.data.corruptions import CORRUPTIONS, SEVERITIES, corruption, scale_of
from stalwart.data.corruptions.blur import disk, glass_blur
from stalwart.data.corruptions.sampling import along, correlate, fold, read_at, smooth, zoomed
from stalwart.data.corruptions.weather import plasma

RISING = sorted(set(CORRUPTIONS) - {"elastic_transform", "saturate", "snow"})


def natural(count=6, channels=3, side=32, seed=0):
    """Return smooth random images with colours over most of [0, 1]."""
    x = torch.rand(count, channels, side, side, generator=generator(seed))
    x = smooth(x, 1.5)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return 0.05 + 0.9 * (x - low) / (high - low)


def apply(name, x, severity, seed=1, **more):
    return corruption(name, severity=severity, **more)(x, generator(seed))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (3, 1, 28, 28), (2, 1, 8, 8), (2, 3, 33, 47), (2, 3, 100, 96)])
def test_images_stay_images(name, shape):
    x = natural(shape[0], shape[1], shape[2])
    x = torch.cat([x, x.flip(-1)], -1)[..., : shape[3]].contiguous()
    kept = x.clone()
    for severity in SEVERITIES:
        if name == "saturate" and shape[1] == 1:
            with pytest.raises(InputError, match="'Saturate' needs images of 3 channels, got 1"):
                apply(name, x, severity)
            continue
        out = apply(name, x, severity)
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert out.min() >= 0
        assert out.max() <= 1
        assert torch.equal(out, apply(name, x, severity)), "the same generator, the same image"
        assert torch.equal(x, kept)


@pytest.mark.parametrize("scale", ["small", "large"])
@pytest.mark.parametrize("name", RISING)
def test_distance_grows_with_severity(name, scale):
    x = natural(24 if scale == "small" else 4, side=32 if scale == "small" else 112)
    away = [float((apply(name, x, one, scale=scale) - x).square().mean()) for one in SEVERITIES]
    # Glass trades smoothing against scattering and fog density against roughness, as published; two motions differ in what
    # lies beyond three standard deviations alone.
    pairs = [(away[0], away[4])] if name in ("glass_blur", "fog") else itertools.pairwise(away)
    assert all(
        less < more or (name == "motion_blur" and less == pytest.approx(more, rel=1e-4)) for less, more in pairs
    ), away


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_differ_between_images_and_seeds(name):
    x = natural(1).expand(2, -1, -1, -1).contiguous()
    fixed = name in (
        "gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate", "pixelate", "jpeg_compression",
    )  # fmt: skip
    out = apply(name, x, 5)
    assert torch.equal(out[0], out[1]) == fixed
    assert torch.equal(out, apply(name, x, 5, seed=2)) == fixed


GREY = torch.full((60, 3, 32, 32), 0.5)


@pytest.mark.parametrize(
    ("name", "severity", "scale", "std"),
    [
        ("gaussian_noise", 3, "small", 0.08),
        ("gaussian_noise", 1, "large", 0.08),
        ("shot_noise", 5, "small", (0.5 / 50) ** 0.5),
        ("shot_noise", 1, "small", (0.5 / 500) ** 0.5),
        ("speckle_noise", 5, "small", 0.5 * 0.2),
        ("speckle_noise", 1, "large", 0.5 * 0.15),
        ("impulse_noise", 5, "small", 0.5 * 0.07**0.5),
        ("impulse_noise", 5, "large", 0.5 * 0.27**0.5),
    ],
)
def test_noise_has_its_mean_and_deviation(name, severity, scale, std):
    away = apply(name, GREY, severity, scale=scale) - GREY
    assert abs(float(away.mean())) < 0.02 * std
    assert float(away.std()) == pytest.approx(std, rel=0.02)


def test_impulses_are_black_and_white():
    out = apply("impulse_noise", GREY, 4)
    assert set(out.unique().tolist()) == {0.0, 0.5, 1.0}
    assert float((out == 0).float().mean()) == pytest.approx(0.025, rel=0.05)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 6.0])
def test_smoothing_is_that_of_scipy(sigma):
    x = natural(1, side=20).double()
    twin = np.stack([ndimage.gaussian_filter(one.numpy(), sigma, mode="nearest") for one in x[0]])
    assert np.allclose(smooth(x, sigma)[0].numpy(), twin, atol=1e-9)
    wide = ndimage.gaussian_filter(x[0, 0].numpy(), 9.0, mode="reflect", truncate=3.0)  # wider than the image
    assert np.allclose(smooth(x, 9.0, "symmetric", 3.0)[0, 0].numpy(), wide, atol=1e-9)
    assert torch.equal(smooth(x, 0.0), x)


def test_positions_beyond_the_edge_fold():
    around = torch.arange(-4, 7)
    assert fold(around, 3, "nearest").tolist() == [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert fold(around, 3, "symmetric").tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]
    assert fold(around, 3, "reflect").tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert fold(around, 1, "reflect").tolist() == [0] * 11


def test_correlation_and_reading_between_pixels_are_those_of_scipy():
    x = natural(1, side=12).double()
    kernel = torch.rand(5, 3, generator=generator(0), dtype=torch.float64)
    twin = ndimage.correlate(x[0, 1].numpy(), kernel.numpy(), mode="mirror")
    assert np.allclose(correlate(x, kernel, "reflect")[0, 1].numpy(), twin)
    where = 18 * torch.rand(2, 1, 12, 12, generator=generator(1), dtype=torch.float64) - 3
    for edge, mode in (("symmetric", "reflect"), ("reflect", "mirror")):
        read = read_at(x, where[0], where[1], edge)[0, 2].numpy()
        assert np.allclose(read, ndimage.map_coordinates(x[0, 2].numpy(), where[:, 0].numpy(), order=1, mode=mode))


@pytest.mark.parametrize("factor", [1.0, 1.04, 1.06, 1.25, 2.5])
def test_zooming_is_that_of_scipy(factor):
    x = natural(1, 1).double()
    crop = int(np.ceil(32 / factor))
    top = (32 - crop) // 2
    large = ndimage.zoom(x[0, 0, top : top + crop, top : top + crop].numpy(), factor, order=1)
    trim = (len(large) - 32) // 2
    assert np.allclose(zoomed(x, factor)[0, 0].numpy(), large[trim : trim + 32, trim : trim + 32], atol=1e-9)


def test_zoom_blur_counts_the_image_twice():
    x = natural(1)
    twin = (x + sum(zoomed(x, 1 + 0.01 * step) for step in range(7))) / 8
    assert torch.allclose(apply("zoom_blur", x, 1), twin, atol=1e-5)


def test_a_disk():
    kernel = disk(3.0, 0.1)
    assert kernel.shape == (17, 17)
    assert float(kernel.sum()) == pytest.approx(1)
    assert kernel[8, 8:13].tolist() == pytest.approx([1 / 29] * 4 + [0])  # 29 points of a disk of radius 3
    sharp, soft = disk(1.5, 0.1), disk(1.5, 0.5)
    side = np.exp(-1 / (2 * 0.25))
    line = np.array([side, 1, side]) / (1 + 2 * side)
    assert float(soft[8, 10]) == pytest.approx(line[0] / 9, rel=1e-6), (
        "3 pixels of weight 1/9 are beside it, each in a row"
    )
    assert float(sharp[8, 10]) < 1e-9
    assert disk(10.0, 0.5).shape == (21, 21)


def test_motion_is_a_falling_line_of_shifted_images():
    x = natural(3)
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    flat = sum(w * x[..., fold(torch.arange(32) + i, 32, "nearest")] for i, w in enumerate(weights))
    out = along(x, 6.0, 1.5, torch.tensor([0.0, 90.0, -90.0]))
    assert torch.allclose(out[0], flat[0].float(), atol=1e-6)
    down = sum(w * x[..., fold(torch.arange(32) + i, 32, "nearest"), :] for i, w in enumerate(weights))
    up = sum(w * x[..., fold(torch.arange(32) - i, 32, "nearest"), :] for i, w in enumerate(weights))
    assert torch.allclose(out[1], down[1].float(), atol=1e-6)
    assert torch.allclose(out[2], up[2].float(), atol=1e-6)


def test_glass_takes_colours_from_nearby():
    x = torch.arange(64.0).view(1, 1, 8, 8) / 64
    out = (glass_blur(x, 0.0, 1, 1, generator(0)) * 64).round().long()[0, 0]
    here = torch.arange(64).view(8, 8)
    moved = out != here
    assert 5 < int(moved.sum()) < 36
    assert not moved[:2].any(), "the walk ends at the second row and column"
    assert not moved[:, :2].any()
    # Each pixel is left before any of those that look at it later; nothing comes from further than the chain allows.
    assert ((out // 8 - here // 8).abs() <= 6).all()
    first = out[7, 7]
    assert int(first) in (54, 55, 62, 63)


def test_fog_by_hand():
    x = natural(2)
    cloud = plasma(2, 32, 3.0, generator(1), x)[:, None]
    top = x.amax((1, 2, 3), keepdim=True)
    assert torch.allclose(apply("fog", x, 1), (x + 0.2 * cloud) * top / (top + 0.2), atol=1e-6)


def test_a_plasma_is_rougher_with_less_decay():
    like = torch.zeros(())
    rough, fine = (plasma(20, 64, decay, generator(0), like) for decay in (1.4, 3.0))
    for cloud in (rough, fine):
        assert cloud.amin((1, 2)).eq(0).all()
        assert cloud.amax((1, 2)).eq(1).all()
    steps = [float((cloud - cloud.roll(1, 2)).abs().mean()) for cloud in (rough, fine)]
    assert steps[0] > 3 * steps[1]


def test_snow_whitens_and_flakes_turn():
    black = torch.zeros(1, 3, 32, 32)
    out = apply("snow", black, 1)
    layer = (out - 0.05 * 0.5).clamp_min(0)
    assert torch.allclose(layer, layer.flip((-2, -1)), atol=1e-6)
    assert torch.equal(layer[:, 0], layer[:, 2])
    assert 0 < float(layer.mean()) < 0.2
    away = [float(apply("snow", natural(20), one).sub(natural(20)).square().mean()) for one in (1, 5)]
    assert away[0] < away[1]


def test_contrast_and_brightness_by_hand():
    x = natural(2)
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(apply("contrast", x, 5), mean + 0.15 * (x - mean), atol=1e-6)
    dark = torch.tensor([0.0, 0.2, 0.4]).view(1, 3, 1, 1)
    assert apply("brightness", dark, 2).flatten().tolist() == pytest.approx([0, 0.25, 0.5])
    assert apply("brightness", torch.zeros(1, 3, 1, 1), 2).flatten().tolist() == pytest.approx([0.1] * 3)
    assert apply("brightness", torch.full((1, 1, 1, 1), 0.3), 5).item() == pytest.approx(0.6)


def test_saturation_is_that_of_the_colour_cone():
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    x = natural(1).double()
    x[0, :, 0, 0] = 0.4  # grey
    x[0, :, 0, 1] = 0.0  # black
    for severity, (factor, plus) in zip((1, 3, 5), ((0.3, 0.0), (1.5, 0.0), (2.5, 0.2)), strict=True):
        cone = rgb_to_hsv(x[0].permute(1, 2, 0).numpy())
        cone[..., 1] = np.clip(cone[..., 1] * factor + plus, 0, 1)
        twin = hsv_to_rgb(cone).transpose(2, 0, 1)
        assert np.allclose(apply("saturate", x, severity)[0].numpy(), twin, atol=1e-6)


@pytest.mark.parametrize("side", [8, 13, 28, 32, 41, 47, 224])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixels_are_those_of_pillow(side, severity):
    x = (natural(1, 1, side) * 255).round() / 255
    image = Image.fromarray((x[0, 0] * 255).round().to(torch.uint8).numpy())
    few = int(side * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    twin = image.resize((few, few), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
    # Pillow rounds to 8 bits after each pass.
    assert (
        np.abs(apply("pixelate", x, severity, scale="small")[0, 0].numpy() * 255 - np.asarray(twin, dtype=float)).max()
        < 1.01
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_pillow(channels):
    x = natural(2, channels)
    pixels = (x[1] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(stream, "JPEG", quality=58)
    twin = np.asarray(Image.open(stream), dtype=np.float32).reshape(pixels.shape).transpose(2, 0, 1) / 255
    assert np.allclose(apply("jpeg_compression", x, 3)[1].numpy(), twin, atol=1e-6)


def test_a_bent_ramp_tells_the_displacement():
    """On a linear image, what is read tells from where: the shear is affine, and the bend is smooth and small."""
    line = torch.arange(32.0)
    ramp = (line / 64 + 0.25).expand(1, 1, 32, 32).contiguous()
    sheared = apply("elastic_transform", ramp, 1)
    inner = sheared[0, 0, 8:24, 8:24]
    # Severity 1 does not bend: a ramp stays a plane, moved by 0.08 x 32 pixels at the three points.
    assert torch.allclose(inner[1:] - inner[:-1], (inner[1, 0] - inner[0, 0]).expand(15, 16), atol=1e-5)
    moved = (inner - ramp[0, 0, 8:24, 8:24]).abs().max() * 64
    assert 0.05 < float(moved) < 3 * 0.08 * 32
    bent = apply("elastic_transform", ramp, 5)[0, 0, 8:24, 8:24]
    assert not torch.allclose(bent[1:] - bent[:-1], (bent[1, 0] - bent[0, 0]).expand(15, 16), atol=1e-4)


def test_the_scale_follows_the_shorter_side():
    assert scale_of(torch.zeros(1, 3, 95, 300)) == "small"
    assert scale_of(torch.zeros(1, 3, 96, 96)) == "large"
    x = natural(1, side=96)
    for scale, where in (("large", x), ("small", natural(1))):
        assert torch.equal(apply("contrast", where, 2), apply("contrast", where, 2, scale=scale))


def test_wrong_calls():
    x = natural(1)
    with pytest.raises(UsageError, match=r"unknown corruption 'fogg'\. Did you mean 'fog'\?"):
        corruption("fogg")
    with pytest.raises(UsageError, match="severity is 1 to 5, got 6"):
        corruption("fog", severity=6)
    with pytest.raises(UsageError, match="has no option 'level'"):
        corruption("fog", level=1)
    with pytest.raises(InputError, match=r"need images \[B, C, H, W\], got shape \[5, 4\]"):
        apply("fog", torch.rand(5, 4), 1)
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        apply("fog", 2 * x, 1)
    with pytest.raises(InputError, match="needs images of 1 or 3 channels, got 2"):
        apply("jpeg_compression", x[:, :2], 1)


def test_every_corruption_has_five_levels_for_both_sizes():
    for name in CORRUPTIONS:
        record = type(corruption(name))
        assert (len(record.small), len(record.large)) == (5, 5)
        assert [field.name for field in dataclasses.fields(record)] == ["severity", "scale"]


def test_digits_are_harder_to_tell():
    """A nearest-mean classifier of digits loses at severity 5 of those corruptions that hide shape."""
    data = load("digits")
    x, y = data.train.batch(slice(None))
    means = torch.stack([x[y == digit].mean(0) for digit in range(10)]).flatten(1)
    test, labels = data.test.batch(slice(None))

    def right(images):
        return float((torch.cdist(images.flatten(1), means).argmin(1) == labels).float().mean())

    clean = right(test)
    assert clean > 0.85
    for name in ("motion_blur", "snow", "fog", "gaussian_blur"):
        assert right(apply(name, test, 5)) < clean - 0.02, name
