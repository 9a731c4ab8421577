"""Group Bias Adaptation in plain PyTorch: the whole algorithm on one page, to be read and to be shown.

Algorithms 1 and 2 of Chen et al. 2025 (arXiv:2506.14002), one loop over neurons where the algorithm
has one. Slow on purpose. `simulator.fit` computes the same numbers (tested to 1e-9 in float64).
"""

import torch


def reference_gba(batches, W, group, p, start_scale=0.1, learning_rate=1e-3, gamma=0.01, epsilon=1e-6, buffer=5_120):
    """Train a tied JumpReLU sparse autoencoder with GBA.

    Args:
        batches: iterable of batches X_t, each (N_t, d).
        W: initial unit rows, (M, d).
        group: group of each neuron, a list of M numbers in 0..K-1.
        p: target activation frequency of each group, a list of K numbers.
        start_scale, learning_rate, gamma, epsilon, buffer: initial a_m; AdamW's step; gamma_plus =
            gamma_minus; the frequency that counts as dead; B.

    Returns:
        W (M, d), a (M,), b (M,), b_pre (d,).
    """
    M, d = W.shape
    W = W.clone().requires_grad_()
    a = torch.full((M,), start_scale, dtype=W.dtype, requires_grad=True)
    b_pre = torch.zeros(d, dtype=W.dtype, requires_grad=True)
    b = torch.zeros(M, dtype=W.dtype)  # no gradient: adapted below
    optimiser = torch.optim.AdamW([W, a, b_pre], lr=learning_rate, weight_decay=0)
    buffered = []
    for X in batches:
        X = X / X.norm(dim=1, keepdim=True)
        z = (X - b_pre) @ W.T
        y = z + b  # pre-activations, (N, M)
        phi = z * (y > 0)  # JumpReLU: the bias opens the gate and does not shift the value
        loss = ((phi * a) @ W + b_pre - X).square().sum(dim=1).mean() / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            W /= W.norm(dim=1, keepdim=True)
        buffered.append(y.detach())
        if sum(len(y) for y in buffered) >= buffer:
            b = adapt_biases(b, torch.cat(buffered), group, p, gamma, epsilon)
            buffered = []
    return W.detach(), a.detach(), b, b_pre.detach()


def adapt_biases(b, y, group, p, gamma=0.01, epsilon=1e-6):
    """Algorithm 2: new biases from the buffered pre-activations y, (|B|, M)."""
    q = [(y[:, m] > 0).double().mean().item() for m in range(len(b))]  # measured frequencies
    r = [max(y[:, m].max().item(), 0.0) for m in range(len(b))]
    new = b.clone()
    for k in range(len(p)):
        members = [m for m in range(len(b)) if group[m] == k]
        fired = [r[m] for m in members if r[m] > 0]
        r_mean = sum(fired) / len(fired) if fired else 0.0
        for m in members:
            if q[m] > p[k]:  # fires too often: close the gate a little
                new[m] = max(b[m].item() - gamma * r[m], -1.0)
            elif q[m] < epsilon:  # dead: open it a little
                new[m] = min(b[m].item() + gamma * r_mean, 0.0)
    return new
