defmodule Mix.Tasks.Snakepit.Shm.Doctor do
  @shortdoc "Says what regions and isolated libraries need of this machine and what is missing"
  @moduledoc """
  #{@shortdoc}.

      mix snakepit.shm.doctor

  Exits with 1 when something is an error. In a release: `bin/app eval "Snakepit.SharedMemory.Doctor.print()"`, and the
  same of `Snakepit.Isolation.Doctor`.
  """
  use Mix.Task

  @impl true
  def run(arguments) do
    if arguments != [], do: Mix.raise("mix snakepit.shm.doctor takes no arguments, got: #{Enum.join(arguments, " ")}")
    Mix.Task.run("loadpaths")
    Mix.Task.run("compile")
    Mix.Task.run("app.config")
    checks = Snakepit.SharedMemory.Doctor.checks() ++ Snakepit.Isolation.Doctor.checks()
    unless Snakepit.SharedMemory.Doctor.print(checks), do: exit({:shutdown, 1})
  end
end
