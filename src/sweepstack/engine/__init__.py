"""How many trials are trained at once: a stream of specs in, a stream of results out.

    train     hands the specs of a stream to stacks
    runner    one stack at work: trials come, advance in blocks of steps, are evaluated, leave
    program   everything that a config's static fields determine
    stack     the tensors of S slots; slot: the host's side of one trial
    step      one training step and one evaluation of a stack
    executors how a block of steps runs: eager, recorded (CPU), CUDA graph
    kernels   fast paths with a slow twin

Imports nothing, so that `spec` and `monitor` cost no torch.
"""
