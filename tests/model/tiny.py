"""Toy-size configs of the compatible variants: a grid of 3^3 tokens in windows of 5."""

from dataclasses import replace

from fastsam3d.model.config import FASTSAM3D_6L, SAM_MED3D_B, PatchEncoderConfig

TINY_TEACHER = replace(
    SAM_MED3D_B,
    image_size=24,
    patch_size=8,
    embed_dim=12,
    depth=3,
    num_heads=2,
    out_dim=48,
    patch=PatchEncoderConfig(window_size=5, global_blocks=(1,)),
)
TINY_STUDENT = replace(
    FASTSAM3D_6L,
    image_size=24,
    patch_size=8,
    embed_dim=12,
    depth=3,
    num_heads=2,
    out_dim=48,
    patch=PatchEncoderConfig(num_attention_free_blocks=2, residual_after_norm=True),
)
