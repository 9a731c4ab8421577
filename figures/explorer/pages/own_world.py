"""Page 5 of the explorer."""

import marimo

app = marimo.App(width="full", app_title="Your own world")


@app.cell
def _():
    import marimo as mo

    from figures.explorer.background import Training
    from figures.explorer.layout import dials, heading, refused, shown, state
    from figures.explorer.scenes import own_world
    from simulator import RequestError

    heading(
        "own-world",
        "Choose a world and a method, train, and read what was recovered. The command below repeats the run.",
    )
    return RequestError, Training, dials, mo, own_world, refused, shown, state


@app.cell
def _(dials, mo):
    n = mo.ui.number(2, 1_024, value=128, label="features n")
    d = mo.ui.number(2, 256, value=42, label="dimensions d")
    s = mo.ui.number(1, 64, value=3, label="active s")
    support = mo.ui.dropdown(["exactly", "bernoulli", "paired"], value="exactly", label="supports")
    rho = mo.ui.slider(0.0, 0.95, 0.05, value=0.5, label="rho (paired)", show_value=True)
    zipf = mo.ui.slider(0.0, 1.5, 0.05, value=0.0, label="Zipf exponent", show_value=True)
    dictionary = mo.ui.dropdown(["gaussian", "sphere", "orthonormal", "coherent"], value="gaussian", label="features V")
    mean_cosine = mo.ui.slider(0.0, 0.9, 0.05, value=0.3, label="mean cosine (coherent)", show_value=True)
    coefficients = mo.ui.dropdown(
        ["constant", "uniform", "exponential", "half-normal"], value="constant", label="coefficients"
    )
    noise = mo.ui.slider(0.0, 0.3, 0.01, value=0.0, label="noise", show_value=True)
    mo.vstack([mo.md("**World**"), dials(n, d, s, support, rho, zipf, dictionary, mean_cosine, coefficients, noise)])
    return coefficients, d, dictionary, mean_cosine, n, noise, rho, s, support, zipf


@app.cell
def _(dials, mo):
    method = mo.ui.dropdown(
        ["ba", "gba", "topk", "batch-topk", "matryoshka", "jumprelu", "gated", "l1"], value="ba", label="method"
    )
    neurons = mo.ui.number(1, 4_096, value=512, label="neurons M")
    steps = mo.ui.number(1, 20_000, value=2_000, label="steps")
    rate = mo.ui.dropdown(["0.001", "0.003", "0.005", "0.01"], value="0.003", label="learning rate")
    seed = mo.ui.number(0, 9_999, value=0, label="seed")
    mo.vstack([mo.md("**Method**"), dials(method, neurons, steps, rate, seed)])
    return method, neurons, rate, seed, steps


@app.cell
def _(dials, method, mo):
    # The dials of the chosen method alone; a knob that would change nothing is not shown.
    one = {
        "ba": {"p": mo.ui.number(0.0001, 0.49, value=0.03, step=0.001, label="target frequency p")},
        "gba": {
            "htf": mo.ui.number(0.001, 0.9, value=0.1, step=0.01, label="highest target"),
            "ltf": mo.ui.number(0.0001, 0.5, value=0.001, step=0.001, label="lowest target"),
            "groups": mo.ui.number(1, 20, value=10, label="groups"),
        },
        "l1": {"l1": mo.ui.number(0.0, 1.0, value=0.01, step=0.005, label="L1 weight")},
        "gated": {"l1": mo.ui.number(0.0, 1.0, value=0.2, step=0.05, label="L1 weight")},
        "jumprelu": {"l0": mo.ui.number(0.0, 1.0, value=0.001, step=0.001, label="price of a neuron")},
    }
    k = {"k": mo.ui.number(1, 64, value=3, label="k")}
    knobs = mo.ui.dictionary(one.get(method.value, k))
    rule = mo.ui.radio(["one-sided", "two-sided"], value="one-sided", label="rule", inline=True)
    dials(*knobs.elements.values(), *([rule] if method.value in ("ba", "gba") else []))
    return knobs, rule


@app.cell
def _(
    RequestError,
    coefficients,
    d,
    dictionary,
    knobs,
    mean_cosine,
    method,
    n,
    neurons,
    noise,
    own_world,
    rate,
    rho,
    rule,
    s,
    seed,
    steps,
    support,
    zipf,
):
    chosen = {
        "n": n.value, "d": d.value, "s": s.value and (s.value,), "support": support.value, "zipf": zipf.value,
        "dictionary": dictionary.value, "coefficients": coefficients.value, "noise": noise.value, "seed": seed.value,
        "method": method.value, "neurons": neurons.value, "steps": steps.value, "learning_rate": float(rate.value),
    }  # fmt: skip
    if support.value == "paired":
        chosen["rho"] = rho.value
    if dictionary.value == "coherent":
        chosen["mean_cosine"] = mean_cosine.value
    if method.value in ("ba", "gba"):
        chosen["rule"] = rule.value
    reason, asked = "", None
    try:
        asked = own_world.options(**chosen, **knobs.value)
    except RequestError as error:
        reason = str(error)
    return asked, reason


@app.cell
def _(asked, mo, own_world, reason, refused):
    if asked is None:
        told = refused(reason)
    else:
        line = own_world.command_line(asked)
        told = mo.vstack([
            mo.md(f"```\n{line}\n```"),
            mo.hstack([
                mo.download(own_world.config_text(asked).encode(), "config.json", "application/json",
                            label="Download the config"),
                mo.download((line + "\n").encode(), "command.sh", "text/x-sh", label="Download the command"),
                mo.md("Either repeats the run; the config by `sae-recovery verify --config config.json --threads 1`."),
            ], justify="start", align="center", wrap=True),
        ])  # fmt: skip
    told
    return


@app.cell
def _(mo):
    # The latest run: (its options, its training), or None.
    run, set_run = mo.state(None)
    return run, set_run


@app.cell
def _(dials, mo):
    train_button = mo.ui.run_button(label="Train", kind="success")
    stop_button = mo.ui.run_button(label="Stop", kind="danger")
    dials(train_button, stop_button)
    return stop_button, train_button


@app.cell
def _(Training, asked, own_world, set_run, train_button):
    # A cell, not a handler of the button: it sees the dials as they are, however fast the click followed a move.
    def started(earlier):
        if earlier is not None:
            earlier[1].stop()
        return asked, Training(lambda progress: own_world.train(asked, progress), asked.steps)

    if train_button.value and asked is not None:
        set_run(started)
    return


@app.cell
def _(run, stop_button):
    if stop_button.value and run() is not None:
        run()[1].stop()
    return


@app.cell
def _(mo):
    tick = mo.ui.refresh(default_interval="1s")
    return (tick,)


@app.cell
def _(asked, mo, own_world, run, shown, state, tick):
    tick.value
    if run() is None:
        view = mo.md("")
    else:
        options, training = run()
        view = state(training, training.running, tick)
        if view is None:
            view = shown(lambda: own_world.show(options, training.result))
            if options != asked:
                view = mo.vstack([mo.md("*Of the run before the last change:*"), view])
    view
    return


if __name__ == "__main__":
    app.run()
