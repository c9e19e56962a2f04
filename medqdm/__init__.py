"""CT super-resolution with quadtree diffusion models, from DICOM to DICOM."""
