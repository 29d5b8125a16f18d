defmodule Snakepit.Isolation.OptionsTest do
  use ExUnit.Case, async: true

  alias Snakepit.Isolation.{Error, Options}

  test "are completed" do
    assert {:ok, options} = Options.load("a/b", sandbox: :none)
    assert %{workers: 1, concurrency: 1, timeout: 5_000, slots: 64, sandbox: :none, load_info: 0} = options
    assert options.path == Path.expand("a/b")
    assert {:ok, %{path: path}} = Options.load({:kernel, "priv/x"}, sandbox: :none)
    assert path == Application.app_dir(:kernel, "priv/x")
  end

  for {key, good, bad} <- [
        {:name, [nil, :a], ["a", true, 1]},
        {:with, [nil, :a, "a"], [1, true, [:a], %{}]},
        {:load_info, [0, :any, %{}], []},
        {:workers, [1, 64], [0, 65, :many, 1.0]},
        {:concurrency, [1, 64], [0, 65]},
        {:timeout, [0, 1, :infinity, 4_294_967_295], [-1, 4_294_967_296, nil]},
        {:load_timeout, [1], [0, :infinity]},
        {:env, [:inherit, [], ["HOME", {"A", ""}]],
         [nil, :none, "HOME", ["A=B"], [""], ["A" | "B"], [{"A", "x\0"}], [{"A", nil}], %{"A" => "B"}]},
        {:memory, [:infinity, 37_748_736, 1_099_511_627_776], [0, 1.5, nil, 1_099_511_627_777]},
        {:restart, [:permanent, :transient, :temporary], [:always, true, nil]},
        {:max_restarts, [0, :infinity], [-1]},
        {:max_seconds, [1], [0]},
        {:heartbeat_timeout, [1_000, :infinity], [999]},
        {:spin, [0, 1_000], [-1, 1_001]},
        {:worker_spin, [0, 1_000_000], [-1]},
        {:slots, [1, 2, 64, 1_024], [0, 3, 2_048]},
        {:slot_size, [1_024, 1_048_576], [1_023, 1_025]},
        {:spill_size, [65_536, 2_147_483_648], [0, 65_537]},
        {:max_words, [1_024], [0]},
        {:max_depth, [16], [0]},
        {:max_names, [64], [0]},
        {:max_atoms, [0], [-1]},
        {:max_waiting, [0], [-1]},
        {:max_mailbox, [1, :infinity], [0, nil, 1.5]},
        {:max_mailbox_bytes, [1, :infinity], [0, "1"]},
        {:whereis, [[], [:a, nil], :all], [:a, ["a"], [:a | :b], true]},
        {:port_command, [true, false], [nil, :all]},
        {:output, [:debug, :discard], [:loud, nil]},
        {:telemetry, [true, false], [nil]}
      ] do
    test "#{key}" do
      key = unquote(key)

      for value <- unquote(Macro.escape(good)) do
        assert {:ok, %{^key => ^value}} = Options.load("x", [{key, value}, {:sandbox, :none}])
      end

      for value <- unquote(Macro.escape(bad)) do
        assert {:error, %Error{reason: :invalid_option, details: details} = error} =
                 Options.load("x", [{key, value}, {:sandbox, :none}])

        assert %{key: ^key, expected: expected, got: ^value} = details
        assert Exception.message(error) =~ expected
      end
    end
  end

  test "memory is enough for a worker's own threads" do
    least = 9 * 1_048_576 * 4
    assert {:ok, _} = Options.load("x", sandbox: :none, memory: least)

    for {memory, concurrency} <- [{least - 1, 1}, {least, 2}] do
      assert {:error, %Error{reason: :invalid_option, details: %{key: :memory, expected: expected, got: ^memory}}} =
               Options.load("x", sandbox: :none, memory: memory, concurrency: concurrency)

      assert expected =~ "with concurrency: #{concurrency}"
    end
  end

  test "that are unknown are refused with the nearest" do
    assert {:error, %Error{reason: :invalid_option} = error} = Options.load("x", sandbox: :none, worker: 2)
    assert Exception.message(error) =~ "did you mean :workers?"
  end

  test "all problems are in one error" do
    assert {:error, error} = Options.load("x", sandbox: :none, workers: 0, slots: 3)
    assert Exception.message(error) =~ ":workers"
    assert Exception.message(error) =~ ":slots"
  end

  test "a path is a path" do
    for bad <- [nil, 1, "", :a, {:kernel, 1}, "a\0b"] do
      assert {:error, %Error{reason: :invalid_option, details: %{key: :path}}} = Options.load(bad, sandbox: :none)
    end

    assert {:error, %Error{reason: :not_loaded} = error} = Options.load({:nobody, "priv/x"}, sandbox: :none)
    assert Exception.message(error) =~ ":nobody"
    assert {:error, %Error{reason: :invalid_option, details: %{key: :options}}} = Options.load("x", :none)
  end
end
