defmodule Snakepit.Differential.CryptoModule do
  @moduledoc false
  # OTP's crypto as its users call it: what is deterministic, and the errors of the rest.

  import Snakepit.Differential.Terms

  @hashes [:md5, :sha, :sha256, :sha512, :sha3_256, :blake2b]
  @ciphers %{aes_128_cbc: 16, aes_256_cbc: 32, aes_256_ctr: 32, aes_128_ecb: 16, chacha20: 32}
  @aead %{aes_128_gcm: {16, 12}, aes_256_gcm: {32, 12}, chacha20_poly1305: {32, 12}, aes_128_ccm: {16, 7}}

  def calls do
    %{
      module: :crypto,
      calls: information() ++ keys() ++ signatures() ++ large() ++ refused(),
      any: generated(),
      scripts: [&hashing/1, &authenticating/1, &streaming/1, &padding/1],
      # The library sorts its ciphers by the numbers of their atoms, which each VM has of its own.
      unordered: [:supports],
      may_fail: [
        :engine_by_id,
        :engine_get_all_methods,
        :crypto_dyn_iv_init,
        :strong_rand_bytes,
        :rand_uniform,
        :rand_seed
      ]
    }
  end

  defp information do
    for(name <- [:info, :info_lib, :info_fips, :ec_curves, :engine_get_all_methods, :version], do: {name, []}) ++
      for(what <- [:hashs, :ciphers, :macs, :curves, :public_keys, :rsa_opts], do: {:supports, [what]}) ++
      for(type <- [:nothing, "sha" | @hashes], do: {:hash_info, [type]}) ++
      for(type <- [:nothing, 1 | Map.keys(@ciphers)], do: {:cipher_info, [type]}) ++
      for(name <- [:secp256r1, :nothing], do: {:ec_curve, [name]}) ++
      [supports: [:nothing], engine_by_id: ["no such engine"], enable_fips_mode: [false]]
  end

  # ── Generated arguments ───────────────────────────────────────────────────────────────────────────────────────

  defp generated do
    hash = or_other(one_of(@hashes))

    [
      hash: [hash, or_other(iodata())],
      hash_equals: [one_of([binary(), bytes(4)]), bytes(4)],
      mac: [:hmac, hash, or_other(binary()), iodata()],
      mac: [:cmac, or_other(:aes_128_cbc), one_of([bytes(16), binary()]), data()],
      mac: [or_other(:poly1305), one_of([bytes(32), binary()]), data()],
      macN: [:hmac, hash, binary(), iodata(), range(0, 80)],
      pbkdf2_hmac: [one_of([:sha, :sha256, :md5]), binary(), binary(), range(0, 5), range(1, 70)],
      exor: [bytes(70), bytes(70)],
      exor: [iodata(), or_other(binary())],
      mod_pow: [or_other(range(0, 1_000_000)), range(0, 1_000_000), range(1, 1_000_000)],
      bytes_to_integer: [or_other(binary())],
      crypto_one_time: one_time(fn cipher, key -> [cipher, key, iv(cipher), padded(), bool()] end),
      crypto_one_time: one_time(fn cipher, key -> [cipher, key, or_other(data()), options()] end),
      crypto_one_time: [or_other(one_of(Map.keys(@ciphers))), or_other(binary()), binary(), data(), or_other(bool())],
      crypto_one_time_aead: flat(one_of(Map.to_list(@aead)), &sealing/1),
      # (A key that is too short is not refused: the library reads on behind it.)
      crypto_one_time_aead: flat(one_of(Map.to_list(@aead)), &opening/1),
      crypto_one_time_aead: [leaf(), bytes(32), bytes(12), data(), binary(), or_other(bool())]
    ]
  end

  # A list of arguments, of which the first says what the others can be.
  defp flat(type, arguments), do: :proper_types.bind(type, arguments, false)

  defp one_time(arguments) do
    cipher = one_of(for {cipher, size} <- @ciphers, do: {cipher, bytes(size)})
    flat(cipher, fn {cipher, key} -> arguments.(cipher, key) end)
  end

  defp padded, do: bind({range(0, 40), range(0, 255)}, fn {blocks, byte} -> :binary.copy(<<byte>>, 16 * blocks) end)
  defp iv(:aes_128_ecb), do: ""
  defp iv(_cipher), do: bytes(16)

  defp options,
    do: or_other(one_of([[], [encrypt: true], [encrypt: true, padding: :pkcs_padding], [padding: :nothing]]))

  defp sealing({cipher, {key, iv}}), do: [cipher, bytes(key), bytes(iv), data(), binary(), true]
  # A tag that fits would be chance: `error`.
  defp opening({cipher, {key, iv}}), do: [cipher, bytes(key), bytes(iv), data(), binary(), bytes(16), false]

  # ── Objects ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp hashing(call) do
    for type <- @hashes do
      {:ok, state} = call.(:hash_init, [type])
      {:ok, second} = call.(:hash_update, [state, "one, "])
      {:ok, third} = call.(:hash_update, [second, ["two", [?!]]])
      {:ok, other} = call.(:hash_update, [second, :binary.copy("three", 100_000)])
      for state <- [other, third, second, state], do: {:ok, _} = call.(:hash_final, [state])
      call.(:hash_update, [second, :no_data])
    end

    call.(:hash_init, [:nothing])
    call.(:hash_final, [:no_state])
  end

  defp authenticating(call) do
    for arguments <- [[:hmac, :sha256, "key"], [:cmac, :aes_128_cbc, key(16)], [:poly1305, key(32)]] do
      {:ok, state} = call.(:mac_init, arguments)
      {:ok, state} = call.(:mac_update, [state, "some data"])
      {:ok, state} = call.(:mac_update, [state, [:binary.copy("more", 20_000)]])
      call.(:mac_update, [state, :no_data])
      {:ok, _} = call.(:mac_finalN, [state, 4])
    end

    call.(:mac_init, [:hmac, :nothing, "key"])
    {:ok, state} = call.(:mac_init, [:hmac, :sha, "key"])
    call.(:mac_final, [state])
  end

  defp streaming(call) do
    {:ok, cipher} = call.(:crypto_init, [:aes_256_ctr, key(32), key(16), true])

    for part <- ["", "a", key(100), :binary.copy("x", 50_000), :no_data],
        do: call.(:crypto_update, [cipher, part])

    {:ok, _} = call.(:crypto_final, [cipher])
    call.(:crypto_init, [:aes_256_ctr, "short", key(16), true])
    call.(:crypto_update, [:no_cipher, "a"])
    # An IV for each block: no longer with OpenSSL 3.
    with {:ok, cipher} <- call.(:crypto_dyn_iv_init, [:aes_128_ctr, key(16), true]),
         do: for(n <- 1..3, do: call.(:crypto_dyn_iv_update, [cipher, "block", key(15) <> <<n>>]))
  end

  defp padding(call) do
    for padding <- [:pkcs_padding, :zero, :none] do
      {:ok, cipher} = call.(:crypto_init, [:aes_128_cbc, key(16), key(16), [encrypt: true, padding: padding]])
      call.(:crypto_update, [cipher, "seventeen bytes.."])
      call.(:crypto_final, [cipher])
      call.(:crypto_get_data, [cipher])
    end
  end

  # ── Public keys ───────────────────────────────────────────────────────────────────────────────────────────────

  # Some bytes, always the same.
  defp key(size), do: for(n <- 1..size, into: "", do: <<rem(n * 37, 256)>>)

  defp keys do
    prime = :binary.encode_unsigned(2 ** 521 - 1)
    {host, private} = {key(64), key(32)}
    {public, _} = :crypto.generate_key(:ecdh, :secp256r1, private)
    {x_public, _} = :crypto.generate_key(:eddh, :x25519, private)
    user = {:user, [private, prime, <<5>>, :"6"]}

    for(name <- [:secp256r1, :secp384r1, :secp256k1, :nothing], do: {:generate_key, [:ecdh, name, private]}) ++
      for(name <- [:x25519, :nothing], do: {:generate_key, [:eddh, name, private]}) ++
      [
        generate_key: [:eddsa, :ed25519, private],
        generate_key: [:srp, user, private],
        generate_key: [:nothing, :nothing],
        compute_key: [:ecdh, public, private, :secp256r1],
        compute_key: [:ecdh, "no point", private, :secp256r1],
        compute_key: [:eddh, x_public, private, :x25519],
        compute_key: [:eddh, "short", private, :x25519],
        compute_key: [:dh, host, private, [prime, <<5>>]],
        compute_key: [:dh, :no_key, private, [prime, <<5>>]],
        privkey_to_pubkey: [:eddsa, [private, :ed25519]],
        privkey_to_pubkey: [:rsa, rsa()],
        privkey_to_pubkey: [:rsa, [key(3)]]
      ]
  end

  # [e, n, d, p, q, dp, dq, qi].
  defp rsa do
    case :persistent_term.get(__MODULE__, nil) do
      nil ->
        {_, private} = :crypto.generate_key(:rsa, {1_024, 65_537})
        :persistent_term.put(__MODULE__, private)
        private

      key ->
        key
    end
  end

  defp signatures do
    [e, n | _] = private = rsa()
    {ed_public, ed_private} = :crypto.generate_key(:eddsa, :ed25519, key(32))
    {ec_public, ec_private} = :crypto.generate_key(:ecdh, :secp256r1, key(32))
    signature = :crypto.sign(:rsa, :sha256, "text", private)
    ec_signature = :crypto.sign(:ecdsa, :sha256, "text", [ec_private, :secp256r1])
    ed_signature = :crypto.sign(:eddsa, :none, "text", [ed_private, :ed25519])
    sealed = :crypto.private_encrypt(:rsa, "secret", private, :rsa_pkcs1_padding)
    closed = :crypto.public_encrypt(:rsa, "secret", [e, n], :rsa_pkcs1_padding)

    [
      sign: [:rsa, :sha256, "text", private],
      sign: [:rsa, :sha256, {:digest, key(32)}, private],
      sign: [:rsa, :sha256, {:digest, "short"}, private],
      sign: [:rsa, :sha256, "text", [e, n]],
      sign: [:rsa, :nothing, "text", private],
      sign: [:rsa, :sha256, "text", private, [rsa_padding: :nothing]],
      sign: [:rsa, :sha256, "text", private, [rsa_padding: :rsa_pkcs1_padding]],
      sign: [:eddsa, :none, "text", [ed_private, :ed25519]],
      verify: [:rsa, :sha256, "text", signature, [e, n]],
      verify: [:rsa, :sha256, "another text", signature, [e, n]],
      verify: [:ecdsa, :sha256, "text", ec_signature, [ec_public, :secp256r1]],
      verify: [:ecdsa, :sha256, "text", "no signature", [ec_public, :secp256r1]],
      verify: [:eddsa, :none, "text", ed_signature, [ed_public, :ed25519]],
      verify: [:eddsa, :none, "text", key(64), [ed_public, :ed25519]],
      private_encrypt: [:rsa, "secret", private, :rsa_pkcs1_padding],
      private_encrypt: [:rsa, key(200), private, :rsa_pkcs1_padding],
      public_decrypt: [:rsa, sealed, [e, n], :rsa_pkcs1_padding],
      private_decrypt: [:rsa, closed, private, :rsa_pkcs1_padding],
      private_decrypt: [:rsa, "no cipher text", private, :rsa_pkcs1_padding],
      # Without padding, since that is random.
      public_encrypt: [:rsa, <<0>> <> key(127), [e, n], :rsa_no_padding],
      public_encrypt: [:rsa, key(200), [e, n], :rsa_pkcs1_padding]
    ]
  end

  # ── The rest ──────────────────────────────────────────────────────────────────────────────────────────────────

  # So much that crypto goes to a dirty scheduler, or gives way in between.
  defp large do
    data = :binary.copy("0123456789abcdef", 400_000)

    [
      hash: [:sha256, data],
      hash: [:sha, [data, "end"]],
      mac: [:hmac, :sha256, "key", data],
      crypto_one_time: [:aes_256_ctr, key(32), key(16), data, true],
      crypto_one_time_aead: [:aes_256_gcm, key(32), key(12), data, "", true],
      exor: [binary_part(data, 0, 70_000), binary_part(data, 7, 70_000)],
      pbkdf2_hmac: [:sha256, "password", "salt", 10_000, 64]
    ]
  end

  # What is random cannot be compared, its errors can.
  defp refused do
    for(argument <- [-1, :many, "4", 1.0], do: {:strong_rand_bytes, [argument]}) ++
      [rand_uniform: ["", ""], rand_uniform: [:a, 2], rand_seed: [:seed], generate_key: [:rsa, {:bits, 3}]]
  end
end
