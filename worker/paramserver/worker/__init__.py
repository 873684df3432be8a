"""Owns data shards: reads them, computes gradients of a task and pushes them to the server."""
