"""What a run says: measures of its records, drawn, told on a page, kept as JSON, and compared with another run's.

measures   records -> `Measures`: times, rates, goodput, endings, lateness
timeline   records -> what happened second by second
side       `side_of(name, records, schedule, ...)`: all of that for one thing that was measured; `Mark`, `Figure`
where      `host(load_before)`, `commit()`, `load_now()`: where and of what a run was made
document   `Run`, `Verdict`: what a run leaves; `write(run, path)`, `read(path)`
wording    figures as people read them
drawing    a sheet, scales, lines, words: what every plot is made of; `panel`: axes
plot_*     latency, rate and goodput with the knee, timeline with the faults; `plots`: which of them a run has
tables     figures as tables; `markdown`: `page(run, plots)`
files      `write_report(run, directory)`: the page, its plots, its JSON
compare    `compared(before, after)` -> `Comparison`: `.table()`, `.worse`; raises `NotComparable`

For the stand, all there is to call:

    before = load_now()
    ...
    side = side_of("gateway", records, schedule, scenario.objectives, pods=names, marks=marks, figures=figures)
    run = Run(scenario=name, question=..., text=scenario.text, command="python -m loadtest run NAME",
              seed=..., seconds=..., begun="2026-11-30T12:00:00Z", commit=commit(), host=host(before), versions={...},
              sides=(side,), verdicts=(Verdict(...), ...), notes=("what a reader must know beside it",))
    write_report(run, folder)          # NAME.md, NAME.json, NAME-latency.svg ...; gives the page's path
    run.held                           # False: a verdict failed

    comparison = compared(read(a), read(b))       # NotAReport, NotComparable: their text says what to do
    comparison.table(), comparison.worse

A scenario that measures the same schedule twice (overhead: past the gateway and through it; prefix: one policy and the
other) makes two sides; the first is the one that the other is told against. `marks` and `figures` are a side's own.
"""
