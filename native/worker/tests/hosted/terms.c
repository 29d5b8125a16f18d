/* A library that shows what the functions of the NIF API do: each function here is a thin cover of some of them. */

#include <erl_nif.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define NIF(name) static ERL_NIF_TERM name(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
#define ATOM(text) enif_make_atom(env, text)

static ErlNifResourceType *counted;
static int destroyed;
static ErlNifEnv *kept_env;
static ERL_NIF_TERM kept;
static void *retained;

static void destroy(ErlNifEnv *env, void *object)
{
    (void)enif_make_atom(env, "destroyed");
    destroyed += *(int *)object;
}

/* Newer than this header. */
extern int enif_set_option(ErlNifEnv *, int, ...);

enum { DELAY_HALT = 1, ON_HALT, ON_UNLOAD_THREAD };

static void gone(void *data) { (void)data; }

static int types_are_opened(ErlNifEnv *env)
{
    ErlNifResourceFlags tried;
    /* What this callback has opened is not there yet: each is a type of its own. */
    ErlNifResourceType *other = enif_open_resource_type(env, NULL, "counted", destroy, ERL_NIF_RT_CREATE, &tried);
    if (!other || other == counted || tried != ERL_NIF_RT_CREATE)
        return 0;
    if (enif_open_resource_type(env, NULL, "absent", destroy, ERL_NIF_RT_TAKEOVER, &tried) || tried != ERL_NIF_RT_TAKEOVER)
        return 0;
    other = enif_open_resource_type(env, NULL, "counted", destroy, ERL_NIF_RT_CREATE | ERL_NIF_RT_TAKEOVER, &tried);
    if (!other || other == counted || tried != ERL_NIF_RT_CREATE)
        return 0;
    if (enif_open_resource_type(env, NULL, "counted", destroy, ERL_NIF_RT_TAKEOVER, &tried))
        return 0;
    return enif_open_resource_type(env, "any", "new", destroy, ERL_NIF_RT_CREATE | ERL_NIF_RT_TAKEOVER, &tried) &&
           tried == ERL_NIF_RT_CREATE;
}

static int options_are_set(ErlNifEnv *env)
{
    return !enif_set_option(env, DELAY_HALT) && enif_set_option(env, DELAY_HALT) && enif_set_option(env, 9, gone) &&
           enif_set_option(env, ON_HALT, NULL) && !enif_set_option(env, ON_HALT, gone) &&
           !enif_set_option(env, ON_UNLOAD_THREAD, gone);
}

static int load(ErlNifEnv *env, void **priv_data, ERL_NIF_TERM info)
{
    static int data;
    if (!enif_get_int(env, info, &data))
        return 17;
    *priv_data = &data;
    counted = enif_open_resource_type(env, NULL, "counted", destroy, ERL_NIF_RT_CREATE, NULL);
    kept_env = enif_alloc_env();
    if (!types_are_opened(env))
        return 19;
    if (!options_are_set(env))
        return 20;
    return counted ? 0 : 18;
}

NIF(add)
{
    int a, b;
    if (!enif_get_int(env, argv[0], &a) || !enif_get_int(env, argv[1], &b))
        return enif_make_badarg(env);
    return enif_make_int(env, a + b);
}

NIF(echo) { return argv[0]; }
NIF(options) { return enif_make_int(env, enif_set_option(env, ON_HALT, gone)); }
NIF(private_data) { return enif_make_int(env, *(int *)enif_priv_data(env)); }

NIF(compare)
{
    return enif_make_tuple(env, 3, enif_make_int(env, enif_compare(argv[0], argv[1])),
                           enif_make_int(env, enif_is_identical(argv[0], argv[1])),
                           enif_make_int(env, enif_hash(ERL_NIF_INTERNAL_HASH, argv[0], 5) ==
                                                  enif_hash(ERL_NIF_INTERNAL_HASH, argv[1], 5)));
}

NIF(phash2) { return enif_make_uint64(env, enif_hash(ERL_NIF_PHASH2, argv[0], 0)); }

extern size_t enif_term_size(ERL_NIF_TERM);
extern int enif_get_atom_cache_index(ErlNifEnv *, ERL_NIF_TERM, unsigned *);
extern unsigned enif_max_atom_cache_index(void);

NIF(size) { return enif_make_uint64(env, enif_term_size(argv[0])); }

NIF(cache_index)
{
    unsigned index;
    if (!enif_get_atom_cache_index(env, argv[0], &index))
        return ATOM("no");
    return index <= enif_max_atom_cache_index() ? enif_make_uint(env, index) : ATOM("wrong");
}

NIF(thread_type) { return enif_make_int(env, enif_thread_type()); }

/* Goes on as the flags say. */
NIF(thread_type_of)
{
    int flags;
    enif_get_int(env, argv[0], &flags);
    return enif_schedule_nif(env, "thread_type", flags, thread_type, 0, argv);
}

NIF(resource_phash2)
{
    void *object = enif_alloc_resource(counted, sizeof(int));
    *(int *)object = 0;
    ERL_NIF_TERM term = enif_make_resource(env, object);
    enif_release_resource(object);
    return enif_make_uint64(env, enif_hash(ERL_NIF_PHASH2, term, 0));
}

NIF(type)
{
    int is = 0;
    is |= enif_is_atom(env, argv[0]) << 0;
    is |= enif_is_binary(env, argv[0]) << 1;
    is |= enif_is_ref(env, argv[0]) << 2;
    is |= enif_is_fun(env, argv[0]) << 3;
    is |= enif_is_pid(env, argv[0]) << 4;
    is |= enif_is_port(env, argv[0]) << 5;
    is |= enif_is_list(env, argv[0]) << 6;
    is |= enif_is_empty_list(env, argv[0]) << 7;
    is |= enif_is_tuple(env, argv[0]) << 8;
    is |= enif_is_map(env, argv[0]) << 9;
    is |= enif_is_number(env, argv[0]) << 10;
    is |= enif_is_exception(env, argv[0]) << 11;
    return enif_make_tuple2(env, enif_make_int(env, enif_term_type(env, argv[0])), enif_make_int(env, is));
}

/* Through an env of its own and back. */
NIF(copy)
{
    ErlNifEnv *other = enif_alloc_env();
    ERL_NIF_TERM there = enif_make_copy(other, argv[0]);
    ERL_NIF_TERM back = enif_make_copy(env, there);
    enif_free_env(other);
    return back;
}

NIF(keep)
{
    enif_clear_env(kept_env);
    kept = enif_make_copy(kept_env, argv[0]);
    return ATOM("ok");
}

NIF(kept_term) { return enif_make_copy(env, kept); }

NIF(integers)
{
    int i;
    unsigned u;
    long l;
    unsigned long ul;
    ERL_NIF_TERM no = ATOM("no");
    return enif_make_tuple(env, 4, enif_get_int(env, argv[0], &i) ? enif_make_int(env, i) : no,
                           enif_get_uint(env, argv[0], &u) ? enif_make_uint(env, u) : no,
                           enif_get_long(env, argv[0], &l) ? enif_make_long(env, l) : no,
                           enif_get_ulong(env, argv[0], &ul) ? enif_make_ulong(env, ul) : no);
}

NIF(not_a_number) { return enif_make_double(env, NAN); }
NIF(infinite) { return enif_make_double(env, INFINITY); }

NIF(long_atom)
{
    char text[400];
    unsigned length;
    enif_get_uint(env, argv[0], &length);
    memset(text, 'a', sizeof text);
    return enif_make_atom_len(env, text, length);
}

NIF(raise_then_return)
{
    ERL_NIF_TERM reason;
    enif_raise_exception(env, argv[0]);
    if (!enif_has_pending_exception(env, &reason) || !enif_is_identical(reason, argv[0]))
        return ATOM("wrong");
    return ATOM("a value");
}

NIF(nothing) { return 0; }

NIF(realloc_inspected)
{
    ErlNifBinary binary;
    if (!enif_inspect_binary(env, argv[0], &binary))
        return enif_make_badarg(env);
    size_t size = binary.size;
    enif_realloc_binary(&binary, size + 1);
    memset(binary.data, 'x', 1);
    binary.data[size] = '!';
    return enif_make_tuple2(env, argv[0], enif_make_binary(env, &binary));
}

NIF(grow)
{
    ErlNifBinary binary;
    unsigned size;
    enif_get_uint(env, argv[0], &size);
    enif_alloc_binary(1, &binary);
    for (unsigned i = 0; i < size; i++) {
        enif_realloc_binary(&binary, i + 1);
        binary.data[i] = (unsigned char)i;
    }
    ERL_NIF_TERM whole = enif_make_binary(env, &binary);
    enif_release_binary(&binary);
    return enif_make_list(env, 2, whole, enif_make_sub_binary(env, whole, 1, size - 2));
}

NIF(iolist)
{
    ErlNifBinary binary;
    if (!enif_inspect_iolist_as_binary(env, argv[0], &binary))
        return enif_make_badarg(env);
    return enif_make_binary(env, &binary);
}

NIF(new_binary)
{
    unsigned size;
    ERL_NIF_TERM term;
    enif_get_uint(env, argv[0], &size);
    memset(enif_make_new_binary(env, size, &term), 'n', size);
    return term;
}

NIF(list)
{
    unsigned length;
    ERL_NIF_TERM reversed;
    if (!enif_get_list_length(env, argv[0], &length) || !enif_make_reverse_list(env, argv[0], &reversed))
        return enif_make_badarg(env);
    return enif_make_list_cell(env, enif_make_uint(env, length), reversed);
}

NIF(map_put)
{
    ERL_NIF_TERM map;
    return enif_make_map_put(env, argv[0], argv[1], argv[2], &map) ? map : enif_make_badarg(env);
}

NIF(map_update)
{
    ERL_NIF_TERM map;
    return enif_make_map_update(env, argv[0], argv[1], argv[2], &map) ? map : enif_make_badarg(env);
}

NIF(map_get)
{
    ERL_NIF_TERM value;
    return enif_get_map_value(env, argv[0], argv[1], &value) ? value : enif_make_badarg(env);
}

NIF(map_remove)
{
    ERL_NIF_TERM map;
    return enif_make_map_remove(env, argv[0], argv[1], &map) ? map : enif_make_badarg(env);
}

NIF(map_from)
{
    ERL_NIF_TERM keys[4] = {argv[0], argv[1]}, values[4] = {ATOM("a"), ATOM("b")}, map;
    return enif_make_map_from_arrays(env, keys, values, 2, &map) ? map : ATOM("no");
}

/* A map of so many pairs, built one by one; then each is looked up, changed, and every third one removed. */
NIF(map_many)
{
    int count;
    ERL_NIF_TERM map = enif_make_new_map(env), value;
    enif_get_int(env, argv[0], &count);
    for (int i = 0; i < count; i++)
        enif_make_map_put(env, map, enif_make_int(env, i), enif_make_int(env, -i), &map);
    for (int i = 0; i < count; i++) {
        int got;
        if (!enif_get_map_value(env, map, enif_make_int(env, i), &value) || !enif_get_int(env, value, &got) || got != -i)
            return ATOM("lost");
        enif_make_map_put(env, map, enif_make_int(env, i), enif_make_int(env, 2 * i), &map);
    }
    if (enif_get_map_value(env, map, enif_make_int(env, count), &value))
        return ATOM("found");
    return map;
}

/* Pairs forwards, then backwards. */
NIF(map_walk)
{
    ErlNifMapIterator iterator;
    ERL_NIF_TERM key, value, list = enif_make_list(env, 0);
    if (!enif_map_iterator_create(env, argv[0], &iterator, ERL_NIF_MAP_ITERATOR_FIRST))
        return enif_make_badarg(env);
    while (enif_map_iterator_get_pair(env, &iterator, &key, &value)) {
        list = enif_make_list_cell(env, enif_make_tuple2(env, key, value), list);
        enif_map_iterator_next(env, &iterator);
    }
    if (!enif_map_iterator_is_tail(env, &iterator))
        return ATOM("no tail");
    enif_map_iterator_destroy(env, &iterator);
    enif_map_iterator_create(env, argv[0], &iterator, ERL_NIF_MAP_ITERATOR_LAST);
    while (enif_map_iterator_get_pair(env, &iterator, &key, &value)) {
        list = enif_make_list_cell(env, enif_make_tuple2(env, key, value), list);
        enif_map_iterator_prev(env, &iterator);
    }
    if (!enif_map_iterator_is_head(env, &iterator))
        return ATOM("no head");
    enif_map_iterator_destroy(env, &iterator);
    return list;
}

NIF(to_binary)
{
    ErlNifBinary binary;
    return enif_term_to_binary(env, argv[0], &binary) ? enif_make_binary(env, &binary) : ATOM("no");
}

NIF(from_binary)
{
    ErlNifBinary binary;
    ERL_NIF_TERM term;
    int safe;
    enif_get_int(env, argv[1], &safe);
    enif_inspect_binary(env, argv[0], &binary);
    size_t read = enif_binary_to_term(env, binary.data, binary.size, &term, safe ? ERL_NIF_BIN2TERM_SAFE : 0);
    if (!read)
        return ATOM("no");
    return enif_make_tuple2(env, enif_make_ulong(env, read), term);
}

/* The second argument brings the names. */
NIF(from_binary_with)
{
    ErlNifBinary binary;
    ERL_NIF_TERM term;
    enif_inspect_binary(env, argv[0], &binary);
    return enif_binary_to_term(env, binary.data, binary.size, &term, 0) == binary.size ? term : ATOM("no");
}

NIF(print)
{
    char text[500];
    int length = enif_snprintf(text, sizeof text, "%T", argv[0]);
    if (length != (int)strlen(text))
        return ATOM("wrong");
    return enif_make_string(env, text, ERL_NIF_LATIN1);
}

NIF(format)
{
    char text[200], few[5];
    enif_snprintf(text, sizeof text, "%d|%5.2f|%-4s|%lu|%zx|%c|%%|%T|%*d|%s", -3, 2.5, "ab", 7ul, (size_t)255, 'q',
                  argv[0], 4, 9, "end");
    int needed = enif_snprintf(few, sizeof few, "%s", "too long");
    if (needed != 8 || strcmp(few, "too "))
        return ATOM("wrong");
    return enif_make_string(env, text, ERL_NIF_LATIN1);
}

NIF(string)
{
    char text[8];
    int length = enif_get_string(env, argv[0], text, sizeof text, ERL_NIF_LATIN1);
    return enif_make_tuple2(env, enif_make_int(env, length),
                            length ? enif_make_string(env, text, ERL_NIF_LATIN1) : ATOM("no"));
}

NIF(atom)
{
    char text[8];
    unsigned length;
    int written = enif_get_atom(env, argv[0], text, sizeof text, ERL_NIF_LATIN1);
    int known = enif_get_atom_length(env, argv[0], &length, ERL_NIF_LATIN1);
    return enif_make_tuple(env, 3, enif_make_int(env, written), known ? enif_make_uint(env, length) : ATOM("no"),
                           written ? enif_make_string(env, text, ERL_NIF_LATIN1) : ATOM("no"));
}

NIF(existing)
{
    ERL_NIF_TERM atom;
    ErlNifBinary name;
    enif_inspect_binary(env, argv[0], &name);
    return enif_make_existing_atom_len(env, (char *)name.data, name.size, &atom, ERL_NIF_LATIN1) ? atom : enif_make_int(env, 0);
}

NIF(self)
{
    ErlNifPid pid;
    return enif_self(env, &pid) ? enif_make_pid(env, &pid) : ATOM("nobody");
}

NIF(local)
{
    ErlNifPid pid;
    ErlNifPort port;
    return enif_make_int(env, enif_get_local_pid(env, argv[0], &pid) + 2 * enif_get_local_port(env, argv[0], &port));
}

NIF(resource_new)
{
    int *object = enif_alloc_resource(counted, sizeof(int));
    enif_get_int(env, argv[0], object);
    ERL_NIF_TERM term = enif_make_resource(env, object);
    enif_release_resource(object);
    return term;
}

NIF(resource_get)
{
    int *object;
    if (!enif_get_resource(env, argv[0], counted, (void **)&object))
        return enif_make_badarg(env);
    return enif_make_tuple2(env, enif_make_int(env, *object), enif_make_ulong(env, enif_sizeof_resource(object)));
}

NIF(resource_retain)
{
    if (!enif_get_resource(env, argv[0], counted, &retained))
        return enif_make_badarg(env);
    enif_keep_resource(retained);
    return ATOM("ok");
}

NIF(resource_drop)
{
    enif_release_resource(retained);
    return ATOM("ok");
}

NIF(resource_twice)
{
    return enif_make_list2(env, argv[0], argv[0]);
}

NIF(resource_binary)
{
    int *object = enif_alloc_resource(counted, 100);
    *object = 1000;
    memset((char *)object + 4, 'r', 96);
    ERL_NIF_TERM binary = enif_make_resource_binary(env, object, (char *)object + 4, 96);
    enif_release_resource(object);
    void *found;
    if (!enif_get_resource(env, binary, counted, &found) || found != object)
        return ATOM("wrong");
    return binary;
}

NIF(resources_destroyed) { return enif_make_int(env, destroyed); }

NIF(count_down)
{
    int left, sum;
    enif_get_int(env, argv[0], &left);
    enif_get_int(env, argv[1], &sum);
    if (left == 0)
        return enif_make_int(env, sum);
    ERL_NIF_TERM next[] = {enif_make_int(env, left - 1), enif_make_int(env, sum + left)};
    return enif_schedule_nif(env, "count_down", left % 2 ? ERL_NIF_DIRTY_JOB_CPU_BOUND : 0, count_down, 2, next);
}

static ErlNifTSDKey key;
static ErlNifMutex *mutex;
static ErlNifCond *condition;
static int turn;

static void *thread(void *argument)
{
    enif_tsd_set(key, argument);
    enif_mutex_lock(mutex);
    turn = 1;
    enif_cond_signal(condition);
    enif_mutex_unlock(mutex);
    if (enif_thread_type() != ERL_NIF_THR_UNDEFINED)
        enif_thread_exit(NULL);
    enif_thread_exit((char *)enif_tsd_get(key) + 1);
    return NULL;
}

NIF(threads)
{
    ErlNifTid tid;
    void *result;
    char place[2];
    ErlNifRWLock *lock = enif_rwlock_create("lock");
    enif_tsd_key_create("key", &key);
    mutex = enif_mutex_create("mutex");
    condition = enif_cond_create("condition");
    turn = 0;
    enif_rwlock_rlock(lock);
    int busy = enif_rwlock_tryrwlock(lock);
    enif_rwlock_runlock(lock);
    if (enif_thread_create("thread", &tid, thread, place, NULL))
        return ATOM("no thread");
    enif_mutex_lock(mutex);
    while (!turn)
        enif_cond_wait(condition, mutex);
    enif_mutex_unlock(mutex);
    int named = !strcmp(enif_mutex_name(mutex), "mutex") && !strcmp(enif_thread_name(tid), "thread");
    int same = enif_equal_tids(enif_thread_self(), enif_thread_self());
    enif_thread_join(tid, &result);
    void *mine = enif_tsd_get(key);
    enif_mutex_destroy(mutex);
    enif_cond_destroy(condition);
    enif_rwlock_destroy(lock);
    enif_tsd_key_destroy(key);
    return busy && named && same && !mine && result == place + 1 ? ATOM("ok") : ATOM("wrong");
}

NIF(times)
{
    ErlNifTime now = enif_monotonic_time(ERL_NIF_NSEC);
    int right = enif_monotonic_time(ERL_NIF_NSEC) >= now && enif_convert_time_unit(1500, ERL_NIF_MSEC, ERL_NIF_SEC) == 1 &&
                enif_convert_time_unit(-1, ERL_NIF_MSEC, ERL_NIF_SEC) == -1 &&
                enif_convert_time_unit(1, 9, 0) == ERL_NIF_TIME_ERROR &&
                enif_time_offset(ERL_NIF_SEC) + enif_monotonic_time(ERL_NIF_SEC) > 1600000000;
    ErlNifSysInfo info;
    enif_system_info(&info, sizeof info);
    return right && info.nif_major_version == 2 ? enif_now_time(env) : ATOM("wrong");
}

/* All but the first `skip` bytes of a list of binaries, through a queue: a binary, the list, a loose vector of it again. */
NIF(queue)
{
    ErlNifIOQueue *queue;
    ErlNifIOVec *vector = NULL, stack, *own = &stack;
    ErlNifBinary binary, out;
    ERL_NIF_TERM tail, head;
    int count;
    unsigned skip;
    size_t size = 0, at = 0;
    if (!enif_get_uint(env, argv[1], &skip) || !enif_inspect_iovec(env, 2, argv[0], &tail, &vector))
        return enif_make_badarg(env);
    queue = enif_ioq_create(ERL_NIF_IOQ_NORMAL);
    enif_alloc_binary(3, &binary);
    memcpy(binary.data, "abc", 3);
    enif_ioq_enq_binary(queue, &binary, 1);
    enif_ioq_enqv(queue, vector, 0);
    if (!enif_inspect_iovec(NULL, 0, argv[0], &tail, &own))
        return ATOM("wrong");
    enif_ioq_enqv(queue, own, 1);
    enif_free_iovec(own);
    if (enif_ioq_deq(queue, enif_ioq_size(queue) + 1, NULL) || !enif_ioq_deq(queue, skip, &size) ||
        size != enif_ioq_size(queue) || !enif_ioq_peek_head(env, queue, NULL, &head))
        return ATOM("wrong");
    SysIOVec *parts = enif_ioq_peek(queue, &count);
    enif_alloc_binary(size, &out);
    for (int i = 0; i < count; i++) {
        memcpy(out.data + at, parts[i].iov_base, parts[i].iov_len);
        at += parts[i].iov_len;
    }
    enif_ioq_destroy(queue);
    return enif_make_tuple(env, 3, head, enif_make_binary(env, &out), tail);
}

NIF(send)
{
    ErlNifPid pid;
    enif_self(env, &pid);
    enif_send(env, &pid, NULL, argv[0]);
    enif_make_ref(env);
    return ATOM("sent");
}

/* As deep as the number says, on the left and on the right. */
NIF(deep)
{
    unsigned depth;
    enif_get_uint(env, argv[0], &depth);
    ERL_NIF_TERM term = enif_make_list(env, 0), other = term;
    for (unsigned i = 0; i < depth; i++) {
        term = enif_make_tuple1(env, enif_make_list1(env, term));
        other = enif_make_tuple1(env, enif_make_list1(env, other));
    }
    char text[10];
    enif_snprintf(text, sizeof text, "%T", term);
    ERL_NIF_TERM copied = enif_make_copy(kept_env, term);
    int right = enif_compare(term, other) == 0 && enif_is_identical(copied, term) && !strcmp(text, "{[{[{[{[{") &&
                enif_hash(ERL_NIF_INTERNAL_HASH, term, 0) == enif_hash(ERL_NIF_INTERNAL_HASH, copied, 0);
    enif_clear_env(kept_env);
    return right ? ATOM("ok") : ATOM("wrong");
}

static ErlNifFunc functions[] = {
    {"add", 2, add}, {"echo", 1, echo}, {"private_data", 0, private_data}, {"compare", 2, compare}, {"type", 1, type}, {"phash2", 1, phash2},
    {"copy", 1, copy}, {"keep", 1, keep}, {"kept_term", 0, kept_term}, {"integers", 1, integers},
    {"not_a_number", 0, not_a_number}, {"infinite", 0, infinite}, {"long_atom", 1, long_atom},
    {"raise_then_return", 1, raise_then_return}, {"nothing", 0, nothing}, {"realloc_inspected", 1, realloc_inspected},
    {"grow", 1, grow}, {"iolist", 1, iolist}, {"new_binary", 1, new_binary}, {"list", 1, list}, {"map_put", 3, map_put},
    {"map_update", 3, map_update}, {"map_get", 2, map_get}, {"map_remove", 2, map_remove}, {"map_from", 2, map_from},
    {"map_many", 1, map_many}, {"map_walk", 1, map_walk}, {"to_binary", 1, to_binary}, {"from_binary", 2, from_binary}, {"from_binary_with", 2, from_binary_with},
    {"print", 1, print}, {"format", 1, format}, {"string", 1, string}, {"atom", 1, atom}, {"existing", 1, existing},
    {"self", 0, self}, {"local", 1, local}, {"resource_new", 1, resource_new}, {"resource_get", 1, resource_get},
    {"resource_retain", 1, resource_retain}, {"resource_drop", 0, resource_drop}, {"resource_twice", 1, resource_twice},
    {"resource_binary", 0, resource_binary}, {"resources_destroyed", 0, resources_destroyed},
    {"count_down", 2, count_down, ERL_NIF_DIRTY_JOB_IO_BOUND}, {"threads", 0, threads}, {"times", 0, times},
    {"queue", 2, queue}, {"send", 1, send}, {"deep", 1, deep},
    {"size", 1, size}, {"cache_index", 1, cache_index}, {"thread_type", 0, thread_type},
    {"dirty_cpu", 0, thread_type, ERL_NIF_DIRTY_JOB_CPU_BOUND}, {"dirty_io", 0, thread_type, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"thread_type_of", 1, thread_type_of}, {"resource_phash2", 0, resource_phash2}, {"options", 0, options},
};

ERL_NIF_INIT(terms, functions, load, NULL, NULL, NULL)
