"""How many trials are trained at once: a stream of specs in, a stream of results out.

train        hands the specs of a stream to stacks
runner       one stack in training: trials come, advance in blocks of steps, are evaluated, leave
slot         one trial in it, on the host
program      everything that a config's static fields determine
step         one training step and one evaluation of a stack
update       a step's update as one Triton kernel, for the rules that have one
executors    how a block of steps runs: eager, recorded (CPU), CUDA graph
width        how many trials are trained together, and how their convolutions run
diagnostics  what each layer does
"""
