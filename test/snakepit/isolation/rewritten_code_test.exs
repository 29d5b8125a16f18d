defmodule Snakepit.Isolation.RewrittenCodeTest do
  # What others find in the code of isolated modules, and of those that isolate themselves: specs, types, nothing that Dialyzer minds.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.{DropInFixture, OwnFixture}
  alias Snakepit.Isolation.DropIn.{Rewriter, Source}

  @moduletag timeout: 180_000

  @others for module <- [:jiffy, :crypto, :asn1rt_nif], :code.which(module) != :non_existing, do: module

  # Ours among them, as their files have them.
  defp modules, do: [DropInFixture.erlang(), DropInFixture.elixir() | @others]

  defp rewritten(module) do
    {:ok, source} = Source.find(module)
    {:ok, rewritten} = Rewriter.rewrite(source, :"a slot")
    {source, rewritten}
  end

  @kinds [:spec, :type, :opaque, :export_type, :callback, :record]

  test "specs and types are those of the module" do
    described = fn forms -> for {:attribute, _, kind, what} when kind in @kinds <- forms, do: {kind, what} end

    for module <- modules() do
      {source, %{beam: beam}} = rewritten(module)
      {:ok, {^module, [abstract_code: {:raw_abstract_v1, forms}]}} = :beam_lib.chunks(beam, [:abstract_code])
      assert {module, described.(forms)} == {module, described.(source.forms)}
    end

    {source, _} = rewritten(:crypto)
    assert length(described.(source.forms)) > 50
  end

  @tag skip: if(:code.lib_dir(:dialyzer) == {:error, :bad_name}, do: "there is no Dialyzer (Debian: erlang-dialyzer)")
  test "Dialyzer finds nothing that it does not find in the module itself" do
    directory = DropInFixture.directory()
    plt = to_charlist(Path.join(directory, "plt"))
    known = [:erlang, :persistent_term, Exception, Isolation, Isolation.Module, Isolation.DropIn.Loader]
    [] = dialyzer(analysis_type: :plt_build, files: Enum.map(known, &beam_of/1), output_plt: plt)

    for module <- modules() do
      {source, rewritten} = rewritten(module)

      [before, now] =
        for {name, beam} <- [original: source.beam, rewritten: rewritten.beam] do
          file = Path.join([directory, "#{name}", "#{module}.beam"])
          File.mkdir_p!(Path.dirname(file))
          File.write!(file, beam)
          warnings(file, plt, [:error_handling])
        end

      assert {module, now -- before} == {module, []}
    end

    assert [] = warnings(:code.which(OwnFixture.module([])), plt, [:error_handling, :unknown, :underspecs])
    # It does find what is there to find.
    assert [_ | _] = warnings(wrong(directory), plt, [])
  end

  defp warnings(file, plt, kinds) do
    options = [analysis_type: :succ_typings, files: [to_charlist(file)], init_plt: plt, warnings: kinds]
    for {_tag, _place, what} <- dialyzer(options), do: what
  end

  # An application that the project does not need.
  defp dialyzer(options), do: apply(:dialyzer, :run, [options])

  defp beam_of(module) do
    case :code.which(module) do
      :preloaded -> :filename.join([:code.lib_dir(:erts), "ebin", "#{module}.beam"]) |> to_charlist()
      path -> path
    end
  end

  defp wrong(directory) do
    forms = [
      {:attribute, 1, :module, :wrong},
      {:attribute, 1, :export, [f: 0]},
      {:function, 1, :f, 0, [{:clause, 1, [], [], [{:op, 1, :+, {:atom, 1, :a}, {:integer, 1, 1}}]}]}
    ]

    {:ok, :wrong, beam, _warnings} = :compile.forms(forms, [:debug_info, :return])
    file = Path.join(directory, "wrong.beam")
    File.write!(file, beam)
    file
  end
end
