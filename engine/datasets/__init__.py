"""Data sets: what is wrong with one, four schemas read as one, and new ones in LeRobot's layout."""
