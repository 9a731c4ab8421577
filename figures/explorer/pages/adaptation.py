"""Page 3 of the explorer."""

import marimo

app = marimo.App(width="full", app_title="Bias adaptation")


@app.cell
def _():
    import marimo as mo

    from figures.explorer.layout import dials, heading, shown
    from figures.explorer.scenes import adaptation

    heading(
        "adaptation",
        "Biases are not trained: after every buffer of samples a rule compares how often a neuron fired with how often "
        "it should, and moves its threshold. Where does it come to rest?",
    )
    return adaptation, dials, mo, shown


@app.cell
def _(dials, mo):
    p = mo.ui.slider(
        steps=[0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.05, 0.1, 0.2, 0.4],
        value=0.03, label="target frequency p", show_value=True,
    )  # fmt: skip
    cosine = mo.ui.slider(0.0, 1.0, 0.05, value=0.9, label="cosine of neuron and feature", show_value=True)
    start = mo.ui.slider(0.0, 1.0, 0.05, value=0.0, label="threshold at the start", show_value=True)
    s = mo.ui.slider(1, 8, value=3, label="active per sample s", show_value=True)
    dials(p, cosine, start, s)
    return cosine, p, s, start


@app.cell
def _(adaptation, cosine, p, s, shown, start):
    shown(lambda: adaptation.show(p.value, cosine.value, start.value, s.value))
    return


if __name__ == "__main__":
    app.run()
