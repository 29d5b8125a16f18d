defmodule Snakepit.Isolation.DropIn.Start do
  @moduledoc false
  # `config :snakepit_shm, isolate: [...]`: done once the house of isolated libraries stands, and again should it be built anew. It
  # is no process.
  #
  # Fails closed. Whoever lists a module does not want its library in this VM, so what cannot be isolated stops the start. What
  # was isolated until then stays so, without its library: nothing is put back into the VM. In a release all of this happens
  # to modules that could not load their libraries so far (`DropIn.Prepared`).

  alias Snakepit.Isolation.{DropIn, Error, Options}
  alias Snakepit.Isolation.DropIn.Source

  require Logger

  @spec child_spec(term()) :: Supervisor.child_spec()
  def child_spec(_), do: %{id: __MODULE__, start: {__MODULE__, :run, []}, restart: :temporary}

  @spec run() :: :ignore | {:error, Error.t()}
  def run do
    with {:ok, modules} <- Options.modules(configured()),
         :ok <- each(modules) do
      :ignore
    else
      {:error, error} -> {:error, %{error | details: Map.put(error.details, :configured, true)}}
    end
  end

  @doc "The list as the application's environment has it."
  @spec configured() :: term()
  def configured, do: Application.get_env(:snakepit_shm, :isolate, [])

  defp each([]), do: :ok
  defp each([{module, options} | rest]), do: with(:ok <- place(module, options), do: each(rest))

  # Its own code, with the library in this VM, also where a release has rewritten it.
  defp place(module, false) do
    case {DropIn.fetch(module), Source.find(module)} do
      {nil, {:ok, %Source{prepared: %{}} = source}} -> original(source)
      {nil, _} -> :ok
      # It has its library itself, which it keeps where its own option isolated: says.
      {%{original: nil}, _} -> :ok
      _isolated_by_an_earlier_start -> DropIn.restore(module)
    end
  end

  defp place(module, options) do
    before = DropIn.Code.md5(module)
    known = DropIn.fetch(module)

    with :ok <- DropIn.isolate_anew(module, options) do
      # In a release the code is the same, and after a restart of the application it is ours.
      if before in [nil, known && known.md5, DropIn.Code.md5(module)], do: :ok, else: was_here(module)
    end
  end

  defp original(%Source{module: module, file: file, beam: beam}) do
    {:ok, {^module, md5}} = :beam_lib.md5(beam)

    if DropIn.Code.md5(module) == md5,
      do: :ok,
      else: with(:ok <- DropIn.Code.purge(module), do: DropIn.Code.load(module, file, beam))
  end

  # Somebody has loaded it before us, and its library was opened: an application that calls it; Mix, which looks into what it
  # compiles against; the boot of a release where it was not rewritten.
  defp was_here(module) do
    case DropIn.Code.users(module) do
      [] ->
        level = if :code.get_mode() == :embedded, do: :warning, else: :info

        Logger.log(
          level,
          "#{inspect(module)} had been loaded before snakepit_shm isolated it, and its library was in this VM until now. " <>
            "The documentation of Snakepit.Isolation says how that can be avoided (\"Modules of others\")."
        )

      pids ->
        {:error, Error.new(:in_use, module, nil, %{because: :in_vm, pids: pids})}
    end
  end
end
