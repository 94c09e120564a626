"""From a volume to what a model sees, and back: resampling, normalisation, ROIs."""
