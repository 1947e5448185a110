"""The ROS 2 shell around the engine: one file per node, thin."""
