defmodule Snakepit.Isolation.DifferentialTest do
  # The same library in a VM and isolated: the same calls have the same results and the same exceptions. The VM is the
  # reference. Which calls: `Snakepit.Differential.Libraries`.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.Differential
  alias Snakepit.Differential.{Libraries, Terms}

  # Some of the libraries may have to be built first, and that takes a while on a busy machine.
  @moduletag timeout: 900_000

  # Of each function whose arguments are generated.
  @runs 100

  for name <- Libraries.names() do
    @tag skip: if(name == :jiffy and match?({:error, _}, :code.lib_dir(:jiffy)), do: "there is no jiffy (erlang-jiffy)")
    test "#{name}" do
      library = Libraries.library(unquote(name))
      peer = Differential.start_reference()
      assert :ok = peer |> Differential.open(library) |> Differential.compare(library, @runs)
    end
  end

  # ── Names ─────────────────────────────────────────────────────────────────────────────────────────────────────

  # Pids, ports, references and funs are of this VM: so is what they are compared with.
  test "any term that goes there comes back as it was" do
    library = load!(:adder)
    vm = NativeFixture.load_into_vm(:adder)

    same? = fn term ->
      answer = Isolation.call(library, :echo, [term])
      # Bit by bit: `==` does not tell 0.0 from -0.0, nor 1 from 1.0 in OTP 25.
      same? = match?({:ok, _}, answer) and bytes(elem(answer, 1)) == bytes(vm.echo(term))
      unless same?, do: IO.inspect({term, answer}, label: "counterexample", limit: :infinity)
      same?
    end

    terms = Terms.of(Terms.one_of([Terms.leaf(), Terms.one_of(names())]))
    assert :proper.quickcheck(:proper.forall(terms, same?), [:quiet, numtests: 500, max_size: 18])
    for term <- [List.duplicate(nil, 100_000), nested(10_000), large_map()], do: assert(same?.(term))
  end

  defp bytes(term), do: :erlang.term_to_binary(term, [:deterministic])

  # Whatever names something of this VM.
  defp names do
    [port | _] = Port.list()
    x = make_ref()
    [self(), Process.whereis(:init), port, x, make_ref(), fn -> x end, fn a, b -> {a, b, x} end, &:lists.map/2]
  end

  defp nested(depth), do: Enum.reduce(1..depth, :end, fn i, term -> if rem(i, 2) == 0, do: [term], else: {i, term} end)
  defp large_map, do: Map.new(1..20_000, &{&1 |> key(), [&1, 1.0 * &1]})
  defp key(n), do: {n, "key #{n}"}
end
