"""Image files: which there are, what they are of, and what their pixels mean.

Needs numpy and Pillow only, so that training, calibrating, exporting and scoring read the same.
"""

from isomax_adapters.onnx.images.checking import PixelCheck, check_pixels
from isomax_adapters.onnx.images.decoding import (
    CHANNELS,
    IMAGE_FORMATS,
    MAX_PIXELS,
    GreyRange,
    as_array,
    as_pixels,
    as_rgb,
    check_grey_range,
    from_array,
    open_image,
)
from isomax_adapters.onnx.images.digests import content_digest, listing_digest, shared_files
from isomax_adapters.onnx.images.files import IMAGE_SUFFIXES, existing_folder, find_images
from isomax_adapters.onnx.images.folders import SPLITS, scan, scan_unlabelled
from isomax_adapters.onnx.images.listing import LeavingOut, LeftOut, Listing, Scan
from isomax_adapters.onnx.images.parts import Parts, hold_out, split_parts
from isomax_adapters.onnx.images.tables import load_class_map, read_labels

__all__ = [
    "CHANNELS",
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "SPLITS",
    "GreyRange",
    "LeavingOut",
    "LeftOut",
    "Listing",
    "Parts",
    "PixelCheck",
    "Scan",
    "as_array",
    "as_pixels",
    "as_rgb",
    "check_grey_range",
    "check_pixels",
    "content_digest",
    "existing_folder",
    "find_images",
    "from_array",
    "hold_out",
    "listing_digest",
    "load_class_map",
    "open_image",
    "read_labels",
    "scan",
    "scan_unlabelled",
    "shared_files",
    "split_parts",
]
