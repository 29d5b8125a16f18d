defmodule Snakepit.Isolation.DropIn.Rewriter do
  @moduledoc false
  # Abstract code of a module with NIFs to that of one whose library is isolated. Nothing is run and nothing looked up:
  # which functions are NIFs, only the library says, and that is loaded by the module's own code later. So each function
  # that may be one gets a gate:
  #
  #     f(A1, A2) ->
  #         case persistent_term:get(Slot, []) of
  #             Loaded when element(7, Loaded) -> ... call f/2 in Loaded's library ...;
  #             _ -> ... its own body ...
  #         end.
  #
  # The slot is an atom of the module's own, filled by `DropIn.Loader`. Until then, and for functions that the library does
  # not have, a gate costs 10 ns. That is the price for running the module's own code once, and as it is.

  alias Snakepit.Isolation.DropIn.{Loader, Prepared, Source}
  alias Snakepit.Isolation.Error

  @enforce_keys [:beam, :slot, :functions, :declared]
  defstruct [:beam, :slot, :functions, :declared, :on_load]

  @type t :: %__MODULE__{
          beam: binary(),
          slot: atom(),
          # Where a function stands in the slot.
          functions: %{{atom(), arity()} => pos_integer()},
          # Whether the module itself says which functions are NIFs (`-nifs`).
          declared: boolean(),
          on_load: boolean()
        }

  # Of the options that the module was compiled with, those that change what it is.
  @kept [:export_all, :no_auto_import, :inline, :inline_list_funcs, :compressed]
  @kept_pairs [:inline, :inline_size, :inline_effort, :no_auto_import, :feature]

  @transforms [:parse_transform, :core_transform]

  @doc "`slot`: the key of this version's persistent term, if it is not the module's first one. Code of a release has its own."
  @spec rewrite(Source.t(), atom() | nil) :: {:ok, t()} | {:error, Error.t()}
  def rewrite(source, slot \\ nil)
  def rewrite(%Source{prepared: %__MODULE__{} = rewritten}, _slot), do: {:ok, rewritten}

  def rewrite(%Source{module: module, forms: forms} = source, slot),
    do: rewrite(source, forms, slot || slot(module, []))

  @doc "For a release: code that waits until the module is isolated there (`DropIn.Prepared`)."
  @spec prepare(Source.t()) :: {:ok, t()} | {:error, Error.t()}
  def prepare(%Source{module: module, forms: forms, beam: beam} = source) do
    {:ok, {^module, md5}} = :beam_lib.md5(beam)
    slot = version_slot(module, md5)
    rewrite(source, Prepared.wait(forms, module, slot), slot)
  end

  defp rewrite(%Source{module: module} = source, forms, slot) do
    declared = declared(source.forms)
    functions = candidates(source.forms, declared)
    forms = Enum.map(versions(source) ++ forms, &strip/1)

    case load_nif(forms, {module, slot}) do
      {_, 0} ->
        Source.refuse(module, :no_load_nif)

      {forms, _} ->
        forms = forms |> Enum.map(&gate(&1, functions, slot)) |> placed()

        with {:ok, beam} <- compile(forms, source) do
          {:ok,
           %__MODULE__{
             beam: beam,
             slot: slot,
             functions: functions,
             declared: declared != nil,
             on_load: Enum.any?(forms, &match?({:attribute, _, :on_load, _}, &1))
           }}
        end
    end
  end

  @doc "A key that is none of those. An atom, which is found in a third of the time that a tuple takes. The VM has two versions of a module at a time."
  @spec slot(module(), [atom()]) :: atom()
  def slot(module, taken) do
    name = "snakepit isolated " <> short(Atom.to_string(module))
    Enum.find([String.to_atom(name) | for(n <- 2..3, do: String.to_atom("#{name} #{n}"))], &(&1 not in taken))
  end

  @doc "The same, of code whose gates stand in an order of their own: `definition` is what they go by."
  @spec version_slot(module(), term()) :: atom()
  def version_slot(module, definition),
    do: String.to_atom("#{slot(module, [])} #{Integer.to_string(:erlang.phash2(definition, 0x1_0000_0000), 36)}")

  # An atom has 255 characters.
  defp short(name) do
    if String.length(name) <= 200,
      do: name,
      else: String.slice(name, 0, 160) <> Base.encode16(:erlang.md5(name))
  end

  # ── What may be a NIF ─────────────────────────────────────────────────────────────────────────────────────────

  defp declared(forms) do
    case for({:attribute, _, :nifs, functions} <- forms, do: functions) do
      [] -> nil
      lists -> List.flatten(lists)
    end
  end

  # The element before them is the library.
  defp candidates(forms, declared) do
    for({:function, _, name, arity, _} <- forms, do: {name, arity})
    |> Enum.filter(&(&1 != {:__info__, 1} and (declared == nil or &1 in declared)))
    |> Enum.with_index(2)
    |> Map.new()
  end

  # ── Attributes ────────────────────────────────────────────────────────────────────────────────────────────────

  # The version is a checksum of the code unless it is given.
  defp versions(%{forms: forms, attributes: attributes}) do
    if Enum.any?(forms, &match?({:attribute, _, :vsn, _}, &1)),
      do: [],
      else: for({:vsn, versions} <- attributes, version <- versions, do: {:attribute, 0, :vsn, version})
  end

  # The module's own first: -file and -module.
  defp placed(forms) do
    {versions, others} = Enum.split_with(forms, &match?({:attribute, 0, :vsn, _}, &1))
    {head, rest} = Enum.split_while(others, &(not match?({:attribute, _, :module, _}, &1)))
    head ++ Enum.take(rest, 1) ++ versions ++ Enum.drop(rest, 1)
  end

  # Abstract code is what transforms have made; they would run again.
  defp strip({:attribute, anno, :compile, options}),
    do: {:attribute, anno, :compile, options |> List.wrap() |> Enum.reject(&transform?/1)}

  defp strip(form), do: form

  defp transform?({key, _}), do: key in @transforms
  defp transform?(_), do: false

  # ── load_nif ──────────────────────────────────────────────────────────────────────────────────────────────────

  # Only explicit calls: through a fun, or by apply with a list that is not written out, the VM refuses to load anything.
  defp load_nif(forms, version) do
    imported? =
      Enum.any?(forms, fn
        {:attribute, _, :import, {:erlang, functions}} -> {:load_nif, 2} in functions
        _ -> false
      end)

    Enum.map_reduce(forms, 0, fn
      {:function, _, _, _, _} = form, count -> walk(form, count, {version, imported?})
      form, count -> {form, count}
    end)
  end

  defp walk(
         {:call, anno, {:remote, _, {:atom, _, :erlang}, {:atom, _, :load_nif}}, [_, _] = arguments},
         count,
         context
       ),
       do: replace(anno, arguments, count, context)

  defp walk({:call, anno, {:atom, _, :load_nif}, [_, _] = arguments}, count, {_, true} = context),
    do: replace(anno, arguments, count, context)

  defp walk({:call, anno, function, [{:atom, _, :erlang}, {:atom, _, :load_nif}, list]} = call, count, context) do
    case {apply?(function), list} do
      {true, {:cons, _, path, {:cons, _, info, {nil, _}}}} -> replace(anno, [path, info], count, context)
      _ -> deeper(call, count, context)
    end
  end

  defp walk(form, count, context), do: deeper(form, count, context)

  defp apply?({:atom, _, :apply}), do: true
  defp apply?({:remote, _, {:atom, _, :erlang}, {:atom, _, :apply}}), do: true
  defp apply?(_), do: false

  defp deeper(form, count, context) when is_tuple(form) do
    {list, count} = form |> Tuple.to_list() |> deeper(count, context)
    {List.to_tuple(list), count}
  end

  defp deeper([head | tail], count, context) do
    {head, count} = walk(head, count, context)
    {tail, count} = deeper(tail, count, context)
    {[head | tail], count}
  end

  defp deeper(other, count, _context), do: {other, count}

  # The error is raised here: the function that calls load_nif is on the stack then, as it is in the VM.
  defp replace(anno, arguments, count, {{module, slot}, _} = context) do
    {arguments, count} = deeper(arguments, count, context)
    # A name for each, since they may stand in one function.
    answer = variable(anno, "answer #{count}")
    badarg = {:atom, anno, :badarg}

    call =
      {:case, anno, remote(anno, Loader, :load_nif, [{:atom, anno, module}, {:atom, anno, slot} | arguments]),
       [
         {:clause, anno, [badarg], [], [remote(anno, :erlang, :error, [badarg])]},
         {:clause, anno, [answer], [], [answer]}
       ]}

    {call, count + 1}
  end

  # ── Gates ─────────────────────────────────────────────────────────────────────────────────────────────────────

  defp gate({:function, anno, name, arity, clauses} = function, functions, slot) do
    case functions do
      %{{^name, ^arity} => index} ->
        anno = generated(anno)
        arguments = for i <- Enum.take(1..255, arity), do: variable(anno, "argument #{i}")
        loaded = variable(anno, "loaded")
        element = remote(anno, :erlang, :element, [{:integer, anno, index}, loaded])
        get = remote(anno, :persistent_term, :get, [{:atom, anno, slot}, {nil, anno}])

        body =
          {:case, anno, get,
           [
             {:clause, anno, [loaded], [[element]], [call(anno, loaded, name, arguments)]},
             {:clause, anno, [{:var, anno, :_}], [], [own(anno, clauses, arguments)]}
           ]}

        {:function, anno, name, arity, [{:clause, anno, arguments, [], [body]}]}

      _ ->
        function
    end
  end

  defp gate(form, _functions, _slot), do: form

  # The exceptions are raised here, so that the function is on top of the stack trace, with its arguments, as in the VM.
  defp call(anno, loaded, name, arguments) do
    library = remote(anno, :erlang, :element, [{:integer, anno, 1}, loaded])
    [value, reason, error] = for name <- ["value", "reason", "error"], do: variable(anno, name)
    list = List.foldr(arguments, {nil, anno}, &{:cons, anno, &1, &2})

    raised =
      {:map, anno,
       [
         {:map_field_exact, anno, {:atom, anno, :reason}, {:atom, anno, :raised}},
         {:map_field_exact, anno, {:atom, anno, :exception}, reason}
       ]}

    {:case, anno, remote(anno, Snakepit.Isolation, :call, [library, {:atom, anno, name}, list, {nil, anno}]),
     [
       {:clause, anno, [{:tuple, anno, [{:atom, anno, :ok}, value]}], [], [value]},
       {:clause, anno, [{:tuple, anno, [{:atom, anno, :error}, raised]}], [],
        [remote(anno, :erlang, :error, [reason, list])]},
       {:clause, anno, [{:tuple, anno, [{:atom, anno, :error}, error]}], [], [remote(anno, :erlang, :error, [error])]}
     ]}
  end

  # Its clauses, as a case; where none matches, what the function's head would have raised.
  defp own(anno, clauses, arguments) do
    cases =
      for {:clause, at, patterns, guards, body} <- clauses,
          do: {:clause, at, [{:tuple, at, patterns}], guards, body}

    list = List.foldr(arguments, {nil, anno}, &{:cons, anno, &1, &2})
    none = remote(anno, :erlang, :error, [{:atom, anno, :function_clause}, list])
    {:case, anno, {:tuple, anno, arguments}, cases ++ [{:clause, anno, [{:var, anno, :_}], [], [none]}]}
  end

  defp generated(anno), do: :erl_anno.set_generated(true, anno)

  @doc false
  @spec remote(:erl_anno.anno(), module(), atom(), [tuple()]) :: tuple()
  def remote(anno, module, name, arguments),
    do: {:call, anno, {:remote, anno, {:atom, anno, module}, {:atom, anno, name}}, arguments}

  # No variable of a source text has a space in its name.
  defp variable(anno, name), do: {:var, anno, String.to_atom("snakepit " <> name)}

  # ── Compiling ─────────────────────────────────────────────────────────────────────────────────────────────────

  # noenv: ERL_COMPILER_OPTIONS has had its say when the module was compiled.
  defp compile(forms, %{module: module} = source) do
    options = [:binary, :return_errors, :debug_info] ++ kept(source.compile) ++ source(source.compile)

    with {:ok, ^module, beam} <- :compile.noenv_forms(forms, options),
         {:ok, {_, [exports: exports]}} <- :beam_lib.chunks(beam, [:exports]),
         {_, true} <- {:exports, Enum.sort(exports) == Enum.sort(source.exports)} do
      {:ok, beam}
    else
      {:error, errors, _} -> Source.refuse(module, :not_compiled, %{message: words(errors)})
      {:exports, false} -> Source.refuse(module, :not_compiled, %{message: "its exports would not be the same"})
      other -> Source.refuse(module, :not_compiled, %{message: inspect(other, limit: 5)})
    end
  end

  defp kept(compile) do
    Enum.filter(compile[:options] || [], fn
      {key, _} -> key in @kept_pairs
      key -> key in @kept
    end)
  end

  defp source(compile), do: Keyword.take(compile, [:source])

  defp words([{_file, [{at, pass, reason} | _]} | _]),
    do: "#{inspect(at)}: #{reason |> pass.format_error() |> IO.chardata_to_string()}"

  defp words(errors), do: inspect(errors, limit: 5)
end
