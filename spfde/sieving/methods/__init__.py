"""Ways to choose the samples of an epoch, one file each."""
