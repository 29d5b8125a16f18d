defmodule Snakepit.Differential do
  @moduledoc false
  # The same calls of a library in a VM that isolates nothing (a `:peer` node, the reference) and isolated. Results and
  # exceptions have to be equal bit by bit. `Snakepit.Differential.Libraries` says which calls of which libraries.
  #
  # A library is called itself (`open/2`), or a module that has it calls it, isolated by `isolate/2` on one side (`open_module/2`): then stack
  # traces have to be equal, too, as far as they are the module's own.
  #
  # References that a call gives are taken for objects of the library: each side keeps its own, and what is compared has
  # `{:object, n}` in their place, which stands for the object as an argument, too. They live until the end of a script.

  import ExUnit.Assertions

  alias Snakepit.Differential.{Objects, Reference}
  alias Snakepit.{Isolation, NativeFixture}
  alias Snakepit.Isolation.{Error, Library}

  @enforce_keys [:isolated, :peer, :module]
  defstruct @enforce_keys

  @type outcome :: {:ok, term()} | {:raised, :error | :exit | :throw, term()} | {:failed, String.t()}
  @type arguments :: [term()]
  @type library :: %{
          # The one or the other.
          optional(:path) => atom() | {Application.app(), Path.t()},
          optional(:module) => module(),
          # A term, or a function of the library's path.
          optional(:load_info) => term() | (Path.t() -> term()),
          # A fixed list of calls.
          optional(:calls) => [{atom(), arguments()}],
          # Arguments are types of PropEr, for pure functions.
          optional(:any) => [{atom(), [:proper_types.type()]}],
          # Several calls that share objects: a function that is given one which makes a call and gives its outcome.
          optional(:scripts) => [(call :: (atom(), arguments() -> outcome()) -> term())],
          # Functions whose results are lists in no order.
          optional(:unordered) => [atom()],
          # Functions no call of which has to succeed.
          optional(:may_fail) => [atom()]
        }

  @doc "A node for references: `on_exit` ends it."
  @spec start_reference() :: pid()
  def start_reference do
    # Not distributed, and away from this VM's standard input and output.
    {:ok, peer, _node} = :peer.start(%{connection: {{127, 0, 0, 1}, 0}})
    ExUnit.Callbacks.on_exit(fn -> stop(peer) end)
    :ok = :peer.call(peer, :code, :add_pathsa, [Enum.reverse(:code.get_path())])
    {:ok, _} = :peer.call(peer, Reference, :start, [])
    peer
  end

  defp stop(peer) do
    :peer.stop(peer)
  catch
    :exit, _ -> :ok
  end

  @doc "Loads a library on both sides."
  @spec open(pid(), library()) :: %__MODULE__{}
  def open(peer, spec) do
    path = path(spec.path)
    load_info = with fun when is_function(fun, 1) <- Map.get(spec, :load_info, 0), do: fun.(path)
    {:ok, isolated} = Isolation.load(path, sandbox: :none, load_info: load_info)
    assert [] = missing(isolated)
    arguments = [isolated.module, isolated.functions, path, load_info]
    :ok = :peer.call(peer, NativeFixture, :load_module, arguments, :infinity)
    %__MODULE__{isolated: isolated, peer: peer, module: isolated.module}
  end

  @doc "A module as it is, on one side; isolated on the other."
  @spec open_module(pid(), module()) :: %__MODULE__{}
  def open_module(peer, module) do
    {:module, ^module} = :peer.call(peer, :code, :ensure_loaded, [module], :infinity)
    :code.purge(module)
    :ok = Isolation.isolate(module, sandbox: :none)
    %__MODULE__{isolated: module, peer: peer, module: module}
  end

  defp path(name) when is_atom(name), do: NativeFixture.path(name)
  defp path({application, path}), do: application |> Application.app_dir(path) |> to_string()

  defp missing(library) do
    {:ok, info} = Isolation.info(library)
    info.missing
  end

  @doc """
  Makes all calls of the table on both sides; fails with the first that differ, or if no call of a function succeeds.
  `runs` is how often each function is called with arguments made up by PropEr.
  """
  @spec compare(%__MODULE__{}, library(), pos_integer()) :: :ok
  def compare(sides, spec, runs) do
    unordered = Map.get(spec, :unordered, [])

    called =
      for {function, arguments} <- Map.get(spec, :calls, []),
          do: same!(sides, function, arguments, function in unordered)

    scripted = for script <- Map.get(spec, :scripts, []), outcome <- script!(sides, script), do: outcome
    generated = for {function, types} <- Map.get(spec, :any, []), do: same_for_all!(sides, function, types, runs)

    outcomes = Enum.group_by(called ++ scripted ++ List.flatten(generated), &elem(&1, 0), &elem(&1, 1))

    for {function, outcomes} <- outcomes, function not in Map.get(spec, :may_fail, []) do
      assert Enum.any?(outcomes, & &1), "no call of #{inspect(sides.module)}:#{function} succeeds, on either side"
    end

    :ok
  end

  # ── A call, many calls ────────────────────────────────────────────────────────────────────────────────────────

  # The function and whether it succeeded.
  defp same!(sides, function, arguments, unordered?) do
    {outcome, _} = isolated(sides, function, arguments, Objects.new())
    expected = reference(sides, :call, function, arguments)
    same? = if unordered?, do: same?(sorted(outcome), sorted(expected)), else: same?(outcome, expected)
    assert same?, difference(function, arguments, outcome, expected)
    {function, match?({:ok, _}, outcome)}
  end

  defp sorted({:ok, list}) when is_list(list), do: {:ok, Enum.sort(list)}
  defp sorted(other), do: other

  defp same_for_all!(sides, function, types, runs) do
    test = self()

    property =
      :proper.forall(types, fn arguments ->
        {outcome, _} = isolated(sides, function, arguments, Objects.new())
        expected = reference(sides, :call, function, arguments)
        send(test, {:outcome, function, match?({:ok, _}, outcome)})
        same? = same?(outcome, expected)
        unless same?, do: Process.put({__MODULE__, :difference}, difference(function, arguments, outcome, expected))
        same?
      end)

    unless :proper.quickcheck(property, [:quiet, :noshrink, numtests: runs, max_size: 24]),
      do: flunk(Process.delete({__MODULE__, :difference}))

    outcomes([])
  end

  defp outcomes(seen) do
    receive do
      {:outcome, function, success} -> outcomes([{function, success} | seen])
    after
      0 -> seen
    end
  end

  # ── Scripts ───────────────────────────────────────────────────────────────────────────────────────────────────

  # Runs it once, each call on both sides.
  defp script!(sides, script) do
    key = {__MODULE__, :objects}
    :ok = Reference.begin(sides.peer)
    Process.put(key, {Objects.new(), []})

    script.(fn function, arguments ->
      {objects, done} = Process.get(key)
      {outcome, objects} = isolated(sides, function, arguments, objects)
      expected = reference(sides, :step, function, arguments)
      assert same?(outcome, expected), difference(function, arguments, outcome, expected)
      Process.put(key, {objects, [{function, match?({:ok, _}, outcome)} | done]})
      without_frames(outcome)
    end)

    {_, done} = Process.delete(key)
    :ok = Reference.begin(sides.peer)
    done
  end

  # ── One side ──────────────────────────────────────────────────────────────────────────────────────────────────

  # Who calls a library is not the module's own code, and has another stack.
  defp reference(%{isolated: %Library{}} = sides, how, function, arguments),
    do: without_frames(apply(Reference, how, [sides.peer, sides.module, function, arguments]))

  defp reference(sides, how, function, arguments),
    do: apply(Reference, how, [sides.peer, sides.module, function, arguments])

  defp without_frames({:raised, class, reason, _frames}), do: {:raised, class, reason}
  defp without_frames(outcome), do: outcome

  defp isolated(%{isolated: module}, function, arguments, objects) when is_atom(module),
    do: Reference.outcome(module, function, arguments, objects)

  defp isolated(sides, function, arguments, objects) do
    case Isolation.call(sides.isolated, function, Objects.put_back(arguments, objects), timeout: 60_000) do
      {:ok, value} ->
        {value, objects} = Objects.take_out(value, objects)
        {{:ok, value}, objects}

      {:error, %Error{reason: :raised, exception: reason}} ->
        {reason, objects} = Objects.take_out(reason, objects)
        {{:raised, :error, reason}, objects}

      {:error, %Error{} = error} ->
        {{:failed, Exception.message(error)}, objects}
    end
  end

  # `==` does not tell 1 from 1.0; `===` not 0.0 from -0.0 in OTP 25.
  defp same?(one, other), do: one === other and bytes(one) == bytes(other)
  defp bytes(term), do: :erlang.term_to_binary(term, [:deterministic])

  defp difference(function, arguments, isolated, expected) do
    """
    #{function}(#{arguments |> Enum.map_join(", ", &inspect(&1, limit: 200, printable_limit: 2_000))})
    isolated:  #{inspect(isolated, limit: 200, printable_limit: 2_000)}
    in the VM: #{inspect(expected, limit: 200, printable_limit: 2_000)}
    """
  end
end
