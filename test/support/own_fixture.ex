defmodule Snakepit.OwnFixture do
  @moduledoc false
  # An application of one module that uses Snakepit.Isolation.Module, and its library in priv: as it lies in somebody's build directory. It
  # is gone when the test has ended.

  alias Snakepit.{DropInFixture, Isolation, NativeFixture}

  @app :snakepit_own_app
  @module Snakepit.Fixture.Own
  @source Path.expand("fixtures/drop_in/own.exs", __DIR__)

  def app, do: @app

  @doc "The module, compiled with these options and not yet loaded."
  def module(options) do
    directory = Path.join(DropInFixture.directory(), "#{@app}")
    for part <- ~w(ebin priv), do: File.mkdir_p!(Path.join(directory, part))
    ebin = to_charlist(Path.join(directory, "ebin"))
    File.cp!(NativeFixture.path(:own) <> ".so", Path.join(directory, "priv/own.so"))

    properties = [
      description: 'of a test',
      vsn: '1',
      registered: [],
      modules: [@module],
      applications: [:kernel, :stdlib, :elixir, :snakepit_shm]
    ]

    File.write!(Path.join(ebin, "#{@app}.app"), :io_lib.format("~p.~n", [{:application, @app, properties}]))
    true = :code.add_patha(ebin)

    ExUnit.Callbacks.on_exit(fn ->
      if Isolation.DropIn.fetch(@module), do: Isolation.DropIn.drop(@module)
      DropInFixture.unload(@module)
      :code.del_path(ebin)
      for key <- Application.get_all_env(@app), do: Application.delete_env(@app, elem(key, 0))
      :persistent_term.erase({@module, :options})
    end)

    compile(options)
    DropInFixture.unload(@module)
    @module
  end

  @doc "Compiles it anew, which loads it, as compilers do."
  def compile(options) do
    :persistent_term.put({@module, :options}, [otp_app: @app, library: "priv/own", sandbox: :none] ++ options)
    # It replaces itself.
    Code.put_compiler_option(:ignore_module_conflict, true)
    [{@module, beam}] = Code.compile_file(@source)
    File.write!(Path.join(:code.lib_dir(@app, :ebin), "#{@module}.beam"), beam)
    @module
  after
    Code.put_compiler_option(:ignore_module_conflict, false)
  end

  @doc "What the application's configuration says of the module."
  def configure(options), do: Application.put_env(@app, @module, options)

  @doc "Another version of the code, the same as its file's."
  def reload do
    :code.purge(@module)
    {:module, @module} = :code.load_file(@module)
    @module
  end
end
