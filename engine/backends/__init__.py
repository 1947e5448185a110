"""Ways to run one denoising step."""
