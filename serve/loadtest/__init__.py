"""Load on a running endpoint, measured: MLPerf LoadGen decides when to send, an HTTP client in its own process sends.

    run_load_test(settings, home, on_row=progress.row)      # one row of the table `requests` a request

It goes one way: `config` (what) -> `library` (the payloads) -> `plan` (the order of runs) -> `generator` (a child
process, `child`) -> records; `search` looks for the highest rate under a bound. It knows the endpoint by HTTP alone.
"""
