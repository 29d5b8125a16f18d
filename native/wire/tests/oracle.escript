#!/usr/bin/env escript
%% The VM's own external term format, to hold the codec against.
%%   oracle.escript vectors           the fixed terms of vectors.txt: name, bytes in hexadecimal
%%   oracle.escript terms SEED N      N random terms, one a line, in hexadecimal
%%   oracle.escript check SEED N FILE whether FILE has the same terms, in whatever bytes
-mode(compile).

main(["vectors"]) ->
    [io:format("~s ~s~n", [Name, hex(bytes(Term))]) || {Name, Term} <- vectors()];
main(["terms", Seed, N]) ->
    [io:format("~s~n", [hex(bytes(Term))]) || Term <- terms(Seed, N)];
main(["check", Seed, N, File]) ->
    {ok, Text} = file:read_file(File),
    Answers = [binary_to_term(<<131, (unhex(Line))/binary>>) || Line <- binary:split(Text, <<"\n">>, [global, trim])],
    Terms = terms(Seed, N),
    length(Answers) =:= length(Terms) orelse halt(2),
    [begin io:format("sent ~w~ncame ~w~n", [Sent, Came]), halt(1) end
     || {Sent, Came} <- lists:zip(Terms, Answers), Sent =/= Came].

bytes(Term) ->
    <<131, Bytes/binary>> = term_to_binary(Term),
    Bytes.

hex(Bytes) -> [io_lib:format("~2.16.0b", [Byte]) || <<Byte>> <= Bytes].
unhex(Text) -> << <<(binary_to_integer(<<Pair:2/binary>>, 16))>> || <<Pair:2/binary>> <= Text >>.

vectors() ->
    [{"zero", 0}, {"byte", 255}, {"256", 256}, {"minus_one", -1}, {"max_32", 2147483647}, {"min_32", -2147483648},
     {"above_32", 2147483648}, {"below_32", -2147483649}, {"max_60", (1 bsl 59) - 1}, {"max_64", (1 bsl 63) - 1},
     {"min_64", -(1 bsl 63)}, {"above_64", 1 bsl 63}, {"max_u64", (1 bsl 64) - 1}, {"below_64", -(1 bsl 63) - 1},
     {"above_u64", 1 bsl 64}, {"big_256_bytes", 1 bsl (8 * 255)}, {"float", 1.5}, {"minus_zero", -0.0},
     {"atom", ok}, {"empty_atom", ''}, {"latin1_atom", list_to_atom([16#e9])}, {"utf8_atom", list_to_atom([16#416, 16#1F600])},
     {"long_atom", list_to_atom(lists:duplicate(255, 16#20AC))},
     {"nil", []}, {"string", "abc"}, {"list", [1, 256]}, {"improper", [1, 2 | 3]}, {"nested", [[], [[]]]},
     {"empty_tuple", {}}, {"pair", {ok, 3}}, {"large_tuple", list_to_tuple(lists:duplicate(256, []))},
     {"empty_map", #{}}, {"map", #{a => 1}}, {"empty_binary", <<>>}, {"binary", <<"hello">>}, {"bits", <<5:3>>},
     {"bits_13", <<1023:13>>},
     {"foreign_pid", self()}, {"foreign_port", hd(erlang:ports())}, {"foreign_reference", make_ref()},
     {"foreign_export", fun lists:map/2}, {"foreign_fun", fun() -> ok end}].

terms(Seed, N) ->
    rand:seed(exsss, list_to_integer(Seed)),
    [term(4) || _ <- lists:seq(1, list_to_integer(N))].

term(0) -> leaf(rand:uniform(10));
term(Depth) ->
    case rand:uniform(12) of
        1 -> [term(Depth - 1) || _ <- lists:seq(1, size())];
        2 -> list_to_tuple([term(Depth - 1) || _ <- lists:seq(1, size())]);
        3 -> maps:from_list([{term(Depth - 1), term(Depth - 1)} || _ <- lists:seq(1, size())]);
        4 -> [term(Depth - 1), term(Depth - 1) | term(Depth - 1)];
        5 -> maps:from_list([{leaf(rand:uniform(10)), I} || I <- lists:seq(1, 20 * size())]);
        6 -> [rand:uniform(256) - 1 || _ <- lists:seq(1, 40)];
        _ -> leaf(rand:uniform(10))
    end.

size() -> rand:uniform(7) - 1.

leaf(1) -> rand:uniform(512) - 256;
leaf(2) -> rand:uniform(1 bsl 34) - (1 bsl 33);
leaf(3) -> rand:uniform(1 bsl 65) - (1 bsl 64);
leaf(4) -> (rand:uniform(2) * 2 - 3) * (rand:uniform(1 bsl (8 * rand:uniform(300))));
leaf(5) -> (rand:uniform() - 0.5) * math:pow(10, rand:uniform(600) - 300);
leaf(6) -> list_to_atom([character() || _ <- lists:seq(1, rand:uniform(40) - 1)]);
leaf(7) -> rand:bytes(rand:uniform(200) - 1);
leaf(8) -> Bits = rand:uniform(100), <<(rand:uniform(1 bsl Bits) - 1):Bits>>;
leaf(9) -> [];
leaf(10) -> element(rand:uniform(4), {true, undefined, {}, #{}}).

character() -> element(rand:uniform(4), {$a + rand:uniform(26) - 1, 16#e0 + rand:uniform(20), 16#3b1 + rand:uniform(20), 16#1F600 + rand:uniform(50)}).
