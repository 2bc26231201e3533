"""What the outside is told of an engine: metrics for Prometheus. It reads what is counted anyway."""
