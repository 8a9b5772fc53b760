"""A quadratic: an objective of which everything is known."""

from dataclasses import dataclass

import torch


@dataclass
class Quadratic:
    """F(x) = (x - c)' H (x - c) / 2 around w."""

    H: torch.Tensor
    c: torch.Tensor
    w: torch.Tensor

    @classmethod
    def random(cls, size, seed, eigenvalues=None):
        torch.manual_seed(seed)
        Q, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.double))
        values = torch.logspace(1, -3, size).double() if eigenvalues is None else eigenvalues
        c, w = torch.randn(2, size, dtype=torch.double)
        return cls(Q * values @ Q.T, c, w)

    def losses(self, coefficients, directions):
        x = self.w + coefficients.to(self.w) @ directions - self.c
        return ((x @ self.H) * x).sum(-1) / 2

    def gradient(self, offset=None):
        x = self.w - self.c if offset is None else self.w + offset - self.c
        return float(x @ self.H @ x / 2), self.H @ x

    def gradients(self, offsets):
        return [self.gradient(offset) for offset in offsets]

    def products(self, vectors):
        return vectors @ self.H
