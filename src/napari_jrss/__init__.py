"""Few-shot segmentation and registration of 3D medical images with a person in the loop."""

from importlib.metadata import version

__version__ = version("napari-jrss")
