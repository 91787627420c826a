"""The gateway's routes. Each is a signature and a call: SQL is in queries and mailbox, files in content, rules in
protocol."""
