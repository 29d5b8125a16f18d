defmodule Snakepit.SharedMemory.Platform do
  @moduledoc """
  What an operating system must offer. The work is done by the back ends of `native/shm`; an implementation says how
  they are used.

  A `platform_handle` is an opaque native resource. Addresses never leave the native side: `map/2` gives the handle back, mapped.
  """

  alias Snakepit.SharedMemory.Error

  @type platform :: :linux | :macos | :windows
  @type platform_handle :: reference()

  @doc "Makes memory of `size` bytes. Options: those of `t:Snakepit.Native.spec/0`, with defaults."
  @callback allocate(region_id :: String.t(), size :: pos_integer(), options :: map()) ::
              {:ok, platform_handle()} | {:error, term()}
  @doc "Maps a handle, or opens and maps the named object of that path."
  @callback map(platform_handle() | (path :: String.t()), options :: map()) ::
              {:ok, platform_handle()} | {:error, term()}
  @doc "Gives up the mapping and the descriptor; a named object stays."
  @callback unmap(platform_handle()) :: :ok | {:error, term()}
  @doc "Gives up the memory; a named object goes too."
  @callback deallocate(platform_handle()) :: :ok | {:error, term()}
  @doc "Sizes, state and counters, with the resident bytes."
  @callback get_info(platform_handle()) :: {:ok, map()} | {:error, term()}
  @doc "Where the named object of that name is."
  @callback named_path(directory :: String.t(), name :: String.t()) :: String.t()

  @doc "The platform that this VM runs on."
  @spec detect_platform() :: platform()
  def detect_platform do
    case :os.type() do
      {:unix, :linux} -> :linux
      {:unix, :darwin} -> :macos
      {:win32, _} -> :windows
      other -> raise "snakepit_shm does not know the platform #{inspect(other)}"
    end
  end

  @doc "The module that serves a platform. Linux is there; the others are refused by name."
  @spec get_implementation(platform()) :: {:ok, module()} | {:error, Error.t()}
  def get_implementation(:linux), do: {:ok, Snakepit.SharedMemory.Platform.Linux}

  def get_implementation(platform) when platform in [:macos, :windows] do
    details = %{what: "there is no back end for #{platform} yet", remedy: "Run on Linux."}
    {:error, Error.new(:not_supported, :platform, nil, details)}
  end

  def get_implementation(other) do
    details = %{key: :platform, expected: ":linux, :macos or :windows", got: other}
    {:error, Error.new(:invalid_argument, :platform, nil, details)}
  end

  @doc "What there is to know of a handle, on this platform."
  @spec get_info(platform_handle()) :: {:ok, map()} | {:error, Error.t()}
  def get_info(handle) do
    with {:ok, implementation} <- get_implementation(detect_platform()) do
      with {:error, {reason, details}} <- implementation.get_info(handle),
           do: Error.from_native({:error, {reason, details}}, :get_info, nil)
    end
  rescue
    ArgumentError ->
      details = %{key: :platform_handle, expected: "what allocate/3 gave", got: handle}
      {:error, Error.new(:invalid_argument, :get_info, nil, details)}
  end

  @doc false
  @spec named_path(String.t(), String.t()) :: String.t()
  def named_path(directory, name) do
    {:ok, implementation} = get_implementation(detect_platform())
    implementation.named_path(directory, name)
  end
end
