"""`maintlock repo-sync`: pull repositories, fast-forward only, and run what that makes necessary."""
