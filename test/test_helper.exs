# VMs that tests start have their sockets where they are removed with everything else.
runtime = Path.join(System.tmp_dir!(), "snakepit-test-#{System.pid()}")
File.mkdir_p!(runtime)
File.chmod!(runtime, 0o700)
System.put_env("XDG_RUNTIME_DIR", runtime)

ExUnit.after_suite(fn _result ->
  # The default instance ends in order, so that its socket and key go too.
  Logger.configure(level: :error)
  Application.stop(:snakepit_shm)
  File.rm_rf!(runtime)
  Snakepit.NativeFixture.remove()
end)

# Tests that run for minutes carry `@tag :soak` and run with `mix test --include soak`. Tests tagged `:slow` run by
# default; `mix test --exclude slow` leaves them out.
ExUnit.start(capture_log: true, assert_receive_timeout: 2_000, exclude: [:soak])
