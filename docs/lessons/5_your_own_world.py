# %% [markdown]
# # 5 · Your own world
#
# You have a method, or a suspicion about one. Does it recover the features? This lesson goes from a question to an
# answer that somebody else can check: a world, a fair comparison, honest numbers, and what a handful of seeds can
# and cannot say.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from simulator import GBA, Bernoulli, HalfNormal, TopK, Training, World, Zipf, fit
from theory.evidence import assess, detectable_rate, interval, seeds_needed
from theory.geometry import check

# %% [markdown]
# ## Compose a world
#
# Every part of the law $x = \sum_i h_i v_i + \text{noise}$ is an object: which features are active (`support`), how
# often each (`Zipf`), with which coefficients, over which dictionary, with how much noise. A world is data: it
# prints itself, and two equal worlds are equal.

# %%
world = World(
    n=128,
    d=48,
    support=Bernoulli(3, Zipf(0.6)),  # independent features, three on average, some frequent and some rare
    coefficients=HalfNormal(),
    unit_rows=False,
    noise=0.02,
)
print(world)
assert world == World(128, 48, Bernoulli(3, Zipf(0.6)), coefficients=HalfNormal(), unit_rows=False, noise=0.02)

# %% [markdown]
# ## Compare fairly
#
# Random numbers come from streams that are named by a seed and a purpose. So two methods trained at one seed meet
# the same dictionary, the same batches and the same initial directions: what differs is the method. TopK keeps the
# $k$ largest pre-activations of each sample; GBA has no $k$.

# %%
BUDGET = {"neurons": 192, "steps": 1_200, "batch": 512, "learning_rate": 5e-3, "decay": 0.3}
trainings = {
    "GBA": Training(GBA(htf=0.1, ltf=0.002, groups=8), start_bias="quantile", **BUDGET),
    "TopK": Training(TopK(4), start_scale=1.0, **BUDGET),
}


def train(name, seed):
    source = world.stream(seed)
    return source.V, fit(source, trainings[name], seed, threads=1)


judged, fits = {}, {}
for name in trainings:
    V, outcome = train(name, seed=0)
    fits[name] = outcome
    judged[name] = check(V, outcome.W, W_start=outcome.W_start, frequencies=world.frequencies())
assert np.array_equal(fits["GBA"].W_start, fits["TopK"].W_start)  # the same initial directions

# %% [markdown]
# ## Read the numbers honestly
#
# *How many features were recovered* needs three companions: the rate that the network had **before training**, the
# level that a **random** dictionary of the same shape reaches (matching many neurons with many features finds good
# pairs by luck), and the share of neurons that point **at a feature at all** (a network with many neurons can
# recover all features and be mostly junk).

# %%
for name, recovery in judged.items():
    print(
        f"{name}: recovered {recovery.rate(0.9):.2f} (untrained {recovery.untrained_rate(0.9):.2f}), "
        f"MCC {recovery.mcc.value():.2f} (chance {recovery.mcc_chance.mean:.2f}), "
        f"neurons at a feature {recovery.neuron_precision(0.9):.2f}"
    )
    assert recovery.untrained_rate(0.9) == 0 and recovery.mcc.value() > recovery.mcc_chance.mean

plt.figure(figsize=(6, 3))
for name, recovery in judged.items():
    bins = recovery.by_frequency(0.9, bins=6)
    plt.semilogx([np.sqrt(b.low * b.high) for b in bins], [b.rate for b in bins], "o-", ms=4, label=name)
plt.xlabel("frequency of the feature")
plt.ylabel("share recovered, cosine > 0.9")
plt.ylim(0, 1.05)
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# The average hides which features are lost. Look at both ends of the frequencies before you call a method better.
#
# ## What one seed cannot say
#
# Repeat with other seeds, and look at the *differences*: since methods share their seed, most of what changes from
# seed to seed changes for both.

# %%
seeds = range(4)
table = {name: [judged[name].rate(0.9)] for name in judged}
for name in judged:
    for seed in seeds[1:]:
        V, outcome = train(name, seed)
        table[name].append(check(V, outcome.W, assignment=False).rate(0.9))
for name, rates in table.items():
    half = stats.t.ppf(0.975, len(rates) - 1) * stats.sem(rates)
    print(f"{name}: {np.round(rates, 3)}, mean {np.mean(rates):.3f} ± {half:.3f}")
difference = np.subtract(table["GBA"], table["TopK"])
half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference)
print(f"GBA minus TopK, seed by seed: {difference.mean():+.3f} ± {half:.3f}")

# %% [markdown]
# ## A promise, tested
#
# Theorems promise something with probability at least $1 - \delta$. Runs either keep the promise or break it, so the
# answer is a binomial interval. Suppose the promise is "at least 0.5 of the features are recovered, except in a
# share 0.1 of all runs".

# %%
failures = sum(rate < 0.5 for rate in table["GBA"])
evidence = assess(len(seeds), failures, promised=0.1)
low, high = interval(len(seeds), failures, level=0.05)
print(f"{failures} of {len(seeds)} runs broke it: the rate of failure lies in {low:.2f} .. {high:.2f}")
print("refuted" if evidence.refuted else "not refuted", "at the level 0.05")
rate = detectable_rate(len(seeds), 0.1)
needed = seeds_needed(0.1, 0.2)
print("a failure rate that these runs could have found:", "none below 1" if rate is None else f"{rate:.2f}")
print(f"seeds needed to tell a rate of 0.2 from the promised 0.1: {needed}")
assert low <= failures / len(seeds) <= high and needed > 50

# %% [markdown]
# Four runs without a failure do not confirm the promise: they would have noticed only a failure rate of 0.8. That
# number belongs beside every "it worked in all our runs".
#
# ## From here to a command line
#
# The training of GBA and its verdict are one command. It writes a report folder with `result.json` (every number, the
# configuration and the versions), `fit.safetensors` and `world.safetensors` ($W$ and $V$), `features.csv` and
# `neurons.csv` (one row for each), `history.csv` and `report.png`. Stopped in the middle, the same command continues:
#
# ```
# sae-recovery verify --n 128 --d 48 --support bernoulli --s 3 --zipf 0.6 --coefficients half-normal --no-unit-rows \
#   --noise 0.02 --method gba --htf 0.1 --ltf 0.002 --groups 8 --neurons 192 --steps 1200 --learning-rate 0.005 \
#   --decay 0.3 --start-bias quantile
# ```
#
# The page "Your own world" of `sae-recovery explore` writes such a line for whatever you choose there.
#
# ## Exercises
#
# 1. Is a result at cosine > 0.9 possible by chance? Compute how many of 128 features a random dictionary with 192
#    and one with 1,000,000 neurons would "recover" in $d = 48$, and in $d = 6$.
# 2. A colleague reports an MCC of 0.62 in a world with $n = 128$, $d = 24$, $M = 512$. Is that good?
#
# ## Solutions
#
# **1.** A random direction has a cosine above $\tau$ with probability $\frac{1}{2} P(c^2 > \tau^2)$, $c^2 \sim
# \mathrm{Beta}(\frac{1}{2}, \frac{d-1}{2})$; one of $M$ does with probability $1 - (1 - \cdot)^M$.

# %%
for d in (48, 6):
    tail = stats.beta.sf(0.81, 0.5, (d - 1) / 2) / 2
    for M in (192, 1_000_000):
        print(f"d = {d:2d}, M = {M:7d}: {128 * -np.expm1(M * np.log1p(-tail)):.2g} of 128 features")
few = stats.beta.sf(0.81, 0.5, 5 / 2) / 2
drawn = check(np.random.default_rng(0).standard_normal((128, 6)), np.random.default_rng(1).standard_normal((192, 6)))
assert abs(drawn.rate(0.9) - -np.expm1(192 * np.log1p(-few))) < 0.1

# %% [markdown]
# **2.** Ask what random directions reach at that shape.

# %%
shape = World(128, 24, Bernoulli(3)).features(seed=0)
chance = check(shape, np.random.default_rng(0).standard_normal((512, 24)))
print(f"chance level of the MCC: {chance.mcc_chance.mean:.3f}; this random dictionary: {chance.mcc.value():.3f}")
assert chance.mcc.value() > 0.55
