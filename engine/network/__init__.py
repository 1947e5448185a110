"""The two towers, their positions and heads, and the video autoencoder. Knows tokens, not robots."""
