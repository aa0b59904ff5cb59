"""Functions that the running graph calls where torch has no single one."""
