defmodule Snakepit.Differential.Crypto do
  @moduledoc false
  # OTP's crypto, its functions called as crypto.erl calls them: what is deterministic, and the errors of the rest.

  import Snakepit.Differential.Terms

  @hashes [:md5, :sha, :sha256, :sha512, :sha3_256, :blake2b]
  @aes %{aes_128_cbc: 16, aes_256_cbc: 32, aes_256_ctr: 32, aes_128_ecb: 16, aes_192_cfb8: 24, chacha20: 32}
  @aead %{aes_128_gcm: {16, 12}, aes_256_gcm: {32, 12}, chacha20_poly1305: {32, 12}, aes_128_ccm: {16, 7}}

  def library do
    %{
      path: {:crypto, "priv/lib/crypto"},
      load_info: &{version(), &1, false},
      calls: information() ++ keys() ++ signatures() ++ secrets() ++ large() ++ refused(),
      any: generated(),
      scripts: [&hashing/1, &authenticating/1, &streaming/1, &padding/1],
      # The library sorts its ciphers by the numbers of their atoms, which each VM has of its own.
      unordered: [:cipher_algorithms],
      may_fail: [:engine_by_id_nif, :rsa_generate_key_nif, :strong_rand_bytes_nif, :rand_uniform_nif, :rand_seed_nif]
    }
  end

  # The first element of what crypto.erl gives to load_nif; the library checks it. Each release has its own.
  defp version do
    {:ok, {:crypto, [abstract_code: {:raw_abstract_v1, forms}]}} =
      :beam_lib.chunks(:code.which(:crypto), [:abstract_code])

    find = fn find, form ->
      case form do
        {:call, _, {:remote, _, {:atom, _, :erlang}, {:atom, _, :load_nif}}, [_, {:tuple, _, [{:integer, _, v} | _]}]} ->
          v

        form when is_tuple(form) ->
          find.(find, Tuple.to_list(form))

        form when is_list(form) ->
          Enum.find_value(form, &find.(find, &1))

        _ ->
          nil
      end
    end

    find.(find, forms)
  end

  defp information do
    for(
      name <- [:info_lib, :info_nif, :info_fips, :hash_algorithms, :cipher_algorithms, :mac_algorithms],
      do: {name, []}
    ) ++
      for(name <- [:curve_algorithms, :pubkey_algorithms, :rsa_opts_algorithms], do: {name, []}) ++
      for(type <- [:nothing, "sha" | @hashes], do: {:hash_info, [type]}) ++
      for(type <- [:nothing, 1 | Map.keys(@aes)], do: {:cipher_info_nif, [type]}) ++
      [engine_get_all_methods_nif: [], engine_by_id_nif: ["no such engine"], enable_fips_mode_nif: [false]]
  end

  # ── Generated arguments ───────────────────────────────────────────────────────────────────────────────────────

  defp generated do
    hash = or_other(one_of(@hashes))
    cipher = one_of(for {cipher, size} <- @aes, do: {cipher, bytes(size)})

    [
      hash_nif: [hash, or_other(iodata())],
      hash_equals_nif: [one_of([binary(), bytes(4)]), bytes(4)],
      mac_nif: [:hmac, hash, or_other(binary()), iodata()],
      mac_nif: [:cmac, or_other(:aes_128_cbc), one_of([bytes(16), binary()]), data()],
      mac_nif: [:poly1305, :undefined, one_of([bytes(32), binary()]), data()],
      mac_nif: [leaf(), leaf(), binary(), data()],
      pbkdf2_hmac_nif: [one_of([:sha, :sha256, :md5]), binary(), binary(), range(1, 5), range(1, 70)],
      do_exor: [bytes(70), bytes(70)],
      do_exor: [binary(), or_other(binary())],
      mod_exp_nif: [positive(), positive(), positive(), range(0, 1)],
      ng_crypto_one_time_nif: flat(cipher, fn {cipher, key} -> [cipher, key, iv(cipher), padded(), bool()] end),
      ng_crypto_one_time_nif: [or_other(one_of(Map.keys(@aes))), binary(), binary(), data(), or_other(bool())],
      aead_cipher_nif: flat(one_of(Map.to_list(@aead)), &sealing/1),
      aead_cipher_nif: flat(one_of(Map.to_list(@aead)), &opening/1)
    ]
  end

  # A list of arguments, of which the first says what the others can be.
  defp flat(type, arguments), do: :proper_types.bind(type, arguments, false)

  defp positive, do: bind(one_of([bytes(1), bytes(9), bytes(64)]), &(&1 <> <<1>>))
  defp padded, do: bind({range(0, 40), range(0, 255)}, fn {blocks, byte} -> :binary.copy(<<byte>>, 16 * blocks) end)
  defp iv(cipher) when cipher in [:aes_128_ecb], do: ""
  defp iv(_cipher), do: bytes(16)

  defp sealing({cipher, {key, iv}}), do: [cipher, bytes(key), bytes(iv), data(), binary(), 16, true]
  # A tag that fits would be chance: `error`.
  defp opening({cipher, {key, iv}}), do: [cipher, bytes(key), bytes(iv), data(), binary(), bytes(16), false]

  # ── Objects ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp hashing(call) do
    for type <- @hashes do
      {:ok, state} = call.(:hash_init_nif, [type])
      {:ok, second} = call.(:hash_update_nif, [state, "one, "])
      # The states are values: an update leaves the one it is of.
      {:ok, third} = call.(:hash_update_nif, [second, ["two", [?!]]])
      {:ok, other} = call.(:hash_update_nif, [second, :binary.copy("three", 100_000)])
      for state <- [other, third, second, state], do: {:ok, _} = call.(:hash_final_nif, [state])
      call.(:hash_update_nif, [second, :no_data])
    end

    call.(:hash_init_nif, [:nothing])
    call.(:hash_final_nif, [:no_state])
  end

  defp authenticating(call) do
    for {type, sub_type, key} <- [
          {:hmac, :sha256, "key"},
          {:cmac, :aes_128_cbc, key(16)},
          {:poly1305, :undefined, key(32)}
        ] do
      {:ok, state} = call.(:mac_init_nif, [type, sub_type, key])
      {:ok, state} = call.(:mac_update_nif, [state, "some data"])
      {:ok, state} = call.(:mac_update_nif, [state, [:binary.copy("more", 20_000)]])
      call.(:mac_update_nif, [state, :no_data])
      {:ok, _} = call.(:mac_final_nif, [state])
    end

    call.(:mac_init_nif, [:hmac, :nothing, "key"])
  end

  defp streaming(call) do
    {:ok, cipher} = call.(:ng_crypto_init_nif, [:aes_256_ctr, key(32), key(16), true])

    for part <- ["", "a", key(100), :binary.copy("x", 50_000), :no_data],
        do: call.(:ng_crypto_update_nif, [cipher, part])

    {:ok, _} = call.(:ng_crypto_final_nif, [cipher])
    # An IV for each block: no longer with OpenSSL 3.
    with {:ok, cipher} <- call.(:ng_crypto_init_nif, [:aes_128_ctr, key(16), :undefined, true]),
         do: for(n <- 1..3, do: call.(:ng_crypto_update_nif, [cipher, "block", key(15) <> <<n>>]))

    call.(:ng_crypto_init_nif, [:aes_256_ctr, "short", key(16), true])
  end

  defp padding(call) do
    for padding <- [:pkcs_padding, :zero, :none] do
      {:ok, cipher} = call.(:ng_crypto_init_nif, [:aes_128_cbc, key(16), key(16), [encrypt: true, padding: padding]])
      call.(:ng_crypto_update_nif, [cipher, "seventeen bytes.."])
      call.(:ng_crypto_final_nif, [cipher])
      call.(:ng_crypto_get_data_nif, [cipher])
    end
  end

  # ── Public keys ───────────────────────────────────────────────────────────────────────────────────────────────

  # Some bytes, always the same.
  defp key(size), do: for(n <- 1..size, into: "", do: <<rem(n * 37, 256)>>)

  defp curve(name) when name in [:x25519, :x448], do: {:evp, name}
  defp curve(name), do: {:crypto_ec_curves.curve(name), name}

  defp keys do
    for(name <- [:secp256r1, :secp384r1, :secp256k1], do: {:ec_generate_key_nif, [curve(name), key(32)]}) ++
      for(name <- [:x25519, :ed25519], do: {:evp_generate_key_nif, [name, key(32)]}) ++
      [evp_generate_key_nif: [:nothing, key(32)], ec_generate_key_nif: [{:undefined, :nothing}, key(32)]] ++
      for(at <- [key(32), "", :no_key], do: {:privkey_to_pubkey_nif, [:eddsa, [at, :ed25519]]}) ++
      [privkey_to_pubkey_nif: [:rsa, rsa()], privkey_to_pubkey_nif: [:rsa, [key(3)]]]
  end

  defp secrets do
    {public, _} = :crypto.generate_key(:ecdh, :secp256r1, key(32))
    {x_public, _} = :crypto.generate_key(:eddh, :x25519, key(32))
    prime = :binary.encode_unsigned(2 ** 521 - 1)
    {host, private} = {key(64), key(32)}

    [
      ecdh_compute_key_nif: [public, curve(:secp256r1), key(32)],
      ecdh_compute_key_nif: ["no point", curve(:secp256r1), key(32)],
      evp_compute_key_nif: [:x25519, x_public, key(32)],
      evp_compute_key_nif: [:x25519, "short", key(32)],
      dh_compute_key_nif: [host, private, [prime, <<5>>]],
      dh_compute_key_nif: [:no_key, private, [prime, <<5>>]],
      srp_value_B_nif: [<<3>>, host, <<5>>, private, prime],
      srp_user_secret_nif: [private, key(20), host, <<3>>, <<5>>, key(20), prime],
      srp_host_secret_nif: [host, private, key(20), host, prime]
    ]
  end

  # [e, n, d, p, q, dp, dq, qi], as crypto.erl hands it over.
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
    ec = {curve(:secp256r1), ec_public}
    pkcs = [rsa_padding: :rsa_pkcs1_padding]
    signature = :crypto.sign(:rsa, :sha256, "text", private)
    ec_signature = :crypto.sign(:ecdsa, :sha256, "text", [ec_private, :secp256r1])
    ed_signature = :crypto.sign(:eddsa, :none, "text", [ed_private, :ed25519])
    sealed = :crypto.private_encrypt(:rsa, "secret", private, :rsa_pkcs1_padding)
    closed = :crypto.public_encrypt(:rsa, "secret", [e, n], :rsa_pkcs1_padding)

    [
      pkey_sign_nif: [:rsa, :sha256, "text", private, pkcs],
      pkey_sign_nif: [:rsa, :sha256, {:digest, key(32)}, private, pkcs],
      pkey_sign_nif: [:rsa, :sha256, {:digest, "short"}, private, pkcs],
      pkey_sign_nif: [:rsa, :sha256, "text", [e, n], pkcs],
      pkey_sign_nif: [:rsa, :nothing, "text", private, pkcs],
      pkey_sign_nif: [:rsa, :sha256, "text", private, [rsa_padding: :nothing]],
      pkey_sign_nif: [:eddsa, :none, "text", [ed_private, :ed25519], []],
      pkey_verify_nif: [:rsa, :sha256, "text", signature, [e, n], pkcs],
      pkey_verify_nif: [:rsa, :sha256, "another text", signature, [e, n], pkcs],
      pkey_verify_nif: [:ecdsa, :sha256, "text", ec_signature, ec, []],
      pkey_verify_nif: [:ecdsa, :sha256, "text", "no signature", ec, []],
      pkey_verify_nif: [:eddsa, :none, "text", ed_signature, [ed_public, :ed25519], []],
      pkey_verify_nif: [:eddsa, :none, "text", key(64), [ed_public, :ed25519], []],
      pkey_crypt_nif: [:rsa, "secret", private, pkcs, true, true],
      pkey_crypt_nif: [:rsa, sealed, [e, n], pkcs, false, false],
      pkey_crypt_nif: [:rsa, closed, private, pkcs, true, false],
      pkey_crypt_nif: [:rsa, key(200), private, pkcs, true, true]
    ]
  end

  # ── The rest ──────────────────────────────────────────────────────────────────────────────────────────────────

  # So much that crypto goes to a dirty scheduler, or gives way in between.
  defp large do
    data = :binary.copy("0123456789abcdef", 400_000)

    [
      hash_nif: [:sha256, data],
      hash_nif: [:sha, [data, "end"]],
      mac_nif: [:hmac, :sha256, "key", data],
      ng_crypto_one_time_nif: [:aes_256_ctr, key(32), key(16), data, true],
      aead_cipher_nif: [:aes_256_gcm, key(32), key(12), data, "", 16, true],
      do_exor: [binary_part(data, 0, 70_000), binary_part(data, 7, 70_000)],
      pbkdf2_hmac_nif: [:sha256, "password", "salt", 10_000, 64]
    ]
  end

  # What is random cannot be compared, its errors can.
  defp refused do
    for(argument <- [-1, :many, "4", 1.0], do: {:strong_rand_bytes_nif, [argument]}) ++
      [
        rand_uniform_nif: ["", ""],
        rand_uniform_nif: [1, 2],
        rand_seed_nif: [:seed],
        rsa_generate_key_nif: [:bits, <<3>>]
      ]
  end
end
