"""Zero-shot phrase grounding in chest X-rays from the cross-attention of a diffusion model."""

__version__ = "0.1.0"
