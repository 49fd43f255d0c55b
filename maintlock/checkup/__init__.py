"""What `maintlock doctor` looks at: facts, and small checks that turn them into findings."""
