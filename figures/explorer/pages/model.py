"""Page 1 of the explorer."""

import marimo

app = marimo.App(width="full", app_title="The statistical model")


@app.cell
def _():
    import marimo as mo

    from figures.explorer.layout import dials, heading, shown
    from figures.explorer.scenes import model

    heading(
        "model",
        "Every activation vector is a sparse mixture of features, $x = \\sum_i h_i v_i$, and there are more features "
        "than dimensions. How can they share the space, and how close must they come to each other?",
    )
    return dials, mo, model, shown


@app.cell
def _(dials, mo):
    n = mo.ui.slider(2, 24, value=6, label="features n", show_value=True)
    d = mo.ui.radio({"2": 2, "3": 3}, value="2", label="dimensions d", inline=True)
    s = mo.ui.slider(1, 6, value=2, label="active per sample s", show_value=True)
    noise = mo.ui.slider(0.0, 0.3, 0.02, value=0.0, label="noise", show_value=True)
    seed = mo.ui.number(0, 9_999, value=0, label="seed")
    dials(n, d, s, noise, seed)
    return d, n, noise, s, seed


@app.cell
def _(d, model, n, noise, s, seed, shown):
    shown(lambda: model.show(n.value, d.value, s.value, seed.value, noise.value))
    return


if __name__ == "__main__":
    app.run()
