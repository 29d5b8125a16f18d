defmodule Snakepit.Isolation.Fit do
  @moduledoc false
  # Whether a library fits a module's code, as the VM looks before it runs anything of the library: it is the module's own, and all
  # of its functions are there.

  @type t :: %{module: module(), functions: MapSet.t({binary(), arity()}), declared: boolean()}

  @spec new(module(), Enumerable.t(), boolean()) :: t()
  def new(module, functions, declared),
    do: %{module: module, functions: MapSet.new(functions, fn {n, a} -> {Atom.to_string(n), a} end), declared: declared}

  @doc "What a worker has said of the library that it has opened. The text is the VM's, which code may look at."
  @spec check(t(), %{module: binary(), functions: [{binary(), arity(), non_neg_integer()}]}) ::
          :ok | {:error, String.t()}
  def check(%{module: module, functions: functions, declared: declared}, opened) do
    name = Atom.to_string(module)
    strange = Enum.find(opened.functions, fn {name, arity, _} -> {name, arity} not in functions end)

    cond do
      opened.module != name ->
        {:error, "Library module name '#{printable(opened.module)}' does not match calling module '#{module}'"}

      strange != nil ->
        {function, arity, _} = strange
        what = if declared, do: "Function not declared as nif", else: "Function not found"
        {:error, "#{what} #{module}:#{printable(function)}/#{arity}"}

      true ->
        :ok
    end
  end

  defp printable(text), do: if(String.printable?(text), do: text, else: inspect(text))
end
