"""The residual-shift diffusion: schedule, process, quadtree, sampler; tensors only."""
