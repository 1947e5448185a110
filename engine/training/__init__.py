"""Trains models of this architecture: recordings to arrays, the video autoencoder, the transformer."""
