defmodule Snakepit.SharedMemory.ApplicationTest do
  use Snakepit.ShmCase, async: true

  alias Snakepit.SubVm

  @moduletag shm: false

  test "the default instance runs with the application" do
    assert is_pid(Process.whereis(Snakepit.SharedMemory))
    region = Shm.put!("x")
    assert "shm_default_" <> _ = region.id
    assert :ok = Shm.free(region)
  end

  test "enabled: false starts none; a bad configuration stops the start with a message that names the key" do
    {output, 0} =
      SubVm.run("""
      Application.put_env(:snakepit_shm, :enabled, false)
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      {:error, error} = Snakepit.SharedMemory.put("x")
      IO.puts(Exception.message(error))
      """)

    assert output =~ "is not running"

    {output, 0} =
      SubVm.run("""
      Logger.configure(level: :none)
      Application.put_env(:snakepit_shm, :max_regoins, 5)
      {:error, reason} = Application.ensure_all_started(:snakepit_shm)
      IO.puts(Application.format_error(elem(reason, 1)))
      """)

    assert output =~ "Did you mean :max_regions?"
  end
end
