# A VM of its own for Bench.Hung: `elixir ... hung_vm.exs LIBRARY ROUNDS`. Its last line is the figures.

for file <- ~w(ping hung), do: Code.require_file("#{file}.exs", __DIR__)

[path, rounds] = System.argv()
Logger.configure(level: :error)
{:ok, _} = Application.ensure_all_started(:snakepit_shm)
figures = Bench.Hung.measure(path, String.to_integer(rounds))
Application.stop(:snakepit_shm)
IO.puts("figures " <> (figures |> :erlang.term_to_binary([:compressed]) |> Base.encode64()))
