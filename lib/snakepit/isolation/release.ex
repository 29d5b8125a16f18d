defmodule Snakepit.Isolation.Release do
  @moduledoc """
  Isolated modules in releases: a step of `mix release`.

      # mix.exs
      releases: [
        my_app: [steps: [:assemble, &Snakepit.Isolation.Release.rewrite/1]]
      ]

      # config/config.exs
      config :snakepit_shm, isolate: [jiffy: [workers: 2, sandbox: :none]]

  A release needs it for two reasons. It loads all of its modules before it starts any application, and with each module its native
  library: whatever is isolated afterwards has been in the VM. And it has no `debug_info` (`strip_beams`), of which isolated code is made.

  The step makes it of the beams of the build, and puts it in the place of the assembled ones, also of modules of OTP. The library is never
  opened in the VM: at the boot the module's `on_load` waits. When `:snakepit_shm` is started, it isolates the modules that
  `isolate:` lists, and only then their `on_load` runs, which finds and loads the library as it always does.

  ## Before snakepit_shm is started

  A function that is a stub for the library, as it stands in the module's code (`erlang:nif_error/1`), raises `Snakepit.Isolation.Error`,
  `:not_loaded`, with the reason; the module's other functions work. So it is
    * in applications that start before `:snakepit_shm`. Those that depend on it start later, and so do all others with
      `applications: [snakepit_shm: :permanent]` in the release
    * in `bin/my_app eval`, which starts no application: `Application.ensure_all_started(:snakepit_shm)` first
    * for a module that was rewritten, and that `isolate:` does not list when the release is started

  Nothing waits, and nothing falls back to the VM. A stub that raises or returns anything else goes on doing that.

  ## What is read when

  The step reads `isolate:` as `config/config.exs` has it. `config/runtime.exs` is read when the release is started: it can change the options, but
  a module that it alone lists was not rewritten, and has been loaded with its library by then; what that means is under `Snakepit.Isolation`. Give the step the modules:

      steps: [:assemble, &Snakepit.Isolation.Release.rewrite(&1, [:jiffy])]

  ## Afterwards

  `Snakepit.Isolation.restore/1` puts the original back, with its library in the VM; the release carries it along. So does `jiffy: false` in
  `isolate:`, for those who have to do it without a new build. `:code.load_file/1` on an isolated module fails, as it does on one whose library is in the VM.
  A hot upgrade to a new version of the module, rewritten too: its functions raise `:not_loaded` until `isolate/2` is called again (an `:apply` in the `.appup`).
  """

  alias Snakepit.Isolation.DropIn.{Prepared, Rewriter, Source, Start}
  alias Snakepit.Isolation.{Error, Options}

  # Their directories are sticky: the VM would not let the modules be replaced.
  @sticky [:kernel, :stdlib, :compiler]

  @doc """
  Rewrites the modules that `config :snakepit_shm, isolate:` lists, but those with `false`. To be used after `:assemble` and before `:tar`. What
  cannot be done ends the build, with a `Snakepit.Isolation.Error`.
  """
  @spec rewrite(release) :: release when release: struct()
  def rewrite(release) do
    case Start.configured() do
      [] ->
        fail(
          Error.invalid(
            :isolate,
            "modules in config/config.exs (config/runtime.exs is read later), or use rewrite/2",
            []
          )
        )

      list ->
        rewrite(release, for({module, options} <- checked(list), options != false, do: module))
    end
  end

  @doc "Rewrites these modules, whatever the configuration says at the build."
  @spec rewrite(release, [module()]) :: release when release: struct()
  def rewrite(%{applications: applications, path: path} = release, modules) do
    unless is_list(modules) and not List.improper?(modules) and Enum.all?(modules, &is_atom/1),
      do: fail(Error.invalid(:modules, "a list of modules", modules))

    unless is_map_key(applications, :snakepit_shm),
      do:
        fail(Error.invalid(:applications, "snakepit_shm among the applications of the release", Map.keys(applications)))

    for module <- modules do
      {application, properties} = application(applications, module)
      assembled = Path.join([path, "lib", "#{application}-#{properties[:vsn]}", "ebin", "#{module}.beam"])
      done!(rewrite(module, beam_file(properties, module), assembled, release.options))
      IO.puts(["* rewriting ", Path.relative_to_cwd(assembled)])
    end

    release
  end

  defp checked(list), do: done!(Options.modules(list))

  defp application(applications, module) do
    case Enum.find(applications, fn {_, properties} -> File.regular?(beam_file(properties, module)) end) do
      nil -> fail(Source.refuse(module, :not_in_release))
      {sticky, _} when sticky in @sticky -> fail(Source.refuse(module, :sticky))
      found -> found
    end
  end

  defp beam_file(properties, module), do: Path.join([properties[:path], "ebin", "#{module}.beam"])

  defp rewrite(Snakepit.Native, _file, _assembled, _options), do: Source.refuse(Snakepit.Native, :own)

  defp rewrite(module, file, assembled, options) do
    with {:ok, original} <- assembled(module, assembled),
         {:ok, source} <- Source.read(module, to_charlist(file), File.read!(file)),
         {:ok, rewritten} <- Rewriter.prepare(source) do
      rewritten = %{rewritten | beam: stripped(rewritten.beam, Keyword.get(options, :strip_beams, true))}
      {:ok, File.write!(assembled, Prepared.pack(rewritten, module, original))}
    end
  end

  # It may have been rewritten by this step already.
  defp assembled(module, path) do
    with {:ok, beam} <- File.read(path) do
      case Prepared.unpack(module, to_charlist(path), beam) do
        {:ok, _rewritten, original} -> {:ok, original}
        :none -> {:ok, beam}
        error -> error
      end
    else
      {:error, reason} ->
        Source.refuse(module, :not_assembled, %{path: path, message: :file.format_error(reason)})
    end
  end

  # As the other modules of the release. The compiler does not know here that Mix is running.
  defp stripped(beam, false), do: beam
  defp stripped(beam, true), do: stripped(beam, [])

  defp stripped(beam, options) do
    {:ok, stripped} = apply(Mix.Release, :strip_beam, [beam, options])
    stripped
  end

  defp done!({:ok, value}), do: value
  defp done!(error), do: fail(error)

  @spec fail({:error, Error.t()}) :: no_return()
  defp fail({:error, error}), do: raise(error)
end
