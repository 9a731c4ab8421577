# %% [markdown]
# # 4 · Resonance
#
# In lesson 3 a neuron with the right target found its feature, one with a target ten times too high found nothing.
# Why? And how wide is the range in between? The paper calls it a *resonance*: the neuron's target frequency $p$ must
# fit the feature's own frequency $f$.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from simulator import BA, GBA, Bernoulli, Exactly, Training, World, Zipf, fit
from theory.geometry import best_cosines, check
from theory.resonance import Setting, predict
from theory.targets import choose_targets

# %% [markdown]
# ## What a neuron gains and what it picks up
#
# Take a neuron that points at its feature, in the scale where other features add up to about a standard normal law.
# With $s$ active features of unit length in $d$ dimensions, the feature itself shifts the pre-activation by
# $\mu = \sqrt{d / s}$:
#
# $$u \mid \text{absent} \sim N(0, 1), \qquad u \mid \text{active} \sim N(\mu, 1 - 1/s).$$
#
# At threshold $\beta$ it sees the share $\bar\Phi((\beta - \mu)/\sqrt{1 - 1/s})$ of its own samples, and fires on
# the others with probability $\bar\Phi(\beta)$. The target $p$ decides $\beta$, since
# $f \cdot \text{own} + (1 - f) \cdot \text{spurious} = p$.

# %%
n, d, s, M = 256, 48, 3, 768
f, mu, spread = s / n, np.sqrt(d / s), np.sqrt(1 - 1 / s)
beta = np.linspace(0, mu + 3, 2_000)
own = stats.norm.sf((beta - mu) / spread)
spurious = stats.norm.sf(beta)
p_of_beta = f * own + (1 - f) * spurious
ratio = p_of_beta / f

plt.figure(figsize=(6.5, 3.2))
plt.semilogx(ratio, own, color="#5b7c99", label="own: share of its feature's samples that it sees")
plt.semilogx(ratio, (1 - f) * spurious / p_of_beta, color="#c8553d", label="share of its activations that are others'")
plt.axvline(1, color="grey", lw=0.8)
plt.xlabel("p / f")
plt.legend(frameon=False, fontsize=8)
plt.show()

at = {r: np.interp(-np.log(r), -np.log(ratio), np.arange(len(ratio))) for r in (0.3, 1.3, 6.0)}
for r, place in at.items():
    k = round(place)
    others = (1 - f) * spurious[k] / p_of_beta[k]
    print(f"p = {r} f: sees {own[k]:.0%} of its feature's samples; {others:.0%} of its activations are others'")
assert own[round(at[0.3])] < 0.35 and own[round(at[1.3])] > 0.9
assert (1 - f) * spurious[round(at[6.0])] / p_of_beta[round(at[6.0])] > 0.8

# %% [markdown]
# Below $f$ the neuron is blind to most of its feature; far above $f$ most of what drives it is noise, which pushes its
# direction about. Between lies the band.
#
# ## A prediction
#
# `theory.resonance.predict` turns this into a number: it follows the threshold (which moves by the rule of lesson 3)
# and the angle between neuron and feature (pulled in by own activations, disturbed by the others) through a run, and
# averages over the lengths of the features. Some constants of it are fitted to other runs; `CONSTANTS` lists them
# with their origin.

# %%
STEPS, BATCH, BUFFER = 1_500, 512, 5_120


def predicted(ratios):
    settings = [Setting(n, d, s, M, float(r * f), buffer=BUFFER, adaptations=STEPS * BATCH // BUFFER) for r in ratios]
    return predict(settings).recovered


ratios = np.geomspace(0.05, 30, 40)
band = predicted(ratios)
inside = ratios[band > 0.5]
print(f"more than half of the features for p / f from {inside[0]:.2f} to {inside[-1]:.1f}")

# %% [markdown]
# ## The experiment
#
# Four runs of the same world, from the same start, on the same batches; only $p$ differs.

# %%
world = World(n, d, Exactly(s))
source = world.stream(seed=0)
tried = (0.3, 1.3, 6.0, 12.0)
learned = {}
for r in tried:
    training = Training(
        BA(r * f, buffer=BUFFER), M, STEPS, BATCH, learning_rate=3e-3, decay=0.7, start_bias="quantile"
    )  # fmt: skip
    outcome = fit(source, training, seed=0, threads=1)
    learned[r] = best_cosines(source.V, outcome.W)
    share = (learned[r] > 0.9).mean()
    print(f"p = {r:4} f: recovered {share:.2f}, predicted {predicted([r])[0]:.2f}")
assert (learned[1.3] > 0.9).mean() > 0.95 and (learned[12.0] > 0.9).mean() < 0.05

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
left.fill_between(ratios, band, color="#b8c9d9", label="predicted")
left.plot(tried, [(learned[r] > 0.9).mean() for r in tried], "o", color="#22313f", label="measured")
left.set_xscale("log")
left.set_xlabel("p / f")
left.set_ylabel("share recovered")
left.legend(frameon=False)
for r in tried:
    right.hist(learned[r], bins=np.linspace(0.3, 1, 60), histtype="step", label=f"p = {r} f")
right.set_xlabel("cosine of a feature with its nearest neuron")
right.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The upper edge is sharp. The lower one is soft: with the one-sided rule a neuron that fires less often than $p$ is
# left alone, and a neuron that sees the strongest third of its feature's samples still points roughly the right way.
#
# ## One p cannot serve all
#
# Real features have very different frequencies. Under Zipf's law the most frequent feature here occurs fifty times
# as often as the rarest. GBA gives each *group* of neurons its own target, from the highest (HTF) down to the lowest
# (LTF) in equal ratios.

# %%
unequal = World(128, 32, Bernoulli(3, Zipf(0.8)))
frequencies = unequal.frequencies()
print(
    f"f from {frequencies.min():.4f} to {frequencies.max():.3f}: a factor {frequencies.max() / frequencies.min():.0f}"
)
data = unequal.stream(seed=1)


def train(method, steps=1_500):
    return fit(
        data, Training(method, 256, steps, learning_rate=5e-3, decay=0.3, start_bias="quantile"), seed=1, threads=1
    )


methods = {"BA, p = 0.005": BA(0.005), "BA, p = 0.05": BA(0.05), "GBA, 0.1 .. 0.002": GBA(0.1, 0.002, 8)}
order = np.argsort(-frequencies)
plt.figure(figsize=(6.5, 3.2))
for name, method in methods.items():
    cosine = best_cosines(data.V, train(method).W)[order]
    halves = (cosine[:64] > 0.9).mean(), (cosine[64:] > 0.9).mean()
    print(f"{name:18s} recovered {np.mean(cosine > 0.9):.2f}; frequent half {halves[0]:.2f}, rare half {halves[1]:.2f}")
    plt.semilogx(frequencies[order], cosine, ".", ms=4, label=name)
plt.axhline(0.9, color="grey", lw=0.8)
plt.xlabel("frequency of the feature")
plt.ylabel("cosine with its nearest neuron")
plt.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Not knowing f
#
# On a language model nobody knows $f$. `theory.targets.choose_targets` runs a short *pilot*: once some neurons have
# turned towards features, the third and fourth moments of their pre-activations give away how often what they see
# occurs, and the range of targets is set around the middle of that. The command line has it as `--targets pilot`.

# %%
plan = Training(GBA(0.1, 0.001, 10), 256, 1_500, learning_rate=5e-3, decay=0.3, start_bias="quantile")
chosen = choose_targets(data, plan, seed=1)
print(
    f"chosen: {chosen.htf:.3f} .. {chosen.ltf:.4f} in {chosen.groups} groups, from a pilot of {chosen.samples} samples"
)
piloted = fit(data, chosen.training(plan), seed=1, threads=1)
print(f"recovered {check(data.V, piloted.W).rate(0.9):.2f} with the samples that the pilot left")
assert chosen.ltf < np.median(frequencies) < chosen.htf

# %% [markdown]
# ## Exercises
#
# 1. Predict, without a run, how the band moves if the width grows from $M = n$ to $M = 8 n$. Which edge moves?
# 2. At which $d$ does the band vanish for $s = 3$, $n = 256$, $M = 768$? (Where does no $p$ recover half of the
#    features?)
#
# ## Solutions
#
# **1.** More neurons share the noise of the features that are not yet learned, and a neuron with spurious
# activations is disturbed more: the upper edge comes down.

# %%
edges = []
for width in (1, 2, 4, 8):
    grid = np.geomspace(0.5, 30, 60)
    shares = predict([Setting(n, d, s, width * n, float(r * f), adaptations=150) for r in grid]).recovered
    edges.append(grid[shares > 0.5].max())
    print(f"M = {width} n: upper edge at p / f = {edges[-1]:.1f}")
assert edges == sorted(edges, reverse=True) and edges[-1] < edges[0]

# %% [markdown]
# **2.** Ask at the best $p$ of every $d$: below $d / s$ of about 7 no $p$ recovers half of the features. In six
# dimensions the number is high again, but that is chance: 768 random directions come close to anything there. Lesson
# 5 returns to it.

# %%
for dimension in (6, 9, 12, 18, 24, 48):
    best = predict([Setting(n, dimension, s, M, float(r * f), adaptations=150) for r in np.geomspace(0.3, 10, 30)])
    print(f"d = {dimension:2d} (d / s = {dimension / s:4.1f}): at best {best.recovered.max():.2f}")
