"""Common corruptions of images, at five severities: noise, blur, weather and the traces of processing."""

from stalwart.data.corruptions.base import SEVERITIES, Corruption, require_images, scale_of
from stalwart.data.corruptions.table import CORRUPTIONS, corruption

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "corruption", "require_images", "scale_of"]
