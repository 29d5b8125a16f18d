defmodule Snakepit.SharedMemory.ErrorTest do
  # Each error says what to do: each remedy is followed here, or where the test's name says, and succeeds.
  use Snakepit.ShmCase, async: true

  setup %{shm: shm}, do: {:ok, in: [instance: shm]}

  test "every reason has a type, a sentence and a remedy, also without details" do
    for {reason, type} <- Error.reasons() do
      error = Error.new(reason, :test, "shm_x", %{})
      assert error.type == type
      assert Exception.message(error) =~ ~r/^test of region shm_x: .+\. [A-Z].+/s
      assert String.length(Error.remedy(error)) > 10 or reason == :no_process
    end
  end

  test "every error carries where and when", %{in: opts} do
    {:error, error} = Shm.allocate(0, opts)
    assert %{operation: :allocate, platform: :linux, region_id: nil, type: :invalid_argument} = error
    assert error.process_id == self()
    assert DateTime.diff(DateTime.utc_now(), error.timestamp) < 60
  end

  test "sizes: the number that is allowed is allowed", %{in: opts} do
    {:error, error} = Shm.allocate(2_000_000_000, opts)
    assert Error.remedy(error) =~ "at most #{error.details.limit}"
    assert {:ok, region} = Shm.allocate(error.details.limit, [reserve: false] ++ opts)
    Shm.free!(region)
    assert {:error, %{reason: :size_exceeds_limit}} = Shm.allocate(error.details.limit + 1, opts)
  end

  test "out_of_range: up to the size works", %{in: opts} do
    region = Shm.allocate!(10, opts)
    {:error, error} = Shm.read(region, 5, 6)
    assert Error.remedy(error) =~ "at or under 10"
    assert {:ok, _} = Shm.read(region, 5, 5)
  end

  test "not_sealed: seal/1 first, or read/3", %{in: opts} do
    region = Shm.allocate!(10, opts)
    {:error, error} = Shm.view(region)
    assert Error.remedy(error) =~ "seal/1" and Error.remedy(error) =~ "read/3"
    assert {:ok, _} = Shm.read(region, 0, 10)
    assert {:ok, _} = region |> Shm.seal!() |> Shm.view()
  end

  test "sealed: another region", %{in: opts} do
    region = Shm.put!("old", opts)
    {:error, error} = Shm.write(region, 0, "new")
    assert Error.remedy(error) =~ "another region"
    assert Shm.view!(Shm.put!("new", opts)) == "new"
  end

  test "region_not_found: hold/1 keeps it beyond its owner, timeout: beyond a quiet time", %{in: opts, shm: shm} do
    {:error, error} = Shm.info("shm_x")
    assert Error.remedy(error) =~ "hold/1"
    worker = spawn_worker()
    region = in_worker(worker, fn -> Shm.put!("x", opts) end)
    Shm.hold!(region)
    kill(worker, shm)
    assert {:ok, _} = Shm.info(region)
  end

  test "read_only: peers: :read_write and mode: :read_write", %{in: opts} do
    {:error, error} = Shm.handle(Shm.allocate!(10, opts), mode: :read_write)
    assert error.reason == :read_only
    assert Error.remedy(error) =~ "peers: :read_write"
    assert %{"mode" => "read_write"} = Shm.handle(Shm.allocate!(10, [peers: :read_write] ++ opts), mode: :read_write)
  end

  test "expired: a new handle", %{in: opts} do
    region = Shm.put!("x", opts)
    old = Shm.handle(region, expires_in: 1)
    eventually(fn -> match?({:error, %{reason: :expired}}, Shm.attach(old)) end)
    {:error, error} = Shm.attach(old)
    assert Error.remedy(error) =~ "expires_in:"
    assert {:ok, _} = Shm.attach(Shm.handle(region, expires_in: 60_000))
  end

  test "bad_token and invalid_handle: the handle as it was given", %{in: opts} do
    handle = Shm.handle(Shm.put!("x", opts))
    {:error, error} = Shm.attach(%{handle | "token" => "other"})
    assert {error.reason, error.type} == {:bad_token, :security_violation}
    {:error, error} = Shm.attach(Map.delete(handle, "id"))
    assert error.reason == :invalid_handle and Exception.message(error) =~ "id"
    assert {:ok, _} = Shm.attach(handle)
    {:ok, json} = Snakepit.SharedMemory.Handle.to_json(handle)
    assert {:ok, _} = Shm.attach(json)
  end

  test "not_owner: transfer/2 by the owner first", %{in: opts} do
    worker = spawn_worker()
    region = in_worker(worker, fn -> Shm.put!("x", opts) end)
    {:error, error} = Shm.transfer(region, self())
    assert Error.remedy(error) =~ "transfer/2"
    test = self()
    assert :ok = in_worker(worker, fn -> Shm.transfer(region, test) end)
    assert :ok = Shm.transfer(region, :none)
    send(worker, :stop)
  end

  test "timeout: a longer one", %{in: opts} do
    region = Shm.allocate!(10, opts)
    {:error, error} = Shm.wait(region, 0, 1)
    assert Error.remedy(error) =~ ":infinity"
    task = Task.async(fn -> Shm.wait(region, 0, :infinity) end)
    Shm.write!(region, 0, "x")
    assert {:ok, 1} = Task.await(task)
  end

  test "exists: open/2, or another name" do
    directory = tmpfs_directory()
    %{shm: shm} = start_instance(platform_options: %{linux: %{shm_path: directory}})
    Shm.put!("x", instance: shm, named: "taken")
    {:error, error} = Shm.put("y", instance: shm, named: "taken")
    assert Error.remedy(error) =~ "open/2"
    assert {:ok, _} = Shm.open("taken", instance: shm)
    assert {:ok, _} = Shm.put("y", instance: shm, named: "free")
  end

  test "unsupported_filesystem: another directory" do
    # Of the file systems that every machine has, procfs and sysfs take no files at all.
    assert {:error, error} = Shm.start_link(name: :elsewhere, platform_options: %{linux: %{shm_path: "/nowhere"}})
    assert error.reason == :invalid_config
    %{shm: shm} = start_instance(platform_options: %{linux: %{shm_path: "/proc"}})
    {:error, error} = Shm.put("x", instance: shm, named: "x")
    assert error.reason in [:unsupported_filesystem, :os_error, :not_found]
    assert is_binary(Exception.message(error))
    assert {:ok, _} = Shm.put("x", instance: shm)
  end

  test "invalid: free it and write it again", %{in: opts, shm: shm} do
    region = Shm.allocate!(10, opts)
    {:ok, segment} = Snakepit.SharedMemory.Registry.segment(instance(shm), region.id)
    Snakepit.Native.segment_invalidate(segment, "a test")
    {:error, error} = Shm.read(region, 0, 1)
    assert {error.type, error.reason} == {:corruption_detected, :invalid}
    assert Exception.message(error) =~ "a test"
    assert :ok = Shm.free(region)
    assert {:ok, _} = Shm.put("again", opts)
  end
end
