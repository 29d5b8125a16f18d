defmodule Mix.Tasks.Snakepit.Nif.Check do
  @shortdoc "Says whether a native library or module can be isolated"
  @moduledoc """
  #{@shortdoc}, and what will be different then.

      mix snakepit.nif.check deps/jiffy/priv/jiffy.so
      mix snakepit.nif.check jiffy
      mix snakepit.nif.check MyApp.Native --json

  The argument is the file of a library (with or without `.so`), or a module, whose beam is looked at as well and whose library is looked for in the
  `priv` directory of its application (that of a module with `use Snakepit.Isolation.Module` is where its options say). Nothing of either is run.

    * `--json` - one line of JSON
    * `--load --sandbox none` - also loads the library, in a worker process: its functions are listed then, also if it makes their table when it is loaded, as
      Rustler's do. This runs its code with all your rights, which is what `--sandbox none` says. Its load
      callback gets 0; for a library that wants something else, `Snakepit.Isolation.check/2` takes `load: [load_info: ..., sandbox: :none]`

  ## Exit codes

    * 0 - it can be isolated, as far as can be seen without running it
    * 1 - it cannot; the reasons are printed
    * 2 - not known: wrong arguments, no such file or module, or a module whose library is not found

  `Snakepit.Isolation.check/2` is the same as a function; in a release:
  `bin/app eval "System.halt(Snakepit.Isolation.Check.print(:jiffy))"`.
  """
  use Mix.Task

  alias Snakepit.Isolation.Check

  @switches [json: :boolean, load: :boolean, sandbox: :string]

  @impl true
  def run(arguments) do
    with {options, [target], []} <- OptionParser.parse(arguments, strict: @switches),
         {:ok, load} <- load(options) do
      Mix.Task.run("loadpaths")
      Mix.Task.run("compile")
      Mix.Task.run("app.config")
      if load, do: {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      finish(Check.print(target(target), [json: options[:json] || false] ++ if(load, do: [load: load], else: [])))
    else
      {:error, text} -> refuse(text)
      _other -> refuse("expected one library or module, and options of mix help snakepit.nif.check")
    end
  end

  # Mix.raise/1 ends with 1, which would say that the library cannot be isolated.
  defp refuse(text) do
    Mix.shell().error(text)
    finish(2)
  end

  defp finish(0), do: :ok
  defp finish(code), do: exit({:shutdown, code})

  defp load(options) do
    case {options[:load] || false, options[:sandbox]} do
      {false, nil} ->
        {:ok, nil}

      {false, _} ->
        {:error, "--sandbox is for --load"}

      {true, "none"} ->
        {:ok, [sandbox: :none]}

      {true, _} ->
        {:error, "--load runs the library's code; this version has no sandbox. Say so: --load --sandbox none"}
    end
  end

  # Whatever looks like a path, or is one, is one. Sources of a module often lie in a directory of its name.
  defp target(argument) do
    cond do
      String.contains?(argument, "/") or String.ends_with?(argument, ".so") -> argument
      file?(argument) or file?(argument <> ".so") -> argument
      argument =~ ~r/^[A-Z]/ -> Module.concat([argument])
      true -> argument |> String.trim_leading(":") |> String.to_atom()
    end
  end

  defp file?(path), do: File.exists?(path) and not File.dir?(path)
end
