"""Page 2 of the explorer."""

import marimo

app = marimo.App(width="full", app_title="Identifiability")


@app.cell
def _():
    import marimo as mo

    from figures.explorer.layout import dials, heading, shown
    from figures.explorer.scenes import identifiability

    heading(
        "identifiability",
        "When do the data alone decide what the features are? Each hypothesis of the theorem has a slack, positive "
        "where it holds. Move them through zero, and watch another dictionary explain the same data.",
    )
    return dials, identifiability, mo, shown


@app.cell
def _(dials, mo):
    s = mo.ui.slider(1, 16, value=4, label="sparsity s", show_value=True)
    coherence = mo.ui.slider(0.0, 0.95, 0.01, value=0.1, label="coherence max |cos|", show_value=True)
    rho_2 = mo.ui.slider(0.0, 0.95, 0.01, value=0.1, label="co-occurrence ρ₂", show_value=True)
    dials(s, coherence, rho_2)
    return coherence, rho_2, s


@app.cell
def _(coherence, identifiability, rho_2, s, shown):
    shown(lambda: identifiability.show(s.value, coherence.value, rho_2.value))
    return


if __name__ == "__main__":
    app.run()
