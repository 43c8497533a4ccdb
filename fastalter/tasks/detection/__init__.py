"""3D object detection on a bird's-eye-view grid."""
