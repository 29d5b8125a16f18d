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
     "messages go to processes that it was given or has found, and wait while a mailbox is full (max_mailbox:); one that has ended within the last " <>
       "10 ms may be said to live"},
    {:resources, :differs,
     ~w(enif_open_resource_type enif_open_resource_type_x enif_init_resource_type enif_alloc_resource),
     "objects live in the worker that made them: calls with one go there, and it is :stale when that has ended; destructors run soon after the garbage " <>
       "collection, in a thread of the worker"},
    {:resource_binary, :differs, ~w(enif_make_resource_binary),
     "a binary of an object is a copy of the bytes: it neither leads to the object nor holds it"},
    {:monitors, :differs, ~w(enif_monitor_process),
     "down callbacks run in a thread of the worker, one after the other; monitors end with the worker; " <>
       "process_info(Pid, monitored_by) has another reference than the object's"},
    {:select, :differs, ~w(enif_select enif_select_x),
     "it waits for descriptors: those that it opens itself, with epoll; a stop is always STOP_CALLED"},
    {:threads, :differs, ~w(enif_thread_create pthread_create thrd_create),
     "its threads run in the worker, and end with it"},
    {:round_trips, :differs,
     ~w(enif_is_process_alive enif_is_port_alive enif_whereis_pid enif_whereis_port enif_make_unique_integer enif_now_time
        enif_make_existing_atom enif_make_existing_atom_len),
     "each of these asks the VM, some 50 us (for atoms: unless the worker knows them)"},
    {:hash, :differs, ~w(enif_hash),
     "ERL_NIF_INTERNAL_HASH is of this worker; ERL_NIF_PHASH2 of an object, and of some funs, is an error of the call"},
    {:term_to_binary, :differs, ~w(enif_term_to_binary),
     "of an object it is an error of the call; maps that the library made are written in the order in which they were made"},
    {:binary_to_term, :differs, ~w(enif_binary_to_term),
     "bytes that name a pid, port, reference or fun are only those that this worker was given"},
    {:map_order, :differs, ~w(enif_map_iterator_create),
     "a map that the library made is iterated in the order in which it was made"},
    {:compare, :differs, ~w(enif_compare),
     "objects are ordered behind all other references, among themselves by where they lie"},
    {:term_text, :differs, ~w(enif_snprintf enif_vsnprintf enif_fprintf enif_vfprintf),
     "%T prints an object as another reference than the VM does, always the same one"},
    {:new_atoms, :differs, ~w(enif_make_atom enif_make_atom_len enif_make_new_atom enif_make_new_atom_len),
     "atoms that it makes are the VM's when a term with them comes there, up to max_atoms:"},
    {:term_size, :differs, ~w(enif_term_size), "the size of large maps and funs is an estimate"},
    {:set_option, :differs, ~w(enif_set_option), "a halting VM kills its workers: no callback comes before that"},
    {:clock, :differs, ~w(enif_monotonic_time enif_time_offset),
     "a correction of the VM's time, or a changed time offset, is known a second later; until then both are up to 10 ms apart"},
    {:cpu_time, :differs, ~w(enif_cpu_time), "processor time is that of its worker"},
    {:memory, :differs, ~w(enif_alloc enif_realloc enif_alloc_binary enif_realloc_binary),
     "what it allocates counts in info/1, as memory of its worker, and not in erlang:memory/0"},
    {:sub_binary, :differs, ~w(enif_make_sub_binary),
     "a part outside of the binary is badarg, where it is undefined in the VM"},
    {:local_pids, :differs, ~w(enif_get_local_pid enif_get_local_port),
     "while it loads, every pid and port is taken for one of this node"},
    {:zlib, :differs, ~w(deflate compress compress2),
     "bytes that zlib compresses may differ from those of the VM's zlib"},
    {:timeslice, :differs, ~w(enif_schedule_nif enif_consume_timeslice),
     "a call that gives way goes on at once: its worker has nothing else to do in that thread"},
    {:environment, :differs, ~w(enif_getenv getenv secure_getenv environ),
     "the environment of a worker is the VM's as it was when the worker was started, or what env: gives it"},
    {:output, :differs,
     ~w(printf puts putchar vprintf perror stdout stderr __printf_chk __fprintf_chk enif_fprintf enif_vfprintf),
     "what it prints goes to Logger (output:)"},
    {:process, :differs, ~w(getpid getppid getrlimit getrlimit64 setrlimit setrlimit64 chdir),
     "pid, limits and directory are those of its worker, which is started in the VM's directory"},
    {:processes, :differs, ~w(fork vfork execv execve execvp posix_spawn posix_spawnp system popen),
     "processes that it starts are ended with its worker"},
    {:signals, :differs, ~w(signal sigaction sigprocmask pthread_sigmask),
     "signals and their handlers are those of its worker; a crash ends that, and not the VM"},
    {:exit, :differs, ~w(exit _exit quick_exit abort),
     "it may end its process, which is a worker: the call is :crashed"}
  ]

  @doc "The rows that concern a library. `entry` is nil where it is made at run time; the module's `kind` where no module is known."
  @spec of(Reader.report(), map() | nil, nil | :own | :other) :: [
          %{id: atom(), kind: :asks | :differs, text: String.t(), because: [String.t()]}
        ]
  def of(report, entry, kind) do
    # What it looks up by name it may never use (Rustler's look up all): only what it is linked to counts.
    imported = MapSet.new(report.imports, &elem(&1, 0))

    linked =
      for {id, kind, symbols, text} <- @rows,
          because = Enum.filter(symbols, &(&1 in imported)),
          because != [],
          do: difference(id, kind, text, because)

    linked ++ callbacks(entry, kind) ++ dirty(entry) ++ unknown(report)
  end

  @doc "The ids of all rows by symbols."
  @spec ids() :: [atom()]
  def ids, do: Enum.map(@rows, &elem(&1, 0))

  @doc "The symbols that some row is about."
  @spec symbols() :: [String.t()]
  def symbols, do: @rows |> Enum.flat_map(&elem(&1, 2)) |> Enum.uniq()

  defp difference(id, kind, text, because), do: %{id: id, kind: kind, text: text, because: because}

  defp callbacks(%{upgrade: true}, kind), do: [difference(:upgrade, :differs, upgrade(kind), ["upgrade callback"])]
  defp callbacks(_entry, _kind), do: []

  defp upgrade(:own),
    do: "it is not upgraded: when its module is loaded anew the library is unloaded, and the next call loads it anew"

  defp upgrade(_kind) do
    "it is upgraded, in each worker, when isolate/2 loads a new version of its module; calls of the old version go on beside that. " <>
      "A version that is loaded otherwise (l/1, a hot upgrade) ends the isolation"
  end

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
