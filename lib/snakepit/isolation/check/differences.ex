defmodule Snakepit.Isolation.Check.Differences do
  @moduledoc false
  # What a library's symbols say of what will be different when it is isolated. The differences themselves stand in
  # native/worker/src/host/README.md and lib/snakepit/isolation/README.md, each with its tests; here is only by what one sees that a
  # library is concerned.

  alias Snakepit.Isolation.Check.Reader

  # :asks - without an option it is refused; :differs - it is not as in the VM.
  @rows [
    {:whereis, :asks, ~w(enif_whereis_pid enif_whereis_port),
     "it looks up registered names: those that it may find have to be granted with whereis:"},
    {:port_command, :asks, ~w(enif_port_command), "it sends to ports: that has to be granted with port_command: true"},
    {:send, :differs, ~w(enif_send),
     "messages go to processes that it was given or has found, and wait while a mailbox is full (max_mailbox:)"},
    {:resources, :differs,
     ~w(enif_open_resource_type enif_open_resource_type_x enif_init_resource_type enif_alloc_resource),
     "objects live in the worker that made them: calls with one go there, and it is :stale when that has ended"},
    {:monitors, :differs, ~w(enif_monitor_process),
     "down callbacks run in a thread of the worker, one after the other; monitors end with the worker"},
    {:select, :differs, ~w(enif_select enif_select_x),
     "it waits for descriptors: those that it opens itself, with epoll; a stop is always STOP_CALLED"},
    {:threads, :differs, ~w(enif_thread_create pthread_create thrd_create),
     "its threads run in the worker, and end with it"},
    {:round_trips, :differs,
     ~w(enif_is_process_alive enif_is_port_alive enif_whereis_pid enif_whereis_port enif_make_unique_integer),
     "each of these asks the VM, some 50 us"},
    {:hash, :differs, ~w(enif_hash), "ERL_NIF_PHASH2 of a resource is not implemented, nor of every fun"},
    {:term_to_binary, :differs, ~w(enif_term_to_binary), "the external format of a resource is not implemented"},
    {:binary_to_term, :differs, ~w(enif_binary_to_term),
     "bytes that name a pid, port, reference or fun are only those that this worker was given"},
    {:term_size, :differs, ~w(enif_term_size), "the size of large maps and funs is an estimate"},
    {:system_info, :differs, ~w(enif_system_info), "it tells of the worker: NIF 2.18, OTP 27"},
    {:set_option, :differs, ~w(enif_set_option), "a halting VM kills its workers: no callback comes before that"},
    {:clock, :differs, ~w(enif_monotonic_time enif_time_offset),
     "monotonic time is the kernel's, which is not the VM's"},
    {:sub_binary, :differs, ~w(enif_make_sub_binary),
     "a part outside of the binary is badarg, where it is undefined in the VM"},
    {:zlib, :differs, ~w(deflate compress compress2),
     "bytes that zlib compresses may differ from those of the VM's zlib"},
    {:timeslice, :differs, ~w(enif_schedule_nif enif_consume_timeslice),
     "a call that gives way goes on at once: its worker has nothing else to do in that thread"},
    {:environment, :differs, ~w(enif_getenv getenv secure_getenv environ), "the environment of a worker is empty"},
    {:output, :differs, ~w(printf puts putchar vprintf perror stdout stderr __printf_chk __fprintf_chk enif_fprintf),
     "what it prints goes to Logger (output:)"},
    {:processes, :differs, ~w(fork vfork execv execve execvp posix_spawn posix_spawnp system popen),
     "processes that it starts are ended with its worker"},
    {:signals, :differs, ~w(signal sigaction sigprocmask pthread_sigmask),
     "signals and their handlers are those of its worker; a crash ends that, and not the VM"},
    {:exit, :differs, ~w(exit _exit quick_exit abort),
     "it may end its process, which is a worker: the call is :crashed"}
  ]

  @doc "The rows that concern a library. `entry` is nil where it is made at run time."
  @spec of(Reader.report(), map() | nil) :: [
          %{id: atom(), kind: :asks | :differs, text: String.t(), because: [String.t()]}
        ]
  def of(report, entry) do
    # What it looks up by name it may never use (Rustler's look up all): only what it is linked to counts.
    imported = MapSet.new(report.imports, &elem(&1, 0))

    linked =
      for {id, kind, symbols, text} <- @rows,
          because = Enum.filter(symbols, &(&1 in imported)),
          because != [],
          do: difference(id, kind, text, because)

    linked ++ callbacks(entry) ++ dirty(entry) ++ unknown(report)
  end

  @doc "The symbols that some row is about."
  @spec symbols() :: [String.t()]
  def symbols, do: @rows |> Enum.flat_map(&elem(&1, 2)) |> Enum.uniq()

  defp difference(id, kind, text, because), do: %{id: id, kind: kind, text: text, because: because}

  defp callbacks(%{upgrade: true}) do
    text = "a new version of its module ends the isolation of that; isolate it again, which loads the library anew"
    [difference(:upgrade, :differs, text, ["upgrade callback"])]
  end

  defp callbacks(_entry), do: []

  defp dirty(%{functions: functions}) do
    case for {name, arity, dirty} when dirty > 0 <- functions, do: "#{name}/#{arity}" do
      [] -> []
      names -> [difference(:dirty, :differs, "dirty functions run in the worker's threads as all others do", names)]
    end
  end

  defp dirty(nil), do: []

  defp unknown(%{looked_up: [_ | _], rustler: version}) when version != nil do
    text = "which functions of the NIF interface it uses is not known: it looks all of them up by their names"
    [difference(:looked_up, :differs, text, [])]
  end

  defp unknown(_report), do: []
end
