defmodule Demo.Terrain do
  # The data of the demo: a real elevation grid, repeated until it is large, and what Elixir itself computes of a point of
  # it, to check Python's results against.

  alias Bench.Python

  @enforce_keys [:grid, :rows, :columns, :down, :across, :dx, :dy, :lowest, :highest]
  defstruct [:grid, :rows, :columns, :down, :across, :dx, :dy, :lowest, :highest]

  @type t :: %__MODULE__{
          grid: binary(),
          rows: pos_integer(),
          columns: pos_integer(),
          down: pos_integer(),
          across: pos_integer(),
          dx: float(),
          dy: float(),
          lowest: float(),
          highest: float()
        }

  # Where the sun stands: in the north-west, half-way up. East, north, up; of length 1.
  @sun {-0.5, 0.5, :math.sqrt(0.5)}

  @doc "Takes the grid out of matplotlib's sample data and plans how often to repeat it for at least `bytes`."
  @spec load(pos_integer()) :: t()
  def load(bytes) do
    file = Path.join(System.tmp_dir!(), "snakepit_demo_#{System.pid()}.f32")

    try do
      about = Python.run!(Path.join(__DIR__, "terrain.py"), [file])
      [rows, columns, lowest, highest] = for key <- ~w(rows columns lowest highest), do: String.to_integer(about[key])
      across = round(:math.sqrt(bytes / (rows * columns * 4)))

      %__MODULE__{
        grid: File.read!(file),
        rows: rows,
        columns: columns,
        across: across,
        down: ceil(bytes / (rows * columns * 4 * across)),
        dx: String.to_float(about["dx"]),
        dy: String.to_float(about["dy"]),
        lowest: lowest,
        highest: highest
      }
    after
      File.rm(file)
    end
  end

  @spec sun() :: {float(), float(), float()}
  def sun, do: @sun

  @doc "Rows and columns of the whole, as NumPy wants them."
  @spec shape(t()) :: [pos_integer()]
  def shape(t), do: [t.rows * t.down, t.columns * t.across]

  @spec size(t()) :: pos_integer()
  def size(t), do: 4 * Enum.product(shape(t))

  @doc """
  One band of the whole, as iodata: each row of the grid, side by side with itself. The same few binaries are referred to
  again and again, so the band takes no memory of its own.
  """
  @spec band(t()) :: iodata()
  def band(%{columns: columns} = t) do
    for row <- 0..(t.rows - 1), do: List.duplicate(binary_part(t.grid, row * columns * 4, columns * 4), t.across)
  end

  @doc "The height at a point of the whole."
  @spec height(t(), non_neg_integer(), non_neg_integer()) :: float()
  def height(t, row, column) do
    skip = (rem(row, t.rows) * t.columns + rem(column, t.columns)) * 4
    <<_::binary-size(skip), height::float-32-little, _::binary>> = t.grid
    height
  end

  @doc "The mean height of a row of the whole."
  @spec mean(t(), non_neg_integer()) :: float()
  def mean(t, row), do: Enum.sum(for column <- 0..(t.columns - 1), do: height(t, row, column)) / t.columns

  @doc "How bright a point is: the cosine of the angle between the sun and what stands upright on the slope."
  @spec brightness(t(), non_neg_integer(), non_neg_integer()) :: float()
  def brightness(t, row, column) do
    {east, north, up} = @sun
    [rows, columns] = shape(t)
    eastward = height(t, row, min(column + 1, columns - 1)) - height(t, row, max(column - 1, 0))
    northward = height(t, max(row - 1, 0), column) - height(t, min(row + 1, rows - 1), column)
    {eastward, northward} = {eastward / (2 * t.dx), northward / (2 * t.dy)}
    light = (up - east * eastward - north * northward) / :math.sqrt(1 + eastward * eastward + northward * northward)
    max(light, 0.0)
  end
end
