defmodule Snakepit.DropInFixture do
  @moduledoc false
  # Modules with NIFs to isolate: test/support/fixtures/drop_in. Each is compiled into a directory of its own in the code
  # path, and is gone when the test has ended.

  alias Snakepit.{Isolation, NativeFixture, ShmCase}

  @sources Path.expand("fixtures/drop_in", __DIR__)
  @erlang :snakepit_drop_in
  @elixir Snakepit.Fixture.DropIn

  @doc "The Erlang module, not yet loaded. `defines` as in its source; `options` of the compiler."
  def erlang(defines \\ [:ON_LOAD], options \\ [:debug_info]) do
    directory = directory()
    settings(@erlang, path: NativeFixture.path(:drop_in))
    compile(directory, "snakepit_drop_in", Enum.map(defines, &{:d, &1}) ++ options)
    ready(@erlang, directory)
  end

  @doc "The Elixir module, not yet loaded."
  def elixir do
    directory = directory()
    settings(@elixir, path: NativeFixture.path(:drop_in_elixir))
    # Compiling loads it.
    [{@elixir, beam}] = Code.compile_file(Path.join(@sources, "drop_in.exs"))
    unload(@elixir)
    File.write!(Path.join(directory, "#{@elixir}.beam"), beam)
    ready(@elixir, directory)
  end

  @doc "A module in Elixir over a library of `NativeFixture`, which never comes into this VM. Not yet loaded; with the directory that it is in."
  def stubs(name, load_info \\ 0) do
    module = NativeFixture.module(name)
    directory = directory()
    unload(module)
    settings(module, path: "", load_info: load_info)
    :persistent_term.put(__MODULE__, %{module: module, functions: NativeFixture.functions(name)})
    [{^module, beam}] = Code.compile_file(Path.join(@sources, "stubs.exs"))
    :persistent_term.erase(__MODULE__)
    unload(module)
    File.write!(Path.join(directory, "#{module}.beam"), beam)
    ready(module, directory)
    # Before the one that puts it back.
    ExUnit.Callbacks.on_exit(fn -> settings(module, path: "") end)
    settings(module, path: NativeFixture.path(name))
    {module, directory}
  end

  @doc "The Erlang module of which there are versions, not yet loaded; and `tenant_version/3` for the next ones."
  def tenant(library, defines) do
    directory = directory()
    tenant_version(directory, library, [{:CODE, 1} | defines])
    {ready(:snakepit_tenant_a, directory), directory}
  end

  @doc "Puts another version into the directory; it is to find this library. Loads nothing."
  def tenant_version(directory, library, defines, load_info \\ 0) do
    settings(:snakepit_tenant_a, path: NativeFixture.path(library), load_info: load_info)

    compile(
      directory,
      "snakepit_tenant_a",
      Enum.map(defines, fn {name, value} -> {:d, name, value} end) ++ [:debug_info]
    )
  end

  @doc "What the module finds when it loads its library: `path:`, `load_info:`, `lax:`."
  def settings(module, settings) do
    key = {module, :settings}
    before = :persistent_term.get(key, %{load_info: {:info, [1]}, lax: false})

    :persistent_term.put(
      key,
      settings |> Map.new() |> then(&Map.merge(before, &1)) |> Map.update!(:path, &to_charlist/1)
    )
  end

  @doc """
  What a call gives or raises, with the module's own part of the stack trace: function and arity or arguments, without
  places in files, which a NIF does not have. Another VM can be asked too.
  """
  def outcome(module, function, arguments) do
    {:ok, apply(module, function, arguments)}
  catch
    class, reason ->
      {class, reason, for({^module, name, arguments, _} <- __STACKTRACE__, do: {name, arguments})}
  end

  @doc "Compiles a source of fixtures/drop_in into a directory."
  def compile(directory, name, options) do
    source = to_charlist(Path.join(@sources, name <> ".erl"))
    {:ok, _} = :compile.file(source, [:return_errors, outdir: to_charlist(directory)] ++ options)
    :ok
  end

  def directory, do: ShmCase.temporary_directory("drop-in")

  defp ready(module, directory) do
    directory = to_charlist(directory)
    true = :code.add_patha(directory)

    ExUnit.Callbacks.on_exit(fn ->
      if Isolation.DropIn.fetch(module), do: restore(module)
      unload(module)
      :code.del_path(directory)
      for key <- [:settings, :loads, :in_on_load], do: :persistent_term.erase({module, key})
    end)

    module
  end

  # Also where the test has made its library unusable.
  defp restore(module) do
    :code.purge(module)
    with {:error, _} <- Isolation.restore(module), do: settings(module, lax: true) && Isolation.restore(module)
  end

  def unload(module) do
    :code.purge(module)
    :code.delete(module)
    :code.purge(module)
  end
end
