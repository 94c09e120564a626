"""Measure segmenters honestly: clicks from the truth go in, the truth itself never does."""
