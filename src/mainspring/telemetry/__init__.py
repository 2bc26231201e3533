"""What the outside is told of an engine: metrics for Prometheus, and lines of the log for programs."""
