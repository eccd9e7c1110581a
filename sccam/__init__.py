"""sccam: from images with image-level tags to a pixel-level segmenter (SC-CAM, CVPR 2020)."""

__version__ = "0.1.0"
