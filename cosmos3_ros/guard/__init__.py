"""The safety core: limits, checks, splice and state machine. Imports neither rclpy nor torch."""
