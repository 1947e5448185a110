"""What a reasoner's words say, as values: boxes, points, trajectories, events, plans; parsed strictly, and drawn."""
