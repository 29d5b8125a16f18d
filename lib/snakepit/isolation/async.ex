defmodule Snakepit.Isolation.Async do
  @moduledoc """
  A call under way: what `Snakepit.Isolation.call_async/4` gives and `await/2` takes, once, in the same process.

  It needs no process of its own, and no message comes before it is awaited. One that is thrown away gives its slot
  back when it is collected.
  """

  alias Snakepit.Isolation.{Call, Error}

  @enforce_keys [:owner, :state]
  defstruct [:owner, :call, :state]

  @type t :: %__MODULE__{owner: pid(), call: Call.t() | nil, state: {:pending, reference()} | Call.result()}

  @doc false
  @spec start(Call.t()) :: t()
  def start(%Call{} = call) do
    # Whoever goes on does not spin.
    call = %{call | waits: false, library: %{call.library | spin: 0}}
    %__MODULE__{owner: self(), call: call, state: Call.submit(call)}
  end

  @doc false
  @spec failed(Error.t()) :: t()
  def failed(error), do: %__MODULE__{owner: self(), state: {:error, error}}

  @doc false
  @spec await(t(), timeout() | nil) :: Call.result()
  def await(%__MODULE__{owner: owner}, _timeout) when owner != self() do
    raise ArgumentError, "a call is awaited by the process that made it, #{inspect(owner)}, not by #{inspect(self())}"
  end

  def await(%__MODULE__{state: {:pending, ticket}, call: call}, timeout),
    do: Call.wait(ticket, sooner(%{call | waits: true}, timeout))

  def await(%__MODULE__{state: result}, _timeout), do: result

  # The earlier of the two deadlines.
  defp sooner(call, nil), do: call
  defp sooner(call, :infinity), do: call

  defp sooner(call, timeout) do
    deadline = Call.deadline(timeout)

    if call.deadline == :infinity or deadline < call.deadline,
      do: %{call | deadline: deadline, timeout: timeout},
      else: call
  end
end

defimpl Inspect, for: Snakepit.Isolation.Async do
  def inspect(%{call: nil}, _options), do: "#Snakepit.Isolation.Async<refused>"

  def inspect(%{call: call}, _options),
    do: "#Snakepit.Isolation.Async<#{call.library.id} #{call.function}/#{length(call.arguments)}>"
end
