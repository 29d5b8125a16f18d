defmodule Snakepit.Isolation.Worker.Health do
  @moduledoc false
  # What a worker's status at each tick says of it: whether it lives, works, and on what. Decides, and does nothing.

  alias Snakepit.Isolation.LongCalls

  # In a row: the machine itself may have been asleep at one of them.
  @looks 2

  defstruct silent: 0, mute: 0, orphans: %{}, starved: nil, calls: %{}

  @typedoc """
  `silent`, `mute`: looks in a row without a sign of life, and with its doorbell closed. `orphans`: since when the calls go on whose
  callers have gone. `starved`: how many calls it had answered when one had passed its deadline unbegun, and when that was. `calls`: see
  `LongCalls`. Times are ms.
  """
  @type t :: %__MODULE__{
          silent: non_neg_integer(),
          mute: non_neg_integer(),
          orphans: %{non_neg_integer() => integer()},
          starved: {non_neg_integer(), integer()} | nil,
          calls: LongCalls.t()
        }

  @type verdict :: :well | {:lies | :hangs, String.t()} | {:kill, :heartbeat | :stuck, String.t()}

  @doc "What is known after another look, and what is to become of the worker."
  @spec look(t(), map(), map(), pos_integer(), integer()) :: {t(), [{non_neg_integer(), pos_integer()}], verdict()}
  def look(before, status, options, tick, now) do
    # None, or one that cannot be read because it is being written all the time.
    silent? = options.heartbeat_timeout != :infinity and (heartbeat_age(status) || :never) > options.heartbeat_timeout
    {calls, long} = LongCalls.look(before.calls, status.executors, now)

    health = %__MODULE__{
      silent: if(silent?, do: before.silent + 1, else: 0),
      # It cannot wake anybody any more. It may be ending: then that is known by the next look.
      mute: if(status.bell_closed, do: before.mute + 1, else: 0),
      # The calls that are still the same ones.
      orphans: Map.new(status.orphans, &{&1, Map.get(before.orphans, &1, now)}),
      starved: still(before.starved, tick, now),
      calls: calls
    }

    {health, long, verdict(health, before.starved, status, options, tick, now)}
  end

  defp verdict(health, starved, status, options, tick, now) do
    cond do
      status.faulty -> {:lies, "it has lied to a caller that is gone"}
      health.mute >= @looks -> {:lies, "it has closed its doorbell"}
      health.silent >= @looks -> {:kill, :heartbeat, "shows no sign of life"}
      stuck?(starved, status, tick, now) -> {:kill, :stuck, "no longer takes calls"}
      endless?(health.orphans, options.timeout, now) -> {:hangs, "a call whose caller has died goes on and on"}
      true -> :well
    end
  end

  @doc """
  A call has passed its deadline before it was begun. That is nobody's fault if the worker works; if a tick later it has still answered
  nothing and works on nothing, it is broken.
  """
  @spec starved(t(), map(), integer()) :: t()
  def starved(%__MODULE__{starved: nil} = health, status, now), do: %{health | starved: {status.calls, now}}
  def starved(health, _status, _now), do: health

  defp stuck?({calls, at}, status, tick, now),
    do: now - at >= tick and status.calls == calls and Enum.all?(status.executors, &is_nil/1)

  defp stuck?(nil, _status, _tick, _now), do: false

  defp still({_, at} = starved, tick, now) when now - at < tick, do: starved
  defp still(_, _tick, _now), do: nil

  defp endless?(_orphans, :infinity, _now), do: false
  defp endless?(orphans, patience, now), do: Enum.any?(orphans, fn {_call, since} -> now - since > patience end)

  @doc "How long ago the worker has shown that it lives, in ms; nil if that is not known."
  @spec heartbeat_age(map()) :: non_neg_integer() | nil
  def heartbeat_age(%{status: %{beat_age_ms: age}}), do: age
  def heartbeat_age(_), do: nil
end
