from spfde.kernels.choice import KernelChoice
def linear(*a): return a
def convolution(*a): return a
def choose(a): return KernelChoice("native","pending")
