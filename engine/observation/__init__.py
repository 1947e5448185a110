"""From camera frames and words to what the network reads: views, geometry, prompts."""
