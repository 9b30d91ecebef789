"""How many trials are trained at once: a stream of specs in, a stream of results out.

train     hands the specs of a stream to stacks
runner    one stack in training: trials come, advance in blocks of steps, are evaluated, leave
program   everything that a config's static fields determine
stack     the tensors of S slots
step      one training step and one evaluation of a stack
executors how a block of steps runs: eager, recorded (CPU), CUDA graph
kernels   fast paths with a public way round
"""
