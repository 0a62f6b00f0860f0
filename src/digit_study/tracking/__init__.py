"""Record runs in MLflow. Imports report, config, model, stats, data, support."""
