defmodule Snakepit.Isolation.MemoryTest do
  # How much memory a worker may have, and what becomes of one that wants more.
  use Snakepit.IsolationCase, async: false

  @mega 1_048_576
  # The least for one call at a time.
  @limit 36 * @mega
  @by_the_api [:alloc, :realloc, :binary, :resource]

  defp call(library, function, arguments), do: Isolation.call(library, function, arguments)
  defp used(library), do: worker(library).memory.used

  for how <- [:malloc | @by_the_api] do
    test "#{how}: within the limit there is memory, past it there is none, and the worker lives" do
      library = load!(:hungry, memory: @limit)
      old = os_pid(library)
      before = used(library)
      assert {:ok, :ok} = call(library, :take, [unquote(how), 8 * @mega])
      assert used(library) >= before + 8 * @mega
      assert {:ok, :none} = call(library, :take, [unquote(how), @limit])
      assert {:ok, :ok} = call(library, :take, [unquote(how), @mega])
      assert %{memory: %{limit: @limit, used: used}, os_pid: ^old} = worker(library)
      assert used <= @limit
    end
  end

  for how <- @by_the_api do
    test "#{how}: who does not look ends, and the limit is known to be why" do
      library = load!(:hungry, memory: @limit)
      assert {:error, %Error{reason: :quota_exceeded} = error} = call(library, :insist, [unquote(how), @limit])
      assert %{signal: :SIGSEGV, function: {:insist, 2}, details: %{limit: @limit, because: :exited}} = error
      assert Exception.message(error) =~ "ended with SIGSEGV"
      assert Exception.message(error) =~ "#{@limit} bytes"
      assert Error.remedy(error) =~ "memory:"
      assert {:ok, :ok} = call(library, :insist, [unquote(how), @mega])
      assert %{restarts: 1, last_exit: %{limit: @limit}} = worker(library)
    end
  end

  test "malloc: who does not look ends, and that it was the limit nobody can know" do
    library = load!(:hungry, memory: @limit)
    assert {:error, %Error{reason: :crashed, signal: :SIGSEGV}} = call(library, :insist, [:malloc, @limit])
    assert {:ok, :ok} = call(library, :insist, [:malloc, @mega])
  end

  test "a term that is too large for it" do
    library = load!(:hungry, memory: @limit)
    assert {:error, %Error{reason: :quota_exceeded, signal: :SIGABRT}} = call(library, :list, [4 * @mega])
    assert {:ok, 1_000} = call(library, :list, [1_000])
  end

  test "an argument that is too large for it" do
    library = load!(:adder, memory: @limit)

    assert {:error, %Error{reason: :quota_exceeded, signal: :SIGABRT}} =
             call(library, :echo, [Enum.to_list(1..(2 * @mega))])

    assert {:ok, [1]} = call(library, :echo, [[1]])
  end

  test "what it survived is not the reason of an end that comes later" do
    library = load!(:hungry, memory: @limit)
    assert {:ok, :none} = call(library, :take, [:alloc, @limit])

    # There is nothing to wait for but time.
    receive do
    after
      1_100 -> :ok
    end

    assert {:error, %Error{reason: :crashed, signal: :SIGABRT}} = call(library, :crash, [])
  end

  test "without a limit, an end is an end" do
    library = load!(:hungry)
    assert %{memory: %{limit: :infinity, used: used}} = worker(library)
    assert used > 0
    assert {:ok, :ok} = call(library, :take, [:alloc, 4 * @limit])
    assert {:error, %Error{reason: :crashed}} = call(library, :insist, [:alloc, 0x4000_0000_0000_0000])
  end

  test "each worker has it for itself, also the next one" do
    library = load!(:hungry, memory: @limit, workers: 2)

    for _ <- 1..4 do
      assert {:error, %Error{reason: :quota_exceeded}} = call(library, :insist, [:alloc, @limit])
      ready(library)
    end

    for n <- 1..2, do: assert(%{memory: %{limit: @limit}} = worker(library, n))
  end

  test "the least is enough for whatever a worker does itself" do
    library = load!(:adder, memory: 9 * @mega * 11, concurrency: 8)
    calls = for n <- 1..64, do: Isolation.call_async(library, :echo, [{n, :binary.copy("x", 10_000)}])
    for call <- calls, do: assert({:ok, {_, _}} = Isolation.await(call))
    library = load!(:services, memory: @limit)
    assert {:ok, _} = call(library, :send, [self(), :word])
    assert_receive :word
  end

  test "through a module, as an exception" do
    module = Snakepit.OwnFixture.module(memory: @limit)
    :ok = Isolation.Module.load(module)
    assert %{memory: %{limit: @limit}} = worker(module)
    assert module.add(1, 2) == 3
  end
end
