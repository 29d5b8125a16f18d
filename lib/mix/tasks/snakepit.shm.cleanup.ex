defmodule Mix.Tasks.Snakepit.Shm.Cleanup do
  @shortdoc "Removes named regions that no VM uses any more"
  @moduledoc """
  #{@shortdoc}.

      mix snakepit.shm.cleanup [--dry-run] [--manual] [--damaged] [--directory DIR]

    * `--dry-run` - only says what would be removed
    * `--manual` - also those of policy `:manual` (the default of named regions), which wait to be found again
    * `--damaged` - also this user's damaged objects
    * `--directory` - where to look, default `shm_path` of the configuration

  What a running VM uses is never removed, nor what belongs to another container. In a release:
  `bin/app eval "IO.inspect(Snakepit.SharedMemory.Orphans.remove())"`.
  """
  use Mix.Task

  alias Snakepit.SharedMemory.{Orphans, Region}

  @switches [dry_run: :boolean, manual: :boolean, damaged: :boolean, directory: :string]

  @impl true
  def run(arguments) do
    {options, rest, invalid} = OptionParser.parse(arguments, strict: @switches)

    if rest != [] or invalid != [],
      do:
        Mix.raise("cannot read #{inspect(rest ++ Enum.map(invalid, &elem(&1, 0)))}; see mix help snakepit.shm.cleanup")

    Mix.Task.run("loadpaths")
    Mix.Task.run("compile")
    Mix.Task.run("app.config")

    case Orphans.remove(options) do
      {:ok, []} -> Mix.shell().info("No named objects.")
      {:ok, objects} -> Enum.each(objects, &print/1)
      {:error, error} -> Mix.raise(Exception.message(error))
    end
  end

  defp print({object, done}) do
    size = if object.size, do: Region.bytes(object.size), else: "?"
    Mix.shell().info("#{words(done)}  #{object.name}  #{size}  #{object.state}")
  end

  defp words(:removed), do: "removed     "
  defp words(:would_remove), do: "would remove"
  defp words(:kept), do: "kept        "
  defp words({:error, reason}), do: "failed (#{inspect(reason)})"
end
