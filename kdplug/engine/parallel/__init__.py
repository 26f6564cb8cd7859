"""Distributed training: processes and sharded models."""
