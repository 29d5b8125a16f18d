defmodule Snakepit.Isolation.EnvironmentTest do
  # What of the VM's environment a worker has. The names are our own, so that nothing else reads them.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.Isolation.Environment

  @names ["SNAKEPIT_ONE", "SNAKEPIT_TWO", "SNAKEPIT_LARGE"]

  setup do
    on_exit(fn -> Enum.each(@names, &System.delete_env/1) end)
    System.put_env("SNAKEPIT_ONE", "one = 1")
    System.put_env("SNAKEPIT_TWO", "zwei: \u00fc")
  end

  defp seen(library, names \\ ["SNAKEPIT_ONE", "SNAKEPIT_TWO", "PATH"]),
    do: Enum.map(names, &Isolation.call!(library, :getenv, [&1], timeout: 10_000))

  test "inherited" do
    assert seen(load!(:differences)) == ["one = 1", "zwei: \u00fc", System.get_env("PATH")]
  end

  test "chosen" do
    library = load!(:differences, env: ["SNAKEPIT_TWO", "SNAKEPIT_UNKNOWN", {"SNAKEPIT_ONE", "another"}])
    assert seen(library) == ["another", "zwei: \u00fc", :undefined]
    assert seen(library, ["SNAKEPIT_UNKNOWN"]) == [:undefined]
  end

  test "empty" do
    library = load!(:differences, env: [])
    assert seen(library) == [:undefined, :undefined, :undefined]
    assert File.read!("/proc/#{os_pid(library)}/environ") == ""
  end

  test "of the moment at which a worker is started" do
    library = load!(:differences)
    System.put_env("SNAKEPIT_ONE", "changed")
    assert seen(library, ["SNAKEPIT_ONE"]) == ["one = 1"]
    old = os_pid(library)
    signal(old)
    successor(library, old)
    assert seen(library, ["SNAKEPIT_ONE"]) == ["changed"]
  end

  test "of more than a packet" do
    large = String.duplicate("x", 100_000)
    list = for n <- 1..10, do: {"SNAKEPIT_#{n}", large}
    library = load!(:differences, env: list ++ [{"SNAKEPIT_ONE", "last"}])
    assert seen(library, ["SNAKEPIT_ONE"]) == ["last"]
    assert byte_size(File.read!("/proc/#{os_pid(library)}/environ")) > 1_000_000
  end

  test "of more than a process can have is an error that says so" do
    # The kernel takes 128 KiB in one string.
    options = [sandbox: :none, env: [{"SNAKEPIT_LARGE", String.duplicate("x", 200_000)}]]
    assert {:error, %Error{reason: :not_loaded} = error} = Isolation.load(NativeFixture.path(:differences), options)
    assert Exception.message(error) =~ "its environment is longer than the kernel takes. Give it less with env:."
  end

  test "a block has each name once" do
    assert Environment.block([{"A", "1"}, {"A", "2"}]) == "A=2\0"
    assert Environment.block([]) == ""
  end
end
