# %% [markdown]
# # 3 · Bias adaptation
#
# A sparse autoencoder has to be told how sparse it should be. Usually a penalty or a number of active neurons does
# that. *Bias adaptation* does something else: it does not train the biases at all, but steers each of them so that
# its neuron fires at a chosen frequency. This lesson builds the algorithm from its parts.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import stats

from simulator import BA, L1, Exactly, OneSided, Training, TwoSided, World, fit, stream
from simulator.adaptation import adapt
from theory.geometry import check

# %% [markdown]
# ## A tied autoencoder
#
# Neuron $m$ has a unit direction $w_m$, a bias $b_m$ and an output scale $a_m$; all share a centre $b_{pre}$. With
# $z_m = \langle w_m, x - b_{pre} \rangle$ the pre-activation is $y_m = z_m + b_m$, and
#
# $$\hat{x} = b_{pre} + \sum_m a_m\, z_m\, 1(y_m > 0)\, w_m .$$
#
# The bias is a threshold: it opens the gate and does not shift the value (a "JumpReLU"). *Tied* means that the same
# $w_m$ reads and writes. In PyTorch:


# %%
def reconstruct(x, W, a, b, b_pre):
    z = (x - b_pre) @ W.T
    return b_pre + (a * z * (z + b > 0)) @ W


W = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
x = torch.tensor([[0.9, 0.1]])
print(reconstruct(x, W, torch.ones(2), torch.tensor([0.0, -0.8]), torch.zeros(2)))
# z = (0.9, 0.71): the second neuron's threshold of 0.8 is not reached, the first writes 0.9 w_1
assert torch.allclose(
    reconstruct(x, W, torch.ones(2), torch.tensor([0.0, -0.8]), torch.zeros(2)), torch.tensor([[0.9, 0.0]])
)

# %% [markdown]
# ## What one neuron sees
#
# Inputs are scaled to unit norm. A random direction sees $\langle w, x \rangle$ of about normal law with standard
# deviation $1 / \sqrt{d}$; a neuron aligned with a feature sees, in a share $f$ of the samples, something much larger.

# %%
world = World(n=128, d=42, support=Exactly(3))
sample = world.sample(60_000, seed=0)
X = sample.X / np.linalg.norm(sample.X, axis=1, keepdims=True)
rows = np.repeat(np.arange(len(X)), np.diff(sample.H.indptr))
active = np.zeros(len(X), dtype=bool)
active[rows[sample.H.indices == 0]] = True  # samples in which feature 0 is active
feature = sample.V[0] / np.linalg.norm(sample.V[0])
noise = stream(0, "lesson").standard_normal(42)
noise -= (noise @ feature) * feature
aligned = X @ (0.95 * feature + np.sqrt(1 - 0.95**2) * noise / np.linalg.norm(noise))
random = X @ (noise / np.linalg.norm(noise))
print(f"f = {active.mean():.4f}, 3/128 = {3 / 128:.4f}")
print(f"standard deviation along a random direction {random.std():.3f}, 1/sqrt(d) = {42**-0.5:.3f}")
assert abs(active.mean() - 3 / 128) < 0.002 and abs(random.std() * 42**0.5 - 1) < 0.2

bins = np.linspace(-0.6, 0.9, 90)
plt.figure(figsize=(7, 3))
plt.hist(aligned[~active], bins=bins, color="#b8c9d9", label="feature absent")
plt.hist(aligned[active], bins=bins, color="#5b7c99", label="feature active")
plt.yscale("log")
plt.xlabel("pre-activation of a neuron at cosine 0.95")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# A threshold in the gap between the two would make it a detector of its feature. Nobody tells the neuron where the
# gap is; but whoever knows roughly how often features occur can ask for the threshold at which it fires that often.
# For a random direction that threshold is the normal quantile
#
# $$\theta(p) \approx \Phi^{-1}(1 - p) / \sqrt{d}.$$

# %%
p = 0.03
predicted = stats.norm.isf(p) / 42**0.5
measured = np.quantile(random, 1 - p)
print(
    f"threshold at which a random neuron fires in {p:.0%} of the samples: {measured:.3f}, normal law: {predicted:.3f}"
)
assert abs(measured / predicted - 1) < 0.1

# %% [markdown]
# ## The rule
#
# After every buffer of samples, let $q_m$ be the share of them in which neuron $m$ fired, $r_m$ its largest
# pre-activation (0 if none was positive), and $\bar r$ the mean of the $r_m$ over the neurons of its group that
# fired. With target $p$:
#
# - $q_m > p$: fire less, $b_m \leftarrow \max(b_m - \gamma_- r_m, -1)$;
# - $q_m < \epsilon$: it is dead, fire more, $b_m \leftarrow \min(b_m + \gamma_+ \bar r, 0)$;
# - in between: leave it alone.
#
# The target is a *ceiling*. The *two-sided* variant raises the bias as soon as $q_m < p$: there $p$ is a set point.
# Both are in `simulator.adaptation`. Let one neuron and a random mate in its group go through 150 buffers.


# %%
def adapted(rule, start, steps=150, size=5_000):
    b = torch.tensor([start, -predicted])
    path = []
    for step in range(steps):
        place = slice(step % 12 * size, (step % 12 + 1) * size)
        y = torch.from_numpy(np.stack([aligned[place], random[place]], axis=1)) + b
        q, r = (y > 0).double().mean(dim=0), y.max(dim=0).values.clamp(min=0)
        b = adapt(b, q.float(), r.float(), torch.tensor([p, p]), [(0, 2)], rule)
        path.append((b[0].item(), q[0].item()))
    return np.array(path)


figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
for name, rule, line in (("one-sided", OneSided(), "-"), ("two-sided", TwoSided(), "--")):
    for start in (0.0, -0.6):
        path = adapted(rule, start)
        left.plot(-path[:, 0], line, label=f"{name}, from {abs(start):g}")
        right.plot(path[:, 1], line)
        fires = path[-20:, 1].mean()
        print(f"{name}, from threshold {abs(start):g}: {-path[-1, 0]:.3f}, fires in {fires:.4f} of the samples")
        if name == "two-sided":
            assert abs(fires - p) < 0.005
        else:
            assert fires < p + 0.003
left.set_ylabel("threshold -b")
right.set_ylabel("activation frequency q")
right.axhline(p, color="grey", lw=0.8)
left.legend(frameon=False, fontsize=7)
plt.show()

# %% [markdown]
# Both come to rest. From above (threshold 0.6, too strict) the one-sided rule stays where it is: the neuron fires
# less often than its target and is not dead, so it is left in peace.
#
# ## The whole algorithm
#
# Everything but the biases is trained by AdamW on $\frac{1}{2}\|x - \hat x\|^2$, and the rule runs after every
# buffer. The small initial output scale lets neurons first learn on their own, before they compete for the residual.

# %%
small = World(n=64, d=24, support=Exactly(2))
source = small.stream(seed=0)
training = Training(
    BA(p=0.04), neurons=256, steps=1_500, learning_rate=3e-3, decay=0.3, start_scale=0.1, start_bias="quantile"
)
outcome = fit(source, training, seed=0)
recovery = check(source.V, outcome.W, W_start=outcome.W_start)
before = recovery.untrained_rate(0.9)
print(f"recovered at cosine > 0.9: {recovery.rate(0.9):.2f} of 64 features; before training {before:.2f}")
print(f"MCC {recovery.mcc.value():.3f}; of random directions {recovery.mcc_chance.mean:.3f}")
assert recovery.rate(0.9) >= 0.9 and recovery.untrained_rate(0.9) == 0

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.semilogy(outcome.history["step"], outcome.history["loss"])
left.set_xlabel("step")
left.set_ylabel("loss")
right.hist(recovery.feature_cosine, bins=np.linspace(0, 1, 41), color="#5b7c99", label="trained")
right.hist(recovery.untrained_cosine, bins=np.linspace(0, 1, 41), color="#b8c9d9", label="untrained")
right.set_xlabel("cosine of a feature with its nearest neuron")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Beside it: a penalty
#
# The classical way is to add $\lambda \sum_m |\phi_m|$ to the loss. It has a side effect, *shrinkage*: the penalty
# is paid for size, so active neurons report too little. Here with a penalty that is too strong:

# %%
penalised = fit(source, Training(L1(0.2), neurons=256, steps=1_500, learning_rate=3e-3), seed=0)
fresh = small.sample(5_000, seed=7, dictionary_seed=0)
unit = fresh.X / np.linalg.norm(fresh.X, axis=1, keepdims=True)
for name, run in (("BA", outcome), ("L1 = 0.2", penalised)):
    shown = run.decode(run.encode(fresh.X))
    share = np.linalg.norm(shown, axis=1).mean()
    rate = check(source.V, run.W).rate(0.9)
    print(f"{name:9s} length of the reconstruction {share:.2f} of the input's, recovered {rate:.2f}")
    if name == "BA":
        kept = share
assert share < kept

# %% [markdown]
# ## Exercises
#
# 1. What happens to the neuron above if its target is ten times smaller than $f$? Predict it, then run the rule.
# 2. Train the small world with targets of a tenth of the one above and of eight times it. How many features are
#    recovered, and how many neurons are active per sample (the L0)?
#
# ## Solutions
#
# **1.** The threshold moves into the mass of the feature's own samples: the neuron sees only the largest of them.

# %%
p = 0.1 * 3 / 128
few = adapted(OneSided(), 0.0, steps=400)
sees = (aligned[active] > -few[-1, 0]).mean()
print(f"threshold {-few[-1, 0]:.3f}: it sees {sees:.0%} of its feature's samples")
assert sees < 0.3

# %% [markdown]
# **2.** Both are worse, and in opposite ways: too strict a threshold hides most of a feature from its neuron, too
# loose a one lets everything else in. The next lesson asks where the right range lies.

# %%
rates = {}
for target in (0.004, 0.04, 0.32):
    run = fit(source, Training(BA(target), 256, 1_500, learning_rate=3e-3, decay=0.3, start_bias="quantile"), seed=0)
    rates[target] = check(source.V, run.W).rate(0.9)
    L0 = run.encode(fresh.X).nnz / len(fresh.X)
    print(f"p = {target:g} = {target / (2 / 64):.2g} f: recovered {rates[target]:.2f}, L0 {L0:.1f} (the truth has 2)")
assert rates[0.04] > rates[0.004] and rates[0.04] > rates[0.32]
