"""Prometheus metrics and a status page for maintlock: reads, and never locks."""
