defmodule Snakepit.Isolation.Worker.Restarts do
  @moduledoc false
  # Whether another process follows one that has ended, and when. As a supervisor's `restart`, `max_restarts` and `max_seconds`, but with
  # a pause that grows.

  # Before the n-th restart in a row: nothing, 1, 2, 4, ... ms.
  @longest_delay 100

  @doc "Whether another one is wanted at all after such an end."
  @spec wanted?(:permanent | :transient | :temporary, map()) :: boolean()
  def wanted?(:permanent, _details), do: true
  def wanted?(:temporary, _details), do: false
  # As a supervisor's: what ends in order is what the library has ended itself, with exit(0).
  def wanted?(:transient, details), do: not match?(%{because: :exited, exit_code: 0}, details)

  @doc "After one more crash: when the next process is started, in ms, or after how many crashes none is any more."
  @spec after_crash([integer()], map(), integer()) ::
          {[integer()], {:again, non_neg_integer()} | {:give_up, pos_integer()}}
  def after_crash(crashes, %{max_restarts: most, max_seconds: seconds}, now) do
    since = now - System.convert_time_unit(seconds, :second, :native)
    crashes = [now | Enum.take_while(crashes, &(&1 > since))]
    count = length(crashes)
    {crashes, if(most != :infinity and count > most, do: {:give_up, count}, else: {:again, delay(count)})}
  end

  defp delay(1), do: 0
  defp delay(count), do: min(Bitwise.bsl(1, min(count - 2, 20)), @longest_delay)
end
