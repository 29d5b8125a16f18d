defmodule Snakepit.Isolation.DropInCryptoTest do
  # What OTP itself uses, isolated while it uses it: crypto, under ssl and public_key.
  use Snakepit.IsolationCase, async: false

  @moduletag timeout: 180_000

  setup do
    {:ok, _} = Application.ensure_all_started(:ssl)

    on_exit(fn ->
      if Isolation.DropIn.fetch(:crypto), do: eventually(fn -> Isolation.restore(:crypto) == :ok end)
    end)
  end

  @key :binary.copy(<<7>>, 16)

  test "objects of the library live on from call to call" do
    assert :ok = Isolation.isolate(:crypto, sandbox: :none)
    state = Enum.reduce(~w(a b c), :crypto.hash_init(:sha256), &:crypto.hash_update(&2, &1))
    assert :crypto.hash_final(state) == :crypto.hash(:sha256, "abc")
    cipher = :crypto.crypto_init(:aes_128_ctr, @key, @key, true)
    assert :crypto.crypto_update(cipher, "text") == :crypto.crypto_one_time(:aes_128_ctr, @key, @key, "text", true)
    {public, private} = :crypto.generate_key(:ecdh, :secp256r1)
    signature = :crypto.sign(:ecdsa, :sha256, "text", [private, :secp256r1])
    assert :crypto.verify(:ecdsa, :sha256, "text", signature, [public, :secp256r1])
    assert byte_size(:crypto.strong_rand_bytes(1_000)) == 1_000
  end

  for version <- [:"tlsv1.2", :"tlsv1.3"] do
    test "a connection by #{version}" do
      root = [key: {:namedCurve, :secp256r1}]
      chains = %{root: root, intermediates: [], peer: root}

      %{server_config: server, client_config: client} =
        :public_key.pkix_test_data(%{server_chain: chains, client_chain: chains})

      assert :ok = Isolation.isolate(:crypto, sandbox: :none)
      calls = info!(:crypto).calls
      options = [versions: [unquote(version)], mode: :binary, active: false, log_level: :none]

      {:ok, listen} = :ssl.listen(0, server ++ options ++ [reuseaddr: true, ip: {127, 0, 0, 1}])
      {:ok, {_, port}} = :ssl.sockname(listen)

      echo =
        Task.async(fn ->
          {:ok, socket} = :ssl.transport_accept(listen, 20_000)
          {:ok, socket} = :ssl.handshake(socket, 60_000)
          {:ok, bytes} = :ssl.recv(socket, 100_000, 60_000)
          :ok = :ssl.send(socket, bytes)
          {:error, :closed} = :ssl.recv(socket, 1, 60_000)
        end)

      {:ok, socket} =
        :ssl.connect(
          {127, 0, 0, 1},
          port,
          client ++ options ++ [server_name_indication: :disable, verify: :verify_peer],
          60_000
        )

      assert {:ok, [protocol: unquote(version)]} = :ssl.connection_information(socket, [:protocol])
      text = :binary.copy("0123456789", 10_000)
      :ok = :ssl.send(socket, text)
      assert :ssl.recv(socket, 100_000, 60_000) == {:ok, text}
      :ok = :ssl.close(socket)
      Task.await(echo, 60_000)
      :ssl.close(listen)
      assert info!(:crypto).calls > calls + 10
    end
  end
end
