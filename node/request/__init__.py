"""Request Node: posts a task, hands out its keys, follows it to the trained model."""
