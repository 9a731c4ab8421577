# %% [markdown]
# # 1 · The statistical model
#
# A language model's activation vector has a few thousand coordinates, and seems to carry many more concepts than
# that. How can a vector hold more concepts than it has coordinates? This lesson builds the model that the rest of
# the toolkit is about, and looks at what it allows.
#
# **The model.** There are $n$ *features*, unit directions $v_1, \ldots, v_n$ in $d$ dimensions, the rows of a matrix
# $V$. Every activation vector is a *sparse mixture* of them:
#
# $$x = \sum_{i=1}^{n} h_i v_i, \qquad h_i \ge 0, \text{ and only } s \text{ of the } h_i \text{ are not zero.}$$
#
# Many samples, one per row, are $X = H V$. We see $X$; a sparse autoencoder is asked to find $V$.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from simulator import Bernoulli, Exactly, Uniform, UnitSphere, World, Zipf
from theory.conditions import largest_cosine, of_world
from theory.geometry import check

# %% [markdown]
# ## Six features in two dimensions
#
# A `World` is a law, with no seed in it: how many features, in how many dimensions, which of them are active
# together, with which coefficients. A seed draws from it.

# %%
flat = World(n=6, d=2, support=Exactly(2), dictionary=UnitSphere(), coefficients=Uniform(), unit_rows=False)
sample = flat.sample(500, seed=1)
print("X", sample.X.shape, " H", sample.H.shape, " V", sample.V.shape)
print("non-zero entries in each row of H:", set(np.diff(sample.H.indptr).tolist()))
assert np.allclose(sample.X, sample.H @ sample.V, atol=1e-5)

figure, axis = plt.subplots(figsize=(4.2, 4.2))
axis.plot(*sample.X.T, ".", ms=3, color="#5b7c99", alpha=0.6)
for v in sample.V:
    axis.annotate("", v, (0, 0), arrowprops={"arrowstyle": "->", "color": "#c8553d", "lw": 1.5})
axis.set_aspect("equal")
axis.set_title("six features (red) and mixtures of two of them")
plt.show()

# %% [markdown]
# Six directions share two dimensions: this is *superposition*. No two samples look like a feature, since every one is a
# mixture of two. $H$ is stored as a sparse matrix, because almost all of it is zero.
#
# ## How close must features come to each other?
#
# The *coherence* of $V$ is $\max_{i \ne j} |\cos(v_i, v_j)|$. If $n > d$ it cannot be 0. For random directions it has a
# law: the cosine $c$ of two of them satisfies
#
# $$c^2 \sim \mathrm{Beta}\left(\frac{1}{2}, \frac{d-1}{2}\right), \qquad E\, c^2 = \frac{1}{d},$$
#
# so a typical cosine is about $1 / \sqrt{d}$: in high dimensions random directions are nearly orthogonal.

# %%
n, d = 200, 50
V = World(n, d, Exactly(3), UnitSphere()).features(seed=0)
cosines = (V @ V.T)[np.triu_indices(n, 1)]
print(f"{len(cosines)} pairs, mean of d c^2 = {d * np.mean(cosines**2):.3f}")
assert abs(d * np.mean(cosines**2) - 1) < 0.05
grid = np.linspace(-0.6, 0.6, 300)  # without 0, where the density of c^2 is infinite
density = np.abs(grid) * stats.beta.pdf(grid**2, 0.5, (d - 1) / 2)  # half of the mass on either side

plt.figure(figsize=(6, 3))
plt.hist(cosines, bins=80, density=True, color="#b8c9d9", label="200 features in 50 dimensions")
plt.plot(grid, density, color="#22313f", label="law")
plt.xlabel("cosine of two features")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# The largest of all $n(n-1)/2$ cosines is what counts. `theory.conditions.of_world` knows its law: a typical value,
# and an interval that holds it with probability 0.95. Let us ask how many random features fit into $d$ dimensions if
# no two may have a cosine above one half.

# %%
dimensions = [8, 16, 32, 64, 128]
room = []
for dimension in dimensions:
    n_features = 2
    while of_world(World(2 * n_features, dimension, Exactly(1), UnitSphere())).V1.measured <= 0.5:
        n_features *= 2
    room.append(n_features)
    print(f"d = {dimension:4d}: typical coherence below 1/2 up to n = {n_features} (in powers of two)")
    if n_features >= 2**16:
        break
assert room[-1] / dimensions[len(room) - 1] > room[0] / dimensions[0]  # the room grows faster than d
drawn = largest_cosine(V.astype(float))
law = of_world(World(n, d, Exactly(1), UnitSphere())).V1
print(f"coherence drawn: {drawn:.3f}, typical: {law.measured:.3f}")
assert abs(np.log(0.5 / drawn) - law.slack) < 0.3

# %% [markdown]
# The room grows exponentially with $d$. That is why superposition is possible at all: a few thousand dimensions have
# room for millions of nearly orthogonal directions.
#
# ## How often, and how often together
#
# Two numbers describe the supports. The *frequency* of a feature, $f_i = P(h_i > 0)$; with exactly $s$ of $n$ active
# and no favourites, $f = s / n$. And the *co-occurrence*
#
# $$\rho_2 = \max_{i \ne j} P(h_j > 0 \mid h_i > 0),$$
#
# which for the same law is $(s - 1)/(n - 1)$. Real features have very unequal frequencies, which Zipf's law describes.

# %%
plain = World(n=200, d=50, support=Exactly(4))
print("f =", plain.frequencies()[0], " rho_2 =", plain.rho_2(), " (s-1)/(n-1) =", 3 / 199)
assert np.isclose(plain.rho_2(), 3 / 199) and np.allclose(plain.frequencies(), 4 / 200)

unequal = World(n=200, d=50, support=Bernoulli(4, Zipf(1.0)))
H = unequal.sample(20_000, seed=0).H
seen = np.bincount(H.indices, minlength=200) / H.shape[0]
plt.figure(figsize=(6, 3))
plt.loglog(np.arange(1, 201), np.sort(seen)[::-1], ".", color="#5b7c99", label="counted in 20,000 samples")
plt.loglog(np.arange(1, 201), np.sort(unequal.frequencies())[::-1], color="#22313f", label="the law")
plt.xlabel("rank of the feature")
plt.ylabel("frequency f")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Why not just use PCA?
#
# The principal components of $X$ are orthogonal, and there are at most $d$ of them; the features are neither. Let us
# measure it as the toolkit always does: for every feature the largest cosine with any direction found, beside what
# *random* directions reach. (The MCC is the mean cosine of the best one-to-one assignment.)

# %%
world = World(n=100, d=50, support=Exactly(3))
sample = world.sample(20_000, seed=0)
_, _, components = np.linalg.svd(sample.X - sample.X.mean(axis=0), full_matrices=False)
pca = check(sample.V, np.vstack([components, -components]))  # a component has no sign
print(f"PCA: MCC {pca.mcc.value():.3f}, by chance {pca.mcc_chance.mean:.3f}")
print(f"features with a component at cosine > 0.9: {pca.rate(0.9):.2f} of all")
assert pca.rate(0.9) == 0 and pca.mcc.value() < pca.mcc_chance.mean + 0.1
print(f"the true dictionary: MCC {check(sample.V, sample.V).mcc.value():.3f}")

# %% [markdown]
# PCA finds no more than chance. It sees second moments only, and the second moments of a mixture of many features are
# almost those of noise. What gives the features away is *sparsity*: seen along $v_i$, the data are mostly small and
# sometimes large. The next lessons ask when that is enough, and how to use it.
#
# ## Exercises
#
# 1. For $s = 1$ every sample is a multiple of one feature. Find all features of a world with $n = 20$, $d = 5$
#    without any training, from 2,000 samples.
# 2. At one dimension $d = 50$, how does the kurtosis of $\langle v_1, x \rangle$ compare with that of
#    $\langle w, x \rangle$ for a random direction $w$? Take $s = 3$ and $n = 200$.
#
# ## Solutions
#
# **1.** Normalise the samples: all that belong to one feature are then the same vector.

# %%
single = World(n=20, d=5, support=Exactly(1), dictionary=UnitSphere(), coefficients=Uniform(), unit_rows=False)
drawn = single.sample(2_000, seed=3)
rows = drawn.X / np.linalg.norm(drawn.X, axis=1, keepdims=True)
found = np.unique(rows.round(4), axis=0)
keep = [row for k, row in enumerate(found) if all(row @ other < 0.9999 for other in found[:k])]
solved = check(drawn.V, np.array(keep))
print(len(keep), "directions; recovered at cosine > 0.9:", solved.rate(0.9))
assert solved.rate(0.9) == 1 and len(keep) == 20

# %% [markdown]
# **2.** Along the feature the law has a heavy tail: mostly a small value, in a share $f$ of the samples a large one.

# %%
tails = World(n=200, d=50, support=Exactly(3)).sample(50_000, seed=0)
w = np.random.default_rng(0).standard_normal(50)
along = stats.kurtosis(tails.X @ (tails.V[0] / np.linalg.norm(tails.V[0])))
across = stats.kurtosis(tails.X @ (w / np.linalg.norm(w)))
print(f"excess kurtosis along a feature {along:.2f}, along a random direction {across:.2f}")
assert along > across + 0.3
