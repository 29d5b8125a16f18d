defmodule Snakepit.SharedMemory.HandleTest do
  # Handles on this side: how they are made, what they say, and that only what we made attaches.
  use Snakepit.ShmCase, async: true

  alias Snakepit.{Native, SubVm}
  alias Snakepit.SharedMemory.{Handle, ReferenceCounter}

  setup %{shm: shm}, do: {:ok, in: [instance: shm], region: Shm.put!("abcdefgh", instance: shm)}

  describe "handle/2" do
    test "says what is needed, in JSON's types", %{in: opts, shm: shm, socket_dir: directory} do
      region = Shm.put!("abcdefgh", [dtype: "int16", shape: [2, 2], metadata: %{a: 1}] ++ opts)

      assert %{
               "snakepit_shm" => 1,
               "id" => id,
               "instance" => instance,
               "socket" => socket,
               "token" => token,
               "mode" => "read_only",
               "expires" => nil,
               "size" => 8,
               "dtype" => "int16",
               "shape" => [2, 2],
               "metadata" => %{"a" => 1}
             } = handle = Shm.handle(region)

      assert {id, instance, socket} == {region.id, Atom.to_string(shm), "#{directory}/#{shm}.sock"}
      assert byte_size(token) == 43
      assert {:ok, json} = Handle.to_json(handle)
      assert Handle.parse(json) == {:ok, handle}
    end

    test "the same handle twice for the same region", %{region: region} do
      assert Shm.handle(region) == Shm.handle(region)
    end

    test "mode: is what peers may do, or stricter", %{in: opts, region: sealed} do
      mutable = Shm.allocate!(8, [peers: :read_write] ++ opts)
      assert Shm.handle(mutable)["mode"] == "read_write"
      assert Shm.handle(mutable, mode: :read_write)["mode"] == "read_write"
      assert Shm.handle(mutable, mode: :read_only)["mode"] == "read_only"
      assert Shm.handle(sealed, mode: :read_only)["mode"] == "read_only"
      assert {:error, %Error{reason: :read_only, operation: :handle}} = Shm.handle(sealed, mode: :read_write)
    end

    test "a value that may only read gives no more than that", %{in: opts} do
      region = Shm.allocate!(8, [peers: :read_write] ++ opts)
      {:ok, reader} = Shm.attach(Shm.handle(region, mode: :read_only))
      assert Shm.handle(reader)["mode"] == "read_only"
      assert {:error, %Error{reason: :read_only}} = Shm.handle(reader, mode: :read_write)
    end

    test "the remedy of a refused mode helps", %{in: opts, region: region} do
      assert {:error, error} = Shm.handle(region, mode: :read_write)
      assert Error.remedy(error) =~ "peers: :read_write"
      other = Shm.allocate!(8, [peers: :read_write] ++ opts)
      assert %{"mode" => "read_write"} = Shm.handle(other, mode: :read_write)
    end

    test "expires_in: is milliseconds from now", %{region: region} do
      before = System.system_time(:millisecond)
      assert %{"expires" => expires} = Shm.handle(region, expires_in: 60_000)
      assert expires >= before + 60_000
      assert expires <= System.system_time(:millisecond) + 60_000
      assert Shm.handle(region, expires_in: :infinity)["expires"] == nil
    end

    test "the largest expires_in: is still JSON, or refused", %{region: region} do
      with %{} = handle <- Shm.handle(region, expires_in: 10 ** 30), do: assert({:ok, _} = Handle.to_json(handle))
    end

    for {key, value} <- [
          mode: :write,
          mode: "read_only",
          mode: 1,
          expires_in: 0,
          expires_in: -5,
          expires_in: 1.5,
          expires_in: "1000",
          expires_in: nil,
          expire_in: 1000
        ] do
      test "#{key}: #{inspect(value)} is refused by its name", %{region: region} do
        assert {:error, %Error{reason: :invalid_option, details: %{key: unquote(key)}} = error} =
                 Shm.handle(region, [{unquote(key), unquote(value)}])

        assert Exception.message(error) =~ inspect(unquote(key))
      end
    end

    for options <- [:mode, %{mode: :read_only}, [1], "mode"] do
      test "options #{inspect(options)} are no options", %{region: region} do
        assert {:error, %Error{reason: :invalid_option, details: %{key: :options}}} =
                 Shm.handle(region, unquote(Macro.escape(options)))
      end
    end

    test "of what is no region, or gone", %{region: region} do
      assert {:error, %Error{reason: :invalid_argument}} = Shm.handle(region.id)
      Shm.free!(region)
      assert {:error, %Error{reason: :region_not_found, operation: :handle}} = Shm.handle(region)
      assert_raise Error, fn -> Shm.handle!(region) end
    end

    @tag shm: [broker: false]
    test "needs the broker", %{region: region} do
      assert {:error, %Error{reason: :not_started} = error} = Shm.handle(region)
      assert Exception.message(error) =~ "broker: false"
    end
  end

  describe "attach/1" do
    test "gives the region, held by the caller, from a map or from text", %{region: region} do
      {:ok, json} = Handle.to_json(Shm.handle(region))

      for handle <- [Shm.handle(region), json] do
        worker = spawn_worker()
        assert {:ok, attached} = in_worker(worker, fn -> Shm.attach(handle) end)
        assert attached.id == region.id
        assert ReferenceCounter.get_references(region.id) == {:ok, [worker]}
        assert Shm.view!(attached) == "abcdefgh"
        assert :ok = in_worker(worker, fn -> Shm.release(attached) end)
        assert ReferenceCounter.get_references(region.id) == {:ok, []}
        send(worker, :stop)
      end
    end

    test "with a read-only handle gives a value that only reads", %{in: opts} do
      region = Shm.allocate!(8, [peers: :read_write] ++ opts)
      {:ok, reader} = Shm.attach(Shm.handle(region, mode: :read_only))
      assert {:error, %Error{reason: :read_only}} = Shm.write(reader, 0, "x")
      assert {:error, %Error{reason: :read_only}} = Shm.seal(reader)
      {:ok, writer} = Shm.attach(Shm.handle(region))
      assert :ok = Shm.write(writer, 0, "x")
    end

    test "leaves writing to the owner of an access_mode: :read_only region", %{in: opts} do
      region = Shm.allocate!(8, [access_mode: :read_only] ++ opts)
      worker = spawn_worker()
      handle = Shm.handle(region)
      {:ok, attached} = in_worker(worker, fn -> Shm.attach(handle) end)
      assert {:error, %Error{reason: :read_only}} = in_worker(worker, fn -> Shm.write(attached, 0, "x") end)
      assert :ok = Shm.write(region, 0, "x")
      send(worker, :stop)
    end

    test "of another instance of this VM finds it", %{region: region} do
      %{shm: other} = start_instance()
      theirs = Shm.put!("theirs", instance: other)
      assert {:ok, %Region{instance: ^other}} = Shm.attach(Shm.handle(theirs))
      assert {:error, %Error{reason: reason}} = Shm.attach(%{Shm.handle(theirs) | "id" => region.id})
      assert reason in [:bad_token, :foreign_handle]
    end

    # What somebody could do to a handle. Each is refused, and holds nothing.
    for {what, change, reason} <- [
          {"a made-up token", quote(do: &%{&1 | "token" => "made up"}), :bad_token},
          {"a token with one letter changed", quote(do: &Map.update!(&1, "token", fn <<_, r::binary>> -> "*" <> r end)),
           :bad_token},
          {"a mode that was changed", quote(do: &%{&1 | "mode" => "read_write"}), :bad_token},
          {"an expiry that was added", quote(do: &%{&1 | "expires" => 9_999_999_999_999}), :bad_token},
          {"an expiry beyond all dates", quote(do: &%{&1 | "expires" => 10 ** 40}), :bad_token},
          {"an expiry long ago", quote(do: &%{&1 | "expires" => 0}), :bad_token},
          {"another region's id",
           quote(do: &Map.update!(&1, "id", fn id -> binary_part(id, 0, byte_size(id) - 1) <> "x" end)), :bad_token},
          {"a longer id", quote(do: &Map.update!(&1, "id", fn id -> id <> "0" end)), :foreign_handle},
          {"an id that is no id", quote(do: &%{&1 | "id" => "x"}), :foreign_handle},
          {"the id of an unknown instance", quote(do: &%{&1 | "id" => "shm_nobody_1234567890123456_0123456789abcdef"}),
           :foreign_handle},
          {"another socket", quote(do: &%{&1 | "socket" => "/tmp/elsewhere.sock"}), :foreign_handle},
          {"another version", quote(do: &%{&1 | "snakepit_shm" => 2}), :invalid_handle},
          {"no version", quote(do: &Map.delete(&1, "snakepit_shm")), :invalid_handle},
          {"no id", quote(do: &Map.delete(&1, "id")), :invalid_handle},
          {"no token", quote(do: &Map.delete(&1, "token")), :invalid_handle},
          {"no socket", quote(do: &Map.delete(&1, "socket")), :invalid_handle},
          {"no size", quote(do: &Map.delete(&1, "size")), :invalid_handle},
          {"an empty token", quote(do: &%{&1 | "token" => ""}), :invalid_handle},
          {"a token of a megabyte", quote(do: &%{&1 | "token" => String.duplicate("x", 1_000_000)}), :invalid_handle},
          {"a token that is a number", quote(do: &%{&1 | "token" => 7}), :invalid_handle},
          {"a mode that is unknown", quote(do: &%{&1 | "mode" => "read_write "}), :invalid_handle},
          {"a negative expiry", quote(do: &%{&1 | "expires" => -1}), :invalid_handle},
          {"an expiry that is a float", quote(do: &%{&1 | "expires" => 1.0e12}), :invalid_handle},
          {"a size of 0", quote(do: &%{&1 | "size" => 0}), :invalid_handle}
        ] do
      test "of a handle with #{what} is #{inspect(reason)}", %{region: region} do
        handle = Shm.handle(region)
        changed = unquote(change).(handle)
        assert {:error, %Error{reason: unquote(reason)} = error} = Shm.attach(changed)
        assert is_binary(Exception.message(error))

        with {:ok, json} when byte_size(json) < 65_536 <- Native.json_encode(changed),
             do: assert({:error, %Error{reason: unquote(reason)}} = Shm.attach(json))

        assert ReferenceCounter.get_count(region.id) == {:ok, 0}
      end
    end

    test "of a text cut off at any byte is refused", %{region: region} do
      {:ok, json} = Handle.to_json(Shm.handle(region))

      for n <- 0..(byte_size(json) - 1),
          do: assert({:error, %Error{reason: :invalid_handle}} = Shm.attach(binary_part(json, 0, n)))
    end

    for {what, term} <- [
          {"nil", nil},
          {"a number", 7},
          {"a list", []},
          {"keywords", [id: "x"]},
          {"an empty map", Macro.escape(%{})},
          {"atom keys", Macro.escape(%{snakepit_shm: 1, id: "x"})},
          {"a pid", quote(do: self())},
          {"bytes", <<255, 0, 1>>},
          {"an empty text", ""},
          {"a JSON list", "[]"},
          {"JSON null", "null"},
          {"a JSON text that is nested too deeply", String.duplicate("[", 1000)},
          {"a text of a megabyte", quote(do: String.duplicate("x", 1_000_000))}
        ] do
      test "of #{what} is :invalid_handle" do
        assert {:error, %Error{reason: :invalid_handle, operation: :attach} = error} = Shm.attach(unquote(term))
        assert byte_size(Exception.message(error)) < 2_000
      end
    end

    test "of a handle with an atom where JSON has text is refused", %{region: region} do
      assert {:error, %Error{reason: :invalid_handle}} = Shm.attach(%{Shm.handle(region) | "mode" => :read_only})
    end

    test "of a region value says what to pass", %{region: region} do
      assert {:error, %Error{reason: :invalid_handle} = error} = Shm.attach(region)
      assert Error.remedy(error) =~ "Snakepit.SharedMemory.handle/2"
    end

    test "of an expired handle says when it expired; a new one helps", %{region: region} do
      handle = Shm.handle(region, expires_in: 1)
      eventually(fn -> System.system_time(:millisecond) > handle["expires"] end)
      assert {:error, %Error{reason: :expired} = error} = Shm.attach(handle)
      assert error.details.expires == DateTime.from_unix!(handle["expires"], :millisecond)
      assert Error.remedy(error) =~ "expires_in:"
      assert {:ok, _} = Shm.attach(Shm.handle(region, expires_in: 60_000))
    end

    test "of a region that was freed", %{region: region} do
      handle = Shm.handle(region)
      Shm.free!(region)
      assert {:error, %Error{reason: :region_not_found, region_id: id}} = Shm.attach(handle)
      assert id == region.id
    end

    test "when the instance has ended is a foreign handle", %{shm: shm, region: region} do
      handle = Shm.handle(region)
      :ok = stop_supervised(shm)
      assert {:error, %Error{reason: :foreign_handle}} = Shm.attach(handle)
    end

    test "of another VM, with the same instance name too, is a foreign handle", %{shm: shm, socket_dir: directory} do
      file = Path.join(directory, "handle")

      SubVm.start("""
      {:ok, _} = Snakepit.SharedMemory.start_link(name: #{inspect(shm)}, socket_dir: #{inspect(directory)})
      {:ok, region} = Snakepit.SharedMemory.put("theirs", instance: #{inspect(shm)})
      {:ok, json} = region |> Snakepit.SharedMemory.handle() |> Snakepit.SharedMemory.Handle.to_json()
      File.write!(#{inspect(file)}, json)
      """)

      assert {:error, %Error{reason: :foreign_handle} = error} = file |> File.read!() |> Shm.attach()
      assert Exception.message(error) =~ "another VM"
    end
  end

  describe "to_json/1" do
    test "refuses what is no handle" do
      assert {:error, %Error{reason: :invalid_handle}} = Handle.to_json(%{})
    end

    test "refuses what has no JSON form, as an error like the others", %{region: region} do
      handle = %{Shm.handle(region) | "metadata" => %{"a" => {1, 2}}}
      assert {:error, %Error{}} = Handle.to_json(handle)
    end
  end
end
