defmodule Bench.Json do
  # A real JSON document of nearly a megabyte: the languages of the world, ISO 639-3, as the Python package pycountry has
  # them.

  alias Bench.Python

  @languages "pycountry/databases/iso639-3.json"

  @spec document() :: binary()
  def document do
    about = Python.run!(Path.join(__DIR__, "json_document.py"), [@languages])
    File.read!(about["path"])
  end

  @doc "What Python's own decoder makes of it: the number of languages, and some of their names."
  @spec python([non_neg_integer()]) :: %{count: pos_integer(), names: [String.t()]}
  def python(indices) do
    about = Python.run!(Path.join(__DIR__, "json_document.py"), [@languages | Enum.map(indices, &to_string/1)])
    %{count: String.to_integer(about["count"]), names: for(index <- indices, do: about["name#{index}"])}
  end
end
