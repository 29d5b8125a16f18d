defmodule Snakepit.SharedMemory.Error do
  @moduledoc """
  What went wrong, where, and what to do about it.

    * `type` is the broad kind, for a `case` that handles a family:
      `:allocation_failed`, `:mapping_failed`, `:permission_denied`, `:region_not_found`, `:memory_limit_exceeded`,
      `:platform_error`, `:security_violation`, `:corruption_detected`, `:cleanup_failed`, `:invalid_argument`,
      `:invalid_state`, `:busy`, `:timeout`
    * `reason` is the exact cause (see `t:reason/0`)
    * `details` holds the numbers and names that belong to the reason
    * `region_id`, `operation`, `platform`, `process_id` and `timestamp` say where and when

  `Exception.message/1` gives a sentence and a remedy that names the option or command, its current value and the
  limit.
  """

  @reasons %{
    # sizes and arguments
    invalid_size: :invalid_argument,
    invalid_option: :invalid_argument,
    invalid_argument: :invalid_argument,
    invalid_config: :invalid_argument,
    invalid_handle: :invalid_argument,
    invalid_json: :invalid_argument,
    out_of_range: :invalid_argument,
    not_supported: :invalid_argument,
    # limits
    size_exceeds_limit: :memory_limit_exceeded,
    memory_limit_exceeded: :memory_limit_exceeded,
    region_limit_exceeded: :allocation_failed,
    process_region_limit_exceeded: :allocation_failed,
    not_enough_memory: :memory_limit_exceeded,
    enospc: :allocation_failed,
    efbig: :allocation_failed,
    emfile: :allocation_failed,
    too_many_mappings: :mapping_failed,
    no_huge_pages: :allocation_failed,
    exists: :allocation_failed,
    unsupported_filesystem: :platform_error,
    # life of a region
    region_not_found: :region_not_found,
    remote_region: :region_not_found,
    owner_down: :allocation_failed,
    sealed: :invalid_state,
    not_sealed: :invalid_state,
    busy: :busy,
    timeout: :timeout,
    writer_died: :corruption_detected,
    corrupted: :corruption_detected,
    invalid: :corruption_detected,
    file_changed: :corruption_detected,
    not_found: :region_not_found,
    not_owner: :permission_denied,
    not_writer: :invalid_state,
    not_held: :permission_denied,
    # who may
    read_only: :permission_denied,
    bad_token: :security_violation,
    expired: :security_violation,
    foreign_user: :security_violation,
    foreign_handle: :security_violation,
    sealed_by_peer: :security_violation,
    # the protocol
    protocol: :security_violation,
    unknown_session: :security_violation,
    too_many_connections: :security_violation,
    # the house
    not_started: :platform_error,
    not_loaded: :platform_error,
    locked: :platform_error,
    no_process: :platform_error,
    mapping_failed: :mapping_failed,
    os_error: :platform_error,
    cleanup_failed: :cleanup_failed
  }

  @typedoc "The exact cause: one of #{@reasons |> Map.keys() |> Enum.sort() |> Enum.map_join(", ", &"`#{inspect(&1)}`")}."
  @type reason :: atom()
  @type error_type ::
          :allocation_failed
          | :mapping_failed
          | :permission_denied
          | :region_not_found
          | :memory_limit_exceeded
          | :platform_error
          | :security_violation
          | :corruption_detected
          | :cleanup_failed
          | :invalid_argument
          | :invalid_state
          | :busy
          | :timeout

  @type t :: %__MODULE__{
          type: error_type(),
          reason: reason(),
          region_id: String.t() | nil,
          operation: atom(),
          platform: atom(),
          process_id: pid(),
          timestamp: DateTime.t(),
          details: map()
        }

  defexception [:type, :reason, :region_id, :operation, :platform, :process_id, :timestamp, details: %{}]

  @doc false
  @spec new(reason(), atom(), String.t() | nil, map()) :: t()
  def new(reason, operation, region_id \\ nil, details \\ %{}) do
    %__MODULE__{
      type: Map.fetch!(@reasons, reason),
      reason: reason,
      region_id: region_id,
      operation: operation,
      platform: Snakepit.SharedMemory.Platform.detect_platform(),
      process_id: self(),
      timestamp: DateTime.utc_now(),
      details: details
    }
  end

  @doc false
  # What native/nif answers, with the place it happened in.
  @spec from_native({:error, {atom(), map()}}, atom(), String.t() | nil) :: {:error, t()}
  def from_native({:error, {reason, details}}, operation, region_id) do
    {:error, new(native_reason(reason), operation, region_id, Map.put_new(details, :native, reason))}
  end

  # A segment that is closed under a running operation is a region that somebody freed.
  defp native_reason(:closed), do: :region_not_found
  defp native_reason(reason) when is_map_key(@reasons, reason), do: reason
  defp native_reason(_), do: :os_error

  @doc "Every reason with its type."
  @spec reasons() :: %{reason() => error_type()}
  def reasons, do: @reasons

  @impl true
  def message(%__MODULE__{} = e) do
    subject = if e.region_id, do: "#{e.operation} of region #{e.region_id}", else: "#{e.operation}"
    {what, remedy} = explain(e.reason, e.details)
    "#{subject}: #{what}. #{remedy}"
  end

  @doc """
  What to do about it, one or two sentences.
  """
  @spec remedy(t()) :: String.t()
  def remedy(%__MODULE__{} = e), do: e.reason |> explain(e.details) |> elem(1)

  defp explain(:invalid_size, d),
    do: {"size must be a positive integer of bytes, got #{show(d[:got])}", "Pass the number of bytes, at least 1."}

  defp explain(:invalid_option, d),
    do:
      {"option #{inspect(d[:key])}: expected #{d[:expected]}, got #{show(d[:got])}",
       "Correct #{inspect(d[:key])}; the documentation of the function lists its options."}

  defp explain(:invalid_argument, d),
    do: {"#{d[:key] || "argument"}: expected #{d[:expected]}, got #{show(d[:got])}", "Correct the argument."}

  defp explain(:invalid_config, d),
    do:
      {"the configuration is refused:\n" <> Enum.map_join(d[:problems] || [], "\n", &"  * #{&1}"),
       "Correct config :snakepit_shm (or config :snakepit, :shared_memory)."}

  defp explain(:invalid_handle, d),
    do:
      {"this is not a handle: #{d[:key]}: expected #{d[:expected]}, got #{show(d[:got])}",
       "Pass what Snakepit.SharedMemory.handle/2 gave, as a map with string keys or as JSON text, unchanged."}

  defp explain(:invalid_json, d),
    do:
      {"not JSON: #{d[:message] || inspect(d)}",
       "Use string keys, strings, numbers, booleans, nil, lists and maps only."}

  defp explain(:out_of_range, d),
    do:
      {"bytes #{d[:offset]} to #{sum(d[:offset], d[:length])} are not inside 0 to #{d[:size]}",
       "Keep offset + length at or under #{d[:size]}, the size of the region."}

  defp explain(:not_supported, d),
    do: {d[:what] || "not supported", d[:remedy] || "See the documentation of the option."}

  defp explain(:size_exceeds_limit, d),
    do:
      {"#{d[:asked]} bytes are more than max_region_size, #{d[:limit]}",
       "Ask for at most #{d[:limit]} bytes, or raise max_region_size (now #{d[:limit]})."}

  defp explain(:memory_limit_exceeded, d),
    do:
      {"#{d[:asked]} bytes do not fit: #{d[:used]} of max_total_memory, #{d[:limit]}, are in use (memory that views keep alive counts)",
       "Free regions (Snakepit.SharedMemory.list/1 shows them) and drop their views, or raise max_total_memory (now #{d[:limit]})."}

  defp explain(:region_limit_exceeded, d),
    do:
      {"there are #{d[:count]} regions, as many as max_regions allows",
       "Free regions (Snakepit.SharedMemory.list/1 shows them), or raise max_regions (now #{d[:limit]})."}

  defp explain(:process_region_limit_exceeded, d),
    do:
      {"#{inspect(d[:owner])} owns #{d[:count]} regions, as many as max_regions_per_process allows",
       "Free some, pass another owner:, or raise max_regions_per_process (now #{d[:limit]})."}

  defp explain(:not_enough_memory, d),
    do:
      {"#{d[:asked]} bytes do not fit into the #{d[:available]} that #{d[:limited_by]} leaves",
       "Free memory, raise the limit of #{d[:limited_by]}, or pass reserve: false to take the pages only as they are touched."}

  defp explain(:enospc, d),
    do:
      {"no space left on #{d[:path] || "the device of shm_path"}",
       "Free space there, or point platform_options: %{linux: %{shm_path: dir}} to a larger file system."}

  defp explain(:efbig, _),
    do: {"the file size limit of this process is smaller", "Raise RLIMIT_FSIZE (ulimit -f) of the VM."}

  defp explain(:emfile, d),
    do:
      {"the limit of #{d[:limit]} open descriptors is near (#{d[:reserve]} are kept free)",
       "Free regions, or raise RLIMIT_NOFILE (ulimit -n, now #{d[:limit]}) of the VM: a region takes one descriptor."}

  defp explain(:too_many_mappings, d),
    do:
      {"#{d[:live]} mappings are live, as many as max_mappings allows",
       "Free regions and drop views, or raise max_mappings (now #{d[:limit]}; keep it well under vm.max_map_count)."}

  defp explain(:no_huge_pages, d),
    do:
      {"#{d[:asked]} bytes of huge pages were asked for and #{d[:free]} are free",
       "Raise vm.nr_hugepages, or pass huge_pages: :prefer to fall back to normal pages."}

  defp explain(:exists, d),
    do:
      {"a named object #{inspect(d[:name] || d[:path])} is there already",
       "Open it with Snakepit.SharedMemory.open/2, free it, or choose another named:."}

  defp explain(:unsupported_filesystem, d),
    do:
      {"the file system of #{d[:path] || "shm_path"} cannot hold named regions (it lacks O_TMPFILE)",
       "Point platform_options: %{linux: %{shm_path: dir}} to a tmpfs, ext4, xfs or btrfs."}

  defp explain(:region_not_found, _),
    do:
      {"there is no such region: it was freed, it expired, or its owner died",
       "Allocate it again; hold/1 keeps a region alive beyond its owner, timeout: beyond a quiet time."}

  defp explain(:remote_region, d),
    do:
      {"the region lives on node #{inspect(d[:node])}",
       "Memory does not cross nodes: call the function there, for example with :erpc.call/4."}

  defp explain(:owner_down, d),
    do:
      {"the owner #{inspect(d[:owner])} died before the region was ready",
       "Pass owner: a process that lives, or :none."}

  defp explain(:sealed, _),
    do:
      {"the region is sealed and can no longer change", "Write before seal/1, or put the new data into another region."}

  defp explain(:not_sealed, _),
    do: {"the region is not sealed, its memory may still change", "Call seal/1 first, or read/3 for a copy."}

  defp explain(:busy, d),
    do:
      {"somebody else is using it: #{busy(d)}",
       "Wait until they have finished" <>
         if(d[:timeout], do: ", or pass a longer timeout: (it was #{inspect(d[:timeout])} ms).", else: " and try again.")}

  defp explain(:timeout, d),
    do: {"nothing happened within #{inspect(d[:timeout])} ms", "Pass a longer timeout, or :infinity."}

  defp explain(:writer_died, d),
    do:
      {"#{d[:writer] || "a writer"} ended in the middle of a write",
       "The data may be torn: free the region and write it again."}

  defp explain(:corrupted, d),
    do:
      {"the header page is damaged: #{d[:field]} is #{inspect(d[:found])}, expected #{inspect(d[:expected])}",
       "Somebody else wrote to, truncated, replaced or removed the memory. Free the region and write it again."}

  defp explain(:invalid, d),
    do: {"the region was found damaged earlier: #{d[:cause] || inspect(d)}", "Free it and write it again."}

  defp explain(:file_changed, d),
    do: {"the file ended early (#{inspect(d)})", "Copy it while nobody truncates it."}

  defp explain(:not_found, d), do: {"#{d[:path] || d[:name]} is not there", "Check the name."}

  defp explain(:not_owner, d),
    do:
      {"only the owner#{if is_pid(d[:owner]), do: " " <> inspect(d[:owner])} may do that",
       "Call it from the owner, or transfer/2 the region first."}

  defp explain(:not_writer, _), do: {"this session is not the writer", "Begin writing first."}
  defp explain(:not_held, _), do: {"this session does not hold the region", "Attach it first."}

  defp explain(:read_only, d),
    do:
      {"writing is not allowed: #{d[:because] || "peers may only read"}",
       "Allocate with peers: :read_write (or access_mode: :read_write) and make the handle with mode: :read_write."}

  defp explain(:bad_token, _),
    do: {"the token does not fit the handle", "Use a handle exactly as handle/2 gave it; make a new one if it is old."}

  defp explain(:expired, d),
    do: {"the handle expired at #{inspect(d[:expires])}", "Make a new one with handle/2, with a longer expires_in:."}

  defp explain(:foreign_user, %{path: path} = d),
    do:
      {"#{path} belongs to user #{d[:expected]}, and this is user #{d[:uid]}",
       "Remove it, or set socket_dir to a directory of this user's."}

  defp explain(:foreign_user, d),
    do: {"user #{d[:uid]} may not use a region of user #{d[:expected]}", "Run the peer as user #{d[:expected]}."}

  defp explain(:foreign_handle, d),
    do:
      {"the handle belongs to instance #{inspect(d[:instance])} of another VM",
       "Attach it there, or start an instance of that name; memory of another VM is reached with the Python client."}

  defp explain(:sealed_by_peer, _),
    do:
      {"a peer has sealed the memory in its own way, and copying it failed",
       "Free the region; grant writing to peers you trust only."}

  defp explain(:protocol, d),
    do: {"the peer broke the protocol: #{d[:what]}", "See lib/snakepit/shared_memory/PROTOCOL.md."}

  defp explain(:unknown_session, _), do: {"the session is gone", "Say hello again with session null, and attach again."}

  defp explain(:too_many_connections, d),
    do:
      {"there are #{d[:limit]} connections of this user already",
       "Close some, or raise max_connections (now #{d[:limit]})."}

  defp explain(:not_started, d),
    do:
      {"the instance #{inspect(d[:instance])} is not running" <> if(d[:because], do: " (#{d[:because]})", else: ""),
       "Start {Snakepit.SharedMemory, name: ...} in your supervision tree; the default one runs with the application unless enabled: false."}

  defp explain(:not_loaded, d),
    do:
      {"the native library could not be loaded from #{d[:path]} (#{d[:kind]}: #{d[:because]})",
       "Run mix compile with Rust installed, or set SNAKEPIT_SHM_NATIVE to a directory of pre-built artefacts."}

  defp explain(:locked, d),
    do: {"#{d[:path]} is in use by another process", "Stop the other VM, or pass another name:."}

  defp explain(:no_process, _), do: {"the peer process is gone", "Nothing to do."}

  defp explain(:mapping_failed, d),
    do: {"the memory could not be mapped: #{inspect(d)}", "See mix snakepit.shm.doctor."}

  defp explain(:cleanup_failed, d),
    do:
      {"some regions could not be removed: #{inspect(d[:failed])}",
       "Check the rights of shm_path and remove them by hand."}

  defp explain(:os_error, d),
    do:
      {"#{d[:call] || d[:native]} failed: #{d[:message] || inspect(d)}",
       "See mix snakepit.shm.doctor for the limits of this machine."}

  # What came, as far as a sentence can hold it: it may be anything, also from a peer.
  defp show(term) do
    text = inspect(term, limit: 5, printable_limit: 60)
    if String.length(text) > 200, do: String.slice(text, 0, 200) <> "...", else: text
  end

  defp busy(%{writers: [_ | _] = writers}), do: "#{Enum.map_join(writers, ", ", &writer/1)} may still write"
  defp busy(%{writer: 0}), do: "readers"
  defp busy(%{writer: 1}), do: "another process of this VM writes"
  defp busy(%{writer: n}), do: "the peer session #{n} writes"
  defp busy(d), do: inspect(d)

  # Not the session: whoever reads this may be another peer.
  defp writer(%{name: name, os_pid: os_pid}), do: "#{name} (process #{os_pid})"
  defp writer(_gone), do: "a peer"

  defp sum(a, b) when is_integer(a) and is_integer(b), do: a + b
  defp sum(a, b), do: "#{inspect(a)} + #{inspect(b)}"
end
