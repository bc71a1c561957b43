"""Rows to adapter: the plan, the worker loop, checkpoints and the driver."""
