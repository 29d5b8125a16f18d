defmodule Snakepit.Isolation.Doctor do
  @moduledoc """
  Looks at what isolated libraries need of this machine, and says what is missing and how to mend it. For `mix
  snakepit.shm.doctor`, and for a release: `bin/app eval "Snakepit.Isolation.Doctor.print()"`.
  """

  alias Snakepit.Isolation.Warden
  alias Snakepit.SharedMemory.Doctor

  # How the executable ends when it is started without a role (native/worker/src/exit.rs).
  @usage 64
  @subject "worker"

  @doc "All checks."
  @spec checks() :: [Doctor.check()]
  def checks, do: [executable(Warden.executable())]

  @doc "Prints them; false when something is an error."
  @spec print() :: boolean()
  def print, do: Doctor.print(checks())

  @doc false
  @spec executable(Path.t()) :: Doctor.check()
  def executable(path) do
    case File.stat(path) do
      {:ok, %{type: :regular}} -> started(path)
      {:ok, %{type: type}} -> {:error, @subject, "#{path} is a #{type}"}
      {:error, reason} -> {:error, @subject, "#{path}: #{:file.format_error(reason)}. Run mix compile"}
    end
  end

  # A file system mounted noexec, another architecture, another C library.
  defp started(path) do
    case System.cmd(path, [], stderr_to_stdout: true) do
      {_, @usage} -> {:ok, @subject, "#{path} can be started"}
      {output, status} -> {:error, @subject, "#{path} ended with #{status}: #{String.slice(output, 0, 200)}"}
    end
  rescue
    error in ErlangError ->
      {:error, @subject, "#{path} cannot be started: #{reason(error)}. Is its file system mounted noexec?"}
  end

  defp reason(%{original: reason}) when is_atom(reason), do: :file.format_error(reason)
  defp reason(error), do: Exception.message(error)
end
