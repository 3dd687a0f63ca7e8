"""Ways to decide what freezes, one file each."""
