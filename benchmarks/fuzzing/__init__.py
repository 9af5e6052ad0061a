"""Fuzzing of everything that reads bytes from outside: the targets, the contract they are held to, and the process that runs one."""
