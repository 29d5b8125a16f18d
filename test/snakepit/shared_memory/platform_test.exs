defmodule Snakepit.SharedMemory.PlatformTest do
  use Snakepit.ShmCase, async: true

  alias Snakepit.SharedMemory.Platform

  @moduletag shm: false

  test "this machine's is there, the others are refused by name" do
    assert {:ok, module} = Platform.get_implementation(Platform.detect_platform())
    assert Code.ensure_loaded?(module)
    assert function_exported?(module, :allocate, 3)
    assert {:error, %Error{reason: :not_supported} = error} = Platform.get_implementation(:windows)
    assert Exception.message(error) =~ "windows"
    assert {:error, %Error{reason: :invalid_argument}} = Platform.get_implementation(:beos)
  end

  test "the callbacks, on their own" do
    {:ok, module} = Platform.get_implementation(Platform.detect_platform())
    {:ok, handle} = module.allocate("shm_alone", 10_000, %{})
    assert {:ok, ^handle} = module.map(handle, %{})
    assert {:ok, %{size: 10_000, state: :allocated, resident: resident}} = Platform.get_info(handle)
    assert resident >= 10_000
    assert :ok = module.unmap(handle)
    assert :ok = module.deallocate(handle)
    assert {:error, %Error{}} = Platform.get_info(handle)
  end

  test "a named object by its path" do
    {:ok, module} = Platform.get_implementation(Platform.detect_platform())
    path = module.named_path(tmpfs_directory(), "x")
    {:ok, handle} = module.allocate("shm_named", 10, %{name: path})
    {:ok, other} = module.map(path, %{})
    assert :ok = module.unmap(other)
    assert File.exists?(path)
    assert :ok = module.deallocate(handle)
    refute File.exists?(path)
  end
end
