"""Many weighted logistic regressions at once, to the optimum, in float64. Pure arithmetic, deterministic.

Damped Newton with conjugate gradients (Nocedal and Wright, ch. 7), all heads in the same matrix products. It always starts at zero: the problem is
convex and well conditioned, so it ends at the optimum, and equal input gives equal bits. With fewer rows than features it searches among sums of
rows, where the optimum is (Rasmussen and Williams 2006, ch. 3.4): the products are then between rows, and several times smaller.

Shapes: ``M`` rows, ``D`` features (the bias is the last), ``H`` heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BIAS_L2 = 1e-2
NEWTON_STEPS, CG_STEPS = 12, 40
GRADIENT_LIMIT = 1e-6
CG_PRECISION = 1e-6
"""A step need not be more exact than the quadratic model that it minimises."""
TINY = 1e-30


def solve(design_MD: Tensor, bias_M: Tensor, targets_M: Tensor, weights_MH: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Weights ``[H, D]`` and biases ``[H]`` that minimise each head's weighted log loss plus ``l2/2 |w|^2``."""
    x_MD = torch.cat([design_MD, bias_M[:, None]], 1)
    ridge_D = torch.full((x_MD.shape[1],), l2, dtype=torch.float64)
    ridge_D[-1] = BIAS_L2
    search = by_rows if len(x_MD) < x_MD.shape[1] else by_features
    w_DH = search(x_MD, ridge_D, targets_M, weights_MH)
    return w_DH[:-1].T.contiguous(), w_DH[-1].clone()


def by_features(x_MD: Tensor, ridge_D: Tensor, targets_M: Tensor, weights_MH: Tensor) -> Tensor:
    """The optimum ``[D, H]``, searched among weights of features."""
    w_DH = torch.zeros(x_MD.shape[1], weights_MH.shape[1], dtype=torch.float64)
    z_MH = torch.zeros_like(weights_MH)
    for _ in range(NEWTON_STEPS):
        p_MH = torch.sigmoid(z_MH)
        gradient_DH = x_MD.T @ (weights_MH * (p_MH - targets_M[:, None])) + ridge_D[:, None] * w_DH
        if float(gradient_DH.abs().max()) < GRADIENT_LIMIT:
            break
        curvature_MH = weights_MH * p_MH * (1 - p_MH)

        def product(v_DH: Tensor, curvature_MH: Tensor = curvature_MH) -> Tensor:
            return x_MD.T @ (curvature_MH * (x_MD @ v_DH)) + ridge_D[:, None] * v_DH

        diagonal_DH = (x_MD * x_MD).T @ curvature_MH + ridge_D[:, None]
        step_DH = _conjugate_gradients(product, diagonal_DH, gradient_DH)
        step_MH = x_MD @ step_DH

        def loss(length_H: Tensor, w_DH: Tensor = w_DH, z_MH: Tensor = z_MH, step_DH: Tensor = step_DH, step_MH: Tensor = step_MH) -> Tensor:
            w = w_DH - length_H * step_DH
            return _misfit(z_MH - length_H * step_MH, targets_M, weights_MH) + 0.5 * (ridge_D[:, None] * w * w).sum(0)

        length_H = _length(loss, weights_MH.shape[1])
        w_DH, z_MH = w_DH - length_H * step_DH, z_MH - length_H * step_MH
    return w_DH


def by_rows(x_MD: Tensor, ridge_D: Tensor, targets_M: Tensor, weights_MH: Tensor) -> Tensor:
    """The optimum ``[D, H]``, searched as ``w = ridge^-1 X' a`` among weights ``a`` of rows."""
    scaled_MD = x_MD / ridge_D.sqrt()
    kernel_MM = scaled_MD @ scaled_MD.T
    a_MH, z_MH = torch.zeros_like(weights_MH), torch.zeros_like(weights_MH)
    for _ in range(NEWTON_STEPS):
        p_MH = torch.sigmoid(z_MH)
        residual_MH = weights_MH * (p_MH - targets_M[:, None]) + a_MH
        if float((x_MD.T @ residual_MH).abs().max()) < GRADIENT_LIMIT:
            break
        root_MH = (weights_MH * p_MH * (1 - p_MH)).sqrt()

        def product(v_MH: Tensor, root_MH: Tensor = root_MH) -> Tensor:
            return v_MH + root_MH * (kernel_MM @ (root_MH * v_MH))

        inner_MH = _conjugate_gradients(product, torch.ones_like(root_MH), root_MH * (kernel_MM @ residual_MH))
        step_MH = residual_MH - root_MH * inner_MH
        moved_MH = kernel_MM @ step_MH

        def loss(length_H: Tensor, a_MH: Tensor = a_MH, z_MH: Tensor = z_MH, step_MH: Tensor = step_MH, moved_MH: Tensor = moved_MH) -> Tensor:
            a, z = a_MH - length_H * step_MH, z_MH - length_H * moved_MH
            return _misfit(z, targets_M, weights_MH) + 0.5 * (a * z).sum(0)

        length_H = _length(loss, weights_MH.shape[1])
        a_MH, z_MH = a_MH - length_H * step_MH, z_MH - length_H * moved_MH
    return (x_MD / ridge_D).T @ a_MH


def _misfit(z_MH: Tensor, targets_M: Tensor, weights_MH: Tensor) -> Tensor:
    return (weights_MH * (torch.nn.functional.softplus(z_MH) - targets_M[:, None] * z_MH)).sum(0)


def _length(loss: Callable[[Tensor], Tensor], heads: int) -> Tensor:
    """Step length of each head: a head whose loss would rise takes a shorter step or none, without slowing the others."""
    length_H, now_H = torch.ones(heads, dtype=torch.float64), loss(torch.zeros(heads, dtype=torch.float64))
    for _ in range(4):
        length_H = torch.where(loss(length_H) <= now_H, length_H, length_H / 4)
    return torch.where(loss(length_H) <= now_H, length_H, torch.zeros_like(length_H))


def _conjugate_gradients(product: Callable[[Tensor], Tensor], diagonal: Tensor, right: Tensor) -> Tensor:
    """Solve ``product(step) = right`` for each head (column), preconditioned by the diagonal."""
    step = torch.zeros_like(right)
    residual = right.clone()
    preconditioned = residual / diagonal
    direction = preconditioned.clone()
    energy_H = (residual * preconditioned).sum(0)
    enough_H = (CG_PRECISION * energy_H).clamp(min=1e-24)
    for _ in range(CG_STEPS):
        if bool((energy_H <= enough_H).all()):
            break
        image = product(direction)
        length_H = energy_H / (direction * image).sum(0).clamp(min=TINY)
        step += length_H * direction
        residual -= length_H * image
        preconditioned = residual / diagonal
        energy_before_H, energy_H = energy_H, (residual * preconditioned).sum(0)
        direction = preconditioned + energy_H / energy_before_H.clamp(min=TINY) * direction
    return step
