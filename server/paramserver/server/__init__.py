"""Holds θ: a pure engine that decides, a store that computes and a gRPC shell that carries both out."""
