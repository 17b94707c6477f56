"""How well the alerts find what they are for, and how often they are wrong: made-up traces, our alerts, and peers'.

What lies here, in the order in which data passes it: `local_time`, `shapes`, `tenant` and `incidents` make the counts
of a tenant; `network`, `identity`, `misuse` and `events_file` the events behind them; `generate` writes both. `traces`
and `label` read them, `replay` runs them through the service's own SQL, `peers` are rules that others publish, `alarm`
is what all of them raise, `score` holds it against the labels and `table` prints it.
"""
