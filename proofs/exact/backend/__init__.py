"""From a tensor program to machine code: which kernels run, on which memory. Nothing here can change a result."""
