"""Page 4 of the explorer."""

import marimo

app = marimo.App(width="full", app_title="Resonance")


@app.cell
def _():
    import marimo as mo

    from figures.explorer.background import Training
    from figures.explorer.layout import dials, heading, shown, state
    from figures.explorer.scenes.resonance import STEPS, Place, Trial, show
    from simulator import RequestError

    heading(
        "resonance",
        "A neuron learns a feature if its target frequency p resonates with the feature's own frequency f: far above "
        "it nothing is learned, below it less or more slowly. Slide p through the band, train at any place, compare.",
    )
    return Place, RequestError, STEPS, Training, Trial, dials, mo, show, shown, state


@app.cell
def _(dials, mo):
    ratio = mo.ui.slider(
        steps=[0.03, 0.1, 0.3, 0.6, 1, 1.3, 2, 3, 4, 5, 6, 8, 12, 20],
        value=1.3, label="p / f", show_value=True,
    )  # fmt: skip
    n = mo.ui.slider(steps=[64, 128, 256, 512], value=256, label="features n", show_value=True)
    d = mo.ui.slider(steps=[12, 24, 48, 96], value=48, label="dimensions d", show_value=True)
    s = mo.ui.slider(1, 8, value=3, label="active per sample s", show_value=True)
    width = mo.ui.slider(1, 6, value=3, label="neurons per feature M / n", show_value=True)
    dials(ratio, n, d, s, width)
    return d, n, ratio, s, width


@app.cell
def _(Place, d, n, s, width):
    place = Place(n.value, d.value, s.value, width.value * n.value)
    return (place,)


@app.cell
def _(mo):
    # The runs of this session, oldest first: (trial, its training).
    runs, set_runs = mo.state([])
    return runs, set_runs


@app.cell
def _(dials, mo):
    train_button = mo.ui.run_button(label="Train at this p", kind="success")
    stop_button = mo.ui.run_button(label="Stop", kind="danger")
    dials(train_button, stop_button)
    return stop_button, train_button


@app.cell
def _(RequestError, STEPS, Training, Trial, place, ratio, set_runs, show, train_button):
    # A cell, not a handler of the button: it sees the dials as they are, however fast the click followed a move.
    def started(runs):
        for _, other in runs:
            other.stop()
        trial = Trial(place, ratio.value * place.f, seed=0)
        return [*runs, (trial, Training(trial.train, STEPS))]

    if train_button.value:
        try:
            show(place, ratio.value * place.f)
            set_runs(started)
        except RequestError:
            pass  # the reason stands in the place of the picture
    return


@app.cell
def _(runs, stop_button):
    if stop_button.value:
        for _, _training in runs():
            _training.stop()
    return


@app.cell
def _(mo):
    tick = mo.ui.refresh(default_interval="1s")
    return (tick,)


@app.cell
def _(mo, place, ratio, runs, show, shown, state, tick):
    tick.value
    # Asked before the picture is drawn: a run that ends meanwhile is drawn once more.
    latest = [(training, training.running) for _, training in runs()[-1:]]
    here = [trial for trial, _ in runs() if trial.place == place]
    parts = [shown(lambda: show(place, ratio.value * place.f, here))]
    mo.vstack(parts + [told for item in latest if (told := state(*item, tick)) is not None])
    return


if __name__ == "__main__":
    app.run()
