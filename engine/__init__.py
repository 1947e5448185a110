"""The Cosmos 3 model and what goes in and out of it. Never imports rclpy."""
