"""What a machine draws, and the state it is in: its sensors, a process that samples them, joules of a span of time."""
