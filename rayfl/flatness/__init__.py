"""Flatness of a loss around a point, from losses, gradients and Hessian-vector products alone."""
