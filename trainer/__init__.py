"""The trainer: a driver that keeps the loop, and the DeepSpeed learner ranks that take its steps."""
