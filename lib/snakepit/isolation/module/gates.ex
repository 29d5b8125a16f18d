defmodule Snakepit.Isolation.Module.Gates do
  @moduledoc false
  # The stubs of a module, and what stands in their place: the gates of `DropIn.Rewriter`, in Elixir. The slot is the same, too, but
  # for a third case: as long as it is empty, nobody has loaded the library, and whoever calls does.

  @type nif :: {atom(), arity()}

  @doc "Which functions are NIFs, in order: those that the module declares, or those whose body is the stub."
  @spec nifs(Macro.Env.t()) :: [nif(), ...]
  def nifs(%{module: module} = env) do
    defined = Enum.sort(Module.definitions_in(module, :def) ++ Module.definitions_in(module, :defp))

    case Module.get_attribute(module, :nifs) do
      [] ->
        nifs = Enum.filter(defined, &stub?(Module.get_definition(module, &1)))
        if nifs == [], do: wrong(env, "it has no stub (#{example()}) and no @nifs")
        Module.put_attribute(module, :nifs, nifs)
        nifs

      declared ->
        nifs = Enum.concat(for list <- declared, do: declared(list, env))
        missing = Enum.find(nifs, &(&1 not in defined))
        if missing, do: wrong(env, "@nifs names #{name(missing)}, which is not defined")
        nifs |> Enum.uniq() |> Enum.sort()
    end
  end

  defp declared(list, env) do
    if Keyword.keyword?(list) and Enum.all?(list, fn {_, arity} -> arity in 0..255 end),
      do: list,
      else: wrong(env, "@nifs: expected names with arities ([add: 2]), got #{inspect(list)}")
  end

  defp stub?({:v1, _kind, _meta, clauses}),
    do: clauses != [] and Enum.all?(clauses, fn {_, _, _, body} -> nif_error?(body) end)

  defp nif_error?({{:., _, [:erlang, :nif_error]}, _, [_ | _]}), do: true
  defp nif_error?(_), do: false

  @spec wrong(Macro.Env.t(), String.t()) :: no_return()
  defp wrong(env, what) do
    raise CompileError,
      file: env.file,
      line: env.line,
      description: "#{inspect(env.module)} uses Snakepit.Isolation.Module, and #{what}"
  end

  defp example, do: "def add(_a, _b), do: :erlang.nif_error(:nif_not_loaded)"
  defp name({name, arity}), do: "#{name}/#{arity}"

  @doc "Where each stands in the slot. The element before them is the library."
  @spec places([nif()]) :: [{nif(), pos_integer()}]
  def places(nifs), do: Enum.with_index(nifs, 2)

  @doc "Takes the stubs out of the module; gives what stands in their place."
  @spec gates(module(), [nif()], atom()) :: [Macro.t()]
  def gates(module, nifs, slot), do: for({nif, place} <- places(nifs), do: gate(module, nif, place, slot))

  defp gate(module, {name, arity} = nif, place, slot) do
    {:v1, kind, meta, clauses} = Module.get_definition(module, nif)
    true = Module.delete_definition(module, nif)
    meta = [line: Keyword.get(meta, :line, 0), generated: true]
    arguments = arguments(clauses, arity, meta)

    # The exceptions are raised here, so that the function is on top of the stack trace, with its arguments, as in the VM.
    body =
      quote generated: true, line: meta[:line] do
        case :persistent_term.get(unquote(slot), []) do
          loaded when :erlang.element(unquote(place), loaded) ->
            case Snakepit.Isolation.call(:erlang.element(1, loaded), unquote(name), unquote(arguments), []) do
              {:ok, value} -> value
              {:error, %{reason: :raised, exception: reason}} -> :erlang.error(reason, unquote(arguments))
              {:error, error} -> :erlang.error(error)
            end

          [] ->
            case Snakepit.Isolation.Module.first_call(unquote(module), unquote(slot)) do
              # Now the gate is open, or the NIF stands here.
              :ok -> unquote(name)(unquote_splicing(arguments))
              {:error, error} -> :erlang.error(error)
            end

          _ ->
            unquote(own(clauses, arguments, meta))
        end
      end

    head = {name, meta, arguments}
    quote generated: true, line: meta[:line], do: Kernel.unquote(kind)(unquote(head), do: unquote(body))
  end

  # Named as in the stub, for the documentation; with a context of their own, so that the body's variables are others.
  defp arguments(clauses, arity, meta) do
    first =
      case clauses do
        [{_, arguments, _, _} | _] -> arguments
        [] -> []
      end

    names = for {argument, i} <- first |> Enum.take(arity) |> Enum.with_index(1), do: argument(argument, i)
    names = if names == Enum.uniq(names), do: names, else: for(i <- Enum.take(1..255, arity), do: :"argument#{i}")
    for name <- names, do: {name, meta, __MODULE__}
  end

  defp argument({name, _, context}, i) when is_atom(name) and is_atom(context) do
    case name |> Atom.to_string() |> String.trim_leading("_") do
      "" -> :"argument#{i}"
      text -> String.to_atom(text)
    end
  end

  defp argument(_pattern, i), do: :"argument#{i}"

  # The clauses, as a case; where none matches, what the function's head would have raised.
  defp own(clauses, arguments, meta) do
    cases =
      for {_, patterns, guards, body} <- clauses,
          do: {:->, meta, [[guarded({:{}, meta, patterns}, guards)], generated(body)]}

    none = quote generated: true, line: meta[:line], do: :erlang.error(:function_clause, unquote(arguments))
    {:case, meta, [{:{}, meta, arguments}, [do: cases ++ [{:->, meta, [[{:_, meta, nil}], none]}]]]}
  end

  defp guarded(pattern, []), do: generated(pattern)

  defp guarded(pattern, guards) do
    [last | others] = Enum.reverse(guards)
    {:when, [], [generated(pattern), generated(Enum.reduce(others, last, &{:when, [], [&1, &2]}))]}
  end

  # What is to be said about it was said when it was compiled the first time.
  defp generated(ast),
    do: Macro.prewalk(ast, &Macro.update_meta(&1, fn meta -> Keyword.put(meta, :generated, true) end))
end
