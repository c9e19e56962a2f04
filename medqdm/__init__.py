"""CT super-resolution with quadtree diffusion models, from DICOM to DICOM."""

__version__ = "0.1.0"
