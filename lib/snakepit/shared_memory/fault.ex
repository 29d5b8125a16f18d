defmodule Snakepit.SharedMemory.Fault do
  @moduledoc false
  # Places at which a test can stop or kill the process that passes. Compiled to nothing unless
  # `config :snakepit_shm, fault_points: true` (config/test.exs).

  @enabled Application.compile_env(:snakepit_shm, :fault_points, false)

  defmacro point(name, instance) do
    if @enabled do
      quote do: Snakepit.SharedMemory.Fault.hit(unquote(name), unquote(instance))
    else
      quote do: _ = unquote(instance)
    end
  end

  @doc "Calls `fun` (with the point's name) in every process of the instance that passes the point."
  @spec arm(atom(), atom(), (atom() -> any())) :: :ok
  def arm(instance, point, fun), do: :persistent_term.put({__MODULE__, instance, point}, fun)

  @spec disarm(atom(), atom()) :: boolean()
  def disarm(instance, point), do: :persistent_term.erase({__MODULE__, instance, point})

  @spec hit(atom(), atom()) :: any()
  def hit(point, instance) do
    case :persistent_term.get({__MODULE__, instance, point}, nil) do
      nil -> :ok
      fun -> fun.(point)
    end
  end
end
