# Tests that run for minutes carry `@tag :soak` and run with `mix test --include soak`. Tests tagged `:slow` run by
# default; `mix test --exclude slow` leaves them out.
ExUnit.start(capture_log: true, assert_receive_timeout: 2_000, exclude: [:soak])
