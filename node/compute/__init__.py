"""The Compute Node: finds work, trains, commits, is paid."""
