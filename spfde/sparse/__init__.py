"""What a sparse weight is: the pattern it is stored in, its index, and the plan that kernels read."""
