defmodule Snakepit.Isolation.DropIn.Start do
  @moduledoc false
  # `config :snakepit_shm, isolate: [...]`: done once the house of isolated libraries stands. That needs no process.
  #
  # Fails closed. Whoever lists a module does not want its library in this VM, so what cannot be isolated stops the start. What
  # was isolated until then stays so, without its library: nothing is put back into the VM. In a release all of this happens
  # to modules that could not load their libraries so far (`DropIn.Prepared`).
  #
  # Done again when the supervisor of the libraries, or of the house, was killed. Then there is somebody to work for, whom the end of the
  # application, or of the node, would not help: what cannot be isolated stays closed, the log says so, and a process tries again.

  use GenServer

  alias Snakepit.Isolation.{DropIn, Error, Library, Options}
  alias Snakepit.Isolation.DropIn.Source

  require Logger

  # The first and the longest pause before the next attempt, in ms.
  @pause 1_000
  @longest_pause 30_000

  @spec child_spec(:atomics.atomics_ref()) :: Supervisor.child_spec()
  def child_spec(started), do: %{id: __MODULE__, start: {__MODULE__, :start_link, [started]}, restart: :transient}

  @doc "`started`: 0 until this start of the application has isolated its modules."
  @spec start_link(:atomics.atomics_ref()) :: :ignore | GenServer.on_start()
  def start_link(started) do
    if :atomics.get(started, 1) == 0 do
      with :ignore <- run() do
        :atomics.put(started, 1, 1)
        :ignore
      end
    else
      GenServer.start_link(__MODULE__, nil)
    end
  end

  @spec run() :: :ignore | {:error, Error.t()}
  def run do
    with {:ok, modules} <- Options.modules(configured()),
         :ok <- each(modules) do
      :ignore
    else
      {:error, error} -> {:error, of_list(error)}
    end
  end

  defp of_list(error), do: %{error | details: Map.put(error.details, :configured, true)}

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

  # ── Again ─────────────────────────────────────────────────────────────────────────────────────────────────────

  @impl true
  def init(_), do: {:ok, @pause, {:continue, :isolate}}

  @impl true
  def handle_continue(:isolate, pause), do: again(pause)

  @impl true
  def handle_info(:isolate, pause), do: again(pause)
  def handle_info(_late_answer, pause), do: {:noreply, pause}

  defp again(pause) do
    failures =
      case Options.modules(configured()) do
        {:ok, modules} -> Enum.flat_map(modules, &attempt/1)
        {:error, error} -> [Exception.message(of_list(error))]
      end

    for failure <- failures, do: Logger.error("#{failure} (The next attempt is in #{pause} ms.)")

    if failures == [] do
      {:stop, :normal, pause}
    else
      Process.send_after(self(), :isolate, pause)
      {:noreply, min(2 * pause, @longest_pause)}
    end
  end

  # One that has been isolated by somebody since then is not put back.
  defp attempt({_module, false}), do: []

  defp attempt({module, options}) do
    if runs?(module) do
      []
    else
      case place(module, options) do
        :ok -> []
        {:error, error} -> [failure(module, Exception.message(error))]
      end
    end
  catch
    kind, reason -> [failure(module, Exception.format(kind, reason, __STACKTRACE__))]
  end

  defp failure(module, text),
    do: "#{inspect(module)} could not be isolated again and does not work until it is: #{text}"

  defp runs?(module) do
    with %{md5: md5} <- DropIn.fetch(module),
         %Library{table: table, number: number} <- DropIn.library(module),
         do: DropIn.Code.md5(module) == md5 and Library.entry(table, number) != nil,
         else: (_ -> false)
  end

  # ── Before ────────────────────────────────────────────────────────────────────────────────────────────────────

  # Somebody has loaded it before us, and its library was opened: an application that calls it; Mix, which looks into what it
  # compiles against; the boot of a release where it was not rewritten.
  defp was_here(module) do
    case DropIn.Code.users(module) do
      [] ->
        {level, why} = if developed?(), do: {:info, " (as Mix does when it compiles)"}, else: {:warning, ""}

        Logger.log(
          level,
          "#{inspect(module)} is isolated now. It had been loaded before#{why}, so its library was in this VM until here. " <>
            "\"Modules of others\" in the documentation of Snakepit.Isolation says how to avoid that."
        )

      pids ->
        {:error, Error.new(:in_use, module, nil, %{because: :in_vm, pids: pids})}
    end
  end

  # Mix looks into what it compiles against: there it is no news. In a release, in production, and without Mix, it is.
  defp developed? do
    :code.get_mode() == :interactive and Process.whereis(Mix.Supervisor) != nil and apply(Mix, :env, []) != :prod
  end
end
