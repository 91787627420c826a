"""What tests of several rooms share: real servers that start, answer and stop."""
