"""The common corruptions by name."""

from typing import Any

from stalwart.core.registry import build
from stalwart.data.corruptions.base import Corruption

CORRUPTIONS: dict[str, str] = {
    "gaussian_noise": "stalwart.data.corruptions.noise:GaussianNoise",
    "shot_noise": "stalwart.data.corruptions.noise:ShotNoise",
    "impulse_noise": "stalwart.data.corruptions.noise:ImpulseNoise",
    "speckle_noise": "stalwart.data.corruptions.noise:SpeckleNoise",
    "gaussian_blur": "stalwart.data.corruptions.blur:GaussianBlur",
    "defocus_blur": "stalwart.data.corruptions.blur:DefocusBlur",
    "glass_blur": "stalwart.data.corruptions.blur:GlassBlur",
    "motion_blur": "stalwart.data.corruptions.blur:MotionBlur",
    "zoom_blur": "stalwart.data.corruptions.blur:ZoomBlur",
    "snow": "stalwart.data.corruptions.weather:Snow",
    "fog": "stalwart.data.corruptions.weather:Fog",
    "brightness": "stalwart.data.corruptions.weather:Brightness",
    "contrast": "stalwart.data.corruptions.processing:Contrast",
    "saturate": "stalwart.data.corruptions.processing:Saturate",
    "elastic_transform": "stalwart.data.corruptions.processing:ElasticTransform",
    "pixelate": "stalwart.data.corruptions.processing:Pixelate",
    "jpeg_compression": "stalwart.data.corruptions.processing:JpegCompression",
}


def corruption(name: str, **options: Any) -> Corruption:
    """Return a corruption by its published name, such as ``corruption("fog", severity=3)``.

    Raises:
        UsageError: an unknown name or option, or a severity outside 1 to 5.
    """
    found: Corruption = build("corruption", CORRUPTIONS, name, options)
    return found
